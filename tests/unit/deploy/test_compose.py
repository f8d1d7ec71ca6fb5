"""The compose file: health, secrets, ports and files of each service. No container is started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest
import typer
from postgres import NEEDS_POSTGRES, postgres
from ruamel.yaml import YAML

from raymlops.cli.app import app
from raymlops.config.load import load_data
from raymlops.version import __version__

FOLDER = Path(__file__).parents[3] / "deploy/compose"
FILE = (FOLDER / "compose.yaml").read_text()
COMPOSE = YAML(typ="safe").load(FILE)
SERVICES = COMPOSE["services"]
OURS = f"${{RAYMLOPS_IMAGE:-raymlops:{__version__}}}"
VARIABLES = re.findall(r"^(\w+)=(.*)$", (FOLDER / "env.example").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_and_locked_down(name):
    """A health check of its own or the image's, a release by its number, no privileges that it can gain."""
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "network_mode", "pid"} & set(service)
    assert service["image"] == OURS or re.search(r":v?\d+\.\d+[\w.-]*$", service["image"])
    assert service["image"] == OURS or "test" in service["healthcheck"]
    assert ("healthcheck" in service) is (name not in {"head", "worker"})


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "ports" in service])
def test_ports_are_published_on_loopback_only(name):
    """Neither MLflow nor Prometheus asks who is there."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_secrets_come_from_the_file_beside_it():
    """No value is in the compose file or the example; one that is missing is named."""
    assert {value for _, value in VARIABLES} == {""}
    used = set(re.findall(r"\$\{(\w+)", FILE)) - {"RAYMLOPS_IMAGE"}
    assert used == {name for name, _ in VARIABLES}
    assert {found for found in re.findall(r"\$\{(\w+)[^:}]*\}", FILE) if found != "RAYMLOPS_IMAGE"} == set()


def test_the_state_is_known_to_the_head_alone():
    """Its credentials are in a file there, and in no environment but that of the database."""
    assert [name for name, service in SERVICES.items() if "configs" in service] == ["head"]
    knows = [name for name, service in SERVICES.items() if "STATE_PASSWORD" in str(service)]
    assert knows == ["postgres"]
    assert "--num-cpus=0" in str(SERVICES["head"]["command"])


def test_what_is_mounted_is_there():
    """Docker makes a folder in place of a file that is missing; the databases' script runs as a program."""
    mounted = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if isinstance(volume, str) and volume.startswith(".")
    ]
    assert len(mounted) == 6
    assert [path for path in mounted if not (FOLDER / path).is_file()] == []
    assert (FOLDER / "databases.sh").stat().st_mode & stat.S_IXUSR


def test_its_commands_are_understood():
    """Those of the nodes and of the controller parse."""
    for service in (SERVICES["head"], SERVICES["worker"]):
        script = service["command"][-1].replace("\\\n", " ")
        for line in filter(None, (line.strip(" &") for line in script.splitlines())):
            words = shlex.split(line)
            verb, *rest = words[words.index("raymlops") + 1 :]
            context = typer.main.get_command(app).commands[verb].make_context(verb, rest)
            assert context.params is not None


def test_the_projects_overlay_names_what_nodes_know():
    """Its variables are those of the nodes, its state is where the head has it, its port is published."""
    spec = load_data(
        {
            "project": {"name": "line"},
            "recipe": {"import": "line:Line"},
            **YAML(typ="safe").load(FOLDER / "project.yaml"),
        }
    ).spec
    environment = SERVICES["head"]["environment"]
    assert {spec.tracking.uri.env, spec.storage.optuna.env} <= set(environment)
    target = SERVICES["head"]["configs"][0]["target"]
    assert spec.storage.state.file.replace("~", "/home/ray") == target == environment["RAYMLOPS_STATE_FILE"]
    assert f"127.0.0.1:{spec.serve.port}:{spec.serve.port}" in SERVICES["head"]["ports"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not on the PATH")
def test_compose_accepts_it(tmp_path):
    """With every variable; without one of them it says which."""
    file = tmp_path / "env"
    file.write_text("".join(f"{name}=abc1\n" for name, _ in VARIABLES))
    command = ["docker-compose", "--env-file", file, "-f", FOLDER / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file.write_text(file.read_text().replace("STATE_PASSWORD=abc1\n", ""))
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "STATE_PASSWORD is missing a value: set it in ~/.raymlops/compose.env" in refused.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_promtool_accepts_its_prometheus(tmp_path):
    """With the alert rules beside it, as they are mounted."""
    for file in (FOLDER / "prometheus.yml", FOLDER.parents[1] / "configs/observability/alerts.yaml"):
        shutil.copy(file, tmp_path)
    command = ["promtool", "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 rule files found" in done.stdout


@pytest.mark.soak
@NEEDS_POSTGRES
@pytest.mark.parametrize("rights", ["SUPERUSER", "CREATEROLE CREATEDB"])
def test_each_database_is_its_owners(rights, tmp_path):
    """A role makes tables in its own database, and does not enter another one; also where a cloud runs the server."""
    with postgres(tmp_path) as url:
        host, port = url.rpartition("/")[0].rpartition("@")[2].split(":")
        for user, change in (
            ("raymlops", "CREATE ROLE owner SUPERUSER LOGIN"),
            ("owner", "ALTER ROLE raymlops RENAME TO first"),  # nobody renames the role that asks
            ("owner", f"CREATE ROLE postgres {rights} LOGIN"),
        ):
            with psycopg.connect(host=host, port=port, user=user, dbname="postgres", autocommit=True) as server:
                server.execute(change)
        passwords = {name: "b'1" for name, _ in VARIABLES if name.endswith("PASSWORD")}
        environment = {**os.environ, **passwords, "PGHOST": host, "PGPORT": port, "POSTGRES_USER": "postgres"}
        subprocess.run([FOLDER / "databases.sh"], env=environment, check=True, capture_output=True)
        for role, other in (("mlflow", "optuna"), ("optuna", "raymlops"), ("raymlops", "mlflow")):
            with psycopg.connect(host=host, port=port, user=role, dbname=role) as own:
                own.execute("CREATE TABLE own (x INT)")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(host=host, port=port, user=role, dbname=other)
        ready = SERVICES["postgres"]["healthcheck"]["test"][1:]
        assert subprocess.run([*ready, f"--port={port}"], check=False).returncode == 0
