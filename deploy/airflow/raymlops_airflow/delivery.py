"""From training to deployment as tasks of a DAG: each verb a job of the cluster, each id handed on."""

from __future__ import annotations

from airflow.sdk import Param

from raymlops_airflow.operators import RayJobOperator

PARAMS = {
    "source": Param("--config config.yaml", type="string", description="--config, --env and key.path=value"),
    "working_dir": Param(
        "", type="string", description="The project, a URI that Ray takes; empty: in the nodes' image"
    ),
    "deploy": Param("", type="string", description="Options of deploy, such as --steps 10,50,100 --bake 10m --wait"),
}


def verb(task_id: str, command: str, **kwargs: object) -> RayJobOperator:
    """Return the task of a verb, for a DAG with ``PARAMS``."""
    return RayJobOperator(
        task_id=task_id, command=f"raymlops {command}", working_dir="{{ params.working_dir }}", **kwargs
    )


def delivery() -> RayJobOperator:
    """Train, register, ask the gate, deploy, also in a task group; return the first of these tasks."""
    source = "{{ params.source }}"
    train = verb("train", f"train {source}")
    register = verb("register", f"models register {_answer(train, 'run_id')} {source}")
    version, digest = _answer(register, "version"), _answer(register, "bundle", "digest")
    gate = verb("gate", f"models gate {source} --version {version}")
    model = f"--version {version} --digest {digest}"
    train >> register >> gate >> verb("deploy", f"deploy {source} {model} --yes {{{{ params.deploy }}}}")
    return train


def _answer(task: RayJobOperator, *keys: str) -> str:
    """Return the template of a part of what a task answered."""
    return f"{{{{ ti.xcom_pull(task_ids='{task.task_id}'){''.join(f'[{key!r}]' for key in keys)} }}}}"
