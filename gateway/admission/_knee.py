"""One replica's knee: how much may run there within the SLO. Three bounded quantities, adapted by what is measured here
after dispatch: sequences (N), uncached prompt tokens not yet past their first token (P), resident tokens (K).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil, inf

import msgspec

from ._guards import Gauges, Guards
from ._lanes import LANE_KEPT_MS, LONG_S
from ._shares import Share
from ._work import Work

FIRST_SEQUENCES = 64
LEAST_SEQUENCES = 4
"""Below this each token only gets slower for everybody: the weights are read for fewer answers."""
MOST_SEQUENCES = 4096
DEFAULT_PREFILL_TOKENS_PER_S = 20_000.0
PREFILL_WINDOW_S = 0.25
"""P is what the replica prefills in that time. The product is vLLM's own rule for `--max-num-queued-tokens` (its PR
#49445: target TTFT x prefill rate); a quarter second is what did best in a simulation of its step loop."""
LEAST_PREFILL_TOKENS = 1024
PREFILL_KEPT = 0.5
"""The part of P that others leave to tenants below their share: what is read before a newcomer's prompt is its wait."""
KV_SHARE = 0.95
OUTGROWN = 2
"""An answer longer than predicted is expected to be so many times what it has: lengths are heavy-tailed."""
LENGTHS_KEPT = 0.98
"""The lengths of some 50 answers are remembered, to hold predictions against."""
TARGET = 0.8
"""Of the SLO's ITL, where the mean is steered to: a p99 at the knee is noise."""
GROWS_BELOW = 0.9
SHRINKS_ABOVE = 1.1
"""The deadband around the target, as parts of it."""
SHRINK_MOST = 0.7
"""The largest decrease at once; the next waits until it has worked."""
COOLDOWN_MS = 3_000
"""After a decrease, so that what was measured before it has left the window."""
SAMPLES_LEAST = 10
BESIDE_PART = 0.5
"""Of P, what may be read beside a long prompt by an engine that does, and what a long one may be read beside: in a
simulation with `--long-prefill-token-threshold 512` it counted like 4,000 tokens."""
BEHIND_MS = 1000
"""A prompt that waits so long for its first token behind a long one is not read beside it."""
LEARNS_FROM_TOKENS = 512
"""Shorter prompts' first tokens tell of steps and queues, not of the prefill rate."""
RATE_PART = 0.1
LATE = 1.2
"""Prompts take too long to be read where that takes so many times as long as P should."""
RATE_ABOVE_SENT = 1.1
"""How far the prefill rate may be above what is read then: some, or it could never rise again."""
RATE_KEPT = 0.9
"""Of the prefill rate, what one prompt leaves of it at least."""
USED_PART = 0.5
"""Of what is known of how many prompt tokens are sent, what the last second says."""


class KneeLimits(msgspec.Struct, frozen=True, gc=False):
    """Bounds, or what is in use of them: running sequences, uncached prompt tokens, resident ones (None: no bound)."""

    sequences: int
    prefill_tokens: int
    kv_tokens: int | None


class KneeReport(msgspec.Struct, frozen=True, array_like=True):
    """What one worker tells of a replica: its load there, what it has measured and been told since it started, the
    prefill rate it has learnt (0: none), and how much of it it uses. Prompt tokens being read are the mean of the last
    seconds: how many there are at the moment in which it asks for room would be too many."""

    sequences: int = 0
    prefill_tokens: int = 0
    kv_tokens: int = 0
    itl_ms: float = 0.0
    itl_tokens: int = 0
    short: int = 0
    full: int = 0
    prefill_per_s: float = 0.0
    used_per_s: float = 0.0
    long: list[str] = []
    """The tenants whose long prompts are being read."""


class _Running(msgspec.Struct, gc=False):
    work: Work
    at_ms: int
    ahead_tokens: int
    output_tokens: int
    first_ms: int = 0
    told: int = 0
    told_ms: int = 0


