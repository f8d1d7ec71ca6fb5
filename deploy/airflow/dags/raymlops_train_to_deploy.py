"""Train, register, ask the gate, deploy.

airflow dags trigger raymlops_train_to_deploy --conf '{"source": "--config config.yaml --env prod"}'
"""

from airflow.sdk import DAG
from raymlops_airflow.delivery import PARAMS, delivery

with DAG("raymlops_train_to_deploy", schedule=None, params=PARAMS):
    delivery()
