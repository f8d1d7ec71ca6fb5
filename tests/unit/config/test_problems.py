import os

import pytest

from raymlops.config.load import load, load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError

WORKERS = "a whole number from 0 to 4096, or [min, max] with 1 <= min <= max <= 4096"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epoch: 3}", "a.yaml:3:9: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("trian: {}", "a.yaml:3:1: trian: unknown key 'trian'; did you mean 'train'?"),
        ("lr: 3", "a.yaml:3:1: lr: unknown key 'lr' here; did you mean train.lr?"),
        ("train: {lr: abc}", "a.yaml:3:13: train.lr: got 'abc' (text); a number"),
        ("train: {lr: '1e-5'}", "a.yaml:3:13: train.lr: got '1e-5' (text); a number"),
        ("train: {lr: 1:30}", "a.yaml:3:13: train.lr: got '1:30' (text); a number"),
        ("train: {lr: true}", "a.yaml:3:13: train.lr: got true; a number"),
        ("train: {lr: }", "a.yaml:3:9: train.lr: got nothing; a number"),
        ("train: {lr: [1]}", "a.yaml:3:13: train.lr: got a list; a number"),
        ("train: {lr: .nan}", "a.yaml:3:13: train.lr: got .nan; a finite number"),
        ("train: {lr: 1e999}", "a.yaml:3:13: train.lr: got .inf; a finite number"),
        ("train: {lr: 0}", "a.yaml:3:13: train.lr: got 0; above 0"),
        ("train: {epochs: 0}", "a.yaml:3:17: train.epochs: got 0; at least 1"),
        ("train: {epochs: 1e3}", "a.yaml:3:17: train.epochs: got 1000.0; a whole number"),
        ("train: {momentum: 1}", "a.yaml:3:19: train.momentum: got 1; below 1"),
        ("serve: {port: 70000}", "a.yaml:3:15: serve.port: got 70000; at most 65535"),
        ("train: {num_workers: x}", "a.yaml:3:22: train.num_workers: got 'x' (text); " + WORKERS),
        ("train: {num_workers: true}", "a.yaml:3:22: train.num_workers: got true; " + WORKERS),
        ("train: {num_workers: }", "a.yaml:3:9: train.num_workers: got nothing; " + WORKERS),
        ("train: {num_workers: -1}", "a.yaml:3:22: train.num_workers: got -1; " + WORKERS),
        ("train: {num_workers: 5000}", "a.yaml:3:22: train.num_workers: got 5000; " + WORKERS),
        ("train: {num_workers: 1.5}", "a.yaml:3:22: train.num_workers: got 1.5; " + WORKERS),
        ("train: {num_workers: [2]}", "a.yaml:3:22: train.num_workers: got [2]; " + WORKERS),
        ("train: {num_workers: [3, 1]}", "a.yaml:3:22: train.num_workers: got [3, 1]; " + WORKERS),
        ("train: {num_workers: [0, 2]}", "a.yaml:3:22: train.num_workers: got [0, 2]; " + WORKERS),
        ("train: {num_workers: {min: 1}}", "a.yaml:3:22: train.num_workers: got a mapping; " + WORKERS),
        ("train: {mode: up}", "a.yaml:3:15: train.mode: got 'up'; one of 'min' or 'max'"),
        ("train: 5", "a.yaml:3:8: train: got 5; a mapping"),
        ("storage: {path: ''}", "a.yaml:3:17: storage.path: got ''; at least 1 character(s)"),
        ("serve: {tls_cert: /c}", "a.yaml:3:8: serve: tls_cert and tls_key are given both or not at all"),
        ("serve: {grpc_port: 8000}", "a.yaml:3:8: serve: port and grpc_port are both 8000: each needs one of its own"),
        ("serve: {min_replicas: 3}", "a.yaml:3:8: serve: max_replicas 2 is below min_replicas 3"),
        (
            "serve: {gpus_per_replica: 1.5}",
            "a.yaml:3:8: serve: gpus_per_replica is 1.5: a replica reserves a share of one GPU or whole GPUs",
        ),
        (
            "serve: {resources_per_replica: {GPU: 1}}",
            "a.yaml:3:8: serve: resources_per_replica has GPU, which gpus_per_replica reserves",
        ),
        (
            "monitor: {slices: {a: [1, 2, 3, 4, 5, 6, 7, 8, 9], b: [x, y, true, 1.5, e, f, g, h]}}",
            "a.yaml:3:19: monitor.slices: got 17 values; at most 16, since each one has counts of its own",
        ),
        ("gate: {thresholds: {auc: {}}}", "a.yaml:3:26: gate.thresholds.auc: write min, max or both"),
        ("storage: {optuna: 5}", "a.yaml:3:19: storage.optuna: got 5; a URI, or {env: NAME} or {file: PATH}"),
        (
            "storage: {optuna: {evn: X}}",
            "a.yaml:3:20: storage.optuna.evn: unknown key 'evn'; did you mean 'env'?",
        ),
        (
            "storage: {optuna: {env: X, file: Y}}",
            "a.yaml:3:19: storage.optuna: write exactly one of env: NAME and file: PATH",
        ),
        ("storage: {optuna: {env: 5}}", "a.yaml:3:25: storage.optuna.env: got 5; {env: NAME} or {file: PATH}"),
        ("tracking: {password: 5}", "a.yaml:3:22: tracking.password: got 5; {env: NAME} or {file: PATH}"),
        ("extends: 3", "a.yaml:3:10: extends: got 3; the path of a file, or a list of paths"),
    ],
)
def test_one_mistake_is_one_problem_with_its_place(write, problems, text, expected):
    """Place, path, what was got, what is allowed: one line for one value, also where a union offers alternatives."""
    write("a.yaml", text, head=True)
    assert problems() == [expected]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("train.lrr: {float: [1, 2]}", "'lrr' is not a field of train; did you mean 'train.lr'?"),
        ("serve.port: {int: [1, 2]}", "'serve.port' cannot be searched; a key is train.FIELD or recipe.config.FIELD"),
        ("train.lr: {float: [-1, 2]}", "low: got -1.0; above 0"),
        ("train.momentum: {float: [0, 1.5]}", "high: got 1.5; below 1"),
        (
            "train.optimizer: {categorical: [sgd, sdg]}",
            "choice: got 'sdg'; adamw, adam, sgd, or the name of a torch class for the optimizer; did you mean sgd?",
        ),
        ("train.lr: {float: [2, 1]}", "float: [2.0, 1.0] is empty; low must be at most high"),
        ("train.lr: {float: [0, 1], log: true}", "float: log needs a low above 0, got 0.0"),
        ("train.epochs: {int: [1.5, 2]}", "int: got [1.5, 2]; two finite integers, [low, high]"),
        ("train.lr: {float: [1, .inf]}", "float: got [1, inf]; two finite numbers, [low, high]"),
        ("train.lr: {float: [1, 2], lgo: true}", "unknown key 'lgo'; did you mean 'log'?"),
        ("train.lr: {float: [1, 2], int: [1, 2]}", "got float and int of float, int and categorical; write {float"),
        ("train.lr: {float: [1, 2], step: .nan}", "step: got nan; one of the numbers above 0"),
        ("train.lr: 3", "got 3; write {float"),
        ("train.lr: {categorical: []}", "categorical: got []; a list of at least one choice"),
        ("train.lr: {categorical: [1, 1]}", "categorical: [1, 1] repeats a choice"),
        ("train.lr: {categorical: [1, 1.0]}", "choices 1 and 1.0 are equal, which Optuna takes for one choice"),
        (
            "recipe.config.a: {categorical: [x, 0, false]}",
            "choices 0 and false are equal, which Optuna takes for one choice",
        ),
        ("train.mode: {categorical: [min, max]}", "cannot be searched: it decides how trials are compared"),
        ("train.metric: {categorical: [a, b]}", "cannot be searched: it decides how trials are compared"),
        ("train.num_workers: {int: [0, 4]}", "cannot be searched: every trial has sweep.workers_per_trial workers"),
        ("train.lr: {categorical: [{a: 1}]}", "categorical: choices are text, numbers, true, false or null, or lists"),
        ("train.lr: {categorical: [[1]]}", "choice: got a list; a number"),
        ("recipe.config.a: {categorical: [[1, 2], [1, 2]]}", "categorical: [[1, 2], [1, 2]] repeats a choice"),
        ("recipe.config: {int: [1, 2]}", "'recipe.config' cannot be searched; a key is train.FIELD or recipe.config"),
        ("train.lr: {float: [1, 2], when: {train.mode: []}}", "when: train.mode: got []"),
        ("train.lr: {float: [1, 2], when: {train.mode: {a: 1}}}", "when: train.mode: got {'a': 1}"),
        ("train.lr: {float: [1, 2], when: {train.mode: {}}}", "when: train.mode: got {}"),
        ("train.lr: {float: [1, 2], when: {train.epochs: {max: x}}}", "when: train.epochs: got {'max': 'x'}"),
        ("train.lr: {float: [1, 2], when: {train.epochs: {max: 1, min: 2}}}", "when: train.epochs: got {'max': 1,"),
        (
            "train.lr: {float: [1, 2], when: {train.mode: min}}",
            "when: 'train.mode' is not in the space; beside train.lr it holds nothing",
        ),
    ],
)
def test_an_impossible_space_is_refused(write, problems, space, expected):
    """Ends and choices must satisfy the field; ranges must hold something; conditions must be possible."""
    write("a.yaml", f"sweep:\n  space:\n    {space}\n", head=True)
    (problem,) = problems()
    place, _, message = problem.partition(f"sweep.space.{space.partition(':')[0]}: ")
    assert place.startswith("a.yaml:5:")
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("{train.optimiser: sgd}", "when: 'train.optimiser' is not in the space; did you mean 'train.optimizer'?"),
        ("{train.optimizer: adm}", "when: train.optimizer is never 'adm'; it is one of 'sgd', 'adam'"),
        ("{train.optimizer: {max: 3}}", "when: train.optimizer is never at most 3; it is one of 'sgd', 'adam'"),
        ("{train.epochs: {min: 9}}", "when: train.epochs is never at least 9; it is a whole number from 2 to 8"),
        ("{train.epochs: {min: 0, max: 1}}", "when: train.epochs is never 0 to 1; it is a whole number from 2 to 8"),
    ],
)
def test_a_condition_that_never_holds_is_refused(write, problems, condition, expected):
    write(
        "a.yaml",
        f"""\
        sweep:
          space:
            train.epochs: {{int: [2, 8]}}
            train.optimizer: {{categorical: [sgd, adam]}}
            train.lr: {{float: [1, 2], when: {condition}}}
        """,
        head=True,
    )
    assert problems() == [f"a.yaml:7:15: sweep.space.train.lr: {expected}"]


