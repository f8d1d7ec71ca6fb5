"""The image and the compose file, built and run: by the commands of docs/platforms.md, as nodes, as services.

Figures are printed: run with ``-s``. In the place of containers are machines of the test's own (``machines``), which
reach no other network; in that of Docker the commands, variables and health checks of the compose file run as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time

import pytest
from fake_s3 import fake_s3
from images import NEEDS_BUILDAH, ROOT, Images
from machines import NEEDS_MACHINES, OUTSIDE, SUBNET, machines
from packaging.requirements import Requirement
from postgres import NEEDS_POSTGRES, postgres
from ruamel.yaml import YAML

pytestmark = [pytest.mark.soak, NEEDS_MACHINES, NEEDS_BUILDAH]

IMAGE = "localhost/raymlops:1"
HEAD = f"{SUBNET}.1"
TOKEN = {"RAY_AUTH_TOKEN": "t" * 64, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    found = Images(tmp_path_factory.mktemp("images"))
    found.make_base()
    found.make_context()
    began = time.monotonic()
    found.build("--tag", IMAGE)
    print(f"\nbuilt in {time.monotonic() - began:.0f} s")
    yield found
    found.remove()


@pytest.fixture
def nodes(tmp_path_factory):
    """Two machines; what was started there ends with them."""
    with machines(tmp_path_factory.mktemp("machines"), number=2) as found:
        yield found
    while started:
        started.popitem()[0].wait(20)


started = {}
"""Each process with the file of what it prints."""


def start(images, machine, command, variables=None, *, hosts=None, mounts=None):
    """Start a command in a container of its own on a machine."""
    hosts, mounts = {"head": HEAD, **(hosts or {})}, mounts or {}
    # gRPC's own resolver asks a DNS server, which containers have and these machines have not.
    variables = {"GRPC_DNS_RESOLVER": "native", **(variables or {})}
    log = images.folder / f"{len(started)}.log"
    process = images.run(IMAGE, command, log=log, machine=machine, variables=variables, hosts=hosts, mounts=mounts)
    started[process] = log
    return process


def said(process, *, timeout_s=900):
    """Return what a program printed that ended well."""
    code = process.wait(timeout_s)
    text = started[process].read_text()
    assert code == 0, text
    return text


def healthy(check, process, *, timeout_s=240):
    """Ask as Docker does, until the answer is yes."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = check()
        if asked.wait(60) == 0:
            return
        assert process.poll() is None, started[process].read_text()
        assert time.monotonic() < deadline, started[asked].read_text() + started[process].read_text()


def blocks(heading):
    """Return the shell blocks of a section of the document."""
    section = (ROOT / "docs/platforms.md").read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    return [block.replace("\\\n", " ") for block in re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]


def test_it_is_small_and_holds_no_tools(images, nodes):
    """At most six layers on its base; without a compiler, caches, or anything that the user could change."""
    image, base = images.inspect(IMAGE), images.inspect(images.base)
    layers = len(image["OCIv1"]["rootfs"]["diff_ids"]) - len(base["OCIv1"]["rootfs"]["diff_ids"])
    config = image["Docker"]["config"]
    assert config["User"] == "1000:1000"
    assert config["Healthcheck"]["Test"] == ["CMD", "raymlops", "doctor", "--node"]
    assert config["Labels"]["org.opencontainers.image.title"] == "raymlops"
    sizes = {one["names"][0]: one["size"] for one in json.loads(images.buildah("images", "--json")) if one.get("names")}
    print(f"\n{layers} layers, {sizes[IMAGE]}, of which the base {sizes[images.base]}")
    assert layers <= 6
    script = """
    ! command -v gcc cc c++ g++ make ld as || exit 1
    test -z "$(find / -xdev -path '*/.cache/*' -o -path '*/archives/*.deb' -o -path '/wheel*' 2>/dev/null)" || exit 2
    ! touch /opt/raymlops/x 2>/dev/null || exit 3
    id -u
    "$(python -c 'from raymlops.cluster.endpoint.haproxy import find_binary; print(find_binary())')" -v
    """
    text = said(start(images, nodes[0], ["bash", "-c", script]))
    assert text.startswith("1000\n")
    assert "HAProxy version 2.8" in text


def test_the_inventory_lists_what_is_installed(images, nodes):
    """Every package of the lock and no other, by the command of the documents, as pip inside lists them."""
    out = images.folder / "inventory"
    images.build("--target", "sbom", "--output", str(out))
    listed = json.loads((out / "raymlops.cdx.json").read_text())
    found = {(re.sub(r"[-_.]+", "-", one["name"]).lower(), one["version"]) for one in listed["components"]}
    lock = "".join((ROOT / "deploy/image" / name).read_text() for name in ("requirements.txt", "torch-cpu.txt"))
    lines = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"[a-z0-9].*==", line)]
    here = {"python_full_version": "3.11.0", "python_version": "3.11"}
    locked = {(one.name, str(one.specifier)[2:]) for one in lines if one.marker is None or one.marker.evaluate(here)}
    listing = ["pip", "list", "--format", "freeze", "--exclude", "pip", "--exclude", "raymlops"]
    frozen = {tuple(line.split("==")) for line in said(start(images, nodes[0], listing)).splitlines()}
    assert {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in frozen} == locked
    print(f"\n{listed['bomFormat']} {listed['specVersion']}: {len(found)} packages")
    assert locked <= found


def test_from_an_empty_folder_to_a_served_answer(images, nodes):
    """By the lines of the documents, typed in a container that reaches no network."""
    lines = blocks("Image")[0].splitlines()
    first = next(number for number, line in enumerate(lines) if " bash " in line) + 1
    script = "\n".join(["set -e", *lines[first:], "raymlops doctor --node", "raymlops doctor", "raymlops down"])
    began = time.monotonic()
    text = said(start(images, nodes[0], ["bash", "-c", script]))
    print(f"\n{time.monotonic() - began:.0f} s\n{text}")
    answers = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(answers) == 3
    assert "FAIL" not in text


