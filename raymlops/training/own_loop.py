"""Settings that the default loop applies, and a recipe's own ``train_loop`` has to apply itself. Pure.

Whether it does is read from its code: a setting that no line of it reads has no effect.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.schema import ProjectSpec

APPLIED = {
    **dict.fromkeys(("optimizer", "optimizer_args", "lr", "weight_decay", "weight_decay_on", "momentum"), ""),
    **dict.fromkeys(("schedule", "schedule_args", "warmup_fraction", "warmup_steps", "lr_floor"), ""),
    **dict.fromkeys(("ema", "clip_norm", "accumulate", "on_non_finite", "eval_every_steps", "log_every_steps"), ""),
    **dict.fromkeys(("precision", "compile", "activation_checkpointing"), "parallel"),
}
"""Fields of ``train``, each with the method of the context that applies it too."""


def unused_settings(spec: ProjectSpec, files: Mapping[str, bytes]) -> str:
    """Return a notice of settings that differ from the default, or are searched by a sweep, and are not read.

    ``files`` are those of the recipe's code. Empty where there is no such setting, or no code.
    """
    code = "\n".join(data.decode(errors="replace") for path, data in files.items() if path.endswith(".py"))
    mentioned = set(re.findall(r"""[.'"](\w+)""", code))  # ctx.spec.lr, and getattr(ctx.spec, "lr")
    fields = type(spec.train).model_fields
    found = []
    for name, method in APPLIED.items():
        value, searched = getattr(spec.train, name), f"train.{name}" in spec.sweep.space
        changed = value != fields[name].get_default(call_default_factory=True)
        if (changed or searched) and mentioned and not {name, method} & mentioned:
            found.append(f"train.{name} ({'searched by the sweep' if searched else value})")
    if not found:
        return ""
    return (
        f"the recipe's own train_loop() does not read {', '.join(found)}, which only the default loop applies: take "
        "them from ctx.spec, or leave them out"
    )
