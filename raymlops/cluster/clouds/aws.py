"""What AWS says of an account before `ray up` starts machines in it: who we are, profiles, key pair, bucket, quotas.

Owns each question and what its answer means. Clients are arguments; each waits for some seconds, and once.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from raymlops.cluster.doctor import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Clients = Callable[[str], Any]

_TIMEOUT_S = 4
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
_APPLY = "terraform -chdir=deploy/terraform/aws apply"
_QUOTAS = {
    ("standard", False): "L-1216C47A",
    ("standard", True): "L-34B43A08",
    ("G and VT", False): "L-DB2E81BA",
    ("G and VT", True): "L-3819A6DF",
    ("P", False): "L-417A185B",
    ("P", True): "L-7212CCBC",
}
"""vCPUs that may run at once, on demand and as spot, by family of instance types."""
_FAMILIES = {**dict.fromkeys("acdhimrtz", "standard"), "g": "G and VT", "gr": "G and VT", "vt": "G and VT", "p": "P"}
_LOGINS = {"NoCredentialsError", "CredentialRetrievalError", "SSOError", "TokenRetrievalError"}
"""botocore's errors about credentials, raised before AWS is asked; other ones without a code are no answer."""


def clients(region: str) -> Clients:
    """Return what makes clients of AWS's services; needs boto3."""
    session = importlib.import_module("boto3").session.Session()
    config = importlib.import_module("botocore.config").Config(
        connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 1}
    )
    return lambda service: session.client(service, region_name=region, config=config)


def account(client: Clients, *, region: str, launcher: dict[str, Any] | None, bucket: str | None) -> Iterator[Finding]:
    """Ask AWS; where it does not answer, say so and ask nothing else. The launcher is one that ``read`` returned."""
    try:
        who = client("sts").get_caller_identity()
    except Exception as error:
        if _code(error) or _LOGINS & {base.__name__ for base in type(error).__mro__}:
            why = _code(error) or _first_line(error)
            yield Finding("account", ok=False, message=f"the credentials are rejected: {why}", fix="aws sso login")
        else:
            message = f"AWS does not answer within {_TIMEOUT_S} s: {_first_line(error)}; nothing of it was checked"
            yield Finding("account", ok=False, message=message, fix="check the network, or HTTPS_PROXY")
        return
    yield Finding("account", ok=True, message=f"{who['Account']}, as {who['Arn']}")
    configs = _node_configs(launcher)
    yield from _profiles(client, configs)
    yield from _key_pairs(client, configs, region=region)
    if bucket is not None:
        yield _bucket(client, bucket, region=region)
    yield from _quotas(client, launcher, region=region)


def _profiles(client: Clients, configs: list[dict[str, Any]]) -> Iterator[Finding]:
    for name in sorted({name for config in configs if (name := _profile(config))}):
        finding = f"instance profile {name}"
        try:
            found = client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except Exception as error:
            if _code(error) == "NoSuchEntity":
                yield Finding(finding, ok=False, message="is not there, and nodes start with it", fix=_APPLY)
            else:
                yield _unknown(finding, error, right="iam:GetInstanceProfile")
        else:
            ok = bool(found["Roles"])
            message = "is there" if ok else "has no role, so that nodes with it reach nothing"
            yield Finding(finding, ok, message, "" if ok else _APPLY)


def _key_pairs(client: Clients, configs: list[dict[str, Any]], *, region: str) -> Iterator[Finding]:
    for name in sorted({config["KeyName"] for config in configs if "KeyName" in config}):
        try:
            client("ec2").describe_key_pairs(KeyNames=[name])
        except Exception as error:
            if _code(error) != "InvalidKeyPair.NotFound":
                yield _unknown(f"key pair {name}", error, right="ec2:DescribeKeyPairs")
                continue
            fix = f"aws ec2 import-key-pair --region {region} --key-name {name} --public-key-material fileb://KEY.pub"
            yield Finding(f"key pair {name}", ok=False, message=f"is not in {region}", fix=fix)
        else:
            yield Finding(f"key pair {name}", ok=True, message=f"is in {region}")


