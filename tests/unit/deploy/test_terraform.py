"""The modules for Terraform, as text: one contract, and the names of cluster.yaml. Terraform itself is in soak."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/terraform"
CLUSTER = YAML(typ="safe", pure=True).load((ROOT / "cluster.yaml").read_text())
OUTPUTS = {"overlay", "node_env", "state_url", "image", "cluster"}
SECRET = {"node_env", "state_url"}


def text(module):
    return "\n".join(path.read_text() for path in sorted((FOLDER / module).glob("*.tf")))


def blocks(kind, module):
    """Return each named block of a kind, with what is in it."""
    return dict(re.findall(rf'^{kind} "(\w+)" {{\n(.*?)^}}', text(module), flags=re.MULTILINE | re.DOTALL))


def default(name):
    return re.search(r'default\s+= "(.*)"', blocks("variable", "aws")[name])[1]


@pytest.mark.parametrize("module", ["contract", "local", "aws"])
def test_each_module_has_the_outputs_of_the_contract(module):
    """Those with passwords are printed only when they are asked for."""
    outputs = blocks("output", module)
    assert outputs.keys() >= OUTPUTS
    assert {name for name in OUTPUTS if "sensitive" in outputs[name]} == SECRET
    for name in OUTPUTS if module != "contract" else ():
        assert f"module.contract.{name}" in outputs[name]


@pytest.mark.parametrize("module", ["local", "aws"])
def test_each_module_gives_the_contract_what_it_asks_for(module):
    """But for the image, which a machine of one's own may lack, and the place of the state's file on a head."""
    given = re.findall(r"^  (\w+)\s+=", blocks("module", module)["contract"], flags=re.MULTILINE)
    assert {*given, "source", "image", "state_file"} == {*blocks("variable", "contract"), "source"}


def test_the_module_makes_what_the_launcher_names():
    """Profiles, security group, region and cluster are found by their names."""
    name = default("name")
    assert (name, default("region")) == (CLUSTER["cluster_name"], CLUSTER["provider"]["region"])
    assert CLUSTER["provider"]["security_group"]["GroupName"] == name
    profiles = {node["node_config"]["IamInstanceProfile"]["Name"] for node in CLUSTER["available_node_types"].values()}
    assert profiles == {f"{name}-{kind}" for kind in re.findall(r'toset\(\["(head)", "(worker)"\]\)', text("aws"))[0]}
    port = CLUSTER["provider"]["security_group"]["IpPermissions"][0]["FromPort"]
    assert f"from_port         = {port}" in text("aws")


def test_no_secret_is_written_into_the_overlay():
    """It refers to variables that node_env has, and to the file that state_url becomes."""
    overlay = re.search(r"overlay = {.*?\n  }", text("contract"), flags=re.DOTALL)[0]
    assert "var.databases" not in overlay
    assert "var.tracking_uri" not in overlay
    named = set(re.findall(r'env = "(\w+)"', overlay))
    assert named == set(re.findall(r"^    (RAYMLOPS_\w+)\s+=", text("contract"), flags=re.MULTILINE))


def test_what_is_left_open_says_why():
    """Each check of checkov that is skipped has its reason behind it."""
    skipped = re.findall(r"#checkov:skip=(.*)", text("aws"))
    assert skipped
    assert [line for line in skipped if not re.fullmatch(r"CKV2?_AWS_\d+:\S.{20,}", line)] == []