def test_it_is_a_head_a_worker_and_who_submits(images, nodes):
    """By the words of the documents; both nodes are well by the health check, and nobody enters without the token."""
    words = [line.partition("raymlops:0.2.0")[2] for line in blocks("Image")[1].splitlines() if "docker run" in line]
    head, worker, submit = map(shlex.split, words)
    where = {**TOKEN, "RAY_API_SERVER_ADDRESS": "http://head:8265"}
    for machine, command in zip(nodes, (head, worker), strict=True):
        node = start(images, machine, command, TOKEN)
        healthy(lambda machine=machine: start(images, machine, ["raymlops", "doctor", "--node"]), node)
    job = [*submit[: submit.index("--") + 1], "ray", "status"]
    text = said(start(images, nodes[1], job, where))
    assert len(re.findall(r"^ +1 node_", text, flags=re.MULTILINE)) == 2, text
    asked = start(images, nodes[1], ["raymlops", "doctor"], where)
    asked.wait(60)
    assert "rejects a request without a token" in started[asked].read_text()


def composed(values):
    """Return the compose file with values in the place of its variables, as Docker fills them in."""
    text = (ROOT / "deploy/compose/compose.yaml").read_text()
    text = re.sub(r"\$\{(\w+):[?-][^}]*\}", lambda found: values[found[1]], text)
    return YAML(typ="safe").load(text)


@NEEDS_POSTGRES
def test_the_services_of_the_compose_file_serve_a_model(images, nodes, tmp_path):
    """From a new project to an answer, by the lines of the documents; the object store is a stand-in."""
    began = time.monotonic()
    (tmp_path / "postgres").mkdir()
    with postgres(tmp_path / "postgres", address=OUTSIDE) as url, fake_s3(OUTSIDE, 8333) as store:
        port = url.rpartition(":")[2].partition("/")[0]
        values = dict.fromkeys(("RAY_AUTH_TOKEN", "GRAFANA_PASSWORD", "OBJECTS_PASSWORD"), "abc1")
        passwords = {f"{name}_PASSWORD": f"{name}1" for name in ("MLFLOW", "OPTUNA", "STATE", "POSTGRES")}
        values |= {**passwords, "PROJECT": "x", "RAYMLOPS_IMAGE": "x"}
        file = composed(values)
        make_databases(port, passwords)
        services, hosts = file["services"], {"postgres": OUTSIDE, "objects": OUTSIDE, "mlflow": HEAD}
        state = tmp_path / "state_url"
        state.write_text(file["configs"]["state_url"]["content"].replace("@postgres/", f"@postgres:{port}/"))
        state.chmod(0o400)
        os.chown(state, 1000, 1000)
        project = make_project(tmp_path)

        def run(name, machine, command=None):
            """Start a service's command, or another one beside it, as Docker would."""
            service = services[name]
            given = service.get("environment") or {}
            variables = {key: str(value).replace("@postgres/", f"@postgres:{port}/") for key, value in given.items()}
            mounts = {project: "/home/ray/project", state: "/home/ray/state_url"} if name == "head" else {}
            words = command or [word.replace("$$", "$") for word in service["command"]]
            return start(images, machine, words, variables, hosts=hosts, mounts=mounts)

        said(run("bucket", nodes[0]))
        assert store.requests == ["HEAD raymlops"]  # the stand-in has every bucket
        mlflow = run("mlflow", nodes[0])
        healthy(lambda: run("mlflow", nodes[0], services["mlflow"]["healthcheck"]["test"][1:]), mlflow)
        for name, machine in (("head", nodes[0]), ("worker", nodes[1])):
            node = run(name, machine)
            healthy(lambda name=name, machine=machine: run(name, machine, ["raymlops", "doctor", "--node"]), node)
        print(f"\nhealthy in {time.monotonic() - began:.0f} s")
        (block,) = blocks("One machine, with everything: compose")
        for line in filter(None, (line.partition("exec head ")[2] for line in block.splitlines())):
            text = said(run("head", nodes[0], ["bash", "-c", line]))
            print(text)
        assert len([line for line in text.splitlines() if line.startswith("{")]) == 2000
        kept = {name.split("/")[1] for name in store.objects}
        print(f"{time.monotonic() - began:.0f} s in all; in the store: {', '.join(sorted(kept))}")
        assert "bundles" in kept


def make_databases(port, passwords):
    """Run the script that Postgres' image runs, by the user that this server has."""
    server = ["psql", "--quiet", "--host", OUTSIDE, "--port", port, "--dbname", "postgres"]
    subprocess.run([*server, "--username", "raymlops", "-c", "CREATE ROLE postgres SUPERUSER LOGIN"], check=True)
    subprocess.run([*server, "--username", "postgres", "-c", "ALTER ROLE raymlops RENAME TO first"], check=True)
    environment = {**os.environ, **passwords, "PGHOST": OUTSIDE, "PGPORT": port, "POSTGRES_USER": "postgres"}
    subprocess.run([ROOT / "deploy/compose/databases.sh"], env=environment, check=True, capture_output=True)


def make_project(folder):
    """Return a new project with the overlay, where the documents' lines expect it."""
    from raymlops.cli.scaffold import scaffold

    with contextlib.chdir(folder):
        scaffold("my-model")
    project = folder / "my-model"
    (project / "env").mkdir()
    shutil.copy(ROOT / "deploy/compose/project.yaml", project / "env/compose.yaml")
    return project
