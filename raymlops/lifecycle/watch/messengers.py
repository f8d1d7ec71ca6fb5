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
from raymlops.errors import ConfigError, Problem, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from raymlops.config.base import SecretRef

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
class Delivery:
    """What became of a message at one messenger."""

    number: int
    """Of the URL in its reference, from 1."""
    kind: str | None
    """Such as ``Slack``; None for a URL that apprise does not know."""
    key: str
    """By which it is told from the others later on; nothing of a credential is in it."""
    error: str | None
    """Why it does not have the message; None where it has."""

    def problem(self) -> str:
        """Return the error with where it was."""
        return f"URL {self.number}" + (f" ({self.kind})" if self.kind else "") + f": {self.error}"


def urls_of(notify: SecretRef) -> tuple[str, ...]:
    """Return the URLs of a reference.

    Raises:
        ConfigError: it cannot be resolved here, or names too many.
    """
    urls = resolve_lines(notify, FIELD)
    if len(urls) > MAX_URLS:
        raise ConfigError([Problem(FIELD, f"got {len(urls)} lines; at most {MAX_URLS}, each an apprise URL")])
    return urls


def check_urls(urls: Collection[str]) -> None:
    """Check that apprise knows every URL, without sending anything.

    Raises:
        ConfigError: it does not know one, which is named by its number alone.
        UsageError: apprise is not installed.
    """
    found = list(_answers(urls))
    unknown = [one for one in found if one.error is not None]
    if unknown or len(found) < len(urls):
        whats = [one.problem() for one in unknown] or ["the URLs could not be checked"]
        raise ConfigError(
            [Problem(FIELD, what) for what in whats],
            hint="https://appriseit.com/services lists how each service's URL is written.",
        )


def deliver(
    urls: Collection[str], *, title: str, body: str, tone: Tone, skip: Collection[str] = (), limit_s: float = SEND_S
) -> Iterator[Delivery]:
    """Send a message to all but those whose key is in ``skip``, and yield what became of it, each as soon as it is so.

    Those that are skipped have no error. There is none for the rest where the process that sends was ended.

    Raises:
        UsageError: apprise is not installed.
    """
    return _answers(urls, title=title, body=body, tone=tone, skip=skip, limit_s=limit_s)


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