def test_a_condition_on_a_distribution_that_is_wrong_itself_is_no_second_problem(write, problems):
    write(
        "a.yaml",
        "sweep: {space: {train.epochs: {int: [2, x]}, train.lr: {float: [1, 2], when: {train.epochs: 2}}}}",
        head=True,
    )
    assert problems() == ["a.yaml:3:31: sweep.space.train.epochs: int: got [2, 'x']; two finite integers, [low, high]"]


def test_everything_is_said_at_once(write, problems):
    """Duplicate keys, wrong values, an unknown key, a bad space, a missing section and a bad override in one pass."""
    write(
        "a.yaml",
        """\
        project: {nmae: x}
        train:
          lr: 1
          lr: abc
        sweep:
          space:
            train.momentum: {float: [0, 2]}
        """,
    )
    assert problems(overrides=["train.epochs=0", "train.sede=1", "nothing"]) == [
        "a.yaml:1:1: recipe: missing; a section with import",
        "a.yaml:1:10: project.name: missing; registered model, MLflow experiment and route: /models/NAME",
        "a.yaml:1:11: project.nmae: unknown key 'nmae'; did you mean 'name'?",
        "a.yaml:4:3: train: duplicate key 'lr'; first written at a.yaml:3:3",
        "a.yaml:4:7: train.lr: got 'abc' (text); a number",
        "a.yaml:7:21: sweep.space.train.momentum: high: got 2.0; below 1",
        "override: train.sede: unknown key 'sede'; did you mean 'seed'?",
        "override: got 'nothing'; write key.path=value, such as train.lr=0.01",
        "override: train.epochs: got 0; at least 1",
    ]


