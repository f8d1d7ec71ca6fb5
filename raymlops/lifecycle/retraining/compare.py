"""A version that bakes beside the one before it, on its labelled requests: the one before answers them again.

Owns which requests these are, and what keeps both from being compared. Whether it is worse, ``monitor.baked`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import BundleError, NotFoundError, RecipeError
from raymlops.lifecycle.batch.replay import labelled_beside
from raymlops.lifecycle.live.lineup import monitored, retrained
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.monitor.baked import Compared, compare
from raymlops.predictions.labelled_rows import Rows, admit
from raymlops.state.versions import recorded
from raymlops.state.watch.windows import windows_of_version

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.lifecycle.batch.replay import Answer
    from raymlops.state.store import Deployment, State


def compared(
    state: State, champion: Deployment, before: int, *, since: datetime, until: datetime, answer: Answer
) -> Compared:
    """Compare a champion with the version ``before``, by the judged windows that end from ``since`` to ``until``.

    Raises:
        StorageError, UnreachableError: the state, the log or a bundle cannot be read now.
        ClusterError: workers were lost.
    """
    at = until.isoformat()
    record = recorded(state, champion.name, before)
    if record is None:
        return Compared("not compared", f"version {before} is not recorded here any more", at)
    spans = _believed(state, champion, since=since, until=until)
    if not spans:
        return Compared("not compared", "no window has labels that are to be believed", at)
    try:
        log = log_of(champion, state.owner().id)
        found = labelled_beside(champion, record.bundle, spans, log=log, answer=answer)
    except (BundleError, NotFoundError, RecipeError) as error:
        return Compared("not compared", f"version {before} does not answer again: {error.message}", at)
    if not len(found.labelled):
        said = "; ".join([*found.notes, *found.failures]) or "the log has none of these requests any more"
        return Compared("not compared", f"version {before} does not answer again: {said}", at)
    margin, share = monitored(champion).skill.margin, retrained(champion).max_caller_share
    counts = admit(found.labelled, most=share)
    if counts.refused:
        return Compared("not compared", f"its labels do not count: {counts.refused}", at)
    both = found.labelled.where(counts.rows)
    # The one before was asked again.
    other_way_round = Rows({**both.columns, "champion": both["challenger"], "challenger": both["champion"]})
    return compare(other_way_round, version=champion.version, before=before, margin=margin, until=at)


def _believed(
    state: State, champion: Deployment, *, since: datetime, until: datetime
) -> list[tuple[datetime, datetime]]:
    """Return the windows of the champion's labels since then, each as from when until when."""
    found = windows_of_version(state, champion.name, champion.version, kind="skill", since=since, until=until)
    return [(max(one.start, since), one.stop) for one in found if one.rows and not one.details.get("unbelieved")]
