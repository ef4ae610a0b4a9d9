"""A stream whose replica dies goes on at another: the client sees one answer, and pays for each token of it once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from gateway.attempts import Attempts
from gateway.context import PromptSize
from gateway.fleet import ModelFleet, UpstreamLost, UpstreamMoved
from gateway.metering import FailedAttempt
from gateway.relay import Answer
from gateway.wire import ContinuableScanner, Continuation, RequestView

Keeps = Literal["nothing", "text", "token_ids"]

MOVES_MAX = 4
"""A stream that has outlived so many replicas is more likely what kills them."""
IDS_PROMPT_MAX_TOKENS = 32_768
"""The engine tells a prompt's ids in the stream's first event, 6 bytes each: after a longer one, what has been said
goes on as text."""


def kept_of(view: RequestView, model: ModelFleet, size: PromptSize) -> Keeps:
    """What is kept of a request's stream while it runs, so that another replica could go on with it."""
    spec = model.spec
    if not (view.stream and view.endpoint.has_stream_options and view.answers == 1 and len(model.replicas) > 1):
        return "nothing"
    if spec.on_replica_loss != "continue":
        return "nothing"
    dialect = model.dialect
    if not dialect.continues_messages:
        return "nothing"
    # An engine tells the ids of what it holds back, which could begin a stop string; and pictures have no ids.
    by_ids = dialect.returns_token_ids and not (view.stops or view.attachments) and view.wants_token_ids is not False
    return "token_ids" if by_ids and size.total <= IDS_PROMPT_MAX_TOKENS else "text"


class Failover:
    """Of one stream. `answer` is its present replica's: close it."""

    __slots__ = ("_attempts", "_moves", "_scanner", "answer")

    def __init__(self, attempts: Attempts, scanner: ContinuableScanner, answer: Answer) -> None:
        self._attempts = attempts
        self._scanner = scanner
        self._moves = 0
        self.answer = answer

    async def run(self, pump: Callable[[Answer], Awaitable[bytes]]) -> bytes:
        """Pumps the answer, then those that go on with it, up to the last event, which it returns. Raises what `pump`
        does, and `UpstreamLost` only where nobody can go on."""
        while True:
            try:
                last = await pump(self.answer)
            except UpstreamLost as error:
                if self._attempts.watch.gone:
                    raise
                if self._scanner.delivered().ended:
                    return self._close()
                if not await self._goes_on("moved" if isinstance(error, UpstreamMoved) else "lost", error):
                    raise
            else:
                if not self._scanner.failed:
                    return last
                # An engine that dies behind its API server says so in the stream.
                if self._scanner.delivered().ended:
                    return self._close()
                if not await self._goes_on("engine_error", None):
                    return self._scanner.error_event + last

    def _close(self) -> bytes:
        """The end of a stream that has all of its answer."""
        meter = self._attempts.meter
        if self._scanner.usage_is_final:
            return self._scanner.close(cached_tokens=0)
        meter.cached_is_predicted = True
        return self._scanner.close(cached_tokens=meter.cached_tokens(self._scanner.prompt_tokens))

    def _chosen(self) -> Continuation | None:
        if self._moves >= MOVES_MAX:
            return None
        return self._scanner.continuation(self._attempts.body)

    async def _goes_on(self, code: str, error: Exception | None) -> bool:
        """Whether there is another answer now."""
        attempts, lost = self._attempts, self.answer
        metrics = attempts.telemetry.metrics
        lost.close()
        chosen = self._chosen()
        answer = None if chosen is None else await attempts.open_again(chosen, lost.replica)
        if chosen is None or answer is None:
            attempts.call.replica, attempts.call.pool = lost.replica.name, attempts.model.pool_of(lost.replica)
            metrics.lost_streams.labels(attempts.call.model, "error").inc()
            return False
        self.answer = answer
        self._moves += 1
        metrics.lost_streams.labels(attempts.call.model, chosen.by).inc()
        call = attempts.call
        counted = call.replayed_input_tokens
        attempts.note_failed(self._left_behind(lost.replica.name, code, chosen), error or code, counted=counted)
        if chosen.by != "anew":
            metrics.lost_tokens.labels(call.replica, "input").inc(call.replayed_input_tokens)
        return True

    def _left_behind(self, replica: str, code: str, chosen: Continuation) -> FailedAttempt:
        """What the lost replica did: of that what is delivered, and so billed, and what is lost. From here on the
        stream is the next one's."""
        call, meter = self._attempts.call, self._attempts.meter
        input_most, output_most = meter.attempt_most()
        cached_tokens = meter.cached_tokens(self._scanner.prompt_tokens)
        had = self._scanner.continue_by(chosen, cached_tokens=cached_tokens)
        if chosen.by == "anew":
            return FailedAttempt(replica=replica, code=code, input_tokens=input_most, output_tokens=output_most)
        had_before = sum(attempt.delivered_output_tokens for attempt in call.failed_attempts)
        failed = FailedAttempt(
            replica=replica,
            code=code,
            input_tokens=call.replayed_input_tokens,
            output_tokens=max(0, output_most - had.output_tokens),
            delivered_input_tokens=0 if call.continued else had.input_tokens,
            delivered_output_tokens=max(0, had.output_tokens - had_before),
        )
        call.continued += 1
        call.replayed_input_tokens = had.total_tokens
        meter.cached_is_predicted = True
        return failed
