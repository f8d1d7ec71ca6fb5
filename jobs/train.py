"""Train one configuration, or go on with a run that was stopped.

ray job submit --working-dir . -- python jobs/train.py --config configs/flights.yaml train.num_workers=2
ray job submit --working-dir . -- python jobs/train.py --resume RUN_ID
Expect: a finished MLflow run; about a minute on 2 cores for flights.
"""

from raymlops.cli.job import run_job
from raymlops.lifecycle.train import train


def main(args):
    return train(args.config, resume=args.resume, overrides=args.overrides, env=args.env)


if __name__ == "__main__":
    run_job("train", main)
