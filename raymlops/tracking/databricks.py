"""Which Databricks workspace a tracking URI means, and what is in the way of it. Asks no server.

MLflow's client finds host and credentials by Databricks' SDK: variables, then a profile of ``~/.databrickscfg``. Owns
what that leaves unsaid: a profile that is not there, or one that a variable overrides, means another workspace.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from raymlops.config.platforms.databricks import SCHEME
from raymlops.errors import TrackingError

_HOST = "DATABRICKS_HOST"
_ELSEWHERE = ("DATABRICKS_AZURE_RESOURCE_ID", "DATABRICKS_RUNTIME_VERSION", "DATABRICKS_METADATA_SERVICE_URL")
"""Variables by which a workspace is known without its host: by Azure, or from inside."""
_SETTINGS = "__settings__"


def workspace(uri: str) -> str | None:
    """Return the host of the workspace, or None where only Databricks' SDK can find it.

    Raises:
        TrackingError: the URI or DATABRICKS_CONFIG_PROFILE names a profile that is not there, or that DATABRICKS_HOST
            overrides; or nothing names a workspace.
    """
    named = uri.removeprefix(SCHEME).removeprefix("://") or os.environ.get("DATABRICKS_CONFIG_PROFILE", "")
    if ":" in named:
        return None  # SCOPE:PREFIX, secrets that only a cluster of Databricks can read
    file = Path(os.environ.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg").expanduser()
    (profiles, default), host = _profiles(file), os.environ.get(_HOST)
    known = f"has the profiles {', '.join(profiles)}" if profiles else "has none"
    if not named:
        if host is None and default not in profiles and not any(map(os.environ.get, _ELSEWHERE)):
            raise TrackingError(
                f"tracking.uri is {SCHEME}, and nothing names a workspace: {_HOST} is not set, and there is no profile "
                f"{default}: {file} {known}",
                hint=f"export {_HOST}=https://... and DATABRICKS_TOKEN=..., or databricks auth login, or set "
                f"tracking.uri to {SCHEME}://PROFILE",
            )
        return host or profiles.get(default) or None
    if named not in profiles:
        raise TrackingError(
            f"there is no Databricks profile {named!r}: {file} {known}",
            hint=f"databricks auth login --profile {named}, or change tracking.uri",
        )
    if host and profiles[named] and not _same(host, profiles[named]):
        raise TrackingError(
            f"the Databricks profile {named!r} is of {profiles[named]}, and the client prefers {_HOST}, {host}",
            hint=f"unset {_HOST} and DATABRICKS_TOKEN, or set tracking.uri to {SCHEME}",
        )
    return profiles[named] or None


def _same(host: str, other: str) -> bool:
    """Return whether two hosts are one workspace as the SDK reads them; ids in ``?o=`` tell two apart."""
    parts = [urlsplit((text if "://" in text else f"https://{text}").strip()) for text in (host, other)]
    ids = [parse_qs(part.query).get("o") for part in parts]
    names = {part.netloc.lower().removesuffix(":443") for part in parts}
    return len(names) == 1 and (None in ids or ids[0] == ids[1])


def _profiles(file: Path) -> tuple[dict[str, str], str]:
    """Return the host of each profile, empty where it has none, and the name of the one that is meant without a name.

    MLflow's client takes DEFAULT; the SDK's own setting counts where that is not there.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if text.startswith("\ufeff"):
            fix = "Save it as UTF-8 without one."
            raise TrackingError(f"{file} begins with a byte order mark, which Databricks' SDK cannot read", hint=fix)
        parser.read_string(text)
    except (configparser.Error, UnicodeDecodeError, OSError):
        # Without its cause, which would show a line of a file with tokens.
        raise TrackingError(
            f"{file} cannot be read as a file of Databricks profiles", hint="databricks auth profiles"
        ) from None
    # A section does not inherit from DEFAULT, other than in Python's own files.
    sections = {name: parser._sections[name] for name in parser.sections()}  # type: ignore[attr-defined]  # noqa: SLF001
    named = sections.pop(_SETTINGS, {}).get("default_profile", "").strip()
    if parser.defaults():
        sections = {"DEFAULT": parser.defaults(), **sections}
    default = "DEFAULT" if parser.defaults() or not named else named
    return {name: values.get("host", "") for name, values in sections.items()}, default
