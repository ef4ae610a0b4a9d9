"""Models whose replicas tell what they cache: their KV events are read, and the routers corrected by them.

What is expected of a request's prompt is noted when it is sent, as for every model. From the events it is known beside
that what an engine has evicted, what anybody else has had it store, and what of an answered prompt is really there. An
event names tokens and a router bytes, so a prompt is tokenised by its engine once it has been answered, one after the
other and as many as come through: no request waits for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct

from gateway.fleet import Fleet, ModelFleet
from gateway.kv_events import Follower, NoZmq, Subscriber, extra_key, zmq_context
from gateway.placement import Placement, Routers
from gateway.policy import ModelSpec
from gateway.routing import BLOCK_BYTES
from gateway.store import end_tasks
from gateway.wire import Endpoint, RequestView, Usage

if TYPE_CHECKING:
    from zmq.asyncio import Context

log = logging.getLogger(__name__)

LEARN_AFTER_MS = 1_000
"""By then the events of an answered prompt have come."""
LEARNING_MOST = 256
"""Answered prompts that wait to be tokenised; beyond that the oldest are not learnt."""
KNOWN_MOST = 16_384
"""Prompts that are remembered as learnt."""
_TOKENISED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

_members = msgspec.json.Decoder(dict[str, Raw])


class _Answered(Struct, frozen=True):
    """A prompt that an engine has read."""

    at_ms: int
    model: ModelFleet
    replica: str
    view: RequestView
    body: bytes
    blocks: list[int]
    text_bytes: int


class CacheEvents:
    """One worker's. `async with` runs it; `use` says which models there are. `now_ms` does not go back."""

    def __init__(self, fleet: Fleet, routers: Routers, *, now_ms: Callable[[], int]) -> None:
        self.followers: dict[str, Follower] = {}
        """By model: those that have a replica whose events are read."""
        self._fleet = fleet
        self._routers = routers
        self._now_ms = now_ms
        self._context: Context | None = None
        self._subscribers: dict[tuple[str, str, str, str | None], asyncio.Task[None]] = {}
        self._learning: deque[_Answered] = deque(maxlen=LEARNING_MOST)
        self._known: set[int] = set()
        self._more = asyncio.Event()
        self._learner: asyncio.Task[None] | None = None
        self._silent: set[str] = set()

    async def __aenter__(self) -> CacheEvents:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._subscribers.values())
        if self._learner is not None:
            tasks.append(self._learner)
        await end_tasks(tasks)
        if self._context is not None:
            self._context.destroy(linger=0)

    def use(self, models: Iterable[ModelSpec]) -> None:
        """From now on these are the models; replicas whose events are new are subscribed to, others let go."""
        wanted = {
            (model.name, replica.name, replica.kv_events, replica.kv_replay)
            for model in models
            for replica in model.replicas
            if replica.kv_events is not None
        }
        for key in self._subscribers.keys() - wanted:
            self._subscribers.pop(key).cancel()
            if follower := self.followers.get(key[0]):
                follower.replicas.pop(key[1], None)
        for name in self.followers.keys() - {key[0] for key in wanted}:
            del self.followers[name]
        for name, follower in self.followers.items():
            follower.index = self._routers.by_model[name].index
        if not wanted:
            return
        try:
            self._context = self._context or zmq_context()
        except NoZmq as error:
            log.error("%s", error)
            return
        for key in sorted(wanted - self._subscribers.keys(), key=str):
            name, replica, events, replay = key
            follower = self.followers.get(name)
            if follower is None:
                follower = self.followers[name] = Follower(self._routers.by_model[name].index)
            subscriber = Subscriber(self._context, follower, replica, events=events, replay=replay)
            self._subscribers[key] = asyncio.create_task(subscriber.run(), name=f"kv-events {replica}")
        if self._learner is None:
            self._learner = asyncio.create_task(self._learn(), name="kv-events learner")

    def restarted(self, replica: str) -> None:
        """Its engine has started anew. Its events say so too, unless so many came that nobody heard the first."""
        for follower in self.followers.values():
            if replica in follower.replicas:
                follower.reset(replica)

    def answered(self, model: ModelFleet, view: RequestView, body: bytes, placement: Placement, usage: Usage) -> None:
        """A prompt has been answered."""
        follower = self.followers.get(model.spec.name)
        booking = placement.booking
        if follower is None or booking is None or view.endpoint not in _TOKENISED or view.attachments:
            return
        followed = follower.replicas.get(booking.replica)
        if followed is None:
            return
        now_ms = self._now_ms()
        if followed.cache.block_size <= usage.input_tokens - usage.input_cached_tokens:
            followed.stream.answered(now_ms)
        self._tell_if_silent(booking.replica, follower, now_ms)
        chain = placement.query.chain
        if chain.blocks[-1] not in self._known:
            if len(self._known) >= KNOWN_MOST:
                self._known.clear()
            self._known.add(chain.blocks[-1])
            self._learning.append(_Answered(now_ms, model, booking.replica, view, body, chain.blocks, len(chain.text)))
            self._more.set()

    def _tell_if_silent(self, replica: str, follower: Follower, now_ms: int) -> None:
        """Warns, once, of events that do not come: never silently worse."""
        if not follower.replicas[replica].stream.is_silent(now_ms):
            self._silent.discard(replica)
        elif replica not in self._silent:
            self._silent.add(replica)
            log.warning("replica %s answers prompts, but its KV events do not come: its cache is estimated", replica)

    async def _learn(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._learning:
                answered = self._learning.popleft()
                await asyncio.sleep(max(0, answered.at_ms + LEARN_AFTER_MS - self._now_ms()) / 1000)
                await self._learn_from(answered)

    async def _learn_from(self, answered: _Answered) -> None:
        follower = self.followers.get(answered.model.spec.name)
        replica = next((one for one in answered.model.replicas if one.name == answered.replica), None)
        if follower is None or replica is None:
            return
        model = answered.model
        asked = model.dialect.questions(answered.view, answered.body, model.spec.engine_name)
        if len(asked) != 1:
            return
        token_ids = await self._fleet.token_ids(replica, asked[0].body)
        if token_ids:
            follower.learn(token_ids, answered.blocks, answered.text_bytes, BLOCK_BYTES, salt=_salt(answered.body))


def _salt(body: bytes) -> bytes:
    """What a prompt's first block depends on beside its tokens."""
    salt = _members.decode(body).get("cache_salt")
    return b"" if salt is None else extra_key(msgspec.json.decode(salt))
