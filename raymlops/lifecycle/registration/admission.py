"""Which version may be loaded, and which may become live: recorded in this state, gated, intact and compatible.

MLflow lists the versions and their aliases. A version's bundle and the verdict of its gate come from the state, since
everybody who can log a run can change MLflow's tags. The callers act on the version.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import BundleError, RefusedError, StorageError, UnrecordedError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.records import ModelVersionRef
from raymlops.registry.lineage import GATE

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.records import BundleRef
    from raymlops.registry.versions import Registry
    from raymlops.state.store import State
    from raymlops.state.versions import VersionRecord

CHAMPION = "champion"

_log = logging.getLogger(__name__)


def admitted(spec: ProjectSpec, version: str, *, digest: str | None = None, again: bool = False) -> ModelVersionRef:
    """Return a version that has passed its gate and whose files are intact.

    With ``digest`` it has that one. One that was taken back from traffic is returned only ``again``, and by its number.

    Raises:
        NotFoundError: there is no such version.
        RefusedError: it has not passed its gate here, has another digest, or MLflow names another bundle.
        BundleError: its files are no longer what its digest vouches for.
    """
    from raymlops.bundle.slices import slices_of
    from raymlops.bundle.verify import verify
    from raymlops.lifecycle.registration.compatibility import check_redacted, signature_of
    from raymlops.lifecycle.sources import state_of
    from raymlops.registry.versions import Registry
    from raymlops.state.versions import recorded
    from raymlops.tracking.client import tracker

    found = tracker(spec)
    found.check()  # an MLflow that is down is reported within seconds, not after its client's own retries
    registry = Registry(found)
    ref = registry.get(spec.project.name, version)
    check_digest(ref, digest, to="deployed")
    with state_of(spec) as state:
        record = recorded(state, ref.name, ref.version)
    ref = as_recorded(ref, record)
    assert record is not None
    check_withdrawn(record, again=again and version.isdigit())
    check_verdict(record, registry.tags(ref.name, ref.version).get(GATE))
    verify(ref.bundle.uri, ref.bundle.digest)
    signature = signature_of(ref.bundle)
    check_redacted(spec.serve.log.redact, signature, name=ref.name)
    slices_of(spec.monitor.slices, signature)
    return ref


def loadable(registry: Registry, state: State, name: str, version: str) -> ModelVersionRef:
    """Return a version whose code may be loaded, as recorded in this state.

    The champion of a served model is the one that is live in this state, wherever the alias points.

    Raises:
        NotFoundError: there is no such version.
        RefusedError: this state has no record of it, or MLflow contradicts it.
    """
    from raymlops.state.versions import recorded

    if version.removeprefix("@") == CHAMPION and (live := live_champion(state, name)) is not None:
        return live
    ref = registry.get(name, version)
    return as_recorded(ref, recorded(state, ref.name, ref.version))


def live_champion(state: State, name: str) -> ModelVersionRef | None:
    """Return the champion that is live in this state; None if the model is not served."""
    live = champion_of(state.deployments(name))
    return None if live is None else ModelVersionRef(name, live.version, live.run_id, live.bundle, (CHAMPION,))


def as_recorded(said: ModelVersionRef, record: VersionRecord | None) -> ModelVersionRef:
    """Return a version with the bundle and the run of its record. Pure.

    Raises:
        UnrecordedError: there is no record of it.
        RefusedError: MLflow's version (``said``) differs.
    """
    adopt = f"raymlops models gate --config FILE --version {said.version} --adopt {said.bundle.digest}"
    which = f"{said.name} version {said.version}"
    if record is None:
        raise UnrecordedError(
            f"{which} was not registered from this state, so that only MLflow's tags, which others can change, say "
            f"what it is: digest {said.bundle.digest} at {said.bundle.uri}, of run {said.run_id}",
            hint="Compare the digest with that of its event register in the state that it was registered from "
            "(raymlops audit --since 2020-01-01 --config FILE --json). If it is the same, gate it here, which runs and "
            "records it:"
            f"\n  {adopt}",
        )
    if record.is_of(said):
        return replace(said, bundle=record.bundle, run_id=record.run_id)
    sides = (
        ("digest", said.bundle.digest, record.bundle.digest),
        ("bundle", said.bundle.uri, record.bundle.uri),
        ("run", said.run_id, record.run_id),
    )
    theirs, ours = (
        ", ".join(f"{what} {pair[side] or 'unknown'}" for what, *pair in sides if pair[0] != pair[1]) for side in (0, 1)
    )
    raise RefusedError(
        f"{which} is not what was registered: MLflow says {theirs}; this state recorded {ours} at "
        f"{record.recorded_at:%Y-%m-%d %H:%M} UTC",
        hint="Somebody changed its tags in MLflow: find out who, and set them back. Only if the change is meant, gate "
        f"what they name now, which runs its code and records it:\n  {adopt}",
    )


def adoptable(said: ModelVersionRef, record: VersionRecord | None, *, adopt: str | None) -> ModelVersionRef:
    """Return a version that the gate may load: as recorded, or by the digest that the caller names. Pure.

    Raises:
        RefusedError: as ``as_recorded``; or MLflow names another digest than ``adopt``.
    """
    if adopt is None:
        return as_recorded(said, record)
    check_digest(said, adopt, to="adopted")
    return said


def check_digest(said: ModelVersionRef, digest: str | None, *, to: str) -> None:
    """Refuse a version of another digest than the caller names, if any. Pure.

    Raises:
        RefusedError: naming both.
    """
    if digest is not None and digest != said.bundle.digest:
        raise RefusedError(
            f"{said.name} version {said.version} has digest {said.bundle.digest} by MLflow, and {digest} was to be "
            f"{to}; nothing was loaded or changed",
            hint="Either this is another MLflow (tracking.uri) than the version was registered in, with models of its "
            "own; or somebody changed the version's tags; or the digest is not named with all of its 64 digits.",
        )


def check_verdict(record: VersionRecord, said: str | None) -> None:
    """Refuse a version that has not passed its gate here, whatever MLflow's tag says. Pure.

    States may share an MLflow: its tag is the newest verdict, of a gate that may have had another champion.

    Raises:
        RefusedError: naming the case.
    """
    if record.verdict == "passed":
        return
    asked = "was refused by its gate" if record.verdict == "refused" else "has not passed its gate"
    but = "; MLflow says passed, which does not count" if said == "passed" else ""
    raise RefusedError(
        f"{record.name} version {record.version} {asked}{but}",
        hint=f"raymlops models gate --config FILE --version {record.version}",
    )


def check_withdrawn(record: VersionRecord, *, again: bool) -> None:
    """Refuse a version that was taken back from traffic, unless it is to come back. Pure.

    Raises:
        RefusedError: naming why it was taken back.
    """
    if record.withdrawn is not None and not again:
        raise RefusedError(
            f"version {record.version} of {record.name} was taken back: {record.withdrawn}",
            hint=f"raymlops deploy {record.name} --version {record.version} --again brings it back all the same.",
        )


def endless(bundle: BundleRef) -> tuple[str, ...]:
    """Return what bounds the rows of a version that have no bound of their own, in a sentence.

    A bundle that cannot be read changes nothing: whatever else needs it says so.
    """
    from raymlops.lifecycle.registration.compatibility import signature_of
    from raymlops.serving.json_scan import MAX_FREE_VALUES

    try:
        names = signature_of(bundle).endless
    except (BundleError, StorageError):
        return ()
    text = (
        f"rows have no bound of their own ({', '.join(names)}): a body of more than 64 kB may have {MAX_FREE_VALUES:,} "
        "values in all; Column(..., max_length=N) bounds a row, and a body by serve.max_rows of them"
    )
    return (text,) if names else ()


def check_callers(ref: ModelVersionRef, state: State, *, share: bool = False) -> None:
    """Refuse a version that is not compatible with the champion's callers.

    A champion whose bundle is unreadable can be replaced, but its traffic cannot be shared.
    """
    from raymlops.lifecycle.registration.compatibility import check_compatible, signature_of

    champion = champion_of(state.deployments(ref.name))
    if champion is None or champion.version == ref.version:
        return
    try:
        live = signature_of(champion.bundle)
    except (BundleError, StorageError) as error:
        if share:
            raise
        _log.warning("version %d cannot be compared with what is live: %s", ref.version, error.message)
        return
    hint = (
        "Bring it up with --beside, or make it live with --breaking once its callers have changed."
        if share
        else "--breaking makes it live all the same: callers of the route must have changed by then."
    )
    check_compatible(live, signature_of(ref.bundle), versions=(champion.version, ref.version), hint=hint)
