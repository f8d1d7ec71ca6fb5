"""``keys`` on the command line: the secret is the answer, once, and all else goes to stderr."""

from __future__ import annotations

import json

import pytest

from raymlops.cli.main import main
from raymlops.cluster.grace_period import JOB


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command on a project of its own, without a cluster; return exit code, stdout and stderr."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "project.yaml"
    file.write_text(f"project: {{name: flights}}\nrecipe: {{import: 'a:B'}}\nstorage: {{path: {tmp_path}/store}}\n")

    def command(*arguments):
        code = main(["keys", *arguments, "--config", str(file)])
        return code, *capsys.readouterr()

    return command


def test_the_secret_is_the_whole_answer(run):
    """So that it can be piped into a vault; the warning that it is not kept is on stderr."""
    code, out, err = run(
        "create", "shop", "--model", "flights", "--scope", "predict", "--rate", "5", "--expires", "90d"
    )
    secret = out.strip()
    assert (code, out, len(secret)) == (0, f"{secret}\n", 59)
    assert "is not stored" in err
    assert secret not in err
    _, listed, _ = run("list")
    assert secret[16:] not in listed
    assert listed.splitlines()[1].split()[1:6] == ["shop", "good", "flights", "predict", "5"]


def test_json_is_one_object(run):
    """With the secret and no hash; the list has neither."""
    data = json.loads(run("create", "shop", "--json")[1])
    assert data["secret"].startswith(f"rk_{data['key']['id']}_")
    assert (data["live"], data["key"]["scopes"]) == (False, ["predict", "feedback"])
    assert "hash" not in data["key"]
    (listed,) = json.loads(run("list", "--json")[1])["keys"]
    assert listed == {**data["key"], "status": "good"}


def test_a_secret_is_written_to_a_new_file_of_its_owner_alone(run, tmp_path):
    """Nothing that is printed has it; a file that is there stays, and then there is no key."""
    file = tmp_path / "shop.key"
    code, out, err = run("create", "shop", "--to", str(file), "--json")
    secret = file.read_text()
    assert (code, len(secret), file.stat().st_mode & 0o777) == (0, 59, 0o600)
    assert "secret" not in json.loads(out)
    assert secret not in out + err
    assert run("create", "other", "--to", str(file))[0] == 2
    assert file.read_text() == secret
    assert "other" not in run("list")[1]


def test_a_job_prints_no_secret(run, tmp_path, monkeypatch):
    """Its log is kept, for all who may read it; nothing is created or replaced without a file."""
    run("create", "shop")
    monkeypatch.setenv(JOB, "{}")
    assert run("create", "till")[0] == run("rotate", "shop")[0] == run("rotate", "shop", "--to", "relative")[0] == 2
    keys = json.loads(run("list", "--json")[1])["keys"]
    assert [(key["name"], key["status"]) for key in keys] == [("shop", "good")]
    code, out, err = run("rotate", "shop", "--to", str(tmp_path / "key"))
    assert code == 0
    assert (tmp_path / "key").read_text() not in out + err


def test_no_file_is_left_of_a_key_that_was_not_created(run, tmp_path):
    """Or the next try could not write it."""
    file = tmp_path / "key"
    assert run("rotate", "nobody", "--to", str(file))[0] == 3
    assert not file.exists()


def test_a_key_is_rotated_and_revoked(run):
    """The new secret is another one; the old one's end is said; both are in the list."""
    first = run("create", "shop")[1]
    code, second, err = run("rotate", "shop", "--grace", "1h")
    assert code == 0
    assert second != first
    assert "is valid until" in err
    new_id = second.split("_")[1]
    assert run("revoke", new_id, "--yes")[:2] == (0, f"key {new_id} of shop is revoked\n")
    assert {line.split()[2] for line in run("list")[1].splitlines()[1:]} == {"good", "revoked"}


def test_a_revocation_is_asked_for(run):
    """Somebody's application stops at once, so that without a terminal --yes is needed."""
    run("create", "shop")
    code, _, err = run("revoke", "shop")
    assert code == 2
    assert "--yes" in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create", "shop", "--expires", "90"), 2),
        (("create", "shop", "--expires", "0s"), 2),
        (("create", "shop", "--scope", "admin"), 2),
        (("create", "shop", "--rate", "nan"), 2),
        (("create", "shop", "--model", "No Model"), 2),
        (("rotate", "nobody"), 3),
        (("revoke", "nobody", "--yes"), 3),
    ],
)
def test_mistakes_have_their_exit_codes(run, arguments, code):
    """2 for what cannot be, 3 for what is not there; stdout stays empty."""
    assert run(*arguments)[:2] == (code, "")


def test_doubts_are_said_beside_the_answer(run):
    """On stderr, so that the secret is still the whole answer."""
    code, out, err = run("create", "shop", "--model", "nope", "--model", "flights", "--scope", "pin")
    assert (code, len(out.strip())) == (0, 59)
    assert "warning: the key cannot predict" in err
    assert "warning: no model nope was ever deployed" in err
    assert "flights: open, answers without a key too; serve.auth: keys requires keys" in err
