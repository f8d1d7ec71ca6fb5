"""What every section of a configuration is made of: strict models and names.

Owns the rules that hold for all fields of these kinds. Knows no section.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Spec(BaseModel):
    """Base of every section: strict types, unknown keys refused, immutable, finite numbers only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # pydantic's own text would repeat a credential
    )


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9_]|-(?!-)){0,62}", value) or value.endswith("-"):
        msg = (
            f"got {value!r}; a name is 1 to 63 of a-z, 0-9, _ and single -, starting with a letter or digit: "
            "it becomes a URL, an MLflow model and a Serve application"
        )
        raise ValueError(msg)
    return value


Name = Annotated[str, AfterValidator(_name)]
