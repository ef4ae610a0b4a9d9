"""The directory: what the gateway asks per request, mostly without asking anybody.

Keys of the policy documents are always known. A key of Redis is looked up once and remembered for a few seconds. Three
things end the memory: any change published on `mtok:keys:changed`, a lost or new subscription to it (changes may have
gone unheard), and its age, which bounds what a lost message could do. So a new key works at once, since it is not known
and hence looked up, and a revoked one is refused at once, in every worker.

Keys that do not exist are remembered too, for a shorter time, and what is not shaped like a key is refused unasked.
Lookups share one HMGET in flight, the next one carries whatever queued meanwhile, and the queue is bounded: a flood of
invented keys costs one round trip at a time and a fixed amount of memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.policy import Policies, TenantSpec, parse_public_id
from gateway.store import end_tasks

from ._keys import key_of_header
from ._store import KEYS_CHANGED_CHANNEL, KEYS_HASH, decode_record

_log = logging.getLogger(__name__)

KNOWN_MAX = 10_000
"""Keys of Redis remembered at once; about 3 MB."""
KNOWN_MS = 5_000
"""The longest a revoked key can live in a worker that did not hear of its revocation."""
REJECTED_MAX = 4_096
REJECTED_MS = 1_000
WAITING_MAX = 1_024
"""Distinct keys waiting for Redis; more are refused as unavailable rather than queued without end."""
BATCH_MAX = 128
LOOKUP_TIMEOUT_S = 2.0
"""A request waits this long for Redis before it is told to come back."""
SILENCE_S = 5.0
"""A subscription that hears nothing for this long is pinged; if that is not answered either, it is made anew."""
RECONNECT_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is. `key_id` is the key's public id."""

    tenant: TenantSpec
    key_id: str


class KeysUnavailable(Exception):
    """The key is not known here and Redis cannot be asked: neither right nor wrong. The answer is 503, try again."""


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    until_ms: int


_Value = TypeVar("_Value")
_Answer = Identity | KeysUnavailable | None


