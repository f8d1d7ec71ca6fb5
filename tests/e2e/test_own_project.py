import pytest

pytestmark = pytest.mark.e2e


def test_a_scaffolded_project_keeps_its_contract_and_trains(user):
    """``raymlops init`` gives a project whose contract test passes and whose configuration trains as it stands."""
    user.raymlops("init", "my-model")
    user.cwd /= "my-model"
    assert "passed" in user.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider").stdout
    user.raymlops("validate", "config.yaml")
    assert "validation/accuracy" in user.raymlops("train", "--config", "config.yaml").stdout
    assert user.processes() == []