def test_a_mistake_in_a_base_is_placed_in_the_base(write, problems):
    """The place is where the value is written, not where the file that extends it stands."""
    write("base.yaml", "train:\n  lr: 0\n")
    write("a.yaml", "extends: base.yaml\n", head=True)
    assert problems() == ["base.yaml:2:7: train.lr: got 0; above 0"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr.x=1", "override: train.lr.x: train.lr is one value and has no key 'x'"),
        ("train.epochs=[1", "override: train.epochs: not YAML: expected"),
        ("train.lr=!foo 1", "override: train.lr: tag !foo is not known"),
        ("extends=b.yaml", "override: extends: unknown key 'extends'; known: project"),
        ("=3", "override: got ''; write key.path=value"),
    ],
)
def test_a_bad_override_is_refused(override, expected):
    """An override is judged as a line of a file is."""
    with pytest.raises(ConfigError) as caught:
        load_data(
            {"project": {"name": "a"}, "recipe": {"import": "m:C"}},
            overrides=[override],
        )
    assert str(caught.value.problems[0]).startswith(expected)


@pytest.mark.parametrize(
    ("text", "place", "path"),
    [
        ('extends: "a\\0b"', "a.yaml:3:10", "extends"),
        ('extends: [base.yaml, "a\\0b"]', "a.yaml:3:22", "extends[1]"),
        ('storage: {path: "/tmp/a\\0b"}', "a.yaml:3:17", "storage.path"),
    ],
)
def test_a_null_byte_in_a_path_has_a_place(write, problems, text, place, path):
    """The operating system would raise something that names neither file nor key."""
    write("base.yaml", "train: {}\n")
    write("a.yaml", text, head=True)
    (problem,) = problems()
    assert problem.startswith(f"{place}: {path}: holds a null byte")


