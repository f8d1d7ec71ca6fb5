"""Sweep, train the winner, register, gate and deploy it.

ray job submit --working-dir . -- python jobs/pipeline.py --config configs/flights.yaml
Expect: a live endpoint at /models/flights; about two minutes on 2 cores.
"""

from raymlops.cli.job import log, run_job
from raymlops.lifecycle.pipeline import pipeline
from raymlops.tuning.progress import display


def main(args):
    with display() as on_event:
        return pipeline(args.config, overrides=args.overrides, env=args.env, on_event=on_event, on_step=log)


if __name__ == "__main__":
    run_job("pipeline", main)
