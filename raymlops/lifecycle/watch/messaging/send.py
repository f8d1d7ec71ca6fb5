"""The process that sends: reads a message and URLs as JSON, and answers a line of JSON a URL, each as soon as it can.

Owns the only use of apprise. It is a process of its own because apprise and what it sends with log URLs, which are
credentials, and because a messenger that hangs would hold a thread of the controller for good. Run by its path, it
needs nothing of raymlops. No answer repeats a part of a URL.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apprise import AppriseResult, NotifyBase

UNKNOWN = "unknown to apprise, or incomplete"


def main() -> None:
    """Answer the request on standard input, within its ``limit_s`` once apprise is imported; without a body, check."""
    out, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # what a plugin prints is no answer
    request = json.load(sys.stdin)
    from apprise import Apprise, AppriseAsset

    asset = AppriseAsset(async_mode=False)
    services = [Apprise.instantiate(url, asset=asset) for url in request["urls"]]
    lock, answered, keys = threading.Lock(), set[int](), _keys(services)

    def answer(at: int, error: str | None) -> None:
        service = services[at]
        kind = None if service is None else str(service.service_name)
        with lock:
            if at not in answered:
                answered.add(at)
                os.write(out, json.dumps({"at": at, "kind": kind, "key": keys[at], "error": error}).encode() + b"\n")

    def send(at: int, service: NotifyBase) -> None:
        try:
            sender = Apprise(asset=asset)
            sender.add(service)
            found = sender.notify(
                body=request["body"], title=request["title"], notify_type=request["type"], body_format="text"
            )
            answer(at, None if found else _why(found))
        except Exception as error:
            answer(at, f"failed: {type(error).__name__}")

    threads = []
    for at, service in enumerate(services):
        if service is None:
            answer(at, UNKNOWN)
        elif request["body"] is None or keys[at] in request["skip"]:
            answer(at, None)
        else:
            threads.append(threading.Thread(target=send, args=(at, service), daemon=True))
    deadline = time.monotonic() + request["limit_s"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for at in range(len(services)):
        answer(at, f"did not answer within {request['limit_s']:g} s")
    os._exit(0)  # whatever hangs ends here


def _keys(services: list[NotifyBase | None]) -> list[str]:
    """Return what tells the URLs apart from one process to the next, made of what apprise shows of them publicly."""
    seen = Counter[str]()
    keys = []
    for service in services:
        public = "" if service is None else str(service.url(privacy=True))  # type: ignore[no-untyped-call]
        keys.append(hashlib.sha256(f"{public} {seen[public]}".encode()).hexdigest()[:16])
        seen[public] += 1
    return keys


def _why(result: AppriseResult) -> str:
    """Return why a messenger did not take it: of what apprise logged only what cannot be a credential."""
    logged: Any = " ".join(entry.message for entry in result.logs())
    if (status := re.search(r"\berror=(\d{3})\b", logged)) is not None:
        return f"answered {status[1]}"
    return "cannot be reached" if "onnection" in logged else "did not take it"


if __name__ == "__main__":
    main()
