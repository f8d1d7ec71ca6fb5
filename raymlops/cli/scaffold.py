"""``raymlops init``: a new project that trains, serves, and is checked by CI unchanged.

Owns the template files beside it and the made-up data. Writes into a new folder only.
"""

from __future__ import annotations

import csv
import keyword
import random
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from raymlops.config.base import Name
from raymlops.errors import InvalidNameError, StorageError, UsageError
from raymlops.storage.shipped import shipped
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = 2000
_TAKEN = sys.stdlib_module_names | {"raymlops", "ray", "torch", "mlflow", "optuna", "pandas", "numpy"}


System = Literal["github", "jenkins", "airflow", "kubeflow", "argo-workflows"]
_PIPELINES: dict[System, dict[str, str]] = {
    "github": {"github": ".github", "ci": ".github/actions/raymlops"},
    "jenkins": {"jenkins": ".", "ci": "ci"},
    "airflow": {"airflow": "airflow"},
    "kubeflow": {"kubeflow": "kubeflow", "ci": "ci"},
    "argo-workflows": {"argo-workflows": "argo-workflows", "ci": "ci"},
}
"""By system: the folders of ``deploy`` that are its whole pipeline, and where they go."""
_ROWS: dict[System | None, str] = {
    None: "`.github/workflows/ci.yml` | runs `validate` and the contract test on every push",
    "github": "`.github/` | validates and trains each pull request, deploys what is merged, watches it every night",
    "jenkins": "`Jenkinsfile`, `ci/pipeline.sh` | validate and train, and deploy once somebody has approved",
    "airflow": "`airflow/` | a provider and two DAGs: from training to deployment, and the loop by hand",
    "kubeflow": "`kubeflow/`, `ci/pipeline.sh` | a pipeline that trains and deploys, as source and compiled",
    "argo-workflows": "`argo-workflows/`, `ci/pipeline.sh` | train, deploy once approved; drift each night",
}
"""By system: its row in the README."""


def scaffold(name: str, *, ci: System | None = None) -> tuple[Path, list[str]]:
    """Write the folder ``name`` and return it with the names of its files.

    ``ci`` names the system that a delivery pipeline is added for; without it a workflow checks each push.

    Raises:
        InvalidNameError: the name cannot be a registered model, or its module would hide another one.
        UsageError: the folder exists, and is no Git repository, or one that has these files already.
        StorageError: it cannot be written.
    """
    module = _module_of(name)
    folder = Path(name)
    copied = {} if ci is None else _pipeline(ci)
    words = {
        "name": name,
        "module": module,
        "cls": "".join(part.capitalize() for part in module.split("_")),
        "version": __version__,
        "ci": _ROWS[ci],
    }
    targets = {
        **({".github/workflows/ci.yml": "ci.yml.txt"} if ci is None else {}),
        ".gitignore": "gitignore.txt",
        "README.md": "README.md.txt",
        "requirements.txt": "requirements.txt.txt",
        "config.yaml": "config.yaml.txt",
        f"{module}.py": "recipe.py.txt",
        f"test_{module}.py": "test.py.txt",
    }
    written = sorted([*targets, *copied, "data.csv"])
    _check_free(folder, written)
    templates = files("raymlops.cli") / "templates"
    try:
        folder.mkdir(exist_ok=True)
        for target, template in targets.items():
            text = Template((templates / template).read_text(encoding="utf-8")).substitute(words)
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_text(text, encoding="utf-8")
        for target, source in copied.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / target)
        _write_parcels(folder / "data.csv")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    return folder, written


def _check_free(folder: Path, written: Sequence[str]) -> None:
    """Refuse a folder that exists, but for a new Git repository."""
    if not folder.exists():
        return
    if not (folder / ".git").exists():
        raise UsageError(f"{folder} exists, and is no Git repository", hint="Choose another name, or remove it first.")
    if there := [name for name in written if (folder / name).exists()]:
        raise UsageError(f"{folder} has {', '.join(there)} already", hint="Choose another name, or move them first.")


def _pipeline(ci: System) -> dict[str, Path]:
    """Return the files of a system's pipeline, by their paths in a project."""
    found = {}
    for folder, target in _PIPELINES[ci].items():
        root = shipped("deploy") / folder
        for file in root.rglob("*"):
            if file.is_file() and file.parent.name != "__pycache__":
                found[(Path(target) / file.relative_to(root)).as_posix()] = file
    return found


def _module_of(name: str) -> str:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidNameError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    module = name.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise InvalidNameError(f"{name!r} gives the module name {module!r}, which Python cannot import")
    if module in _TAKEN:
        raise InvalidNameError(f"a module named {module!r} would hide the installed one", hint="Choose another name.")
    return module


def _write_parcels(path: Path) -> None:
    """Write made-up parcels: far, heavy ones to slow cities are late more often; a tenth is noise."""
    rng = random.Random(0)  # noqa: S311 - made-up data
    slow = {"Bergen": 0.8, "Lisbon": 0.3, "Turin": 0.0, "Ghent": -0.4, "Krakow": -0.6}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["city", "kg", "distance_km", "late"])
        for _ in range(ROWS):
            city, kg, distance = rng.choice(list(slow)), rng.lognormvariate(1, 0.6), rng.uniform(20, 1500)
            late = slow[city] + 0.1 * (kg - 3) + (distance - 760) / 400 > 0
            writer.writerow([city, f"{kg:.2f}", f"{distance:.0f}", int(late ^ (rng.random() < 0.1))])
