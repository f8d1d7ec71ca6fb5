import pytest

from raymlops.config.base import SecretRef, resolve, resolve_lines
from raymlops.config.credentials import holds_credential, redact
from raymlops.config.load import load_data
from raymlops.config.messages import check
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError

LONG = "Ab3" * 20
HEX = "0f" * 16


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:123/abc@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg://u:5432/x@h/db", "postgresql+psycopg://u:***@h/db"),
        ("redis://:pw@h", "redis://:***@h"),
        ("https://ghp_abcdef@host/x", "https://***@host/x"),
        ("https://0123456789abcdef0123@host/x", "https://***@host/x"),
        ("https://h/c?sv=2022&sig=AbC%3D&se=1", "https://h/c?sv=2022&sig=***&se=1"),
        ("s3://b/p?X-Amz-Signature=abc&X-Amz-Date=1", "s3://b/p?X-Amz-Signature=***&X-Amz-Date=1"),
        ("s3://b/p?X-Amz-Security-Token=abc", "s3://b/p?X-Amz-Security-Token=***"),
        ("https://h/x?X-Goog-Signature=abc", "https://h/x?X-Goog-Signature=***"),
        ("https://h/x?access_token=abc", "https://h/x?access_token=***"),
        ("https://h/x?client_secret=abc", "https://h/x?client_secret=***"),
        ("postgresql://h/db?user=u&password=p", "postgresql://h/db?user=u&password=***"),
        ("postgresql://h/db?sslpassword=p", "postgresql://h/db?sslpassword=***"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dword&autocommit=1",
            "mssql+pyodbc:///?odbc_connect=***&autocommit=1",
        ),
        ("https://h/x?auth=abc", "https://h/x?auth=***"),
        ("https://h/x?my_key=abc", "https://h/x?my_key=***"),
        ("https://h/x?subscription-key=abc", "https://h/x?subscription-key=***"),
        ("postgresql://u:5432,x@h/db", "postgresql://u:***@h/db"),
        ("https://u:5432x@h/db", "https://u:***@h/db"),
        ("https://u:5432@h/db", "https://u:***@h/db"),
        ('https://u:p"w@h/db', "https://u:***@h/db"),
        ("https://h/x?apikey=abc", "https://h/x?apikey=***"),
        ("https://h/x?api-key=abc", "https://h/x?api-key=***"),
        ("https://h/x?key=abc", "https://h/x?key=***"),
        ("abfs://c@a.dfs.core.windows.net?account_key=zzz", "abfs://c@a.dfs.core.windows.net?account_key=***"),
        ("https://hooks.slack.com/services/T/B/xyz", "https://hooks.slack.com/services/***"),
        (f"token hf_{LONG}", "token ***"),
        (f"ghp_{LONG}", "***"),
        (f"github_pat_{LONG}", "***"),
        (f"glpat-{LONG}", "***"),
        (f"key rk_0123456789ab_{LONG[:21]}-_{LONG[:20]} is ours", "key *** is ours"),
        (f"sk-proj-{LONG}", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        (f"dapi{HEX}", "***"),
        (f"eyJ{LONG}.eyJ{LONG}.{LONG}", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n", "***"),
        ("from https://a:b@h to https://c:d@h", "from https://a:***@h to https://c:***@h"),
    ],
)
def test_a_credential_is_found_and_masked(text, masked):
    assert holds_credential(text)
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ray@db:5432/optuna?sslkey=/certs/a.key&sslmode=verify-full&target_session_attrs=primary",
        "abfs://container@account.dfs.core.windows.net/models",
        "http://host:8080/packages/@scope/name",
        "https://ada@host/x",
        "https://ada.lovelace%40example.com@host/x",
        "hdfs://namenode:9000/user/a@b",
        '{"u":"http://mlflow:5000","mail":"a@b.c"}',
        "http://a:8080,me@x",
        "http://a:8080;me@x",
        "https://h/x?sort_key=name&partition_key=day&sort-key=a",
        "s3://bucket/models?region=eu-central-1&endpoint_override=http://minio:9000&allow_bucket_creation=true",
        "mongodb://h/db?authSource=admin&monkey=1&design=2",
        "sqlite:////home/ada/.raymlops/optuna.db",
        "sk-logistic-regression-with-a-very-long-name",
        "hf_small",
        "recipes.token_level:KeyedModel",
        "ghp_" + "a" * 20,
        "tokens: password=none",
    ],
)
def test_what_only_resembles_one_is_taken(text):
    assert not holds_credential(text)
    assert redact(text) == text


def test_a_token_is_refused_wherever_it_stands():
    """In the recipe's own configuration, whose values are logged as parameters, and in a list."""
    data = {
        "project": {"name": "p", "tags": {"a": "AKIAIOSFODNN7EXAMPLE"}},
        "recipe": {"import": "a:B", "config": {"tokens": [f"hf_{LONG}"]}},
    }
    with pytest.raises(ConfigError) as caught:
        load_data(data)
    assert [problem.path for problem in caught.value.problems] == ["project.tags.a", "recipe.config.tokens[0]"]
    assert LONG not in str(caught.value)


def test_a_stored_configuration_stays_readable():
    """What an earlier release did not take for a credential; a new sweep with it is refused."""
    data = {
        "project": {"name": "p"},
        "recipe": {"import": "a:B", "config": {"url": "https://h/x?auth=abc"}},
        "storage": {"optuna": "postgresql://u:123/abc@h/db"},
    }
    spec, findings = check(ProjectSpec, data, lenient=True)
    assert spec is not None
    assert not findings
    with pytest.raises(ConfigError, match="holds a credential"):
        load_data(spec.to_dict())


def test_text_is_its_own_value():
    """A URI without a credential is written as it is."""
    assert resolve("sqlite:///x.db", "tracking.uri") == "sqlite:///x.db"


def test_a_reference_is_read_from_where_it_says(monkeypatch, tmp_path):
    """A variable, or the first line of a file."""
    monkeypatch.setenv("WHO", "me")
    (tmp_path / "who").write_text("you\nand more\n")
    assert resolve(SecretRef(env="WHO"), "tracking.username") == "me"
    assert resolve(SecretRef(file=str(tmp_path / "who")), "tracking.username") == "you"


@pytest.mark.parametrize("text", ["postgresql://db/optuna\n", "postgresql://db/optuna\r\n", " postgresql://db/optuna"])
def test_a_variable_has_no_line_end(monkeypatch, text):
    """As the key of a Kubernetes Secret made from a file has one, and the first line of a file has none."""
    monkeypatch.setenv("OPTUNA", text)
    assert resolve(SecretRef(env="OPTUNA"), "storage.optuna") == "postgresql://db/optuna"


def test_a_variable_of_blanks_is_empty(monkeypatch):
    """Rather than a credential of blanks."""
    monkeypatch.setenv("OPTUNA", "\n")
    with pytest.raises(ConfigError, match="OPTUNA is empty"):
        resolve(SecretRef(env="OPTUNA"), "storage.optuna")


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


def test_a_reference_may_have_a_value_a_line(tmp_path, monkeypatch):
    """Empty lines and comments are none; a reference without any is empty."""
    monkeypatch.setenv("WHO", "json://a\n\n  # the night shift\n json://b ")
    assert resolve_lines(SecretRef(env="WHO"), "monitor.notify") == ("json://a", "json://b")
    path = tmp_path / "who"
    path.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="who is empty"):
        resolve_lines(SecretRef(file=str(path)), "monitor.notify")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="line of text"):
        resolve_lines(SecretRef(file=str(path)), "monitor.notify")
