"""What models, tags and their values are called in a registry: as here, or by the rules of Unity Catalog. Pure.

There a model has three levels, CATALOG.SCHEMA.NAME. A tag's key has fewer characters, its value at most 1,000 with none
blank at an end. Our own keys, which begin with ``raymlops.``, are read back as they were written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.config.platforms.databricks import tag_key
from raymlops.registry.lineage import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TAG = 5000
MAX_UC_TAG = 1000
_UC_PREFIX = tag_key(PREFIX)


@dataclass(frozen=True)
class Names:
    """The names of one registry; ``uc_schema`` is CATALOG.SCHEMA of Unity Catalog, None elsewhere."""

    uc_schema: str | None = None

    def model(self, name: str) -> str:
        """Return a model's name there."""
        return name if self.uc_schema is None else f"{self.uc_schema}.{name}"

    def ours(self, model: str) -> str | None:
        """Return the name here of a model there, None if it is of another schema."""
        if self.uc_schema is None:
            return model
        schema, _, name = model.rpartition(".")
        return name if schema == self.uc_schema else None

    def write(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Return tags as they are written there."""
        if self.uc_schema is None:
            return {key: str(value)[:MAX_TAG] for key, value in tags.items()}
        return {tag_key(key): str(value).strip()[:MAX_UC_TAG].rstrip() for key, value in tags.items()}

    def read(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Return tags as they are called here."""
        if self.uc_schema is None:
            return dict(tags)
        return {re.sub(f"^{_UC_PREFIX}", PREFIX, key): value for key, value in tags.items()}