class KeyDirectory:
    """Turns keys into identities. Use it as an async context manager, which listens for changes meanwhile.

    `now_ms` is Unix time in milliseconds; keys expire by it. Without `redis` only the policies' keys exist.
    """

    def __init__(self, policies: Policies, redis: Redis | None, *, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._now_ms = now_ms
        self._known: dict[bytes, _Known] = {}
        self._rejected: dict[bytes, int] = {}
        self._waiting: dict[bytes, asyncio.Future[_Answer]] = {}
        self._generation = 0
        self._asking: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self.use(policies)

    async def __aenter__(self) -> KeyDirectory:
        if self._redis is not None:
            self._listener = asyncio.create_task(self._listen(self._redis), name="key directory")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end_tasks(task for task in (self._listener, self._asking) if task is not None)
        self._listener = self._asking = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(KeysUnavailable("the gateway is stopping"))
        self._waiting.clear()

    def use(self, policies: Policies) -> None:
        """From now on these policies say which tenants exist and which keys they were given there."""
        self._tenants = policies.tenants
        self._policy_keys = {
            bytes.fromhex(key.sha256): Identity(tenant, key.id)
            for tenant in policies.tenants.values()
            for key in tenant.keys
        }
        self.forget()

    def forget(self) -> None:
        """Drops what Redis has said, answers on their way included."""
        self._known.clear()
        self._rejected.clear()
        self._generation += 1

    def known(self, digest: bytes) -> Identity | None:
        """The identity of a key by its SHA-256 digest (32 bytes) if it is known without asking. Never blocks."""
        identity = self._policy_keys.get(digest)
        if identity is not None:
            return identity
        known = self._known.get(digest)
        if known is not None and self._now_ms() < known.until_ms:
            return known.identity
        return None

    def recognise(self, key: bytes) -> Identity | None:
        """The identity of a bare key if it is known without asking: what `lookup` would say, without a coroutine."""
        return self.known(hashlib.sha256(key).digest())

    async def lookup(self, credential: bytes) -> Identity | None:
        """The identity behind an `Authorization` header's value or a bare key; None when there is no such key.

        Raises `KeysUnavailable` when Redis would have to know and does not answer.
        """
        key = key_of_header(credential)
        digest = hashlib.sha256(key).digest()
        identity = self.known(digest)
        if identity is not None:
            return identity
        if self._redis is None or self._rejected.get(digest, 0) > self._now_ms() or parse_public_id(key) is None:
            return None
        answer = await self._ask(self._redis, digest)
        if isinstance(answer, KeysUnavailable):
            raise KeysUnavailable(*answer.args)
        return answer

    async def _ask(self, redis: Redis, digest: bytes) -> _Answer:
        waiting = self._waiting.get(digest)
        if waiting is None:
            if len(self._waiting) >= WAITING_MAX:
                return KeysUnavailable("too many unknown keys are being looked up")
            waiting = self._waiting[digest] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_redis(redis), name="key lookups")
        return await asyncio.shield(waiting)  # one caller who hangs up must not cancel the others' answer

    async def _ask_redis(self, redis: Redis) -> None:
        """Answers whatever waits, one HMGET after the other, until nothing does."""
        while self._waiting:
            digests = list(self._waiting)[:BATCH_MAX]
            generation = self._generation
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    fields = [digest.hex() for digest in digests]
                    encoded = await cast("Awaitable[list[bytes | None]]", redis.hmget(KEYS_HASH, fields))
            except (RedisError, OSError, TimeoutError) as error:
                _log.warning("keys cannot be looked up: Redis does not answer (%s)", type(error).__name__)
                answers: list[_Answer] = [KeysUnavailable("Redis does not answer") for _ in digests]
            else:
                remember = generation == self._generation  # else something changed while the answer was on its way
                answers = [self._read(*pair, remember=remember) for pair in zip(digests, encoded, strict=True)]
            for digest, answer in zip(digests, answers, strict=True):
                waiting = self._waiting.pop(digest)
                if not waiting.done():
                    waiting.set_result(answer)

    def _read(self, digest: bytes, encoded: bytes | None, *, remember: bool) -> Identity | None:
        """What a field of `mtok:keys` says about the key, remembered unless told not to."""
        now_ms = self._now_ms()
        identity, until_ms = None, now_ms + KNOWN_MS
        if encoded is not None:
            try:
                record = decode_record(encoded)
            except msgspec.MsgspecError:
                _log.error("the record of key %s in Redis cannot be read; the key is refused", digest.hex()[:12])
            else:
                tenant = self._tenants.get(record.tenant)
                if tenant is not None and record.is_active(now_ms):
                    identity = Identity(tenant, record.id)
                    until_ms = min(until_ms, record.expires_ms or until_ms)
        if remember and identity is not None:
            _put(self._known, digest, _Known(identity, until_ms), KNOWN_MAX)
        elif remember:
            _put(self._rejected, digest, now_ms + REJECTED_MS, REJECTED_MAX)
        return identity

    async def _listen(self, redis: Redis) -> None:
        wait_s = 0.05
        while True:
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(KEYS_CHANGED_CHANNEL)
                    silent = False
                    while True:
                        # Subscribing again after a reconnection is a message as well, and drops everything too.
                        message = await subscription.get_message(timeout=SILENCE_S)
                        if message is None and silent:
                            break
                        silent = message is None
                        if message is None:
                            await subscription.ping()
                        elif message["type"] != "pong":
                            self.forget()
                            wait_s = 0.05
            except (RedisError, OSError) as error:
                _log.warning("changes of keys cannot be heard: %s; trying again", type(error).__name__)
            self.forget()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_S_MAX)


def _put(memory: dict[bytes, _Value], digest: bytes, value: _Value, most: int) -> None:
    """Remembers, dropping the oldest. An entry in use is looked up again and put last every few seconds, so the
    oldest is the least recently used to that precision, and a hit costs no bookkeeping."""
    memory.pop(digest, None)
    while len(memory) >= most:
        del memory[next(iter(memory))]
    memory[digest] = value
