"""Which version may become live: it has passed its gate, its files are whole, and the champion's callers can call it.

Owns these questions. What is then done with the version is ``live``'s.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raymlops.errors import BundleError, RefusedError, StorageError
from raymlops.lifecycle.gating import GATE_TAG
from raymlops.lifecycle.lineup import champion_of

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.state.store import State

_log = logging.getLogger(__name__)


def admitted(spec: ProjectSpec, version: str) -> tuple[Registry, ModelVersionRef]:
    """Return a version that has passed its gate and whose files are whole.

    Its tag says whether it passed: an alias can be moved by anybody, by hand.
    """
    from raymlops.bundle.verify import verify
    from raymlops.lifecycle.compatible import check_redacted, signature_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    found = tracker(spec)
    found.check()  # an MLflow that is away is said within seconds, not after its client's own repeats
    registry = Registry(found)
    ref = registry.get(spec.project.name, version)
    verdict = registry.tags(ref.name, ref.version).get(GATE_TAG)
    if verdict != "passed":
        asked = "was refused by its gate" if verdict == "refused" else "has not passed its gate"
        raise RefusedError(
            f"{ref.name} version {ref.version} {asked}",
            hint=f"raymlops models gate --config FILE --version {ref.version}",
        )
    verify(ref.bundle.uri, ref.bundle.digest)
    check_redacted(spec.serve.log.redact, signature_of(ref.bundle), name=ref.name)
    return registry, ref


def check_callers(ref: ModelVersionRef, state: State, *, share: bool = False) -> None:
    """Refuse a version that the champion's callers cannot call.

    A champion whose bundle cannot be read any more keeps no successor away, but lends nobody its traffic.
    """
    from raymlops.lifecycle.compatible import check_compatible, signature_of

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
        else "--breaking makes it live all the same: whoever calls the route must have changed by then."
    )
    check_compatible(live, signature_of(ref.bundle), versions=(champion.version, ref.version), hint=hint)
