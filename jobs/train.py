"""Train one configuration, or resume a run.

ray job submit --working-dir . -- python jobs/train.py --config configs/flights.yaml train.num_workers=2
ray job submit --working-dir . -- python jobs/train.py --resume RUN_ID
Expect: a finished MLflow run; about a minute on 2 cores for flights.
The same, in any project: ray job submit --working-dir . -- raymlops train ...
"""

from raymlops.cli.job import run_job

if __name__ == "__main__":
    run_job("train")
