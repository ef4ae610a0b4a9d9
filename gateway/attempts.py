"""One request's attempts at replicas: which are tried, in what order, and what those that failed burnt."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence, Set

from msgspec import Struct

from gateway import refusals
from gateway.call import Call
from gateway.clock import Clock
from gateway.dispatch import Slot
from gateway.errors import Refused
from gateway.fleet import ConnectFailed, Interrupted, ModelFleet, Replica, UpstreamLost, UpstreamSilent
from gateway.hedging import Outrun, Race, hedge_after_ms
from gateway.meter import Meter
from gateway.metering import FailedAttempt
from gateway.placement import Placement
from gateway.relay import Answer, ClientWatch, Guard, open_answer
from gateway.telemetry import Telemetry
from gateway.wire import Continuation, Endpoint, RequestView

log = logging.getLogger(__name__)

PATIENCE_MS = 600_000
"""Of a client that does not say: OpenAI's SDK gives up after so long."""


class Attempts(Struct, frozen=True, kw_only=True):
    """`body` is what the replicas get; `passed_on` holds whole header lines for them. Without a `slot` nothing bounds
    where and when it runs. `patience_s` is how long the client waits, in its own words: seconds, or nothing."""

    call: Call
    view: RequestView
    body: bytes
    passed_on: bytes
    patience_s: bytes
    model: ModelFleet
    placement: Placement
    slot: Slot | None
    meter: Meter
    watch: ClientWatch
    telemetry: Telemetry
    clock: Clock

    async def open(self) -> Answer:
        """The first replica that answers. Raises `Refused`: 503 when none could be reached, 502 when it died on all or
        may not be tried on another; `Interrupted`."""
        self.model.retries.earn()
        tried: set[Replica] = set()
        lost = busy = False
        while self._untried(tried):
            if (lost or busy) and not self.may_try_again():
                break
            replica = await self._next(tried)
            try:
                if self.view.stream and self.model.spec.hedges:
                    answer = await self._open_sooner(replica, tried)
                else:
                    answer = await self._open_at(replica, self.view.endpoint, self.body)
            except ConnectFailed as error:
                self._note_failed(replica, "connect", error)
            except UpstreamLost as error:
                self._note_failed(replica, "lost", error)
                lost = True
                if isinstance(error, UpstreamSilent):  # it may compute still: a second one would burn as much again
                    break
            else:
                if answer.has_room:
                    return answer
                answer.close()
                self._note_failed(replica, "busy", None)
                if self.slot is None:
                    busy = True
                else:  # it waits until one of them has room again
                    tried.discard(replica)
        if lost:
            raise Refused(refusals.UPSTREAM_LOST)
        raise Refused(refusals.REPLICAS_BUSY if busy else refusals.NO_REPLICA)

    async def open_again(self, sent: Continuation, lost: Replica) -> Answer | None:
        """The stream of another replica than the one that was `lost` in mid-stream, and that has been noted. Each is
        tried once; None when none answers. Raises `Interrupted`."""
        tried = {lost}
        self.placement.ended()
        if self.slot is not None:
            self.slot.lost(self.clock.now_ms())
        while self._untried(tried):
            try:
                replica = await self._next(tried)
                answer = await self._open_at(replica, sent.endpoint, sent.body, goes_on=sent.by != "anew")
            except Refused:  # no room in time
                return None
            except ConnectFailed as error:
                self._note_failed(replica, "connect", error, again=sent)
            except UpstreamLost as error:
                self._note_failed(replica, "lost", error, again=sent)
            else:
                if answer.is_stream:
                    return answer
                answer.close()
                self._note_failed(replica, "refused" if answer.has_room else "busy", None, again=sent)
        return None

    def _untried(self, tried: Set[Replica]) -> list[Replica]:
        return self.model.untried(tried)

    async def _next(self, tried: set[Replica]) -> Replica:
        """The replica to try, which counts as tried. Raises `Refused` where none has room in time, `Interrupted`."""
        if self.watch.gone:  # before its request was sent, or while a connection to another was made
            raise Interrupted
        if self.slot is None:
            replica = self.placement.choose(self.model.first_pool(self._untried(tried)))
        else:
            replica = await self._wait_for_room(self.slot, lambda: self._untried(tried))
        tried.add(replica)
        self.call.replica, self.call.pool = replica.name, self.model.pool_of(replica)
        return replica

    async def _open_at(self, replica: Replica, endpoint: Endpoint, body: bytes, *, goes_on: bool = False) -> Answer:
        """`goes_on`: the meter has the prompt from the replica that read it first. Raises `ConnectFailed`,
        `UpstreamLost`, `Interrupted`."""
        if not goes_on:
            self._meter_at(replica)
        answer = await self._send(replica, self.placement, endpoint, body, self.watch)
        self._begun(answer)
        return answer

    def _meter_at(self, replica: Replica) -> None:
        cached_bytes, text_bytes = self.placement.cached_share
        self.meter.place(
            len(self.view.prompt) * cached_bytes // text_bytes,
            replica.context_tokens,
            per_sample=replica.dialect.counts_each_sample,
        )

    async def _send(
        self, replica: Replica, placement: Placement, endpoint: Endpoint, body: bytes, watch: Guard
    ) -> Answer:
        rank = placement.rank
        passed_on = self.passed_on if rank is None else self.passed_on + rank.header
        asks_load = not (self.view.stream or passed_on) and replica.asks_load()
        if asks_load:
            passed_on = replica.dialect.load_header
        head = replica.head(endpoint.path, self.call.id.encode(), len(body), passed_on)
        try:
            answer = await open_answer(replica, head, body, watch)
            if asks_load and (load := answer.take_load()) is not None:
                placement.router.loads.said(replica.name, load.waiting)
            if answer.is_stream:
                try:
                    await answer.look()
                except BaseException:
                    answer.close()
                    raise
        except UpstreamLost as error:
            if self.watch.gone:
                raise Interrupted from error
            raise
        return answer

    def _begun(self, answer: Answer) -> None:
        if answer.has_room and answer.is_stream:
            self.placement.first_token()
            if self.slot is not None:
                self.slot.first_token()

    async def _open_sooner(self, replica: Replica, tried: set[Replica]) -> Answer:
        """As `_open_at`, for a stream, whose first byte is its first token: if that is late, asks a second replica."""
        self._meter_at(replica)
        began_ms = self.clock.now_ms()
        second = self.placement.another()

        def send(target: Replica, watch: Guard) -> Awaitable[Answer]:
            placement = self.placement if target is replica else second
            return self._send(target, placement, self.view.endpoint, self.body, watch)

        race = Race(self.watch, second, send)

        def others() -> Sequence[Replica]:
            free = self.model.first_pool(self._untried(tried))
            return free if free and self.model.retries.spend(self.clock.now_ms() / 1000) else ()

        try:
            answer = await race.run(replica, hedge_after_ms(self.model), others)
        finally:
            if race.outrun is not None:
                tried.add(race.outrun.replica)
                self._note_outrun(race.outrun)
            if race.winner is not None and race.winner is not replica:
                tried.add(race.winner)
                self._move_to(race.winner, race.placement)
        self.model.first_bytes.came(self.clock.now_ms() - began_ms)
        self._begun(answer)
        return answer

    def _note_outrun(self, outrun: Outrun) -> None:
        """What it burnt is the platform's loss."""
        input_tokens = output_tokens = 0
        if outrun.code in ("hedged", "lost"):
            input_tokens, output_tokens = self.meter.attempt_most()
        failed = FailedAttempt(
            replica=outrun.replica.name, code=outrun.code, input_tokens=input_tokens, output_tokens=output_tokens
        )
        self.note_failed(failed, outrun.code)

    def _move_to(self, replica: Replica, placement: Placement) -> None:
        """The second one was sooner."""
        self.placement.take(placement)
        if self.slot is not None:
            self.slot.moved_to(replica)
        self.call.replica, self.call.pool = replica.name, self.model.pool_of(replica)
        self._meter_at(replica)

    def may_try_again(self) -> bool:
        """Nothing has reached the client, so that another replica may answer: as long as the client waits for it, and
        while not too many requests are tried again."""
        now_ms = self.clock.now_ms()
        return now_ms < self.call.arrived_ms + self._patience_ms() and self.model.retries.spend(now_ms / 1000)

    def _patience_ms(self) -> int:
        """How long the client waits for a first byte, as OpenAI's and Anthropic's SDKs say."""
        try:
            return int(float(self.patience_s) * 1000)
        except (ValueError, OverflowError):
            return PATIENCE_MS

    async def _wait_for_room(self, slot: Slot, untried: Callable[[], Sequence[Replica]]) -> Replica:
        self.watch.guard(slot)
        since_ms = self.clock.now_ms()
        try:
            return await slot.place(untried, self.placement.choose)
        finally:
            self.call.queued_ms += self.clock.now_ms() - since_ms

    def _note_failed(
        self, replica: Replica, reason: str, error: Exception | None, *, again: Continuation | None = None
    ) -> None:
        """An attempt that died before its answer. `again`: it was to go on with an answer, of which the client has had
        a part."""
        input_tokens = output_tokens = 0
        if reason in ("lost", "refused"):
            input_tokens, output_tokens = self.meter.attempt_most()
        if again is None:
            self.meter.withdraw()
        else:
            input_tokens += again.tokens if input_tokens else 0
        self.placement.ended()
        if self.slot is not None:
            self.slot.left(full=reason == "busy")
        failed = FailedAttempt(
            replica=replica.name, code=reason, input_tokens=input_tokens, output_tokens=output_tokens
        )
        self.note_failed(failed, error or reason)

    def note_failed(self, failed: FailedAttempt, why: object, *, counted: int = 0) -> None:
        """What an attempt burnt is the platform's loss: told in the event, in metrics and in the log. So many of its
        input tokens have been counted already."""
        self.call.failed_attempts += (failed,)
        metrics = self.telemetry.metrics
        metrics.retries.labels(failed.replica, failed.code).inc()
        metrics.lost_tokens.labels(failed.replica, "input").inc(failed.input_tokens - counted)
        metrics.lost_tokens.labels(failed.replica, "output").inc(failed.output_tokens)
        log.warning("replica %s: %s", failed.replica, why, extra={"data": {"request_id": self.call.id}})
