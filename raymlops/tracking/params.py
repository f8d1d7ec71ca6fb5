"""A resolved configuration as MLflow parameters. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_VALUE_CHARS = 6000
"""MLflow's own limit on the length of a parameter."""


def flatten(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return nested plain data as ``{"train.lr": "0.003"}``; text as it is, everything else as JSON.

    A key with a dot in it is kept in one piece. Empty mappings are left out, long values are cut at the limit.
    """
    flat: dict[str, str] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": text for name, text in flatten(value).items()}
        else:
            flat[str(key)] = _text(value)
    return flat


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."
