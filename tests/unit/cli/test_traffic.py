from __future__ import annotations

import json
from dataclasses import replace

import pytest
from stored import put

from raymlops.cli.main import main
from raymlops.cli.source import choose
from raymlops.cli.traffic import _percents, deployment_text
from raymlops.errors import UsageError
from raymlops.lifecycle.named_model import nameless
from raymlops.lifecycle.overview import UNMOVED, ModelOverview
from raymlops.lifecycle.rollout.canary import TrafficRecord
from raymlops.records import BundleRef, DeploymentRecord
from raymlops.state.store import Deployment, State


def traffic(**fields):
    return TrafficRecord("m", 3, "d", "warm", None, previous_version=2, **fields)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            traffic(weight=0.1, rollout_id="r1"),
            "m version 3 answers 10%, version 2 the rest; rollout r1 continues by itself: raymlops status",
        ),
        (traffic(weight=0.25, shadow=1.0), "m version 3 answers 25%, copies of 100%, version 2 the rest"),
        (traffic(rollout_id="r1"), "m version 3 answers nothing any more; version 2 has all requests"),
        (traffic(changed=False), "m version 3 answers nothing, as before; version 2 has all requests"),
        (replace(traffic(), previous_version=None), "m version 3 answers nothing any more; no version is live"),
        (traffic(shadow=0.5), "m version 3 answers nothing, copies of 50%; version 2 has all requests"),
        (
            DeploymentRecord("m", 3, "d", "champion", "http://h/models/m/predict", previous_version=2),
            "m version 3 is champion at http://h/models/m/predict, version 2 kept warm",
        ),
        (
            DeploymentRecord("m", 3, "d", "champion", "http://h/models/m/predict", previous_version=2, away_s=41.3),
            "m version 3 is champion at http://h/models/m/predict, version 2 ended; nobody answered for 41 s",
        ),
    ],
)
def test_one_line_says_who_answers(record, text):
    """After deploy, promote and rollback."""
    assert deployment_text(record) == text


def test_a_model_is_told_in_lines():
    """One line a version that is up, and what the rollout rests on."""
    counts = {"requests": 40, "errors": 1, "slow": 2, "late": 0}
    rollout = {
        "id": "r1",
        "version": 3,
        "step": 0,
        "steps": [0.1, 0.5],
        "reason": "step 1 of 2 at 10 percent: 34 s",
        "step_started_at": "2026-11-25T12:00:00+00:00",
        "evidence": {
            "steps": [
                {"weight": 0.1, "canary": counts, "champion": {**counts, "requests": 80}},
                {
                    "weight": 0.5,
                    "canary": counts,
                    "champion": counts,
                    "canary_losses": {"gains": [4.0, 0.0, 0.0], "extremes": [0.0, 0.0], "total": 3.0},
                    "champion_losses": {"gains": [2.0, 0.0, 0.0], "extremes": [0.0, 0.0], "total": 1.0},
                },
            ],
            "numbers": {"losses": {"covers": "2026-11-25T12:00:30+00:00", "unknown": ""}},
        },
    }
    model = ModelOverview(
        name="m",
        champion=2,
        since="2026-11-25T11:00:00+00:00",
        by="bob@here",
        why="",
        canaries={3: 0.1},
        shadows={4: 0.5},
        warm={1: "2026-11-25T12:00:00+00:00", 5: None},
        rollout=rollout,
        keys=True,
        aborted={"id": "r0", "version": 6, "ended_at": "2026-11-25T11:30:00+00:00", "reason": "errors"},
        moved_by="bob@here (process 7)",
    )
    unmoved = set(replace(model, moved_by=None).text().splitlines()) - set(model.text().splitlines())
    assert unmoved == {f"            {UNMOVED}"}
    assert model.text().splitlines() == [
        "m",
        "  champion  version 2 since 2026-11-25 11:00:00 UTC by bob@here",
        "  callers   need an API key",
        "  canary    version 3 answers 10%",
        "  shadow    version 4 gets copies of 50%",
        "  warm      version 1 until 2026-11-25 12:00:00 UTC",
        "            version 5 until removed",
        "  rollout   r1 of version 3: step 1 of 2 at 10 percent: 34 s, at this step since 2026-11-25 12:00:00 UTC",
        (
            "            10%: canary 40 requests, 1 errors, 0 rejected, 2 slow, 0 late, "
            "champion 80 requests, 1 errors, 0 rejected, 2 slow, 0 late"
        ),
        (
            "            50%: canary 40 requests, 1 errors, 0 rejected, 2 slow, 0 late, "
            "champion 40 requests, 1 errors, 0 rejected, 2 slow, 0 late"
        ),
        "            50%: mean loss 0.750 of 4 against 0.500 of 2 labelled",
        "            losses of what was answered until 2026-11-25 12:00:30 UTC",
        "  aborted   rollout r0 of version 6 at 2026-11-25 11:30:00 UTC: errors",
    ]


