"""Whether a version can stand in for the champion: the same requests, read the same way, the same kind of answer.

Owns the rule. It is stricter than what a caller could notice: a canary and a shadow get the columns that the champion
has parsed, so that their arrays must have the same types too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import RefusedError, UsageError
from raymlops.predictions.settings import unknown_redactions
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.arrays import Column
    from raymlops.records import BundleRef


def compatible(champion: Signature, new: Signature) -> list[str]:
    """Return the reasons why ``new`` cannot answer a request for ``champion``; empty if it can."""
    mine = {column.name: column for column in champion.inputs}
    theirs = {column.name: column for column in new.inputs}
    gone = [f"input {name!r} is no longer accepted" for name in mine.keys() - theirs.keys()]
    added = [f"input {name!r} is new, so that no request has it" for name in theirs.keys() - mine.keys()]
    inputs = [reason for name in mine if name in theirs for reason in _input(mine[name], theirs[name])]
    return [*sorted(gone), *sorted(added), *inputs, *_outputs(champion.outputs, new.outputs)]


def check_compatible(champion: Signature, new: Signature, *, versions: tuple[int, int], hint: str) -> None:
    """Refuse a version that cannot replace the champion; ``versions`` are the champion's and the new one's.

    Raises:
        RefusedError: with every reason.
    """
    if reasons := compatible(champion, new):
        listed = "\n".join(f"  {reason}" for reason in reasons)
        raise RefusedError(
            f"version {versions[1]} is not compatible with version {versions[0]}, which is live:\n{listed}",
            hint=hint,
        )


def check_redacted(redact: Sequence[str], signature: Signature, *, name: str) -> None:
    """Check that the fields to redact exist: a misspelled field would be logged.

    Raises:
        UsageError: naming the unknown fields, and the model's.
    """
    if unknown := unknown_redactions(redact, signature):
        fields = sorted({column.name for column in (*signature.inputs, *signature.outputs)})
        raise UsageError(
            f"serve.log.redact names {', '.join(unknown)}, which is no field of {name}",
            hint=f"Its fields: {', '.join(fields)}.",
        )


def signature_of(bundle: BundleRef) -> Signature:
    """Read the signature of a bundle, checked against its digest.

    Raises:
        BundleError: it is missing, or does not match its digest.
        StorageError: the storage cannot be read.
    """
    from raymlops.bundle.verify import SIGNATURE, BundleFiles

    return Signature.from_dict(BundleFiles(bundle.uri, bundle.digest).json(SIGNATURE))


def _input(mine: Column, theirs: Column) -> Iterator[str]:
    name = f"input {mine.name!r}"
    if mine.type != theirs.type:
        yield f"{name} is {theirs.type}, not {mine.type}"
    elif mine.nullable and not theirs.nullable:
        yield f"{name} may no longer be null"
    elif mine.dtype != theirs.dtype:
        yield f"{name} may be null now, which makes other arrays of its values"
    if mine.shape != theirs.shape:
        yield f"{name} has shape {_shape(theirs)}, not {_shape(mine)}"
    if theirs.max_length is not None and (mine.max_length is None or theirs.max_length < mine.max_length):
        yield f"{name} may have a length of at most {theirs.max_length}, not {mine.max_length or 'any'}"
    if theirs.categories is not None and theirs.unknown == "reject":
        known = set(mine.categories or ()) if mine.unknown == "reject" else None
        if known is None or mine.categories is None:
            yield f"{name} rejects unknown categories, unlike before"
        elif lost := sorted(known - set(theirs.categories)):
            yield f"{name} rejects {', '.join(map(repr, lost[:5]))}{' ...' if len(lost) > 5 else ''}"


def _outputs(mine: Sequence[Column], theirs: Sequence[Column]) -> Iterator[str]:
    before = {column.name: column for column in mine}
    after = {column.name: column for column in theirs}
    yield from (f"output {name!r} is no longer returned" for name in sorted(before.keys() - after.keys()))
    yield from (f"output {name!r} is new" for name in sorted(after.keys() - before.keys()))
    for name, column in before.items():
        other = after.get(name)
        if other is None:
            continue
        if other.type != column.type:
            yield f"output {name!r} is {other.type}, not {column.type}"
        if other.shape != column.shape:
            yield f"output {name!r} has shape {_shape(other)}, not {_shape(column)}"
        if other.nullable and not column.nullable:
            yield f"output {name!r} may be null now"


def _shape(column: Column) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in column.shape)})"
