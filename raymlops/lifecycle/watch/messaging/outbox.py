"""The outbox: messages about incidents and retrainings, sent until every messenger of their model has them.

Owns the order and the repetition. That a messenger took a message is written right then, so that a kill repeats at most
one message to it. What a messenger that is away lacks waits, is tried again at growing intervals, and is
shown by ``raymlops status``; neither other messengers nor other models wait for it. Runs in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError, RefusedError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.prediction_log import last_deployed
from raymlops.lifecycle.watch.messaging.messengers import deliver, urls_of
from raymlops.state.lease import lease
from raymlops.state.watch.messages import put_message, unsent_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from raymlops.lifecycle.watch.messaging.messengers import Tone
    from raymlops.state.store import State
    from raymlops.state.watch.messages import Message, Told

LEASE = "messages"
THREAD = "raymlops-outbox"
FIRST_RETRY_S, MAX_RETRY_S = 30.0, 3600.0
SENDERS = 8
"""Models whose messages are sent at the same time, each by a process."""
TURN_S = 60.0
"""After which a turn begins no message, so that the next one goes by the clock as it is then."""
LOOK_S = 1.0
"""How often a turn looks for what is new."""
MAX_ERROR = 500
_TONES: Mapping[Told, Tone] = {
    "opened": "warning",
    "minor": "info",
    "acknowledged": "success",
    "closed": "success",
    "decided": "info",
    "proposed": "warning",
    "waiting": "warning",
    "promoted": "success",
    "worse": "failure",
    "done": "success",
    "stopped": "failure",
    "taken_back": "failure",
}

_log = logging.getLogger(__name__)


class Outbox:
    """Send what is due, in one turn at a time and by one process at a time."""

    def __init__(self, state: State, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the state, and its URL for the lease under which one process sends."""
        self._state = state
        self._url = url
        self._clock = clock
        self._thread: threading.Thread | None = None

    def __call__(self, now: datetime) -> None:
        """Start a turn where something is due; one that is in progress takes what is new by itself."""
        if (self._thread is None or not self._thread.is_alive()) and self._due(now):
            self._thread = threading.Thread(target=self.run, args=(now,), name=THREAD, daemon=True)
            self._thread.start()

    def run(self, now: datetime) -> None:
        """Send what is due; what fails for one model is recorded with its messages, and the others' are sent."""
        try:
            with lease(self._url, LEASE, purpose="messages"):
                self._turn(now)
        except RefusedError as error:
            _log.info("%s", error)  # another process sends
        except Exception as error:
            _log.warning("messages were not sent: %s: %s", type(error).__name__, error)

    def _turn(self, now: datetime) -> None:
        """Send for several models at a time what is due, and what is new meanwhile; no message is begun for twice."""
        ends, tried = self._clock() + TURN_S, set[str]()
        sending, ended = set[str](), SimpleQueue[str]()

        def late() -> bool:
            return self._clock() >= ends

        def send(name: str, queue: Sequence[Message]) -> None:
            try:
                self._send(name, queue, late)
            except Exception as error:
                _log.warning("messages about %s: %s: %s", name, type(error).__name__, error)
            finally:
                ended.put(name)

        try:
            while not late():
                due = self._due(now, tried=tried) if len(sending) < SENDERS else {}
                for name in [name for name in due if name not in sending][: SENDERS - len(sending)]:
                    tried |= {message.id for message in due[name]}
                    sending.add(name)
                    threading.Thread(target=send, args=(name, due[name]), name=f"{THREAD}-send", daemon=True).start()
                if not sending:
                    return
                with suppress(Empty):
                    sending.remove(ended.get(timeout=LOOK_S))
        finally:  # the lease is held for as long as somebody sends
            for _ in sending:
                ended.get()

    def _due(self, now: datetime, *, tried: Collection[str] = ()) -> dict[str, list[Message]]:
        """Return all unsent messages of each model that has one to be sent now; first of those with fewest attempts."""
        queues = unsent_messages(self._state)
        due = {
            name: [one for one in queue if one.id not in tried and (one.retry_at is None or one.retry_at <= now)]
            for name, queue in queues.items()
        }
        names = sorted((name for name in due if due[name]), key=lambda name: due[name][0].attempts)
        return {name: queues[name] for name in names}

    def _send(self, name: str, queue: Sequence[Message], late: Callable[[], bool]) -> None:
        """Send a model's messages, oldest first; a messenger that lacks one is not asked to take the next ones.

        A message that cannot be sent to any messenger holds up no other.

        Once it is ``late`` no other one is begun; where every messenger took all so far, the rest is due as before.
        """
        left, away, failed, why = {one.id: one for one in queue}, dict[str, str](), dict[str, str](), ""
        try:
            urls = self._urls(name)
            for number, message in enumerate(queue):
                if number and late():
                    left = left if away else {one.id: left[one.id] for one in queue[:number]}
                    break
                if len(away) < max(len(urls), 1):
                    try:
                        for changed in self._delivered(message, urls, away):
                            left[changed.id] = changed
                            put_message(self._state, changed)
                    except RaymlopsError:
                        raise
                    except Exception as error:  # of this message alone
                        failed[message.id] = f"{type(error).__name__} while sending"
                        _log.warning("message %s about %s", message.id, name, exc_info=error)
        except RaymlopsError as error:
            why = error.message + (f" ({error.hint})" if error.hint else "")
        for message in left.values():
            if message.sent_at is None:
                errors = "; ".join(filter(None, [*away.values(), failed.get(message.id), why]))
                put_message(self._state, self._later(message, errors[:MAX_ERROR] or "the process that sends was ended"))

    def _urls(self, name: str) -> tuple[str, ...]:
        """Return the URLs of a model's messengers, also of one that was removed; none where nobody is to be told."""
        items = last_deployed(self._state, name)
        notify = monitored(champion_of(items) or items[-1]).notify if items else None
        return () if notify is None else urls_of(notify)

    def _delivered(self, message: Message, urls: Sequence[str], away: dict[str, str]) -> Iterator[Message]:
        """Send one message, and yield it as it is from each answer on; add to ``away`` the messengers that lack it."""
        keys = set[str]()
        skip, tone = {*message.reached, *away}, _TONES[message.what]
        for one in deliver(urls, title=message.title, body=message.body, tone=tone, skip=skip):
            keys.add(one.key)
            if one.error is not None:
                away[one.key] = one.text()
            elif one.key not in skip:
                message = replace(message, reached=(*message.reached, one.key))
                yield message
        if len(keys) == len(urls) and keys <= set(message.reached):
            attempts, now = message.attempts + 1, self._state.now()
            yield replace(message, attempts=attempts, retry_at=None, sent_at=now, last_error=None)

    def _later(self, message: Message, why: str) -> Message:
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(message.attempts, 20), MAX_RETRY_S)
        retry_at = self._state.now() + timedelta(seconds=wait_s)
        return replace(message, attempts=message.attempts + 1, retry_at=retry_at, last_error=why)