def test_losses_that_are_not_known_are_told_with_the_rollout():
    """Since when, and why; a rollout that reads none says nothing of them."""
    why = "losses unknown since 2026-11-25T12:00:00+00:00: the storage is away"
    for losses, lines in (({"covers": None, "unknown": why}, [why]), ({"covers": None, "unknown": ""}, []), (None, [])):
        rollout = {"id": "r1", "version": 3, "step": 0, "steps": [0.1], "reason": "34 s", "evidence": {}}
        rollout |= {"step_started_at": "2026-11-25T12:00:00+00:00", "evidence": {"numbers": {"losses": losses}}}
        shares = {"canaries": {}, "shadows": {}, "warm": {}}
        model = ModelOverview("m", 2, "", "", "", **shares, rollout=rollout, moved_by="bob")
        assert model._rollout()[1:] == lines


def test_steps_are_percentages():
    """With or without their sign."""
    assert _percents("10, 50%,100") == (10.0, 50.0, 100.0)
    with pytest.raises(UsageError, match="got '10;50'"):
        _percents("10;50")


@pytest.mark.parametrize(
    "options",
    [
        ["--remove", "--canary", "10"],
        ["--beside", "--breaking"],
        ["--wait"],
        ["--wait", "--canary", "10"],
        ["--wait", "--abort"],
        ["--restore", "--beside"],
        ["--digest", "d", "--remove"],
        ["--digest", "d", "--restore"],
        ["--digest", "d", "--wait"],
        ["--takeover"],
        ["--takeover", "--wait"],
        ["--takeover", "--remove"],
        ["--takeover", "--remove", "--version", "2"],
        ["--takeover", "--restore", "--remove"],
        ["--canary", "10", "--bake", "10"],
        ["--canary", "ten"],
    ],
)
def test_options_that_do_not_go_together_are_refused(options, capsys, tmp_path):
    """Before anything is asked of a cluster."""
    config = tmp_path / "m.yaml"
    config.write_text("project: {name: m}\nrecipe: {import: 'tiny:Tiny'}\n")
    assert main(["deploy", "--config", str(config), "--yes", *options]) == 2
    assert capsys.readouterr().out == ""


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """Return the environment of a machine on which version 1 of ``m`` was deployed, and taken down since."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    item = Deployment("m", 1, BundleRef("/bundles", "d" * 64), "run", "champion", {"port": 8765, "min_replicas": 2})
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [item])
        put(state, "m", [], action="remove")


@pytest.mark.parametrize(("text", "version"), [("m", None), ("m@challenger", "@challenger"), ("m@7", "7")])
def test_a_model_is_named_without_its_configuration(deployed, text, version):
    """It is served as it was deployed last; a value may be replaced."""
    chosen = choose([text, "serve.max_replicas=5"], config=None, env=None)
    assert (chosen.name, chosen.version, chosen.named) == ("m", version, True)
    serve = chosen.spec.serve
    assert (serve.port, serve.min_replicas, serve.max_replicas) == (8765, 2, 5)


def test_the_environment_says_where_the_state_is(deployed, tmp_path, monkeypatch):
    """As on a production cluster, whose configuration is not at hand."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "elsewhere"))
    assert main(["rollback", "m", "--yes"]) == 3
    monkeypatch.setenv("RAYMLOPS_STATE_URL", f"sqlite:///{tmp_path}/state.db")
    assert main(["rollback", "m", "--yes"]) == 5  # no cluster runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "serve.port=1"], "neither a model nor its configuration"),
        (["rollback"], "neither a model nor its configuration"),
        (["rollback", "m@7"], "not to 7"),
        (["promote", "m@7", "--version", "8"], "both name a version"),
        (["deploy", "m@challenger", "--remove"], "takes a version by its number, not '@challenger'"),
    ],
)
def test_a_name_that_says_too_little_or_too_much_is_refused(deployed, words, message, capsys):
    """With what to give instead; nothing is asked of a cluster."""
    assert main([*words, "--yes"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["rollback", "other"], ["deploy", "other@challenger"], ["promote", "other"]])
def test_a_model_that_was_never_deployed_is_not_found(deployed, words, capsys):
    """Exit code 3, as for every model that does not exist."""
    assert main([*words, "--yes"]) == 3
    assert "--config FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["deploy", "m@7"], "Make m version 7 live?"),
        (["deploy", "m@challenger", "--canary", "5"], "Give m version @challenger a share of the traffic?"),
        (["deploy", "m", "--remove"], "Take m down, with all its versions?"),
        (["promote", "m"], "Make m version @challenger champion?"),
        (["rollback", "m"], "This takes back the canary of m, or the last change of its route."),
    ],
)
def test_questions_name_the_model_and_the_version(deployed, words, question, capsys):
    """Whoever says yes knows to what."""
    assert main(words) == 2
    assert question in capsys.readouterr().err


