"""Authentication and rate limits for HTTP and gRPC: API keys, scopes, token buckets.

Owns the format of a key in a request, its verification, and the rate limits. Pure: knows nothing of Serve or of the
state database. A replica holds the hashes of its model's keys and no secret; nothing here logs or returns one. Limits
are per key and replica: two replicas allow twice the rate.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Literal, Self

from raymlops.serving.refusal import Refusal
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from raymlops.state.keys import KeyRecord

Scope = Literal["predict", "feedback", "pin"]
SCOPES: frozenset[str] = frozenset({"predict", "feedback", "pin"})
PREFIX = "rk_"
KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})

_LONGEST = 200
"""Characters; a secret has 59. A longer one is rejected unread, so that a header of many kilobytes costs nothing."""
_NO_HASH = "0" * 64
"""Compared with for an unknown id, so that the time taken does not reveal which ids exist."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key, as a replica knows it. ``hash`` is the SHA-256 of the whole secret, in hex."""

    id: str
    hash: str
    scopes: frozenset[str]
    rate_per_s: float | None = None
    """Requests a second in one replica; None for no limit."""
    expires_at: float | None = None
    """Seconds since the epoch; None for a key that does not expire."""
    name: str = ""
    """Who holds it; a key that replaces it has the same. Empty if an earlier release rendered it."""


