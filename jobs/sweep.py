"""Search for a better configuration.

ray job submit --working-dir . -- python jobs/sweep.py --config configs/flights.yaml sweep.num_trials=8
One that was stopped goes on: ray job submit --working-dir . -- python jobs/sweep.py --resume SWEEP_ID
Expect: the best trial and a YAML file that train takes; about a minute on 2 cores for flights.
"""

from raymlops.cli.job import run_job
from raymlops.lifecycle.sweeps.run import run_sweep


def main(args):
    return run_sweep(
        args.config,
        resume=args.resume,
        extend=args.extend,
        fork=args.fork,
        overrides=args.overrides,
        env=args.env,
    )


if __name__ == "__main__":
    run_job("sweep", main)