def test_an_interrupted_deploy_says_what_is_live(deployed, tmp_path, monkeypatch, capsys):
    """The interrupt may have come after the route was given away."""
    item = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", {"port": 8765})
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [item])

    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("raymlops.lifecycle.deploy.deploy", interrupted)
    assert main(["deploy", "m@3", "--yes", "--json"]) == 130
    out, err = capsys.readouterr()
    assert "version 2 is live of m" in err
    error = json.loads(out)["error"]
    assert error["type"] == "KeyboardInterrupt"
    assert "version 2 is live of m" in error["notes"][0]


def test_taking_one_version_down_asks_for_it_by_name_and_number(deployed, capsys):
    """As there is no terminal to ask on, the question is in the refusal; with --yes only the cluster is missing."""
    assert main(["deploy", "m@7", "--remove"]) == 2
    assert "Take version 7 of m down?" in capsys.readouterr().err
    assert main(["deploy", "m", "--version", "7", "--remove", "--yes"]) == 5
    assert "no running cluster" in capsys.readouterr().err


def test_a_version_that_was_taken_down_is_named_with_its_way_back(deployed, monkeypatch, capsys):
    """The registry has it still."""
    removed = []
    monkeypatch.setattr(
        "raymlops.lifecycle.remove.remove_version",
        lambda source, version: removed.append((source.project.name, version)),
    )
    assert main(["deploy", "m@7", "--remove", "--yes"]) == 0
    assert removed == [("m", 7)]
    assert capsys.readouterr().out == "removed version 7 of m; raymlops deploy m --version 7 brings it back\n"


def test_every_model_is_restored_without_naming_one(deployed, capsys, tmp_path):
    """Where Serve listens is what they were deployed with; that no cluster runs is all that is missing."""
    item = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", {"port": 8765})
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [item])
    assert nameless().serve.port == 8765
    assert main(["deploy", "--restore", "--yes"]) == 5
    assert "no running cluster" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["RAYMLOPS_STATE_URL", "RAYMLOPS_STATE_FILE", None])
def test_a_restore_names_its_state_before_anything_else(deployed, capsys, tmp_path, monkeypatch, variable):
    """Without a configuration the environment decides, silently until then; which variable or file, is printed too."""
    url = f"sqlite:///{tmp_path}/{'other' if variable else 'state'}.db"
    file = tmp_path / "state_url"
    file.write_text(f"{url}\n")
    for name, value in {"RAYMLOPS_STATE_URL": url, "RAYMLOPS_STATE_FILE": str(file)}.items():
        monkeypatch.delenv(name, raising=False)
        if name == variable:
            monkeypatch.setenv(name, value)
    says = {"RAYMLOPS_STATE_URL": f"{url} (RAYMLOPS_STATE_URL)", "RAYMLOPS_STATE_FILE": f"{url} ({file})"}
    shown = says.get(variable, url)
    assert main(["deploy", "--restore"]) == 2
    assert f"live according to {shown}?" in capsys.readouterr().err
    assert main(["deploy", "--restore", "--yes"]) == 5
    assert f"restoring from the state {shown}\n" in capsys.readouterr().err


def test_a_named_model_needs_its_cluster_and_nothing_else(deployed, capsys):
    """No file is read: that no cluster runs is all that is missing."""
    assert main(["rollback", "m", "--yes"]) == 5
    assert "no running cluster" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--remove"], ["--wait"], ["--beside"], ["--restore"]])
@pytest.mark.parametrize("share", ["--canary", "--shadow"])
def test_a_share_of_nothing_is_a_share(share, options, capsys, monkeypatch, tmp_path):
    """0 takes a version's share away; it is no option that was left out."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    assert main(["deploy", "m@3", *options, share, "0", "--yes"]) == 2
    assert ("--wait follows a rollout" if options == ["--wait"] else share) in capsys.readouterr().err


def test_what_a_rollout_can_show_is_said_before_the_question(tmp_path, monkeypatch, capsys):
    """The answer is no, and nothing was changed; a fixed share has nothing to say."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    item = Deployment("m", 1, BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64), "run", "champion")
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [item])
    for module in ("output", "traffic"):
        monkeypatch.setattr(f"raymlops.cli.{module}.has_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question, err: False)
    assert main(["deploy", "m@2", "--steps", "10,100"]) == 4
    assert capsys.readouterr().err.startswith("no request in the last hour: without traffic there is no verdict")
    assert main(["deploy", "m@2", "--canary", "10"]) == 4
    assert "no request" not in capsys.readouterr().err
