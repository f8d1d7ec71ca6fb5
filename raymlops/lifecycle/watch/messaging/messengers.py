"""Messengers: who gets messages, by apprise's URLs, and what became of a message at each of them.

Owns the process that sends (see ``send``), and that a URL, which is a credential, gets nowhere else: it is read when a
message is sent, and goes to that process by a pipe. Knows nothing of incidents.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raymlops.config.base import resolve_lines
from raymlops.errors import ConfigError, Problem, UnreachableError, UsageError
from raymlops.lifecycle.watch.messaging.send import UNKNOWN
from raymlops.records import Record
from raymlops.state.engine import this_user

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from raymlops.config.base import SecretRef
    from raymlops.config.schema import ProjectSpec

FIELD = "monitor.notify"
SEND_S = 20.0
"""How long all messengers together may take for one message; apprise itself waits 4 s for each answer."""
START_S = 60.0
"""How long the process may take beside that: it imports 190 plug-ins, in half a second where nothing else runs."""
MAX_URLS = 50
_SCRIPT = Path(__file__).with_name("send.py")

Tone = Literal["info", "success", "warning", "failure"]
"""By apprise's words: it chooses a colour, and PagerDuty's severity."""


@dataclass(frozen=True)
class Delivery(Record):
    """What became of a message at one messenger."""

    number: int
    """Of the URL in its reference, from 1."""
    kind: str | None
    """Such as ``Slack``; None for a URL that apprise does not know."""
    key: str
    """By which it is told from the others later on; nothing of a credential is in it."""
    error: str | None
    """Why it does not have the message; None where it has."""

    def text(self) -> str:
        """Return where it was, and what."""
        return f"URL {self.number}" + (f" ({self.kind})" if self.kind else "") + f": {self.error or 'sent'}"


@dataclass(frozen=True)
class SentRecord(Record):
    """What became of a message at each messenger of a model."""

    name: str
    deliveries: tuple[Delivery, ...]

    @property
    def ok(self) -> bool:
        """Return whether all of them have it."""
        return all(one.error is None for one in self.deliveries)

    @property
    def exit_code(self) -> int:
        """Return that of a configuration with a URL that apprise does not know, of a messenger that lacks it, or 0."""
        if any(one.error == UNKNOWN for one in self.deliveries):
            return ConfigError.exit_code
        return 0 if self.ok else UnreachableError.exit_code

    def text(self) -> str:
        """Return a line a messenger."""
        return "\n".join(one.text() for one in self.deliveries)


def send_test(spec: ProjectSpec) -> SentRecord:
    """Send a message to all messengers of a model, as this machine resolves ``monitor.notify``.

    Raises:
        UsageError: it is not set, or apprise is not installed.
        ConfigError: it cannot be resolved here, or names too many.
    """
    name, notify = spec.project.name, spec.monitor.notify
    if notify is None:
        raise UsageError(
            f"{FIELD} of {name} is not set", hint="Set it to {env: NAME} or {file: PATH}, with one apprise URL a line."
        )
    urls = urls_of(notify)
    body = f"{this_user()} tries whether messages about incidents of {name} arrive here. They do."
    found = {one.number: one for one in deliver(urls, title=f"{name}: test message", body=body, tone="info")}
    ended = "the process that sends was ended"
    return SentRecord(name, tuple(found.get(at, Delivery(at, None, "", ended)) for at in range(1, len(urls) + 1)))


def urls_of(notify: SecretRef) -> tuple[str, ...]:
    """Return the URLs of a reference.

    Raises:
        ConfigError: it cannot be resolved here, or names too many.
    """
    return _few(resolve_lines(notify, FIELD))


def check_notify(notify: SecretRef | None) -> tuple[str, ...]:
    """Check that apprise knows every URL, without sending anything; return a warning where none can be read here.

    Raises:
        ConfigError: apprise does not know one, which is named by its number alone; or they are too many.
        UsageError: apprise is not installed.
    """
    if notify is None:
        return ()
    try:
        lines = resolve_lines(notify, FIELD)
    except ConfigError as error:
        return (f"{error.message}; the controller, which sends messages, reads it on the cluster's head",)
    urls = _few(lines)
    found = list(_answers(urls))
    problems = [one.text() for one in found if one.error is not None]
    if len(found) < len(urls):
        problems.append("the process that checks the URLs was ended")
    if problems:
        hint = "https://appriseit.com/services shows how each service's URL is written."
        raise ConfigError([Problem(FIELD, problem) for problem in problems], hint=hint)
    return ()


def deliver(
    urls: Collection[str], *, title: str, body: str, tone: Tone, skip: Collection[str] = (), limit_s: float = SEND_S
) -> Iterator[Delivery]:
    """Send a message to all but those whose key is in ``skip``, and yield what became of it, each as soon as it is so.

    Those that are skipped have no error. There is none for the rest where the process that sends was ended.

    Raises:
        UsageError: apprise is not installed.
    """
    return _answers(urls, title=title, body=body, tone=tone, skip=skip, limit_s=limit_s)


def _few(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(urls) > MAX_URLS:
        raise ConfigError([Problem(FIELD, f"got {len(urls)} lines; at most {MAX_URLS}, each an apprise URL")])
    return urls


def _answers(
    urls: Collection[str],
    *,
    title: str = "",
    body: str | None = None,
    tone: Tone = "info",
    skip: Collection[str] = (),
    limit_s: float = SEND_S,
) -> Iterator[Delivery]:
    if not urls:
        return
    if find_spec("apprise") is None:
        raise UsageError(f"{FIELD} needs apprise, which is not installed", hint="pip install 'raymlops[notify]'")
    request = {"urls": list(urls), "title": title, "body": body, "type": tone, "skip": list(skip), "limit_s": limit_s}
    with subprocess.Popen(  # noqa: S603 - this Python, and a script of ours
        [sys.executable, "-P", str(_SCRIPT)],  # -P: the script's folder is no place of modules
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        timer = threading.Timer(START_S + limit_s, process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError), process.stdin as request_pipe:
                request_pipe.write(json.dumps(request).encode())
            for line in process.stdout:
                answer = json.loads(line)
                yield Delivery(answer["at"] + 1, answer["kind"], answer["key"], answer["error"])
        finally:
            timer.cancel()
            process.kill()