def _bucket(client: Clients, bucket: str, *, region: str) -> Finding:
    name = f"bucket {bucket}"
    try:
        client("s3").head_bucket(Bucket=bucket)
    except Exception as error:
        answer = getattr(error, "response", None) or {}
        headers = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
        there = headers.get("x-amz-bucket-region", region)
        if there != region:
            message = f"is in {there}, the cluster in {region}: each read and write between them is billed"
            return Finding(name, ok=False, message=message, fix=f"write provider.region: {there} into the launcher")
        if _code(error) in {"404", "NoSuchBucket"}:
            fix = f"aws s3 mb s3://{bucket} --region {region}"
            return Finding(name, ok=False, message="is not there", fix=fix)
        if _code(error) in _DENIED:
            message = "denies access to you, or is somebody else's"
            return Finding(name, ok=False, message=message, fix=f"aws s3api get-bucket-policy --bucket {bucket}")
        return _unknown(name, error, right="s3:ListBucket")
    return Finding(name, ok=True, message="answers; whether nodes may write is in their instance profiles")


def _quotas(client: Clients, launcher: dict[str, Any] | None, *, region: str) -> Iterator[Finding]:
    wanted = _machines(launcher)
    if not wanted:
        return
    try:
        types = client("ec2").describe_instance_types(InstanceTypes=sorted({kind for kind, _ in wanted}))
    except Exception as error:
        if _code(error) == "InvalidInstanceType":
            fix = f"aws ec2 describe-instance-type-offerings --region {region}"
            yield Finding("instance types", ok=False, message=f"{_first_line(error)} ({region})", fix=fix)
        else:
            yield _unknown("instance types", error, right="ec2:DescribeInstanceTypes")
        return
    vcpus = {row["InstanceType"]: row["VCpuInfo"]["DefaultVCpus"] for row in types["InstanceTypes"]}
    sums: dict[tuple[str, bool], int] = defaultdict(int)
    for (kind, spot), number in wanted.items():
        sums[_family(kind), spot] += vcpus.get(kind, 0) * number
    for (family, spot), needed in sorted(sums.items()):
        yield _quota(client, family, spot=spot, needed=needed, region=region)


def _quota(client: Clients, family: str, *, spot: bool, needed: int, region: str) -> Finding:
    name, code = f"quota {family}{' spot' if spot else ''}", _QUOTAS.get((family, spot))
    if code is None:
        return Finding(name, ok=True, message=f"{needed} vCPUs at most, of a family whose quota is not known here")
    try:
        answer = client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except Exception as error:
        return _unknown(name, error, right="servicequotas:GetServiceQuota")
    allowed = math.floor(answer["Quota"]["Value"])
    ask = "aws service-quotas request-service-quota-increase --service-code ec2"
    fix = f"{ask} --quota-code {code} --desired-value {needed} --region {region}"
    message = f"{allowed} vCPUs allowed in {region}, {needed} when all nodes run"
    return Finding(name, allowed >= needed, message, "" if allowed >= needed else fix)


def _machines(launcher: dict[str, Any] | None) -> dict[tuple[str, bool], int]:
    """Return how many machines of an instance type may run at once, on demand and as spot."""
    found: dict[tuple[str, bool], int] = defaultdict(int)
    given = launcher or {}
    most = given.get("max_workers", math.inf)
    for name, node in given.get("available_node_types", {}).items():
        config = node.get("node_config", {})
        number = 1 if name == given.get("head_node_type") else min(node.get("max_workers", most), most)
        if "InstanceType" in config and number:
            spot = config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
            found[config["InstanceType"], spot] += int(number) if math.isfinite(number) else 1
    return dict(found)


def _family(instance_type: str) -> str:
    """Return the family of quotas of an instance type, the type itself where none of ours has it."""
    found = re.match(r"[a-z]+", instance_type)
    return _FAMILIES.get(found[0] if found else "", instance_type)


def _node_configs(launcher: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [node.get("node_config", {}) for node in (launcher or {}).get("available_node_types", {}).values()]


def _profile(config: dict[str, Any]) -> str | None:
    """Return the name of a node's instance profile, which its ARN ends with: arn:...:instance-profile/PATH/NAME."""
    profile = config.get("IamInstanceProfile", {})
    return profile.get("Name") or profile.get("Arn", "").rpartition("/")[2] or None


def _unknown(name: str, error: Exception, *, right: str) -> Finding:
    why = f"you may not ask ({right})" if _code(error) in _DENIED else _first_line(error)
    return Finding(name, ok=True, message=f"not checked: {why}")


def _code(error: Exception) -> str | None:
    """Return the code of an answer of AWS; None where it did not answer."""
    answer = getattr(error, "response", None)
    return str(answer["Error"]["Code"]) if isinstance(answer, dict) and "Error" in answer else None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
