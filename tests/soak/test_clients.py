"""Clients that others wrote against a real endpoint, behind either proxy: the numbers that MLflow computes itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import outside_clients
import pandas as pd
import pytest
from endpoints import SECRETS, endpoint
from serving_bundles import MIXED_ROWS

from raymlops.bundle.pyfunc import save_pyfunc
from raymlops.records import BundleRef

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, of versions and type hints
]


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Path:
    """Return a Python with tritonclient and kserve, which both define the protocol's messages for themselves."""
    folder = tmp_path_factory.mktemp("clients")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    packages = ["tritonclient[http,grpc]", "kserve"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=900)
    return python


@pytest.fixture(scope="module", params=["python", "haproxy"])
def served(request):
    with endpoint(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def expected(served, tmp_path_factory) -> list[dict]:
    """Return what ``mlflow.pyfunc`` computes from the model that would be registered."""
    import mlflow

    folder = tmp_path_factory.mktemp("pyfunc") / "model"
    save_pyfunc(BundleRef(served.bundle_uri, served.digest), folder)
    model = mlflow.pyfunc.load_model(str(folder), model_config={"digest": served.digest})
    return plain(model.predict(pd.DataFrame(MIXED_ROWS)))


def plain(frame: pd.DataFrame) -> list[dict]:
    rows = json.loads(json.dumps(frame.to_dict("records"), default=lambda item: item.tolist()))
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]  # noqa: PLR0124 - NaN


def test_every_client_gets_the_numbers_of_mlflow(served, expected, clients):
    """Fifteen ways of four clients, with the key that is asked for; not one differs in a bit."""
    served.change(keys=("good",), auth="keys")
    answers: dict[str, Any] = {}
    given = {
        "host": served.host,
        "grpc_port": served.grpc_port,
        "rows": MIXED_ROWS,
        "key": {"x-api-key": SECRETS["good"]},
    }
    for family in ("triton", "kserve"):
        command = [clients, outside_clients.__file__, family, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        answers |= json.loads(done.stdout.splitlines()[-1])
    served.change()
    for name, rows in answers.items():
        print(f"{name}: {'equal' if rows == expected else rows}")
    assert len(answers) == 15
    assert {name: rows for name, rows in answers.items() if rows != expected} == {}


def test_mlflows_own_client_gets_its_numbers(served, expected):
    """It knows host and port, and sends a DataFrame."""
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    address = urlsplit(served.url)
    client = ScoringServerClient(address.hostname, f"{address.port}{address.path}")
    client.ping()
    frame = pd.DataFrame(MIXED_ROWS)
    assert plain(client.invoke(frame).get_predictions()) == expected