def test_a_null_byte_in_plain_data_is_a_problem_too():
    """Of a notebook's own mapping, and of an override."""
    data = {"project": {"name": "a"}, "recipe": {"import": "m:C"}}
    with pytest.raises(ConfigError, match=r"storage\.path: holds a null byte"):
        load_data({**data, "storage": {"path": "a\0b"}})
    with pytest.raises(ConfigError, match=r"storage\.path: holds a null byte"):
        load_data(data, overrides=['storage.path="a\\0b"'])


def test_a_circle_of_extends_shows_its_chain(write, problems):
    """The chain names every file, and the place is the line that closes it."""
    write("a.yaml", "extends: sub/b.yaml\n", head=True)
    write("sub/b.yaml", "train: {}\nextends: ../a.yaml\n")
    assert problems() == ["sub/b.yaml:2:10: extends: goes in a circle: a.yaml -> sub/b.yaml -> a.yaml"]


def test_a_missing_base_does_not_hide_other_mistakes(write, problems):
    """The rest of the file is judged; what is missing may stand in the file that is not there."""
    write("base.yaml", "")
    write("a.yaml", "extends: [bse.yaml, '']\ntrain: {lr: 0}\n")
    assert problems() == [
        "a.yaml:1:10: extends: got ['bse.yaml', '']; the path of a file, or a list of paths",
        "a.yaml:2:13: train.lr: got 0; above 0",
    ]
    write("a.yaml", "extends: bse.yaml\ntrain: {lr: 0}\n")
    assert problems() == [
        "a.yaml:1:10: extends: bse.yaml: there is no such file; did you mean base.yaml?",
        "a.yaml:2:13: train.lr: got 0; above 0",
    ]


