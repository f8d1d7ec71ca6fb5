"""The loop, for who wants Airflow to decide when: ask for drift and quality, and deliver again where one is an alarm.

A model's own loop does that, and more, with ``retrain.autonomy: act``; beside this one it is left at ``observe``.
airflow dags trigger raymlops_loop_by_hand --conf '{"source": "--config config.yaml", "deploy": "--bake 10m --wait"}'
"""

from airflow.sdk import DAG, task
from raymlops_airflow.delivery import PARAMS, delivery, verb

ALARM = 6


@task.short_circuit
def alarm(*found: dict) -> bool:
    """Return whether one of the verbs ended with the exit code for it; without, nothing is trained."""
    return any(one.get("exit_code") == ALARM for one in found)


with DAG("raymlops_loop_by_hand", schedule="17 3 * * *", catchup=False, max_active_runs=1, params=PARAMS):
    drift = verb("drift", "drift {{ params.source }} --fail-on-drift", answers=(0, ALARM))
    quality = verb("quality", "quality {{ params.source }} --fail-on-worse", answers=(0, ALARM))
    alarm(drift.output, quality.output) >> delivery()
