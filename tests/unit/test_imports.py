import subprocess
import sys

import pytest

HEAVY = {"ray", "torch", "mlflow", "optuna", "pandas", "pyarrow", "sqlalchemy"}


@pytest.mark.parametrize(
    "statement",
    [
        "import raymlops",
        "import raymlops.cli.app",
        "import raymlops.config.load",
        "import raymlops.project",
        "from raymlops import RecipeBase, Signature, ProjectSpec, load",
    ],
)
def test_what_every_command_imports_is_light(statement):
    """Start-up and the checking of a file load no ray, torch, mlflow, optuna or pandas."""
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert loaded & HEAVY == set()
