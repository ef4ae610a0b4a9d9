"""An admitted request and its answer: place it, carry the bytes, settle before the last of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from msgspec import Struct

from gateway import refusals
from gateway.attempts import Attempts
from gateway.cache_events import CacheEvents
from gateway.call import COST, Call, Outcome, Reservation
from gateway.clock import Clock
from gateway.context import PromptSize
from gateway.counting import PromptCounter, count_prompt, count_texts
from gateway.dispatch import Slot
from gateway.errors import Refusal, Refused
from gateway.failover import Failover, Keeps
from gateway.fleet import Fleet, Interrupted, ModelFleet, UpstreamLost
from gateway.meter import NOTHING, Meter, Metered
from gateway.metering import Status
from gateway.relay import (
    Answer,
    ClientWatch,
    Headers,
    Outgoing,
    pump_long,
    pump_stream,
    read_whole,
    stream_error,
)
from gateway.resorts import Elsewhere, has_no_room
from gateway.slices import HoldEnded, pump_sliced
from gateway.store import StoreUnavailable
from gateway.telemetry import Telemetry
from gateway.wire import ContinuableScanner, RequestView, StreamScanner, answer_texts, length_end, with_cost

log = logging.getLogger(__name__)


class Exchange(Struct, kw_only=True):
    """One request at the engines; without a `slot` nothing bounds where and when it runs. `elsewhere` is where it may
    run if those of its model have no room in time: then `model`, `attempts`, `slot` and `keeps` are that one's."""

    call: Call
    view: RequestView
    model: ModelFleet
    attempts: Attempts
    elsewhere: Sequence[Elsewhere]
    slot: Slot | None
    reservation: Reservation
    watch: ClientWatch
    outgoing: Outgoing
    keeps: Keeps
    fleet: Fleet
    counter: PromptCounter
    cache_events: CacheEvents
    telemetry: Telemetry
    clock: Clock

    @property
    def _status_at_end(self) -> Status:
        """Of an answer that was read to its end, though nobody may have waited for it."""
        return "client_gone" if self.watch.gone and self.watch.finishes else "ok"

    @property
    def _tells_usage(self) -> bool:
        """Whether its engine always tells the usage of what it computes: then an answer without is garbage."""
        return self.model.dialect.always_tells_usage and self.view.endpoint.computes

    @property
    def _meter(self) -> Meter:
        return self.reservation.meter

    async def run(self) -> None:
        """Places the request and carries the answer through. Has settled when it returns."""
        try:
            await self._run()
        finally:
            self.attempts.placement.ended()
            if self.slot is not None:
                self.slot.ended(None)

    async def _run(self) -> None:
        try:
            answer = await self._open()
        except Interrupted:
            if self.watch.gone:
                await self._settle(Outcome("client_gone", self._meter.cut()))
            else:
                await self._end_refused("upstream_lost", refusals.DRAINING)
            return
        except Refused as refused:
            lost = refused.refusal is refusals.UPSTREAM_LOST
            await self._end_refused("upstream_lost" if lost else "refused", refused.refusal)
            return
        try:
            if answer.status >= 400:
                await self._error(answer)
                return
            self.call.first_token_ms = self.clock.now_ms()
            if answer.is_stream:
                await self._stream(answer)
            else:
                await self._whole(answer)
        finally:
            answer.close()

    async def _open(self) -> Answer:
        """The answer. Raises what `Attempts.open` does."""
        try:
            return await self.attempts.open()
        except Refused as refused:
            if not (self.elsewhere and has_no_room(refused.refusal, self.attempts)):
                raise
            own = refused.refusal
        self.attempts.placement.ended()
        if self.slot is not None:
            self.slot.ended(None)
        price, self.slot, self.keeps = self.reservation.price, None, "nothing"
        for elsewhere in self.elsewhere:
            self.reservation.pay(elsewhere.price)
            self.attempts = elsewhere.attempts()
            self.model = self.attempts.model
            try:
                return await self.attempts.open()
            except Refused as refused:
                said = refused.refusal.code
                log.warning("no answer at a last resort: %s", said, extra={"data": {"request_id": self.call.id}})
        self.reservation.pay(price)
        raise Refused(own)

    async def _settle(self, outcome: Outcome) -> None:
        """The engine has ended, so its slot is free before the client has read what is left."""
        placement = self.attempts.placement
        placement.ended()
        self.call.placed = placement.expected
        metered = outcome.metered
        if outcome.status == "ok" and not (metered.estimated or metered.cached_predicted):
            placement.answered(metered.usage)
        if self.slot is not None:
            self.slot.ended(outcome.metered.usage)
        await self.reservation.settle(outcome)
        if outcome.status == "ok" and not (outcome.metered.estimated or self.model.is_resort):
            usage, body = outcome.metered.usage, self.attempts.body
            self.counter.answered(self.model, self.view, body, usage.input_tokens)
            self.cache_events.answered(self.model, self.view, body, placement, usage)

    async def _stream(self, answer: Answer) -> None:
        if self.keeps == "nothing":
            plain = answer.replica.dialect.scanner(self.view)
            await self._relay(answer, plain, partial(self._pump, plain, answer))
            return
        scanner = ContinuableScanner(self.view, by_ids=self.keeps == "token_ids")
        failover = Failover(self.attempts, scanner, answer)
        try:
            await self._relay(answer, scanner, partial(failover.run, partial(self._pump, scanner)))
        finally:
            failover.answer.close()

    async def _relay(self, answer: Answer, scanner: StreamScanner, pump: Callable[[], Awaitable[bytes]]) -> None:
        """Has the stream pumped, then settles it, then sends its last event."""
        self._meter.follow(scanner)
        if self.slot is not None:
            self.slot.follow(scanner, self.view.answers)
        self.outgoing.prepare(answer.status, self._head(answer))
        try:
            last = await pump()
        except HoldEnded as ended:
            self.watch.interrupt()
            cut = self._meter.cut()
            await self._settle(Outcome("ok", cut, "budget_reached"))
            last = length_end(self.view, scanner.first_event or ended.event, cut.usage)
        except StoreUnavailable as error:
            self.watch.interrupt()
            log.warning("stream ended: %s", error, extra={"data": {"request_id": self.call.id}})
            await self._settle(Outcome("upstream_lost", self._meter.cut(), "store_unavailable"))
            last = stream_error(self.call.endpoint, refusals.STORE_AWAY.message, "store_unavailable")
        except (UpstreamLost, Interrupted) as error:
            cut = await self._cut(scanner)
            if self.watch.gone:
                # SDKs hang up at an error event: then it was the engine that ended the answer, not its client.
                left: Status = "engine_error" if scanner.failed else "client_gone"
                await self._settle(Outcome(left, cut))
                return
            code = "shutdown" if isinstance(error, Interrupted) else "upstream_lost"
            log.warning("stream lost: %s", error or code, extra={"data": {"request_id": self.call.id}})
            await self._settle(Outcome("upstream_lost", cut, code))
            last = stream_error(self.call.endpoint, refusals.STREAM_LOST, code)
        else:
            if scanner.failed:
                outcome = Outcome("engine_error", await self._cut(scanner))
            else:
                if scanner.usage() is None and self._tells_usage:
                    answer.blame("a stream without usage")
                outcome = Outcome(self._status_at_end, await self._ended(scanner))
            await self._settle(outcome)
        if cost := self.reservation.told_cost():
            last = with_cost(self.call.endpoint, last, *cost)
        await self.outgoing.end(last)

    async def _pump(self, scanner: StreamScanner, answer: Answer) -> bytes:
        if self.reservation.extends:
            return await pump_sliced(answer, scanner, self.outgoing, self.reservation)
        return await pump_stream(answer, scanner, self.outgoing)

    async def _whole(self, answer: Answer) -> None:
        head = self._head(answer)
        self.outgoing.prepare(answer.status, head)
        try:
            content, complete = (answer.first, True) if answer.complete else await read_whole(answer)
            if complete:
                head.append((b"content-length", b"%d" % len(content)))
                told = content
            else:
                content, told = await pump_long(answer, content, self.outgoing)
        except (UpstreamLost, Interrupted) as error:
            if self.watch.gone:
                await self._settle(Outcome("client_gone", self._meter.cut()))
            elif self.outgoing.started:
                # Half a JSON answer cannot be mended: the connection is cut, so that the client sees it.
                await self._settle(Outcome("upstream_lost", self._meter.cut(), "upstream_lost"))
                raise
            else:
                interrupted = isinstance(error, Interrupted)
                await self._end_refused("upstream_lost", refusals.DRAINING if interrupted else refusals.UPSTREAM_LOST)
            return
        usage = answer.replica.dialect.usage(self.view, told)
        if usage is not None:
            metered = self._meter.finished(usage)
        elif self.view.endpoint.computes:
            if self._tells_usage:
                answer.blame("an answer without usage")
            metered = self._meter.estimated(*await self._counted(answer_texts(self.view.endpoint, told)))
        else:
            metered = NOTHING
        await self._settle(Outcome(self._status_at_end, metered))
        if cost := self.reservation.told_cost():
            head.append((COST, cost[0].encode()))
        await self.outgoing.end(content)

    async def _error(self, answer: Answer) -> None:
        """An engine's refusal in OpenAI's shape. Nothing was used, unless the engine failed."""
        try:
            content, _ = await read_whole(answer)
        except (UpstreamLost, Interrupted):
            content = b""
        refusal = answer.replica.dialect.refusal(answer.status, content)
        if refusal.status < 500:
            self._meter.withdraw()
        await self._end_refused("refused" if refusal.status < 500 else "engine_error", refusal)

    async def _end_refused(self, status: Status, refusal: Refusal) -> None:
        await self._settle(Outcome(status, self._meter.cut(), refusal.code, refusal.refused_by))
        await self.outgoing.refuse(refusal, self.call.answer_headers())

    async def _cut(self, scanner: StreamScanner) -> Metered:
        """What is billed of a stream that was cut. Where the engine told nothing, its tokenizer counts."""
        if scanner.usage() is None and scanner.output_events:
            return self._meter.cut(*await self._counted(scanner.texts.texts(), scanner.texts.uncounted))
        return self._meter.cut()

    async def _ended(self, scanner: StreamScanner) -> Metered:
        """What is billed of a stream that reached its end."""
        told = scanner.usage()
        if told is not None:
            return self._meter.finished(told)
        prompt, output_tokens = await self._counted(scanner.texts.texts(), scanner.texts.uncounted)
        return self._meter.estimated(prompt, max(output_tokens, scanner.output_events))

    async def _counted(self, texts: Sequence[str], uncounted: int = 0) -> tuple[PromptSize | None, int]:
        """Prompt and output by the engine's own tokenizer; where it cannot tell, a token for each text."""
        asked = self.model.dialect.text_questions(texts, self.model.spec.engine_name)
        prompt, said = await asyncio.gather(
            count_prompt(self.fleet, self.model, self.view, self.attempts.body),
            count_texts(self.fleet, self.model, asked),
        )
        return prompt, uncounted + (len(texts) if said is None else sum(said))

    def _head(self, answer: Answer) -> Headers:
        return [*answer.headers, *self.call.answer_headers()]
