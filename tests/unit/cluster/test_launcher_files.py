from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from raymlops.cluster.grace_period import STOP_WAIT_S, VARIABLE

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "cluster.yaml", *(ROOT / "configs" / "cluster" / f"{name}.yaml" for name in ("gcp", "azure", "local"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_accepts_the_file(path):
    """Ray's own preparation and schema check, which need no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(YAML(typ="safe", pure=True).load(path.read_text()))
    validate_config(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_node_starts_with_the_token_and_the_grace(path):
    """A head that is started without RAY_AUTH_MODE runs anyone's code when its token file is missing."""
    config = YAML(typ="safe", pure=True).load(path.read_text())
    commands = [command for key in ("head_start_ray_commands", "worker_start_ray_commands") for command in config[key]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    # Read on the node where a job's driver runs, which may be any. An assignment before `ray start` reaches it alone.
    assert all(f" {VARIABLE}={STOP_WAIT_S} " in command.partition("ray start")[0] for command in starts)


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.stem)
def test_the_head_does_no_work(path):
    """Its CPUs are not offered, and it never becomes a worker."""
    config = YAML(typ="safe", pure=True).load(path.read_text())
    head = config["available_node_types"][config["head_node_type"]]
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)


def test_the_image_has_the_ray_that_we_pin():
    """Driver and cluster must run the same Ray."""
    import ray

    for path in FILES[:3]:
        config = YAML(typ="safe", pure=True).load(path.read_text())
        assert f":{ray.__version__}-py311" in config["docker"]["image"]
