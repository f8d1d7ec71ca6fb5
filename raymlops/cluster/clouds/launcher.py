"""The file of ``ray up``: what this package reads of it, in the form that it has there. Asks nobody.

A field of another form is told and left out, so that whoever goes on reads the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_ANY = "*"
_FORM = {
    "max_workers": int,
    "head_node_type": str,
    "auth": {"ssh_private_key": str},
    "file_mounts": {_ANY: str},
    "available_node_types": {
        _ANY: {
            "max_workers": int,
            "node_config": {
                "InstanceType": str,
                "KeyName": str,
                "IamInstanceProfile": {"Name": str, "Arn": str},
                "InstanceMarketOptions": {"MarketType": str},
            },
        }
    },
}
"""What is read here, mappings by their keys; Ray's own schema says nothing of what is in a ``node_config``."""
_KINDS = {dict: "mapping", int: "whole number", str: "text"}


def read(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a launcher's file says, without what is empty, and what is wrong with it.

    Raises:
        OSError, YAMLError, UnicodeDecodeError, KeyError, TypeError: it is no such file.
    """
    from ruamel.yaml import YAML

    config = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    config["provider"]["type"]  # without, it is no launcher
    problems: list[str] = []
    return _fitting(config, _FORM, "", problems), problems


def _fitting(value: Any, form: Any, place: str, problems: list[str]) -> Any:
    """Return a value of this form, None for one that is not; what has no form is taken as it is."""
    kind = dict if isinstance(form, dict) else form
    if kind is not None and not isinstance(value, kind):
        problems.append(f"{place} is no {_KINDS[kind]}")
        return None
    if kind is not dict:
        return value
    fields = {}
    for key, inner in value.items():
        inner_form = form.get(key, form.get(_ANY))
        given = {} if inner is None and isinstance(inner_form, dict) else inner
        fields[key] = None if given is None else _fitting(given, inner_form, f"{place}.{key}".lstrip("."), problems)
    return {key: inner for key, inner in fields.items() if inner is not None}
