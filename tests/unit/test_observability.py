"""The dashboard and the alert rules ask for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from exported_metrics import exported
from ruamel.yaml import YAML

from raymlops.serving.telemetry.metric_families import FAMILIES, REFUSALS, WATCH_FAMILIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "observability"
RULES = [str(Path(__file__).parent / name) for name in ("alert_rules_test.yaml", "alert_rules_of_days_test.yaml")]

OURS = (*FAMILIES.values(), *WATCH_FAMILIES.values(), REFUSALS)
LABELS = {exported(family): set(family.labels) for family in OURS}
LABELS["ray_serve_deployment_replica_healthy"] = {"application", "deployment", "replica"}  # Ray Serve's own
LABELS["haproxy_backend_http_responses_total"] = {"proxy", "code"}  # HAProxy's own


def dashboard():
    return json.loads((FOLDER / "grafana-endpoint.json").read_text())


def rules():
    (group,) = YAML(typ="safe").load(FOLDER / "alerts.yaml")["groups"]
    return group["rules"]


def expressions():
    panels = [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]]
    return panels + [(rule["alert"], rule["expr"]) for rule in rules()]


def selectors(expression):
    """Return each metric of a query with its label matchers."""
    return re.findall(r"\b((?:ray|haproxy)_\w+)(?:\{([^}]*)\})?", expression)


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_queries_name_metrics_and_labels_that_the_code_exports(where, expression):
    """Every metric is one of ours, Ray's or HAProxy's, every matcher and every `by` one of its labels."""
    found = selectors(expression)
    assert found, where
    made = set(re.findall(r'"(\w+)", "\$1"', expression))  # by label_replace
    common = set.intersection(*(LABELS[metric] | made for metric, _ in found))
    for metric, matchers in found:
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers)) <= LABELS[metric], (where, metric)
    for grouping in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= common, (where, grouping)


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_counters_are_asked_for_their_rate(where, expression):
    """What only grows means nothing as it stands, and a gauge has no rate; brackets pair up."""
    for kind, names in (("counter", True), ("gauge", False)):
        for family in OURS:
            if family.kind == kind and exported(family) in expression and " unless " not in expression:
                inside = re.search(rf"(?:rate|increase)\({exported(family)}\b", expression) is not None
                assert inside is names, (where, exported(family))
    for pair in ("()", "{}", "[]"):
        assert expression.count(pair[0]) == expression.count(pair[1])


def test_every_metric_is_shown():
    """A metric that no panel shows would be found by nobody; sums of distributions are for one's own queries."""
    shown = {
        metric
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for metric, _ in selectors(target["expr"])
    }
    assert {name for name in LABELS if not name.endswith("_sum_total")} == shown


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    """Grafana draws what is at the same place on top of each other."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_has_the_variables_that_its_queries_use():
    """``$model`` is chosen from the models that have requests."""
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"]))) - {"__rate_interval"}
    assert used == names == {"datasource", "model"}


def test_alerts_say_what_happened_and_what_to_do():
    """Each has a severity, a summary of whom it concerns, and a description; settings that it names exist."""
    from raymlops.config.serve import ServeSection

    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert "{{ $labels." in rule["annotations"]["summary"]
        for path in re.findall(r"serve\.([a-z_.]*[a-z])", rule["annotations"]["description"]):
            section = ServeSection
            for key in path.split("."):
                assert key in section.model_fields, path
                section = section.model_fields[key].annotation


promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")


@promtool
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", str(FOLDER / "prometheus.yml")],
        ["check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "alerts.yaml")],
        ["test", "rules", *RULES],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(command):
    """Prometheus's own tool parses them and runs their tests."""
    done = subprocess.run(["promtool", *command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_parses_the_dashboards_queries(tmp_path):
    """As rules, with Grafana's variables filled in."""
    queries = [expression for panel in dashboard()["panels"] for expression in [t["expr"] for t in panel["targets"]]]
    filled = [query.replace("$__rate_interval", "1m").replace("$model", "flights") for query in queries]
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(filled)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
