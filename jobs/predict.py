"""Predict Parquet files with a registered version, without an endpoint.

ray job submit --working-dir . -- python jobs/predict.py --config configs/flights.yaml --batch IN --out OUT
Expect: a folder of Parquet files whose rows are in the order of the input.
The same, in any project: ray job submit --working-dir . -- raymlops predict ...
"""

from raymlops.cli.job import run_job

if __name__ == "__main__":
    run_job("predict")
