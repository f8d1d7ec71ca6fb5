import pytest

from raymlops.config.base import SecretRef, resolve
from raymlops.errors import ConfigError


def test_text_is_its_own_value():
    """A URI without a credential is written as it is."""
    assert resolve("sqlite:///x.db", "tracking.uri") == "sqlite:///x.db"


def test_a_reference_is_read_from_where_it_says(monkeypatch, tmp_path):
    """A variable, or the first line of a file."""
    monkeypatch.setenv("WHO", "me")
    (tmp_path / "who").write_text("you\nand more\n")
    assert resolve(SecretRef(env="WHO"), "tracking.username") == "me"
    assert resolve(SecretRef(file=str(tmp_path / "who")), "tracking.username") == "you"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a line of text"),
        (b"\xff\xfe", "a line of text"),
        (b"\n", "is empty"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_without_a_value_is_said_with_its_field(content, message, tmp_path):
    """Empty, not text, or not there; what it holds is not repeated."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"tracking\.password: .*secret.* {message}"):
        resolve(SecretRef(file=str(path)), "tracking.password")


def test_a_variable_that_is_not_set_is_said_with_its_field(monkeypatch):
    """Under the path that names it."""
    monkeypatch.delenv("NOPE", raising=False)
    with pytest.raises(ConfigError, match=r"storage\.state: the environment variable NOPE is not set"):
        resolve(SecretRef(env="NOPE"), "storage.state")
