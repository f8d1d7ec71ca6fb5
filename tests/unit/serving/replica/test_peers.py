"""What is asked of another version by its handle; the handle hands over to its front, as Serve would."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from types import SimpleNamespace

import pytest
from ray.serve.exceptions import RayServeException
from serving_fakes import make_front

from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.refusal import Refusal
from raymlops.serving.replica import peers
from raymlops.serving.replica.peers import ServePeers
from raymlops.serving.settings import Settings

SECRET = "rk_k1_" + "s" * 43
KEY = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))


class Replica:
    """A version's own front behind the method that Serve calls."""

    def __init__(self, front):
        self._front = front
        self.http_call = self

    async def remote(self, scope):
        return await self._front.reply(scope, None)


class Peers(ServePeers):
    """Each version has the same front, whose endpoint asks for a key."""

    def handle(self, version, *, large):
        settings = Settings(access=Access(required=True, keys=(KEY,)))
        return Replica(make_front(version=8, settings=settings))


def asked(version, **headers):
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return asyncio.run(Peers("flights").metadata(version, given))


def test_another_version_describes_itself():
    """To a caller with a key, whatever version that caller pins."""
    told = asked(8, x_api_key=SECRET, x_raymlops_version="7")
    assert (told["name"], told["versions"]) == ("flights", ["8"])
    assert [column["name"] for column in told["inputs"]] == ["distance", "wind", "origin"]


def test_what_another_version_refuses_is_refused():
    """With its status and code: a caller without a key, a version that is not what it was taken for."""
    for version, headers, status, code in (
        (8, {}, 401, "unauthenticated"),
        (9, {"x_api_key": SECRET}, 404, "unknown_version"),
    ):
        with pytest.raises(Refusal, match=f"version {version}: ") as caught:
            asked(version, **headers)
        assert (caught.value.status, caught.value.code) == (status, code)


def test_a_handle_that_cannot_even_be_asked_is_a_version_that_does_not_answer():
    """Serve's controller is away where the handle's router is made: that is no error of the version."""

    class Away(ServePeers):
        def handle(self, version, *, large):
            def remote(*_given):
                raise RayServeException("the controller is away")

            return SimpleNamespace(http_call=SimpleNamespace(remote=remote))

    with pytest.raises(Refusal, match="version 8 of flights does not answer") as caught:
        asyncio.run(Away("flights").metadata(8, {}))
    assert (caught.value.status, caught.value.code) == (503, "version_unavailable")


def test_large_messages_go_through_the_object_store(monkeypatch):
    """By a handle of their own, which is kept as the other is; both of a version that is gone are dropped."""
    made = []

    class Handle:
        def __init__(self, deployment, application):
            self.asked = []
            self.by_reference = False
            self.http_call = self
            made.append(self)

        def options(self, *, _by_reference):
            self.by_reference = _by_reference
            return self

        async def remote(self, message):
            self.asked.append(message)

    monkeypatch.setattr(peers, "DeploymentHandle", Handle)
    versions = ServePeers("flights")

    async def scenario():
        for size in (10, 100_000, 10, 100_000):
            await versions.call(8, "http_call", size, size=size)

    asyncio.run(scenario())
    assert [(handle.by_reference, handle.asked) for handle in made] == [(False, [10, 10]), (True, [100_000, 100_000])]
    versions.keep({9})
    versions.handle(8)
    assert len(made) == 3
