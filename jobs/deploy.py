"""Make a registered version live.

ray job submit --working-dir . -- python jobs/deploy.py --config configs/flights.yaml --version @challenger
Expect: the version answers at /models/NAME/predict; a few seconds, what was live before answers meanwhile.
"""

from raymlops.cli.job import run_job
from raymlops.lifecycle.deploy import deploy


def main(args):
    return deploy(args.config, args.version, overrides=args.overrides, env=args.env)


if __name__ == "__main__":
    run_job("deploy", main)
