#!/usr/bin/env python3
"""Lock every dependency of pyproject.toml, for Python 3.11 to 3.13 at once: one version a package, with digests.

    uv run --no-project deploy/image/lock.py [TORCH_VERSION]

requirements.txt is what the image has without PyTorch, torch-cuda.txt PyTorch with CUDA, torch-cpu.txt PyTorch
without, dev.txt what tests need beyond these, tools.txt what builds packages and the image. `make` installs the same
versions (.venv/lock.txt). Needs uv and a network.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXTRAS = ("recipes", "dashboard", "notify", "otel", "postgres")
PYTHON = "3.11"
"""The oldest Python, and the image's."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WITH_CUDA = re.compile(r"(torch|triton|nvidia-|cuda-)")
"""Names of packages, as they begin, that the CPU build lacks."""


def compiled(source: str, *words: str) -> dict[str, str]:
    """Return each package's entry, with its digests, of what ``source`` resolves to."""
    command = ["uv", "pip", "compile", source, "--generate-hashes", "--no-header", "--upgrade", "--quiet"]
    command += ["--universal", "--python-version", PYTHON, *words]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return entries(done.stdout)


def entries(lock: str) -> dict[str, str]:
    """Return the entries of a lock file by the names of their packages: one a package, or one for some Pythons each."""
    found: dict[str, str] = {}
    for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        if "==" in entry:
            name = entry.partition("==")[0]
            found[name] = found.get(name, "") + entry
    return found


def cpu_digest(version: str) -> str:
    """Return the digest of the CPU build, which PyTorch's index has beside each file."""
    with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=60) as page:  # noqa: S310 - the address above
        text = page.read().decode()
    tag = f"cp{PYTHON.replace('.', '')}"
    found = re.search(
        rf"torch-{re.escape(version)}%2Bcpu-{tag}-{tag}-manylinux_2_28_x86_64\.whl#sha256=(\w{{64}})", text
    )
    if found is None:
        raise SystemExit(f"{CPU_INDEX}/torch/ has no PyTorch {version} for Python {PYTHON} with a digest")
    return found[1]


def main() -> None:
    """Write the files; the CPU build's stays as it is while its version does."""
    cpu = HERE / "torch-cpu.txt"
    locked = entries(cpu.read_text())["torch"].split("==")[1].split("+")[0]
    version = sys.argv[1] if len(sys.argv) > 1 else locked
    if version != locked:
        head = "# From PyTorch's own index: what PyPI has is the CUDA build. Made by lock.py."
        hashed = f"torch=={version}+cpu \\\n    --hash=sha256:{cpu_digest(version)}"
        cpu.write_text(f"{head}\n--index-url {CPU_INDEX}\n{hashed}\n")
    pinned = HERE / ".torch.in"
    pinned.write_text(f"torch=={version}\n")
    try:
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        every = compiled("../../pyproject.toml", "--all-extras", "--constraints", pinned.name)
        image = compiled("../../pyproject.toml", *extras, "--constraints", pinned.name).keys()
    finally:
        pinned.unlink()
    torch = {name for name in image if WITH_CUDA.match(name)}
    for name, what, chosen in (
        ("requirements.txt", "All that the image has but PyTorch", image - torch),
        ("torch-cuda.txt", "PyTorch with CUDA", torch),
        ("dev.txt", "What tests need beyond the image", every.keys() - image),
    ):
        write(name, what, {package: every[package] for package in sorted(chosen)})
    write("tools.txt", "What builds packages and the image", compiled("tools.in", "--constraints", "requirements.txt"))


def write(name: str, what: str, chosen: dict[str, str]) -> None:
    """Write a lock file."""
    (HERE / name).write_text(f"# {what}. Made by lock.py.\n{''.join(chosen.values())}")


if __name__ == "__main__":
    main()