@dataclass(frozen=True, slots=True)
class Access:
    """Access to one model: whether a key is required, and the valid keys."""

    required: bool = False
    keys: tuple[KeyEntry, ...] = ()
    hosts: tuple[str, ...] | None = None
    """For a model without keys on loopback, the allowed host names besides loopback's; None allows any."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, equal for equal keys."""
        return {
            "required": self.required,
            "keys": [{**asdict(key), "scopes": sorted(key.scopes)} for key in self.keys],
            "hosts": None if self.hosts is None else list(self.hosts),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild it; fields that a newer version wrote are ignored."""
        fields = KeyEntry.__dataclass_fields__
        entries = [
            KeyEntry(**{name: item[name] for name in fields if name in item} | {"scopes": frozenset(item["scopes"])})
            for item in data.get("keys", ())
        ]
        hosts = data.get("hosts")
        return cls(bool(data.get("required", False)), tuple(entries), None if hosts is None else tuple(hosts))


class _Bucket:
    """A token bucket, whose burst is a second's worth of tokens and at least one."""

    __slots__ = ("stamp", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.tokens = max(1.0, rate)
        self.stamp = now

    def take(self, rate: float, now: float) -> None:
        """Take a token.

        Raises:
            Refusal: 429, the bucket is empty.
        """
        tokens = min(max(1.0, rate), self.tokens + (now - self.stamp) * rate)
        self.stamp = now
        self.tokens = tokens if tokens < 1.0 else tokens - 1.0
        if tokens < 1.0:
            raise Refusal(
                429,
                "rate_limited",
                f"more than {rate:g} requests a second with this key",
                retry_after_s=(1.0 - tokens) / rate,
            )


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request: its key, and the bucket of the key's rate limit if it has one."""

    key: KeyEntry | None
    bucket: _Bucket | None = None

    @property
    def key_id(self) -> str | None:
        """Return the id of the caller's key, None without a key."""
        return None if self.key is None else self.key.id

    @property
    def name(self) -> str | None:
        """Return who the caller is, by its key's name; None without a key."""
        return None if self.key is None else self.key.name or None

    @property
    def labels_of(self) -> str | None:
        """Return whose requests the caller may label: its own, or None for anybody's.

        Who may not ask for predictions has no requests: such a key labels for everybody, as a caller without a key may.
        """
        return self.name if self.key is not None and "predict" in self.key.scopes else None

    def require(self, scope: Scope) -> None:
        """Check a scope of the caller, who has all of them without a key; does not count against the rate.

        Raises:
            Refusal: 403, the key lacks the scope.
        """
        if self.key is not None and scope not in self.key.scopes:
            raise Refusal(403, "forbidden", f"this key may not {_ACTIONS[scope]}; it lacks the scope {scope!r}")


_ACTIONS = {"predict": "request predictions", "feedback": "send feedback", "pin": "choose the version that answers"}
ANONYMOUS = Caller(None)


class Guard:
    """Authenticate callers, from one event loop.

    ``configure`` may be called from any thread meanwhile: a request sees either all of the old keys or all of the new
    ones. ``clock`` measures rates, ``now`` is the time of day in seconds since the epoch.
    """

    def __init__(
        self,
        access: Access | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = clock.now_s,
    ) -> None:
        self._clock = clock
        self._now = now
        self._callers: tuple[bool, dict[str, Caller]] = (False, {})
        self.configure(access or Access())

    def configure(self, access: Access) -> None:
        """Replace the keys. A key that stays keeps its bucket, so that a change refills none."""
        _, before = self._callers
        callers = {}
        for key in access.keys:
            bucket = None
            if key.rate_per_s is not None:
                bucket = before.get(key.id, ANONYMOUS).bucket or _Bucket(key.rate_per_s, self._clock())
            callers[key.id] = Caller(key, bucket)
        self._callers = (access.required, callers)  # in one step: requests are admitted meanwhile

    def admit(self, secret: str | None, *, scope: Scope) -> Caller:
        """Authenticate a request, and count it against the key's rate.

        Raises:
            Refusal: 401 without a valid key, 403 for a key without the scope, 429 above its rate.
        """
        caller = self.identify(secret)
        caller.require(scope)
        if caller.bucket is not None and caller.key is not None and caller.key.rate_per_s is not None:
            caller.bucket.take(caller.key.rate_per_s, self._clock())
        return caller

    def identify(self, secret: str | None) -> Caller:
        """Authenticate a request that needs no scope and counts against no rate.

        Where no key is required, a caller without one has all scopes; a key that is sent is checked there too. The
        answer is the same for an unknown id, a wrong secret, a revoked or expired key and one for another model.

        Raises:
            Refusal: 401 without a valid key.
        """
        required, callers = self._callers
        if secret is None:
            if required:
                raise Refusal(401, "unauthenticated", f"this model requires an API key; {_HOW}")
            return ANONYMOUS
        if len(secret) > _LONGEST:
            raise _unknown()
        caller = callers.get(secret[len(PREFIX) : secret.find("_", len(PREFIX))], ANONYMOUS)
        key = caller.key
        given = sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        if not compare_digest(given, _NO_HASH if key is None else key.hash) or key is None:
            raise _unknown()
        if key.expires_at is not None and self._now() >= key.expires_at:
            raise _unknown()
        return caller


NOBODYS = Guard(Access(required=True))
"""Of a model that has no keys: what it refuses with is the same as for a model that has."""


def secret_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the key in a request's headers or a call's metadata (names in lower case), None without one.

    ``x-api-key`` is ours alone and takes precedence over ``authorization: Bearer ...``, which a gateway in front may
    use for itself and pass along: only what has the form of a key counts there. Other schemes are ignored.
    """
    given = headers.get(b"x-api-key")
    if given is not None:
        return given.strip().decode("latin-1")  # never fails, and no secret has such a character
    scheme, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
    text = token.strip().decode("latin-1")
    return text if scheme.lower() == b"bearer" and text.startswith(PREFIX) else None


def access_of(name: str, keys: Iterable[KeyRecord], *, required: bool, hosts: tuple[str, ...] | None = None) -> Access:
    """Return the access to one model: its keys, in a stable order."""
    entries = [
        KeyEntry(
            id=key.id,
            hash=key.hash,
            scopes=frozenset(key.scopes),
            rate_per_s=key.rate_per_s,
            expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
            name=key.name,
        )
        for key in keys
        if "*" in key.models or name in key.models
    ]
    return Access(required, tuple(sorted(entries, key=lambda entry: entry.id)), hosts)


_HOW = "send it as 'authorization: Bearer rk_...' or 'x-api-key: rk_...'"


def _unknown() -> Refusal:
    return Refusal(401, "unauthenticated", f"no valid API key for this model; {_HOW}")
