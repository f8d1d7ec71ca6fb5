"""``raymlops doctor``: diagnose this machine, and say how to fix it.

Owns the verdicts, each a pure function of gathered facts (see ``facts``). Changes nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from raymlops.cluster import auth, upfile
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.cluster.doctor_facts import Facts, ServiceFacts, TokenFacts

_GIB = 2**30
LEAST_DISK_GIB = 5.0
"""Ray warns at 95% of a disk and refuses objects; a sweep of the demo writes well under one."""
LEAST_MEMORY_GIB = 2.0
"""A head with its dashboard takes about one, each worker with torch half of one."""
LEAST_SHM_GIB = 0.5
"""Docker's default of 64 MB makes Ray fall back to files in /tmp, many times slower."""


@dataclass(frozen=True)
class Finding(Record):
    """One thing that was looked at. ``fix`` says what to do; empty when all is well."""

    name: str
    ok: bool
    message: str
    fix: str = ""


def diagnose(
    *,
    root: Path | str | None = None,
    mlflow_uri: str | None = None,
    dashboard_url: str | None = None,
    ports: tuple[int, ...] = (8000, 8265, 5000, 6379),
) -> list[Finding]:
    """Look at versions, ports, token, disk, memory, storage, MLflow and Ray; never raises for what is wrong there.

    MLflow and Ray default to what the environment names, then to what ``raymlops up`` started under ``root``.
    """
    from raymlops.cluster.doctor_facts import gather

    folder = Path(root).expanduser().absolute() if root is not None else upfile.home()
    named = os.environ.get("RAY_API_SERVER_ADDRESS")
    facts = gather(
        root=folder,
        ports=ports,
        mlflow_uri=mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"),
        dashboard_url=dashboard_url or named,
    )
    return judge(facts)


def judge(facts: Facts) -> list[Finding]:
    """Return a finding for everything that was looked at."""
    return [
        python(facts),
        *packages(facts),
        *token(facts),
        disk(facts),
        memory(facts),
        shared_memory(facts),
        storage(facts),
        up_record(facts),
        *ports_free(facts),
        *([ray(facts.ray, facts.installed.get("ray"))] if facts.ray else []),
        *([guarded(facts.ray)] if facts.ray and facts.ray.status_without_token is not None else []),
        *([mlflow(facts.mlflow, facts.installed.get("mlflow"))] if facts.mlflow else []),
    ]


def python(facts: Facts) -> Finding:
    """Judge the interpreter."""
    got = ".".join(map(str, facts.python[:2]))
    ok = facts.python >= (3, 11, 0)
    return Finding("python", ok, f"Python {got}", "" if ok else "install Python 3.11 or newer and make a new venv")


def packages(facts: Facts) -> Iterator[Finding]:
    """Judge each installed package against what our own metadata asks for."""
    wanted: dict[str, Requirement] = {}
    for text in facts.requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None:  # with a marker it belongs to an extra
            wanted[_canonical(requirement.name)] = requirement
    for name, version in facts.installed.items():
        asked = wanted.get(_canonical(name))
        allowed = str(asked.specifier) if asked is not None and str(asked.specifier) else "any"
        if version is None:
            yield Finding(f"package {name}", False, f"{name} is not installed, allowed {allowed}", _reinstall(asked))
        else:
            ok = asked is None or asked.specifier.contains(version, prereleases=True)
            text = f"{name} {version}, allowed {allowed}"
            yield Finding(f"package {name}", ok, text, "" if ok else _reinstall(asked))


def token(facts: Facts) -> Iterator[Finding]:
    """Judge the token's file, who may read it, and whether this shell will use it."""
    found = facts.token
    if found is not None:
        yield _token_file(found)
    mode = (facts.auth_mode or "").lower()
    if mode not in {"", "token", "disabled"}:
        yield Finding(
            "token mode",
            False,
            f"{auth.MODE}={facts.auth_mode}, allowed token or disabled",
            f"export {auth.MODE}=token",
        )
    elif facts.up_state == "up" and mode != "token":
        yield Finding(
            "token mode",
            not mode,  # raymlops finds the token of `up` by itself, unless it is told not to use one
            f"raymlops up runs with a token, and this shell has {auth.MODE}={facts.auth_mode or 'unset'}: "
            "Ray's own commands, `ray job submit` among them, need what raymlops up exports",
            'eval "$(raymlops up)"',
        )
    elif mode == "token" and found is None:
        yield Finding(
            "token mode", False, f"{auth.MODE}=token and no token file", f"export {auth.TOKEN_PATH}=PATH of the token"
        )
    stray = facts.stray_token
    if stray.exists and (found is None or found.path != stray.path):
        ok = not stray.mode & 0o077
        yield Finding(
            "stray token",
            ok,
            f"{stray.path} exists, mode {stray.mode:04o}: a plain `ray.init()` wrote it, and `ray start` will use it",
            "" if ok else f"chmod 600 {stray.path}, or remove it",
        )


def _token_file(found: TokenFacts) -> Finding:
    if not found.exists:
        return Finding(
            "token",
            False,
            f"the token file {found.path} is missing",
            "raymlops down, then raymlops up writes a new one",
        )
    if found.mode & 0o077 or found.folder_mode & 0o022:
        return Finding(
            "token",
            False,
            f"{found.path}, mode {found.mode:04o} in a folder of {found.folder_mode:04o}: others can read or change it",
            "raymlops down, then raymlops up replaces the token; it may be known",
        )
    return Finding("token", True, f"{found.path}, mode {found.mode:04o}")


