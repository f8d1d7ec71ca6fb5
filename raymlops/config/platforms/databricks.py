"""What a tracking URI of Databricks needs beside it in a configuration. Pure.

Knows what MLflow's client and Unity Catalog call things, and no credential: those are in Databricks' own variables and
profiles.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCHEME = "databricks"
_RESERVED = re.compile(r"[.,\-=/:\s]")
_LEVEL = r"[^\s./'`A-Z]+"  # Unity Catalog stores names in lower case


def is_databricks(uri: str) -> bool:
    """Return whether MLflow is a Databricks workspace: ``databricks``, or ``databricks://PROFILE``."""
    return uri == SCHEME or uri.startswith(f"{SCHEME}://")


def registry_uri(uri: str) -> str:
    """Return the URI of the registry beside a tracking URI: of Databricks it is Unity Catalog, else the same MLflow."""
    return f"{SCHEME}-uc{uri.removeprefix(SCHEME)}" if is_databricks(uri) else uri


def tag_key(key: str) -> str:
    """Return a tag's key in Unity Catalog, which holds none of ``. , - = / :`` and no white space."""
    return _RESERVED.sub("_", key)


def alike(keys: Iterable[str]) -> list[list[str]]:
    """Return the keys of tags that Unity Catalog would take for one."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(tag_key(key), []).append(key)
    return [several for several in found.values() if len(several) > 1]


def unfit(uri: str, *, uc_schema: str | None, experiment: str | None) -> Iterator[tuple[str, str]]:
    """Yield each field of ``tracking`` that does not fit a tracking URI, with what is wrong."""
    if uc_schema is not None and not re.fullmatch(rf"{_LEVEL}\.{_LEVEL}", uc_schema):
        yield "uc_schema", f"got {uc_schema!r}; CATALOG.SCHEMA in Unity Catalog, in lower case, such as main.ml"
    if not is_databricks(uri):
        if uc_schema is not None:
            yield "uc_schema", f"got {uc_schema!r}; allowed only where tracking.uri is {SCHEME} or {SCHEME}://PROFILE"
        return
    if uc_schema is None:
        yield "uc_schema", f"is required where tracking.uri is {SCHEME}: CATALOG.SCHEMA in Unity Catalog, for models"
    if not (experiment or "").startswith("/"):
        got = "is required" if experiment is None else f"got {experiment!r}, no path"
        yield "experiment", f"{got}: in Databricks it is a path of the workspace, such as /Shared/flights"
