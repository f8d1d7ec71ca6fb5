"""Whether a version can stand in for the champion: the same requests, read the same way, the same kind of answer.

Owns the rule. It is stricter than what a caller could notice: a canary and a shadow get the columns that the champion
has read already, so that their arrays must be of the same kind too.
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
    """Return the reasons why a request for ``champion`` cannot be answered by ``new`` in its place; empty: it can."""
    mine = {column.name: column for column in champion.inputs}
    theirs = {column.name: column for column in new.inputs}
    gone = [f"input {name!r} is not taken any more" for name in mine.keys() - theirs.keys()]
    added = [f"input {name!r} is new, so no request has it" for name in theirs.keys() - mine.keys()]
    inputs = [reason for name in mine if name in theirs for reason in _input(mine[name], theirs[name])]
    return [*sorted(gone), *sorted(added), *inputs, *_outputs(champion.outputs, new.outputs)]


def check_compatible(champion: Signature, new: Signature, *, versions: tuple[int, int], hint: str) -> None:
    """Refuse a version that cannot stand in for the champion; ``versions`` are the champion's and the new one's.

    Raises:
        RefusedError: with every reason.
    """
    if reasons := compatible(champion, new):
        listed = "\n".join(f"  {reason}" for reason in reasons)
        raise RefusedError(
            f"version {versions[1]} does not take and give what version {versions[0]}, which is live, does:\n{listed}",
            hint=hint,
        )


def check_redacted(redact: Sequence[str], signature: Signature, *, name: str) -> None:
    """Check that what is to be left out of the log is there to be left out: a slip of the pen would write it.

    Raises:
        UsageError: naming what is no field of the model, and the fields that are.
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
        BundleError: it is not there, or no longer what its digest vouches for.
        StorageError: the storage cannot be read.
    """
    from raymlops.bundle.verify import SIGNATURE, BundleFiles

    return Signature.from_dict(BundleFiles(bundle.uri, bundle.digest).json(SIGNATURE))


def _input(mine: Column, theirs: Column) -> Iterator[str]:
    name = f"input {mine.name!r}"
    if mine.type != theirs.type:
        yield f"{name} is {theirs.type}, not {mine.type}"
    elif mine.nullable and not theirs.nullable:
        yield f"{name} may not be null any more"
    elif mine.type == "int" and mine.nullable != theirs.nullable:
        yield f"{name} may be null now, which makes other arrays of its integers"
    if mine.shape != theirs.shape:
        yield f"{name} has shape {_shape(theirs)}, not {_shape(mine)}"
    if theirs.categories is not None and theirs.unknown == "reject":
        known = set(mine.categories or ()) if mine.unknown == "reject" else None
        if known is None or mine.categories is None:
            yield f"{name} refuses categories that it does not know, which it did not before"
        elif lost := sorted(known - set(theirs.categories)):
            yield f"{name} refuses {', '.join(map(repr, lost[:5]))}{' ...' if len(lost) > 5 else ''}"


def _outputs(mine: Sequence[Column], theirs: Sequence[Column]) -> Iterator[str]:
    before = {column.name: column for column in mine}
    after = {column.name: column for column in theirs}
    for name in sorted(before.keys() - after.keys()):
        yield f"output {name!r} is not given any more"
    for name in sorted(after.keys() - before.keys()):
        yield f"output {name!r} is new"
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