def disk(facts: Facts) -> Finding:
    """Judge the free space where our state lies."""
    free = facts.disk_free_bytes / _GIB
    ok = free >= LEAST_DISK_GIB
    fix = "" if ok else f"free some, or move: export {upfile.HOME}=/another/disk"
    return Finding("disk", ok, f"{free:.1f} GiB free at {facts.root}, wanted {LEAST_DISK_GIB:g}", fix)


def memory(facts: Facts) -> Finding:
    """Judge the memory that is available."""
    free = facts.memory_available_bytes / _GIB
    ok = free >= LEAST_MEMORY_GIB
    fix = "" if ok else "end other programs, or lower train.num_workers and sweep.max_concurrent"
    return Finding("memory", ok, f"{free:.1f} GiB available, wanted {LEAST_MEMORY_GIB:g}", fix)


def shared_memory(facts: Facts) -> Finding:
    """Judge /dev/shm, where Ray keeps objects."""
    if facts.shm_free_bytes is None:
        return Finding("shared memory", True, "no /dev/shm on this system")
    free = facts.shm_free_bytes / _GIB
    ok = free >= LEAST_SHM_GIB
    fix = "" if ok else "in Docker: --shm-size=2g"
    return Finding("shared memory", ok, f"{free:.1f} GiB free in /dev/shm, wanted {LEAST_SHM_GIB:g}", fix)


def storage(facts: Facts) -> Finding:
    """Judge whether our folder can be written."""
    if facts.storage_error is None:
        return Finding("storage", True, f"{facts.root} can be written")
    return Finding(
        "storage", False, f"{facts.root} cannot be written: {facts.storage_error}", f"export {upfile.HOME}=FOLDER"
    )


def up_record(facts: Facts) -> Finding:
    """Judge the record of ``raymlops up``."""
    # `raymlops up` restarts only MLflow if Ray answers, and the endpoints keep running; otherwise it starts over.
    alone = facts.up_detail == "mlflow ended" and facts.ray is not None and facts.ray.status == 200
    mend = "raymlops up restarts MLflow alone" if alone else "raymlops down, then raymlops up"
    messages = {
        "none": (True, "raymlops up has not been run, or raymlops down has", ""),
        "up": (True, "raymlops up runs", ""),
        "starting": (False, "raymlops up was interrupted, or is at work", "raymlops down clears what it left"),
        "broken": (False, f"raymlops up is partly dead: {facts.up_detail}", mend),
        "unreadable": (False, facts.up_detail, "end what runs by hand, then remove the file"),
    }
    return Finding("up", *messages[facts.up_state])


def ports_free(facts: Facts) -> Iterator[Finding]:
    """Judge each port that ``raymlops up`` wants, where it does not run."""
    for port, holder in sorted(facts.ports.items()):
        yield Finding(f"port {port}", False, f"taken: {holder}", "end that process, or give raymlops up another port")


def ray(found: ServiceFacts, installed: str | None) -> Finding:
    """Judge whether Ray's dashboard answers, and with our version."""
    if found.status is None:
        return Finding("ray", False, f"{found.url} does not answer", "raymlops up, or unset RAY_API_SERVER_ADDRESS")
    if found.status in {401, 403}:
        return Finding(
            "ray",
            False,
            f"{found.url} refuses our token ({found.status})",
            f"export {auth.MODE}=token and {auth.TOKEN_PATH}=PATH of that cluster's token",
        )
    if found.version != installed:
        return Finding(
            "ray",
            False,
            f"{found.url} runs Ray {found.version}, this environment has {installed}: they cannot talk",
            f"pip install 'ray=={found.version}', or start that cluster again from this environment",
        )
    return Finding("ray", True, f"{found.url} answers, Ray {found.version}")


def guarded(found: ServiceFacts) -> Finding:
    """Judge whether the dashboard answers without a token, which lets anyone run code."""
    if found.status_without_token in {401, 403}:
        return Finding("token guard", True, f"{found.url} refuses a request without a token")
    return Finding(
        "token guard",
        False,
        f"{found.url} answered {found.status_without_token} without a token: whoever reaches it runs code as you",
        f"end it and start it again with {auth.MODE}=token (raymlops up does)",
    )


def mlflow(found: ServiceFacts, installed: str | None) -> Finding:
    """Judge whether MLflow answers, or its database has the schema that the installed MLflow wants."""
    if found.url.startswith("sqlite:"):
        if found.schema is None:
            return Finding("mlflow", True, f"{found.url} will be made by the first run")
        ok = found.expected_schema is None or found.schema == found.expected_schema
        text = f"{found.url} has schema {found.schema}, MLflow {installed} wants {found.expected_schema}"
        return Finding("mlflow", ok, text, "" if ok else f"back the file up, then: mlflow db upgrade {found.url}")
    if not found.url.startswith("http"):
        return Finding("mlflow", True, f"{found.url.partition(':')[0]} database, not looked into")
    if found.status != 200:
        got = "does not answer" if found.status is None else f"answered {found.status}"
        return Finding("mlflow", False, f"{found.url} {got}", "start it (raymlops up), or change tracking.uri")
    if found.version and installed and found.version.split(".")[0] != installed.split(".")[0]:
        text = f"{found.url} runs MLflow {found.version}, this environment has {installed}"
        return Finding("mlflow", False, text, f"pip install 'mlflow=={found.version}'")
    return Finding("mlflow", True, f"{found.url} answers, MLflow {found.version or 'of unknown version'}")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _reinstall(asked: Requirement | None) -> str:
    return f"pip install '{asked.name}{asked.specifier}'" if asked is not None else "pip install raymlops again"
