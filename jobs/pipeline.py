"""Sweep, train the winner, register, gate and deploy it.

ray job submit --working-dir . -- python jobs/pipeline.py --config configs/flights.yaml
Expect: a live endpoint at /models/flights; about two minutes on 2 cores.
"""

from raymlops.cli.job import run_job
from raymlops.cli.output import note
from raymlops.lifecycle.pipeline import pipeline


def main(args):
    return pipeline(args.config, overrides=args.overrides, env=args.env, on_step=note)


if __name__ == "__main__":
    run_job("pipeline", main)
