"""Search for a better configuration, or resume a sweep.

ray job submit --working-dir . -- python jobs/sweep.py --config configs/flights.yaml sweep.num_trials=8
ray job submit --working-dir . -- python jobs/sweep.py --resume SWEEP_ID
Expect: the best trial and a YAML file that train takes; about a minute on 2 cores for flights.
The same, in any project: ray job submit --working-dir . -- raymlops sweep ...
"""

from raymlops.cli.job import run_job

if __name__ == "__main__":
    run_job("sweep")
