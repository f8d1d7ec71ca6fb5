"""What an environment's objects differ in from those of the base, as a kustomize overlay. Pure.

Owns the difference: applied to the base it gives the environment's objects, no more and no less.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.documents import yaml_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Objects = list[dict[str, Any]]
KUSTOMIZATION = "kustomization.yaml"
OWN = "objects.yaml"


def base_files(found: Mapping[str, Objects]) -> dict[str, str]:
    """Return the files of the base."""
    resources = [f"{name}.yaml" for name in sorted(found)]
    files = {f"{name}.yaml": yaml_text(objects) for name, objects in found.items()}
    return {**files, KUSTOMIZATION: yaml_text([_kustomization(resources=resources)])}


def overlay_files(base: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], *, namespace: str) -> dict[str, str]:
    """Return the files of an environment's overlay over ``../../base``."""
    before, after = {_key(one): one for one in base}, {_key(one): one for one in own}
    patches = []
    for key, old in before.items():
        target = {"kind": old["kind"], "name": old["metadata"]["name"]}
        if key not in after:
            gone = {"apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": {"name": target["name"]}}
            patches.append({"target": target, "patch": yaml_text([{"$patch": "delete", **gone}])})
        elif operations := list(difference(old, after[key])):
            lines = ",\n".join(f" {json.dumps(one)}" for one in operations)
            patches.append({"target": target, "patch": f"[\n{lines}\n]\n"})
    new = [after[key] for key in after if key not in before]
    resources = ["../../base", *([OWN] if new else [])]
    rest = {"patches": patches} if patches else {}
    files = {KUSTOMIZATION: yaml_text([_kustomization(namespace=namespace, resources=resources, **rest)])}
    return {**files, OWN: yaml_text(new)} if new else files


def difference(old: Any, new: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Yield the operations (RFC 6902) that make ``old`` into ``new``; lists of another length are replaced whole."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from difference(before, after, f"{path}/{index}")
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield {"op": "replace", "path": path, "value": new}
        return
    for key in [*old, *(key for key in new if key not in old)]:
        at = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in new:
            yield {"op": "remove", "path": at}
        elif key not in old:
            yield {"op": "add", "path": at, "value": new[key]}
        else:
            yield from difference(old[key], new[key], at)


def _kustomization(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **fields}


def _key(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return found["apiVersion"], found["kind"], found["metadata"]["name"]