class Knee:
    """Decides for one replica; no clock and no I/O. Only what happens after dispatch is learnt from: a wait in our own
    queue that counted as the engine's would close the limit for good."""

    def __init__(self, *, itl_ms: int | None = None, kv_tokens: int | None = None) -> None:
        """`itl_ms` is the SLO's time between tokens; None: N is only grown. `kv_tokens` is what the replica's KV cache
        holds; None: not known, so K bounds nothing. Both may change."""
        self.itl_ms = itl_ms
        self.kv_tokens = kv_tokens
        self._sequences = float(FIRST_SEQUENCES)
        self.prefill_per_s = DEFAULT_PREFILL_TOKENS_PER_S
        """Prompt tokens that the replica reads in a second, as measured."""
        self._running: dict[str, _Running] = {}
        self._tenants: dict[str, int] = {}
        self._prefilling = 0
        self.reads_beside: bool | None = None
        """Whether the engine reads other prompts beside a long one; None: not known yet."""
        self.itl_beside_ms = 0.0
        """The mean time between the others' tokens while a long prompt was read, when measured last; 0: never."""
        self._was_long = False
        self._beside_ms = 0
        self._long: dict[str, str] = {}
        self._long_tokens = 0
        self._lane_until_ms = self._rests_until_ms = 0
        self._prompts = self._resident = 0
        self._guards = Guards()
        self._longer = 1.0
        self._together = 1.0
        self._predicted_tokens = self._real_tokens = 0.0
        self._peak = 0
        self._was_short = False
        self._itl_sum_ms = 0.0
        self._itl_tokens = 0
        self._cool_until_ms = 0
        self.share: Share | None = None
        """This worker's part of the limits; None: all."""
        self._followed: KneeLimits | None = None
        self._elsewhere = KneeLimits(0, 0, 0)
        self._wants_lane = False
        self._learnt = False
        self._itl_told_ms = 0.0
        self._itl_told_tokens = 0
        self._shorts = self._fulls = 0
        self._owed = 0
        self._sent_tokens = 0
        self._used_per_s = 0.0
        self._prefilling_ms = 0.0
        self._read_tokens, self._read_s = DEFAULT_PREFILL_TOKENS_PER_S * PREFILL_WINDOW_S, PREFILL_WINDOW_S
        self._prefilling_since_ms = 0
        self._prefilling_mean = 0.0
        self._used_elsewhere = 0.0
        self._long_elsewhere: Sequence[str] = ()
        self._ticked_ms = 0

    @property
    def limits(self) -> KneeLimits:
        """What may run there now, of all gateways'."""
        if self._followed is not None:
            return self._followed
        prefill = max(LEAST_PREFILL_TOKENS, int(PREFILL_WINDOW_S * self.prefill_per_s))
        kv_most = None if self.kv_tokens is None else int(KV_SHARE * self._guards.kv_part * self.kv_tokens)
        return KneeLimits(int(self._sequences), prefill, kv_most)

    @property
    def allowed(self) -> KneeLimits:
        """What may run there now of this worker's."""
        share = self.share
        if share is None:
            return self.limits
        return KneeLimits(share.sequences, share.prefill_tokens, share.kv_tokens)

    @property
    def load(self) -> KneeLimits:
        """What runs now, this gateway's own."""
        return KneeLimits(len(self._running), self._prefilling, self._resident_with(0, 0))

    def fits(self, work: Work, *, below_share: bool, tries: bool = False) -> bool:
        """Whether the replica has room. A few sequences more (3 to 6 %, at least 2) are for tenants below their share:
        running answers are not preempted, so they would wait for the next end. Nor may those at or above it begin to
        fill the rest of P, unless nobody else runs there. A prompt larger than P goes alone. `tries`: beside a long
        prompt one may be sent to see whether the engine reads it there."""
        limits, share = self.limits, self.share
        running, uncached = len(self._running), work.uncached_tokens
        size = work.input_tokens + work.output_tokens
        prefill_most, kv_most = limits.prefill_tokens, limits.kv_tokens
        if share is None:
            most = limits.sequences
            extra = _extra(most) if below_share else 0
        else:
            most, extra = share.sequences, share.extra if below_share else 0
            if uncached > prefill_most or (share.kv_tokens is not None and size > share.kv_tokens):
                if not share.lane:
                    self._wants_lane = True
                    return False
                kv_most = None if kv_most is None else kv_most - (self._elsewhere.kv_tokens or 0)
            else:
                kv_most = share.kv_tokens
            prefill_most = share.prefill_tokens
        if running >= most + extra:
            self._was_short = True
            self._shorts += 1
            return False
        if (
            kv_most is not None
            and running
            and self._resident_with(work.input_tokens, self._output_tokens(work)) > kv_most
        ):
            return False
        has_all = below_share or self._long or self._tenants.keys() <= {work.tenant}
        if not has_all and self._prefilling + self._owed > (1 - PREFILL_KEPT) * prefill_most:
            return False
        return self._may_read(work, prefill_most, tries=tries)

    def _may_read(self, work: Work, most: int, *, tries: bool) -> bool:
        """Whether `most` leaves room for its prompt. Long prompts come one at a time, and beside one an engine reads no
        other unless it was started to."""
        uncached, is_long = work.uncached_tokens, self.is_long(work)
        ahead = self._prefilling + self._owed
        if self._long_elsewhere:
            return not is_long and self.reads_beside is True and ahead + uncached <= BESIDE_PART * most
        if not ahead:
            return True
        if not self._long:
            return ahead <= BESIDE_PART * most if is_long and self.reads_beside else ahead + uncached <= most
        beside = ahead - self._long_tokens
        if is_long or not (self.reads_beside or (tries and self.reads_beside is None and not beside)):
            return False
        return beside + uncached <= BESIDE_PART * most

    def is_long(self, work: Work) -> bool:
        """Whether its prompt takes so long to read that others are better off elsewhere."""
        return work.uncached_tokens > LONG_S * self.prefill_per_s

    @property
    def reading_long(self) -> Collection[str]:
        """The tenants whose long prompts are being read, whoever sent them."""
        return [*self._long.values(), *self._long_elsewhere]

    @property
    def running(self) -> int:
        """Sequences there, of all workers."""
        return len(self._running) + self._elsewhere.sequences

    def is_lane(self, now_ms: int) -> bool:
        """Whether long prompts are read here, or were lately."""
        return bool(self._long or self._long_elsewhere) or now_ms < self._lane_until_ms

    @property
    def may_read_beside(self) -> bool:
        """Whether a long prompt is being read and it is not known yet whether others can be beside it."""
        return bool(self._long) and self.reads_beside is None

    def long_ends_ms(self, now_ms: int) -> int:
        """When the long prompts that are being read should have been, and others have had their time; at least now."""
        ends = [self._running[work_id] for work_id in self._long]
        return max([now_ms, self._rests_until_ms, *(int(one.at_ms + self.alone_ms(one.work)) for one in ends)])

    def rests(self, now_ms: int) -> bool:
        """Whether others have not yet had the time that the last long prompt took from them."""
        return now_ms < self._rests_until_ms and not self.reads_beside

    def shared(self, granted: int, *, workers: int, lane: bool) -> Share:
        """The part of `workers` that has been granted `granted` of the sequences. It always has one: who has been
        granted none can start. Over all workers that is at most N + extra + one for each.

        Of P a worker has what the others do not use, but at least its part of the sequences and its part by number: so
        who is alone in reading prompts has all, and where all are busy, together they have P, and never twice as much.
        Of K it has what the others have not filled, at least its part of the sequences.
        """
        limits, elsewhere = self.limits, self._elsewhere
        part = min(1.0, granted / limits.sequences)
        free = 1.0 - min(
            1.0, max(self._used_elsewhere / self.prefill_per_s, elsewhere.prefill_tokens / limits.prefill_tokens)
        )
        kv_tokens = None
        if limits.kv_tokens is not None:
            kv_tokens = max(int(part * limits.kv_tokens), limits.kv_tokens - (elsewhere.kv_tokens or 0))
        return Share(
            sequences=max(1, granted),
            extra=ceil(_extra(limits.sequences) * part),
            prefill_tokens=int(max(part, 1 / workers, free) * limits.prefill_tokens),
            kv_tokens=kv_tokens,
            lane=lane,
        )

    def takes_lane(self) -> bool:
        """Whether a large prompt is being read there, or had to wait for the lane since this was asked last."""
        wanted, self._wants_lane = self._wants_lane, False
        most = self.limits.prefill_tokens
        return wanted or any(not one.first_ms and one.work.uncached_tokens > most for one in self._running.values())

    def report(self) -> KneeReport:
        """For the other workers."""
        return KneeReport(
            sequences=len(self._running),
            prefill_tokens=int(self._prefilling_mean),
            kv_tokens=self._resident_with(0, 0),
            itl_ms=self._itl_told_ms,
            itl_tokens=self._itl_told_tokens,
            short=self._shorts,
            full=self._fulls,
            prefill_per_s=self.prefill_per_s if self._learnt else 0.0,
            used_per_s=self._used_per_s,
            long=list(self._long.values()),
        )

    def follow(self, limits: KneeLimits | None) -> None:
        """Another worker adapts the limits of all and found these; None: this one does, from what it followed on."""
        if limits is not None:
            self._sequences = float(limits.sequences)
        self._followed = limits

    def elsewhere(
        self, load: KneeLimits, used_per_s: float = 0.0, *, long: Sequence[str] = (), now_ms: int = 0
    ) -> None:
        """What other workers have running there, as they told it last, the prompt tokens a second they send, and the
        tenants whose long prompts they have being read."""
        self._elsewhere, self._used_elsewhere, self._long_elsewhere = load, used_per_s, long
        if long:
            self._lane_until_ms = now_ms + LANE_KEPT_MS

    def hear(self, before: KneeReport, now: KneeReport, now_ms: int) -> None:
        """What another worker, which follows this one, has measured between two reports. Its prefill rate counts where
        this one has learnt none."""
        self._itl_sum_ms += now.itl_ms - before.itl_ms
        self._itl_tokens += now.itl_tokens - before.itl_tokens
        self._was_short = self._was_short or now.short > before.short
        if now.prefill_per_s and not self._learnt:
            self.prefill_per_s = now.prefill_per_s
        if now.full > before.full:
            self.engine_full(now_ms)

    def dispatched(self, work: Work, now_ms: int) -> None:
        """`work` is on its way there: debited at once."""
        ahead_tokens = self._prefilling + self._elsewhere.prefill_tokens
        if self.reads_beside:
            ahead_tokens -= self._long_tokens
        running = _Running(work, now_ms, ahead_tokens, self._output_tokens(work))
        self._running[work.id] = running
        if self.is_long(work):
            self._long[work.id] = work.tenant
            self._long_tokens += work.uncached_tokens
        self._tenants[work.tenant] = self._tenants.get(work.tenant, 0) + 1
        self._prefills(work.uncached_tokens, now_ms)
        self._sent_tokens += work.uncached_tokens
        self._prompts += work.input_tokens
        self._resident += work.input_tokens + running.output_tokens
        self._peak = max(self._peak, len(self._running))

    def first_token(self, work_id: str, now_ms: int) -> int:
        """Its prompt has been read; how long that took tells the prefill rate. Milliseconds for which its tokens count
        on, until `paid`: a prompt larger than this worker's part of P goes alone, and no more often than that part of
        the replica's rate allows, or as many workers would have as many such prompts read at once."""
        running = self._running.get(work_id)
        if running is None or running.first_ms:
            return 0
        is_long, beside = work_id in self._long, bool(self._long)
        if is_long:
            self._learn_beside(running, now_ms)
            self._rests_until_ms = 2 * now_ms - running.at_ms
        elif beside:
            self._read_beside(running, now_ms)
        owed_ms = self._has_read(running, now_ms)
        tokens = running.work.uncached_tokens
        if tokens >= LEARNS_FROM_TOKENS and now_ms > running.at_ms and not (beside or self._long_elsewhere):
            read, took_s = tokens + running.ahead_tokens, (now_ms - running.at_ms) / 1000
            self._read_tokens += RATE_PART * (read - self._read_tokens)
            self._read_s += RATE_PART * (took_s - self._read_s)
            if self._elsewhere.prefill_tokens:
                # What others had on the way is known in the mean only: single samples may be far too fast.
                self.prefill_per_s = min(self._read_tokens / self._read_s, self._rate_most(now_ms))
            else:
                self.prefill_per_s += RATE_PART * (read / took_s - self.prefill_per_s)
            self._learnt = True
        return owed_ms

    def _rate_most(self, now_ms: int) -> float:
        """The prefill rate is not much above what is read where prompts take longer than they should: those that are
        let pass in the engine would make it seem so. A long one says nothing: it was sent in one moment."""
        if self.is_lane(now_ms):
            return inf
        sent_per_s = self._used_per_s + self._used_elsewhere
        being_read = self._prefilling_mean + self._elsewhere.prefill_tokens
        is_late = being_read > LATE * PREFILL_WINDOW_S * sent_per_s
        return max(RATE_KEPT * self.prefill_per_s, RATE_ABOVE_SENT * sent_per_s) if is_late else inf

    def paid(self, tokens: int) -> None:
        """The time is over for which a prompt of `tokens` counted on."""
        self._owed -= tokens

    def _read_beside(self, running: _Running, now_ms: int) -> None:
        """A prompt that came after a long one has been read before it."""
        began_ms = max([self._running[work_id].at_ms for work_id in self._long])
        if running.at_ms > began_ms:
            if self._beside_ms <= began_ms:
                self._beside_ms = now_ms
            self.reads_beside = True

    def _learn_beside(self, long: _Running, now_ms: int) -> None:
        """A long prompt has been read. Another that has waited for long behind it had to wait for its end; where the
        first one beside it came with its own, that proves nothing."""
        if any(
            not one.first_ms and one.at_ms > long.at_ms and now_ms - one.at_ms >= BEHIND_MS
            for one in self._running.values()
        ):
            self.reads_beside = False
        elif self._beside_ms > long.at_ms and now_ms - self._beside_ms < BEHIND_MS:
            self.reads_beside = None

    def prefill_ms(self, work_id: str) -> int:
        """How long its prompt is expected to be read from its dispatch on, after those that were on the way there."""
        running = self._running[work_id]
        return int((running.ahead_tokens + running.work.uncached_tokens) * 1000 / self.prefill_per_s)

    def alone_ms(self, work: Work) -> float:
        """How long its prompt is expected to be read with none ahead of it."""
        return work.uncached_tokens * 1000 / self.prefill_per_s

    def presumed_read(self, work_id: str, now_ms: int) -> int:
        """Its prompt should have been read by now. For answers that come whole, whose first bytes come at their end:
        nothing is learnt. Returns as `first_token`."""
        running = self._running.get(work_id)
        if running is None or running.first_ms:
            return 0
        return self._has_read(running, now_ms)

    def _has_read(self, running: _Running, now_ms: int) -> int:
        running.first_ms = running.told_ms = now_ms
        running.told = 1
        tokens, share = running.work.uncached_tokens, self.share
        self._read(running.work, now_ms)
        if share is None or tokens <= share.prefill_tokens:
            return 0
        part = share.prefill_tokens / self.limits.prefill_tokens
        # One larger than P has kept all others waiting already.
        charged = min(tokens, self.limits.prefill_tokens)
        owed_ms = int(charged * 1000 / (self.prefill_per_s * part)) - (now_ms - running.at_ms)
        if owed_ms <= 0:
            return 0
        self._owed += tokens
        return owed_ms

    def _prefills(self, tokens: int, now_ms: int) -> None:
        """So many more are being read; keeps how many there are in the mean."""
        self._prefilling_ms += self._prefilling * (now_ms - self._prefilling_since_ms)
        self._prefilling_since_ms = now_ms
        self._prefilling += tokens

    def _read(self, work: Work, now_ms: int) -> None:
        self._prefills(-work.uncached_tokens, now_ms)
        if self._long.pop(work.id, None) is not None:
            self._long_tokens -= work.uncached_tokens
            self._lane_until_ms = now_ms + LANE_KEPT_MS

    def tokens(self, work_id: str, count: int, now_ms: int) -> None:
        """Its answer has `count` tokens by now. Called now and then, and at its end: the mean time between tokens is
        what counts, from the first one on."""
        running = self._running.get(work_id)
        if running is None or not running.first_ms or count <= running.told:
            return
        self._itl_sum_ms += now_ms - running.told_ms
        self._itl_tokens += count - running.told
        self._itl_told_ms += now_ms - running.told_ms
        self._itl_told_tokens += count - running.told
        running.told, running.told_ms = count, now_ms
        if count > running.output_tokens:
            self._resident += OUTGROWN * count - running.output_tokens
            running.output_tokens = OUTGROWN * count

    def ended(self, work_id: str, now_ms: int) -> None:
        """The engine has ended it; only the first call counts."""
        running = self._running.pop(work_id, None)
        if running is None:
            return
        self._prompts -= running.work.input_tokens
        tenant = running.work.tenant
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._resident -= running.work.input_tokens + running.output_tokens
        if running.told > 1:
            self._predicted_tokens = LENGTHS_KEPT * self._predicted_tokens + running.work.output_tokens
            self._real_tokens = LENGTHS_KEPT * self._real_tokens + running.told
        if not running.first_ms:
            self._read(running.work, now_ms)

    def engine_full(self, now_ms: int) -> None:
        """The engine said so itself: no more than what runs there now, and no growth for a while."""
        running = len(self._running) + self._elsewhere.sequences
        self._fulls += 1
        self._sequences = max(LEAST_SEQUENCES, min(self._sequences, float(running)))
        self._cool_until_ms = now_ms + COOLDOWN_MS

    def observe(self, gauges: Gauges, now_ms: int) -> None:
        """What the engine's own gauges said when they were read last; the same reading again changes nothing."""
        self.kv_tokens = gauges.kv_tokens or self.kv_tokens
        left = self._guards.observe(gauges, now_ms)
        if left < 1.0:
            self._sequences = max(LEAST_SEQUENCES, min(self._sequences, float(gauges.sequences)) * left)
            self._cool_until_ms = now_ms + COOLDOWN_MS

    def tick(self, now_ms: int, *, queued: int) -> None:
        """About once a second: adapts N to the mean ITL since the last tick. Held with few samples; grown only
        where somebody waited for N, by a quarter while far from the target; and where the queue waits for an engine
        that has nothing to do."""
        self._forecast(now_ms)
        if now_ms > self._ticked_ms:
            used_per_s = self._sent_tokens * 1000 / (now_ms - self._ticked_ms)
            self._used_per_s += USED_PART * (used_per_s - self._used_per_s)
            self._prefills(0, now_ms)
            mean = self._prefilling_ms / (now_ms - self._ticked_ms)
            self._prefilling_mean += USED_PART * (mean - self._prefilling_mean)
            self._sent_tokens, self._prefilling_ms, self._ticked_ms = 0, 0.0, now_ms
        peak = max(self._peak, len(self._running)) + self._elsewhere.sequences
        self._peak = len(self._running)
        running = self._peak + self._elsewhere.sequences
        was_short, self._was_short = self._was_short, False
        if self._followed is not None:
            self._itl_sum_ms = self._itl_tokens = 0
            return
        target_ms = None if self.itl_ms is None else TARGET * self.itl_ms
        enough = self._itl_tokens >= SAMPLES_LEAST
        itl_ms = self._itl_sum_ms / self._itl_tokens if self._itl_tokens else 0.0
        if enough:
            self._itl_sum_ms = self._itl_tokens = 0
        was_long, self._was_long = self._was_long, bool(self._long)
        if was_long and self._long and enough:
            self.itl_beside_ms = itl_ms
        if target_ms is not None and enough and itl_ms > SHRINKS_ABOVE * target_ms:
            if was_long or self._long:
                return  # it is the long prompt's doing, and fewer answers would not change it
            # While more runs than N, the last decrease has not worked yet: answers end by themselves.
            if now_ms >= self._cool_until_ms and running <= self._sequences + _extra(int(self._sequences)):
                kept = max(SHRINK_MOST, target_ms / itl_ms)
                self._sequences = max(LEAST_SEQUENCES, min(self._sequences, float(peak)) * kept)
                self._cool_until_ms = now_ms + COOLDOWN_MS
            return
        is_idle = queued > 0 and not peak
        is_fast = enough and (target_ms is None or itl_ms < GROWS_BELOW * target_ms)
        may_grow = (is_fast and not self._guards.hold(now_ms)) or is_idle
        if may_grow and (was_short or is_idle) and now_ms >= self._cool_until_ms:
            far = target_ms is None or itl_ms < 0.5 * target_ms
            grown = self._sequences * (1.25 if far else 1.03) + 1
            self._sequences = min(MOST_SEQUENCES, grown)

    def _resident_with(self, input_tokens: int, output_tokens: int) -> int:
        """The most that will be resident at one time with this prompt and answer too."""
        together = self._together * (self._resident + input_tokens + output_tokens)
        return int(together - self._guards.shared * (self._prompts + input_tokens))

    def _output_tokens(self, work: Work) -> int:
        """How long its answer is expected to get, as predictions have proved here; never less than predicted, so that
        K is too careful at worst."""
        return int(work.output_tokens * self._longer)

    def _forecast(self, now_ms: int) -> None:
        """Looks at what runs, where K is not far from bounding it: by how much answers are longer than predicted, and
        the most that will be resident at one time, as part of all that these prompts and answers will have been (while
        some grow others end; all are taken to get tokens at the same pace)."""
        predicted, real, together = self._predicted_tokens, self._real_tokens, 1.0
        kv_most = self.allowed.kv_tokens
        if kv_most is not None and 2 * self._resident > kv_most:
            left_tokens = []
            prompts = answers = 0
            for one in self._running.values():
                # Those that run count too: the longest answers would be heard of last.
                predicted += one.work.output_tokens
                real += max(one.work.output_tokens, one.told)
                if one.first_ms:
                    prompts += one.work.input_tokens
                    answers += one.told
                left_tokens.append((one.output_tokens - one.told, one.work.input_tokens + one.told))
            most = resident = 0
            for alive, (left, tokens) in enumerate(sorted(left_tokens, reverse=True), 1):
                resident += tokens
                most = max(most, resident + alive * left)
            together = most / self._resident
            self._guards.counted(prompts, answers, now_ms)
        self._together = together
        self._longer = max(1.0, real / predicted) if predicted else 1.0


def _extra(sequences: int) -> int:
    return max(2, sequences // 20)
