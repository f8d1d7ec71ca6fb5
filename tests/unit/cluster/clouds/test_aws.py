"""What AWS says of an account, and what is made of it. The clients are fakes; their errors have botocore's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from raymlops.cluster.clouds import aws
from raymlops.cluster.clouds.launcher import read

LAUNCHER = YAML(typ="safe", pure=True).load((Path(__file__).parents[4] / "cluster.yaml").read_text())
VCPUS = {"m6i.xlarge": 4, "m6i.2xlarge": 8, "g5.xlarge": 4}
WELL = {
    "get_caller_identity": {"Account": "1", "Arn": "arn:aws:iam::1:user/ann"},
    "get_instance_profile": {"InstanceProfile": {"Roles": ["r"]}},
    "head_bucket": {},
    "describe_key_pairs": {},
    "describe_instance_types": {
        "InstanceTypes": [{"InstanceType": t, "VCpuInfo": {"DefaultVCpus": n}} for t, n in VCPUS.items()]
    },
    "get_service_quota": {"Quota": {"Value": 64.0}},
}


class ClientError(Exception):
    def __init__(self, code, headers=None):
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPHeaders": headers or {}}}


class SSOError(Exception):
    pass


class UnauthorizedSSOTokenError(SSOError):
    pass


class Client:
    def __init__(self, answers, asked):
        self.answers, self.asked = answers, asked

    def __getattr__(self, name):
        def ask(**arguments):
            self.asked.append((name, arguments))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def account(launcher=LAUNCHER, **answers):
    asked = []
    client = Client({**WELL, **answers}, asked)
    found = list(aws.account(lambda _: client, region="us-east-1", launcher=launcher, bucket="b"))
    return {finding.name: finding for finding in found}, asked


def test_an_account_that_is_well_has_nothing_to_mend():
    """Four machines of 8 vCPUs and a head of 4, two of 4 with a card; no spot machine unless it is asked for."""
    findings, asked = account()
    assert all(finding.ok and not finding.fix for finding in findings.values())
    assert findings["account"].message == "1, as arn:aws:iam::1:user/ann"
    assert findings["quota standard"].message == "64 vCPUs allowed in us-east-1, 36 when all nodes run"
    assert findings["quota G and VT"].message == "64 vCPUs allowed in us-east-1, 8 when all nodes run"
    assert {arguments["InstanceProfileName"] for name, arguments in asked if name == "get_instance_profile"} == {
        "raymlops-head",
        "raymlops-worker",
    }


@pytest.mark.parametrize(
    ("change", "name", "message", "fix"),
    [
        ({"get_caller_identity": ClientError("ExpiredToken")}, "account", "rejected: ExpiredToken", "aws sso login"),
        (
            {"get_caller_identity": UnauthorizedSSOTokenError("expired")},
            "account",
            "rejected: expired",
            "aws sso login",
        ),
        (
            {"get_instance_profile": ClientError("NoSuchEntity")},
            *("instance profile raymlops-worker", "is not there", "terraform -chdir=deploy/terraform/aws apply"),
        ),
        (
            {"get_instance_profile": {"InstanceProfile": {"Roles": []}}},
            *("instance profile raymlops-head", "has no role", "terraform"),
        ),
        ({"head_bucket": ClientError("404")}, "bucket b", "is not there", "aws s3 mb s3://b --region us-east-1"),
        ({"head_bucket": ClientError("403")}, "bucket b", "denies access", "get-bucket-policy --bucket b"),
        (
            {"head_bucket": ClientError("301", {"x-amz-bucket-region": "eu-west-1"})},
            *("bucket b", "is in eu-west-1", "provider.region: eu-west-1"),
        ),
        (
            {"get_service_quota": {"Quota": {"Value": 0.0}}},
            *("quota G and VT", "0 vCPUs allowed", "--quota-code L-DB2E81BA --desired-value 8 --region us-east-1"),
        ),
        (
            {"describe_instance_types": ClientError("InvalidInstanceType")},
            *("instance types", "InvalidInstanceType", "describe-instance-type-offerings --region us-east-1"),
        ),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_mends_it(change, name, message, fix):
    """One finding a thing."""
    finding = account(**change)[0][name]
    assert not finding.ok
    assert message in finding.message
    assert fix in finding.fix


def test_a_key_pair_that_a_launcher_names_is_asked_for():
    """Ray makes one where none is named."""
    launcher = {"available_node_types": {"head": {"node_config": {"KeyName": "mine"}}}}
    assert account(launcher)[0]["key pair mine"].ok
    finding = account(launcher, describe_key_pairs=ClientError("InvalidKeyPair.NotFound"))[0]["key pair mine"]
    assert "aws ec2 import-key-pair --region us-east-1 --key-name mine" in finding.fix


def test_a_launcher_may_name_profiles_by_arn_and_leave_fields_empty(tmp_path):
    """As Ray takes it: an empty field is one that is not there."""
    file = tmp_path / "launcher.yaml"
    file.write_text("""
provider: {type: aws}
head_node_type: head
max_workers:
available_node_types:
  head:
    max_workers:
    node_config: {InstanceType: m6i.xlarge, IamInstanceProfile: {Arn: "arn:aws:iam::1:instance-profile/ours/head"}}
  worker: {node_config: {InstanceType: m6i.2xlarge, IamInstanceProfile: , InstanceMarketOptions: }}
  more:
""")
    launcher, problems = read(file)
    assert problems == []
    findings, _ = account(launcher)
    assert findings["instance profile head"].ok
    assert findings["quota standard"].message.endswith("12 when all nodes run")


def test_without_a_network_only_one_question_is_asked():
    """Each would wait for its time."""
    findings, asked = account(get_caller_identity=TimeoutError("Read timeout on endpoint"))
    assert [name for name, _ in asked] == ["get_caller_identity"]
    assert list(findings) == ["account"]
    assert "does not answer within 4 s" in findings["account"].message
    assert "HTTPS_PROXY" in findings["account"].fix


def test_what_one_may_not_ask_is_no_fault():
    """A right to look is not a right that nodes need."""
    denied = dict.fromkeys(("get_instance_profile", "describe_instance_types"), ClientError("AccessDenied"))
    findings, _ = account(**denied)
    assert all(finding.ok for finding in findings.values())
    assert findings["instance types"].message == "not checked: you may not ask (ec2:DescribeInstanceTypes)"


def test_spot_machines_have_a_quota_of_their_own():
    """By family, also where it is none that is known here."""
    types = {"head": {"node_config": {"InstanceType": "x2idn.16xlarge"}}}
    types["gpu-spot"] = {
        "max_workers": 3,
        "node_config": {"InstanceType": "g5.xlarge", "InstanceMarketOptions": {"MarketType": "spot"}},
    }
    launcher = {"head_node_type": "head", "max_workers": 2, "available_node_types": types}
    findings, asked = account(launcher)
    assert findings["quota G and VT spot"].message.endswith("8 when all nodes run")
    assert ("get_service_quota", {"ServiceCode": "ec2", "QuotaCode": "L-3819A6DF"}) in asked
    assert "is not known here" in findings["quota x2idn.16xlarge"].message
