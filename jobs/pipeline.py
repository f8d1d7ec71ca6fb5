"""Sweep, train the winner, register, gate and deploy it.

ray job submit --working-dir . -- python jobs/pipeline.py --config configs/flights.yaml
Expect: a live endpoint at /models/flights; about two minutes on 2 cores.
The same, in any project: ray job submit --working-dir . -- raymlops pipeline ...
"""

from raymlops.cli.job import run_job

if __name__ == "__main__":
    run_job("pipeline")
