"""What the pods of a job wait for, as ``kubectl describe`` says it, and the command that mends it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raymlops.cluster.kubernetes.place import Place

Found = Mapping[str, Any]
_COMING = frozenset({"ContainerCreating", "PodInitializing"})
"""Of a container that starts as soon as its image and its volumes are there."""
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_KINDS = {
    **dict.fromkeys(_IMAGE, "image"),
    **dict.fromkeys(("CrashLoopBackOff", "RunContainerError", "CreateContainerError", "PostStartHookError"), "crash"),
    **dict.fromkeys(("FailedMount", "FailedAttachVolume"), "volume"),
}
"""Reasons that come by turns: a kubelet says why something failed, and then that it waits until it tries again."""
UNSCHEDULABLE, NO_NODE = "Unschedulable", "FailedScheduling"


@dataclass(frozen=True)
class Wait:
    """Why a pod does not start, in Kubernetes' words, and what mends it."""

    what: str
    reason: str
    message: str
    mend: str

    @property
    def kind(self) -> str:
        """Return what the reason is one of: a pull that fails, or the back-off after it, are the same."""
        return _KINDS.get(self.reason, self.reason)

    @property
    def may_pass(self) -> bool:
        """Return whether time alone may mend it: a node is added or becomes free, or a queue lets the pod go."""
        return self.reason in {UNSCHEDULABLE, NO_NODE, "SchedulingGated"}

    def __str__(self) -> str:
        return f"{self.what} waits: {self.reason}: {self.message}\n  {self.mend}"


def pod_waits(pods: Iterable[Found], *, place: Place, namespace: str) -> list[Wait]:
    """Return what pods wait for, as far as they say it themselves."""
    return [
        Wait(what, reason, message, mend(what, reason, message, place=place, namespace=namespace))
        for what, pod in ((f"pod/{one['metadata']['name']}", one) for one in pods)
        for reason, message in _said(pod)
    ]


def silent(pods: Iterable[Found]) -> dict[str, Found]:
    """Return the pods that are pending and say not why, by name: events may."""
    pending = (one for one in pods if _status(one).get("phase") == "Pending")
    return {one["metadata"]["name"]: one for one in pending if not [*_said(one)]}


def still_said(events: Iterable[Found], pod: Found) -> list[Found]:
    """Return the warnings of a pod without those of the scheduler, once it has a node."""
    conditions = _status(pod).get("conditions") or ()
    has_node = any(one.get("type") == "PodScheduled" and one.get("status") == "True" for one in conditions)
    return [one for one in events if not (has_node and one.get("reason") == NO_NODE)]


def is_of(event: Found, found: Found) -> bool:
    """Return whether an event is of this object, and not of an earlier one of its name."""
    return bool(event["involvedObject"].get("uid") == found["metadata"].get("uid"))


def kind_and_stamp(event: Found) -> tuple[str, str]:
    """Return what an event says of what, and what of it changes when it is repeated."""
    kind = [event["involvedObject"]["name"], event.get("reason"), event.get("message")]
    return str(kind), str([event.get(name) for name in ("lastTimestamp", "count", "series")])


def event_wait(events: Iterable[Found], *, place: Place, namespace: str) -> Wait | None:
    """Return what the last of an object's warnings says; None without any."""
    last = max(events, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""), default=None)
    if last is None:
        return None
    what = f"{last['involvedObject']['kind'].lower()}/{last['involvedObject']['name']}"
    reason, message = str(last.get("reason")), str(last.get("message"))
    return Wait(what, reason, message, mend(what, reason, message, place=place, namespace=namespace))


def mend(what: str, reason: str, message: str, *, place: Place, namespace: str) -> str:
    """Return the command that mends it, or that says more."""
    if re.search(r'secret "[^"]*" not found', message, re.IGNORECASE):
        return place.create_secret(namespace)
    if re.search(r"couldn't find key|non-existent secret key", message):
        return f"{place.create_secret(namespace)} --dry-run=client -o yaml | kubectl -n {namespace} apply -f -"
    if re.search(r'(configmap|serviceaccount|persistentvolumeclaim) "[^"]*" not found', message, re.IGNORECASE):
        return "kubectl apply --server-side -k DIR/ENV, after `raymlops render kubernetes`"
    if reason in _IMAGE:
        return f"docker push {place.image}; with another kubernetes.image, submit it anew"
    if reason == "CrashLoopBackOff":
        return f"kubectl -n {namespace} logs {what} --all-containers --previous"
    return f"kubectl -n {namespace} describe {what}"


def _said(pod: Found) -> Iterator[tuple[str, str]]:
    status = _status(pod)
    for field in ("initContainerStatuses", "containerStatuses"):
        for one in status.get(field) or ():
            waiting = (one.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in {None, *_COMING}:
                yield str(waiting["reason"]), str(waiting.get("message") or one.get("image") or "no message")
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            yield str(one.get("reason") or UNSCHEDULABLE), str(one.get("message") or "no message")


def _status(pod: Found) -> Found:
    found: Found = pod.get("status") or {}
    return found