def test_an_unknown_overlay_lists_what_exists(write, problems):
    """The overlays are the files in env/ beside the configuration."""
    write("a.yaml", "", head=True)
    assert problems(env="prod") == ["--env: no overlay 'prod' in env; there are none: env holds no .yaml file"]
    write("env/prod.yaml", "train: {}")
    write("env/local.yaml", "train: {}")
    assert problems(env="prd") == ["--env: no overlay 'prd' in env; there are local, prod; did you mean 'prod'?"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "a.yaml:1:1: is empty; a configuration is a mapping"),
        (b"# nothing\n", "a.yaml:1:1: is empty"),
        (b"- a\n", "a.yaml:1:1: holds a list"),
        (b"hello", "a.yaml:1:1: holds text"),
        (b"a: 1\nb: \xff\n", "a.yaml:2:4: not UTF-8: byte 0xff"),
        ("a: 1".encode("utf-16"), "a.yaml:1:1: not UTF-8: byte 0xff"),
        (b"a: [\n", "a.yaml:2:1: not YAML"),
        (b"project: " + b"[" * 400 + b"]" * 400, "a.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(here, problems, raw, expected):
    """Empty, not a mapping, not text, not YAML, much too large, nested without end: one problem."""
    (here / "a.yaml").write_bytes(raw)
    (problem, *_) = problems()
    assert problem.startswith(expected)


def test_a_data_file_is_not_read_into_memory(here, problems):
    """Whoever names a data file by mistake waits for nothing."""
    (here / "a.yaml").write_bytes(b"x" * 500_001)
    assert problems() == ["a.yaml: has more than 500,000 bytes; no configuration does"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(here, write, problems):
    """No permission is an error of its own."""
    write("a.yaml", "", head=True)
    (here / "a.yaml").chmod(0)
    assert problems() == ["a.yaml: may not be read"]


def test_a_missing_file_names_its_neighbour(write, problems):
    """A misspelt path is answered with the nearest file, a folder with what it is."""
    write("sub/flights.yaml", "", head=True)
    assert problems("sub/flight.yaml") == [
        "sub/flight.yaml: there is no such file; did you mean sub/flights.yaml?",
    ]
    assert problems("sub") == ["sub: is a folder, not a file"]


SECRETS = [
    "postgresql://user:hunter2@host/db",
    "postgresql://user:hun/ter2@host/db",
    "http://:hunter2@host",
    "postgresql://host/db?user=u&password=hunter2",
    "s3://bucket/x?region=eu&secret_key=hunter2",
]


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize(
    "key",
    ["storage.optuna", "storage.path", "tracking.uri", "cluster.dashboard", "recipe.config.x", "project.tags.x"],
)
def test_a_credential_is_refused_and_never_repeated(url, key):
    """Wherever it is written, it gives one problem and the message does not hold it."""
    with pytest.raises(ConfigError) as caught:
        load_data({"project": {"name": "a"}, "recipe": {"import": "m:C"}}, overrides=[f"{key}={url}"])
    (problem,) = caught.value.problems
    assert problem.path == key
    assert "hunter2" not in repr(caught.value)
    assert "ter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["tracking: {password: hunter2}", "train: {lr: 'http://u:hunter2@h'}"])
def test_a_misplaced_credential_is_not_repeated(write, problems, text):
    """A password in place of a reference, or a secret URL where a number belongs, stays out of the message."""
    write("a.yaml", text, head=True)
    (problem,) = problems()
    assert "hunter2" not in problem


@pytest.mark.parametrize("url", ["http://host:80/a@b", "s3://bucket/a:b", "sqlite:////tmp/x.db", "http://user@host/x"])
def test_a_url_without_a_password_passes(url):
    """Ports, at signs in paths and user names are no credentials."""
    data = {"project": {"name": "a"}, "recipe": {"import": "m:C"}, "storage": {"path": url}}
    assert load_data(data).spec.storage.path == url


def test_a_uri_that_mlflow_cannot_open_is_refused(write, problems):
    """A scheme that no MLflow store has is a mistake in the file."""
    write("a.yaml", "tracking: {uri: 'redis://u@h/0'}", head=True)
    (problem,) = problems()
    assert "a URI that starts with http://" in problem


def test_pydantic_itself_does_not_repeat_input():
    """A spec that is built in Python hides its input too."""
    with pytest.raises(ValueError) as caught:
        ProjectSpec.model_validate({"tracking": {"password": "hunter2", "uri": "http://u:hunter2@h"}})
    assert "hunter2" not in str(caught.value)


def test_loading_a_good_file_needs_no_recipe(write):
    """The recipe is not imported: its module need not exist."""
    write("a.yaml", "", head=True)
    assert load("a.yaml", overrides=["recipe.import=no.such:Recipe"]).spec.recipe.import_ == "no.such:Recipe"
