"""Make a registered version live.

ray job submit --working-dir . -- python jobs/deploy.py --config configs/flights.yaml --version @challenger
Expect: the version answers at /models/NAME/predict within seconds; the previous one answers until then.
The same, in any project: ray job submit --working-dir . -- raymlops deploy ...
"""

from raymlops.cli.job import run_job

if __name__ == "__main__":
    run_job("deploy")
