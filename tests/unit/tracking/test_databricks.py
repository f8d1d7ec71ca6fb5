"""Which workspace of Databricks is meant, by variables and profiles."""

from __future__ import annotations

import pytest

from raymlops.errors import TrackingError
from raymlops.tracking.client import Tracker
from raymlops.tracking.databricks import workspace

PROFILES = """
[DEFAULT]
host = https://default.cloud.databricks.com
[prod]
host = https://prod.cloud.databricks.com/
token = dapi%secret
[sso]
auth_type = databricks-cli
[__settings__]
default_profile = prod
"""


@pytest.fixture(autouse=True)
def profiles(tmp_path, monkeypatch):
    for name in ("HOST", "TOKEN", "CONFIG_PROFILE", "RUNTIME_VERSION"):
        monkeypatch.delenv(f"DATABRICKS_{name}", raising=False)
    file = tmp_path / "profiles"
    file.write_text(PROFILES)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(file))
    return file


def test_a_workspace_is_that_of_the_profile_then_of_the_variables(monkeypatch):
    """As Databricks' SDK finds it; a scope of secrets is read by a cluster of theirs alone."""
    assert workspace("databricks://prod") == "https://prod.cloud.databricks.com/"
    assert workspace("databricks") == "https://default.cloud.databricks.com"
    assert workspace("databricks://sso") is None
    assert workspace("databricks://scope:prefix") is None
    monkeypatch.setenv("DATABRICKS_HOST", "https://prod.cloud.databricks.com")
    assert workspace("databricks") == workspace("databricks://prod").rstrip("/")


@pytest.mark.parametrize("by", ["uri", "variable"])
def test_a_profile_that_does_not_exist_is_named_with_those_that_do(by, monkeypatch):
    """Without its file the client would take the workspace of the variables instead, and say nothing."""
    uri = "databricks://prud" if by == "uri" else "databricks"
    if by == "variable":
        monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "prud")
    with pytest.raises(TrackingError, match=r"no Databricks profile 'prud'.*has the profiles DEFAULT, prod, sso") as no:
        Tracker(uri).check()
    assert "databricks auth login --profile prud" in no.value.hint
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("DATABRICKS_HOST", "https://other.cloud.databricks.com")
    with pytest.raises(TrackingError, match="'prud': /nowhere has none"):
        assert Tracker(uri).client


def test_a_profile_that_a_variable_overrides_is_refused(monkeypatch):
    """The client prefers DATABRICKS_HOST and its token, whatever the URI says."""
    monkeypatch.setenv("DATABRICKS_HOST", "https://other.cloud.databricks.com")
    with pytest.raises(TrackingError, match="the client prefers DATABRICKS_HOST, https://other") as no:
        workspace("databricks://prod")
    assert no.value.hint.startswith("unset DATABRICKS_HOST")


@pytest.mark.parametrize(
    "host",
    ["prod.cloud.databricks.com", "https://PROD.cloud.databricks.com:443", "https://prod.cloud.databricks.com/?o=123"],
)
def test_a_host_in_other_words_is_the_same_workspace(profiles, monkeypatch, host):
    """As Databricks' SDK reads it; another id behind it is another workspace."""
    monkeypatch.setenv("DATABRICKS_HOST", host)
    assert workspace("databricks://prod") == "https://prod.cloud.databricks.com/"
    profiles.write_text(f"[prod]\nhost = {host.partition('?')[0]}?o=45")
    if "?" in host:
        with pytest.raises(TrackingError, match="the client prefers"):
            workspace("databricks://prod")
    else:
        assert workspace("databricks://prod").endswith("o=45")


def test_a_byte_order_mark_is_named(profiles):
    """The client ends at it, and shows a line."""
    profiles.write_text(f"\ufeff{PROFILES}")
    with pytest.raises(TrackingError, match="byte order mark") as no:
        workspace("databricks://prod")
    assert "without one" in no.value.hint


def test_without_a_profile_of_that_name_the_setting_of_the_file_counts(profiles):
    """As in the client; profiles of which none is meant are no workspace."""
    profiles.write_text(PROFILES[PROFILES.index("[prod]") :])
    assert workspace("databricks") == "https://prod.cloud.databricks.com/"
    profiles.write_text("[work]\nhost = https://work.cloud.databricks.com")
    with pytest.raises(TrackingError, match=r"there is no profile DEFAULT: .* has the profiles work"):
        workspace("databricks")


def test_no_workspace_at_all_is_told_with_both_ways_to_one(profiles):
    """Before the client looks for one in a cluster of Databricks."""
    profiles.write_text("")
    with pytest.raises(TrackingError, match="nothing names a workspace") as no:
        Tracker("databricks").check()
    assert "DATABRICKS_TOKEN" in no.value.hint


def test_a_damaged_file_shows_none_of_its_lines(profiles):
    """They may be tokens."""
    profiles.write_text("dapi0123")
    with pytest.raises(TrackingError, match="cannot be read") as no:
        workspace("databricks://prod")
    assert "dapi" not in str(no.value)
    assert no.value.__cause__ is None


def test_a_workspace_that_does_not_answer_is_told_within_seconds(monkeypatch):
    """Databricks' SDK would ask for five minutes."""
    monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("DATABRICKS_TOKEN", "t")
    with pytest.raises(TrackingError, match="MLflow at databricks does not answer: connection refused"):
        Tracker("databricks").check()
