"""Train to deploy on Kubeflow Pipelines: stages of ``ci/pipeline.sh`` as components.

``python kubeflow/pipeline.py`` writes ``kubeflow/pipeline.yaml`` anew. The image has the project in its working
directory, and kfp's executor: ``pip install --no-deps kfp==2.17.3``.
"""

from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl, kubernetes

IMAGE = "registry.example.com/my-model:1"
SECRET = "raymlops-cluster"  # noqa: S105 - its name
VARIABLES = {name: name for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(delivery: str, config: str, overlay: str) -> NamedTuple(
    "Trained", [("version", str), ("run_id", str), ("digest", str)]
):
    """Train, register and ask the gate."""
    import json
    import os
    import subprocess
    import tempfile
    from pathlib import Path

    out = tempfile.mkdtemp()
    variables = {**os.environ, "DELIVERY": delivery, "ENV_NAME": overlay, "OUT": out}
    subprocess.run(["bash", "ci/pipeline.sh", "train", config], env=variables, check=True)
    version = json.loads(Path(out, "register.json").read_text())
    return str(version["version"]), version["run_id"], version["bundle"]["digest"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(delivery: str, config: str, overlay: str, version: str, digest: str, options: str) -> None:
    """Deploy a version that passed the gate."""
    import os
    import subprocess
    import tempfile

    model = f"{version}@{digest}"
    variables = {"DELIVERY": delivery, "ENV_NAME": overlay, "MODEL_VERSION": model, "DEPLOY_OPTIONS": options}
    variables = {**os.environ, **variables, "OUT": tempfile.mkdtemp()}
    subprocess.run(["bash", "ci/pipeline.sh", "deploy", config], env=variables, check=True)


@dsl.pipeline(name="raymlops-train-to-deploy")
def train_to_deploy(delivery: str, config: str = "config.yaml", overlay: str = "", deploy_options: str = "") -> str:
    """Deliver a version. ``delivery`` names it, such as by its commit: its jobs are submitted once."""
    trained = train(delivery=delivery, config=config, overlay=overlay)
    ids = {"version": trained.outputs["version"], "digest": trained.outputs["digest"]}
    live = deploy(delivery=delivery, config=config, overlay=overlay, options=deploy_options, **ids)
    for stage in (trained, live):
        # What ran is found by the cluster itself, which also knows what failed or was stopped.
        stage.set_caching_options(enable_caching=False)
        kubernetes.use_secret_as_env(stage, secret_name=SECRET, secret_key_to_env=VARIABLES)
    return trained.outputs["version"]


if __name__ == "__main__":
    compiler.Compiler().compile(train_to_deploy, str(Path(__file__).with_suffix(".yaml")))
