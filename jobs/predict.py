"""Predict Parquet files with a registered version, without an endpoint.

ray job submit --working-dir . -- python jobs/predict.py --config configs/flights.yaml --batch IN --out OUT
Expect: a folder of Parquet files whose rows are in the order of the input, once all are done.
"""

from raymlops.cli.job import run_job
from raymlops.lifecycle.batch.predict import batch_predict


def main(args):
    return batch_predict(
        args.config, args.batch, args.out, version=args.version, overrides=args.overrides, env=args.env
    )


if __name__ == "__main__":
    run_job("predict", main)
