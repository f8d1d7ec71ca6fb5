"""``raymlops doctor --cloud``: what `ray up` lacks on this machine and in the account, each with what mends it.

Owns what is found without a network: packages, credentials, the launcher's file and the files that it sends. What AWS
itself says is in ``aws``. Starts and changes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.cluster.clouds import aws
from raymlops.cluster.clouds import launcher as launchers
from raymlops.cluster.doctor import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.cluster.clouds.spot import Cloud

LAUNCHERS = {"aws": "cluster.yaml", "gcp": "configs/cluster/gcp.yaml", "azure": "configs/cluster/azure.yaml"}
_PACKAGES = {
    "aws": {"boto3": "boto3"},
    "gcp": {"googleapiclient": "google-api-python-client", "google.auth": "google-auth"},
    "azure": {"azure.identity": "azure-identity", "azure.mgmt.compute": "azure-mgmt-compute"},
}
_LOGINS = {"aws": "aws configure sso", "gcp": "gcloud auth application-default login", "azure": "az login"}
_PLACES = {"aws": "region", "gcp": "region", "azure": "location"}
_MENDS = {
    "~/.ray/auth_token": "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token",
    "~/.raymlops/node.env": "(umask 077; mkdir -p ~/.raymlops; touch ~/.raymlops/node.env)",
    "~/.raymlops/state_url": "(umask 077; mkdir -p ~/.raymlops; touch ~/.raymlops/state_url)",
}

_AWS_SOURCES = {"aws_access_key_id", "sso_session", "sso_account_id", "role_arn", "credential_process", "login_session"}
"""Settings of a profile, one of which says where its credentials are."""
_NOBODY = (False, "none were found")


def diagnose(cloud: Cloud, *, launcher: str | None = None, bucket_uri: str | None = None) -> list[Finding]:
    """Check what `ray up LAUNCHER` needs; ``bucket_uri`` is the ``storage.path`` of a configuration.

    Only AWS itself is asked, for some seconds, where its package and credentials are there.
    """
    file = Path(launcher or LAUNCHERS[cloud])
    config, found = _launcher(cloud, file)
    packages = list(_packages(cloud))
    login = credentials(cloud)
    findings = [*packages, found, login, *([] if config is None else _of_launcher(cloud, config, file))]
    if cloud == "aws" and login.ok and all(package.ok for package in packages):
        region = str((config or {}).get("provider", {}).get("region") or os.environ.get("AWS_REGION") or "us-east-1")
        findings += aws.account(aws.clients(region), region=region, launcher=config, bucket=_bucket(bucket_uri))
    return findings


def _packages(cloud: Cloud) -> Iterator[Finding]:
    for module, package in _PACKAGES[cloud].items():
        ok = _importable(module)
        message = f"{package} is {'' if ok else 'not '}installed, by which Ray starts machines"
        yield Finding(f"package {package}", ok, message, "" if ok else f"pip install {package}")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


def _launcher(cloud: Cloud, file: Path) -> tuple[dict[str, Any] | None, Finding]:
    from ruamel.yaml.error import YAMLError

    try:
        config, problems = launchers.read(file)
    except OSError as error:
        fix = f"run it where {LAUNCHERS[cloud]} is, or name yours: --launcher FILE"
        return None, Finding("launcher", ok=False, message=f"{file}: {error.strerror}", fix=fix)
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        message = f"{file} is no file of `ray up`: {str(error).partition(chr(10))[0]}"
        return None, Finding("launcher", ok=False, message=message, fix="name one: --launcher FILE")
    kind = config["provider"]["type"]
    if kind != cloud:
        fix = f"raymlops doctor --cloud {kind}" if kind in LAUNCHERS else "name one: --launcher FILE"
        return None, Finding("launcher", ok=False, message=f"{file} is for {kind}, not {cloud}", fix=fix)
    if problems:
        message = f"{file}: {', '.join(problems)}; the rest was read"
        return config, Finding("launcher", ok=False, message=message, fix=f"write it anew in {file}")
    return config, Finding("launcher", ok=True, message=f"{file}, the cluster {config.get('cluster_name')}")


def _of_launcher(cloud: Cloud, config: dict[str, Any], file: Path) -> Iterator[Finding]:
    key, place = _PLACES[cloud], config["provider"].get(_PLACES[cloud])
    fix = f"write provider.{key} into {file}"
    yield Finding(key, place is not None, f"{place or 'none'}, by provider.{key}", "" if place else fix)
    for source in config.get("file_mounts", {}).values():
        if not Path(source).expanduser().exists():
            mend = _MENDS.get(source, f"write it, or take it out of file_mounts in {file}")
            yield Finding("sent files", ok=False, message=f"{source} is not there, and goes to each node", fix=mend)
    private = config.get("auth", {}).get("ssh_private_key")
    if private is None or cloud == "azure":  # Ray makes the pair
        return
    ok = Path(private).expanduser().exists()
    fix = f"ssh-keygen -t ed25519 -N '' -f {private}"
    yield Finding("key pair", ok, f"{private} is {'' if ok else 'not '}there", "" if ok else fix)


def credentials(cloud: Cloud) -> Finding:
    """Say by what this machine is somebody for a cloud, without asking the cloud."""
    ok, message = {"aws": _aws_credentials, "gcp": _gcp_credentials, "azure": _azure_credentials}[cloud]()
    return Finding("credentials", ok, message, "" if ok else _LOGINS[cloud])


def _aws_credentials() -> tuple[bool, str]:
    given = os.environ.get
    if given("AWS_ACCESS_KEY_ID"):
        whole = bool(given("AWS_SECRET_ACCESS_KEY"))
        return whole, f"AWS_ACCESS_KEY_ID{'' if whole else ' is set, AWS_SECRET_ACCESS_KEY is not'}"
    for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        if given(name):
            return True, name
    profile = given("AWS_PROFILE") or "default"
    keys = _sections(given("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    settings = _sections(given("AWS_CONFIG_FILE") or "~/.aws/config")
    section = settings.get("default" if profile == "default" else f"profile {profile}", {})
    if keys.get(profile) or _AWS_SOURCES & section.keys():
        return True, f"the profile {profile}"
    if given("AWS_PROFILE"):
        known = sorted({*keys, *(name.removeprefix("profile ") for name in settings)})
        return False, f"AWS_PROFILE is {profile}, and the profiles are {', '.join(known) or 'none'}"
    if _importable("boto3"):
        # On a machine of AWS it asks for the machine's role, for a second.
        held = importlib.import_module("boto3").session.Session().get_credentials()
        return _NOBODY if held is None else (True, f"what boto3 found by {held.method}")
    return _NOBODY


def _gcp_credentials() -> tuple[bool, str]:
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
    file = Path(named) if named else folder / "application_default_credentials.json"
    if file.exists():
        return True, str(file)
    return (False, f"GOOGLE_APPLICATION_CREDENTIALS is {file}, which is not there") if named else _NOBODY


def _azure_credentials() -> tuple[bool, str]:
    if os.environ.get("AZURE_CLIENT_ID") and os.environ.get("AZURE_TENANT_ID"):
        return True, "AZURE_CLIENT_ID"
    file = Path(os.environ.get("AZURE_CONFIG_DIR") or "~/.azure").expanduser() / "azureProfile.json"
    try:
        subscriptions = json.loads(file.read_text(encoding="utf-8-sig"))["subscriptions"]
        names = [item["name"] for item in subscriptions if item.get("isDefault")]
    except (OSError, ValueError, KeyError, TypeError):
        return _NOBODY
    return bool(names), f"the subscription {names[0]}" if names else "az has no default subscription"


def _sections(file: str) -> dict[str, dict[str, str]]:
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(Path(file).expanduser(), encoding="utf-8")
    except (ConfigParserError, UnicodeDecodeError):
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}


def _bucket(uri: str | None) -> str | None:
    if uri is None or not uri.startswith("s3://"):
        return None
    return uri.removeprefix("s3://").partition("?")[0].partition("/")[0]
