"""Objects as YAML that versions 1.1 and 1.2 read alike: kubectl reads 1.1, where an unquoted ``on`` is no text."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan"})


def yaml_text(objects: Iterable[Any]) -> str:
    """Return objects as YAML documents, keys in the order that they have."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    for number, found in enumerate(objects):
        if number:
            text.write("---\n")
        yaml.dump(_quoted(found), text)
    return text.getvalue()


def _quoted(value: Any) -> Any:
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, str):
        if "\n" in value:
            return LiteralScalarString(value)
        if not _PLAIN.fullmatch(value) or value.lower() in _WORDS:
            return DoubleQuotedScalarString(value)
    return value
