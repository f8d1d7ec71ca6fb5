"""What `ray up` lacks on a machine, found without a network."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from raymlops.cluster.clouds import doctor

ROOT = Path(__file__).parents[4]
ANY = ("AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, and nobody in the environment."""
    for name in list(os.environ):
        if name.startswith(ANY):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(cloud, **options):
    return {(finding.name, finding.message): finding for finding in doctor.diagnose(cloud, **options)}.values()


def wrong(findings):
    return {finding.fix for finding in findings if not finding.ok}


def test_a_new_machine_lacks_a_login_and_the_files_that_are_sent():
    """Each with the one command that mends it; the launcher's region is well."""
    findings = found("aws", launcher=str(ROOT / "cluster.yaml"))
    assert wrong(findings) >= {
        "aws configure sso",
        "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token",
        "(umask 077; mkdir -p ~/.raymlops; touch ~/.raymlops/node.env)",
        "(umask 077; mkdir -p ~/.raymlops; touch ~/.raymlops/state_url)",
    }
    assert any(finding.name == "region" and finding.ok for finding in findings)


def test_the_commands_mend_it(home):
    """They are run as they stand, but for Ray's own."""
    for fix in wrong(found("aws", launcher=str(ROOT / "cluster.yaml"))):
        if fix.startswith("(umask"):
            subprocess.run(["sh", "-c", fix], check=True)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("token")
    names = {finding.name for finding in found("aws", launcher=str(ROOT / "cluster.yaml")) if not finding.ok}
    assert "sent files" not in names
    assert (home / ".raymlops" / "state_url").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("cloud", "file", "text", "says"),
    [
        ("aws", ".aws/credentials", "[default]\naws_access_key_id = a\n", "the profile default"),
        ("aws", ".aws/config", "[default]\nsso_session = corp\n", "the profile default"),
        ("gcp", ".config/gcloud/application_default_credentials.json", "{}", "application_default_credentials.json"),
        (
            *("azure", ".azure/azureProfile.json"),
            *(json.dumps({"subscriptions": [{"name": "dev", "isDefault": True}]}), "the subscription dev"),
        ),
    ],
)
def test_a_login_is_found_where_each_cloud_keeps_it(home, cloud, file, text, says):
    """Without asking the cloud; before it, there was none."""
    assert not doctor.credentials(cloud).ok
    (home / file).parent.mkdir(parents=True)
    (home / file).write_text(text)
    login = doctor.credentials(cloud)
    assert (login.ok, login.fix) == (True, "")
    assert says in login.message


def test_a_profile_that_is_not_there_is_named_with_those_that_are(home, monkeypatch):
    """As the variables half set are."""
    (home / ".aws").mkdir()
    (home / ".aws" / "config").write_text("[profile dev]\nregion = eu-west-1\n[profile prod]\nrole_arn = r\n")
    monkeypatch.setenv("AWS_PROFILE", "prud")
    assert doctor.credentials("aws").message == "AWS_PROFILE is prud, and the profiles are dev, prod"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    assert "AWS_SECRET_ACCESS_KEY is not" in doctor.credentials("aws").message
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    assert "/nowhere, which is not there" in doctor.credentials("gcp").message


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        (None, "No such file", "--launcher FILE"),
        ("provider: [", "is no file of `ray up`", "--launcher FILE"),
        ("just text", "is no file of `ray up`", "--launcher FILE"),
        ("provider: [aws]", "is no file of `ray up`", "--launcher FILE"),
        ("provider:", "is no file of `ray up`", "--launcher FILE"),
        ("provider: {type: gcp}", "is for gcp, not aws", "raymlops doctor --cloud gcp"),
        ("provider: {type: local}", "is for local, not aws", "--launcher FILE"),
    ],
)
def test_a_file_that_is_none_of_that_cloud_is_told(home, text, message, fix):
    """And the rest is checked all the same."""
    file = home / "launcher.yaml"
    if text is not None:
        file.write_text(text)
    findings = {finding.name: finding for finding in doctor.diagnose("aws", launcher=str(file))}
    assert message in findings["launcher"].message
    assert fix in findings["launcher"].fix
    assert "credentials" in findings


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("file_mounts: [a]", "file_mounts is no mapping"),
        ("file_mounts: {/a: [b], /c: ~/there}", "file_mounts./a is no text"),
        ("max_workers: many\nhead_node_type: [a]", "max_workers is no whole number, head_node_type is no text"),
        ("available_node_types: [cpu]", "available_node_types is no mapping"),
        ("available_node_types: {cpu: c5}", "available_node_types.cpu is no mapping"),
        (
            "available_node_types: {cpu: {node_config: {IamInstanceProfile: x}}}",
            "available_node_types.cpu.node_config.IamInstanceProfile is no mapping",
        ),
    ],
)
def test_a_field_of_another_form_hides_none_of_the_others(home, field, message):
    """It is told where it is, and the rest of the file is looked at all the same."""
    (home / "there").touch()
    file = home / "launcher.yaml"
    file.write_text(f"provider: {{type: aws, region: r}}\nauth: {{ssh_private_key: ~/.ssh/mine}}\n{field}\n")
    findings = {finding.name: finding for finding in doctor.diagnose("aws", launcher=str(file))}
    assert findings["launcher"].message == f"{file}: {message}; the rest was read"
    assert "region" in findings
    assert "ssh-keygen" in findings["key pair"].fix
    assert "sent files" not in findings


def test_a_key_that_a_launcher_names_is_looked_for(home):
    """Ray makes its own where none is named; Azure's it makes in any case."""
    file = home / "launcher.yaml"
    file.write_text("provider: {type: aws, region: r}\nauth: {ssh_private_key: ~/.ssh/mine}\n")
    assert "ssh-keygen -t ed25519 -N '' -f ~/.ssh/mine" in wrong(found("aws", launcher=str(file)))
