"""Sweep, train the winner, register, gate and deploy it.

ray job submit --working-dir . -- python jobs/pipeline.py --config configs/flights.yaml
Expect: a live endpoint at /models/flights; about two minutes on 2 cores.
"""

from raymlops.cli.job import run_job
from raymlops.lifecycle.pipeline import pipeline
from raymlops.lifecycle.progress import Progress


def main(args):
    with Progress() as show:
        return pipeline(args.config, overrides=args.overrides, env=args.env, on_event=show, on_step=show.line)


if __name__ == "__main__":
    run_job("pipeline", main)
