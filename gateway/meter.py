"""What one request has used so far, and the most its engine may have counted beyond that. Pure: asks nobody."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gateway.context import ContextLimits, PromptSize, least, output_most, prompt_most
from gateway.wire import NO_USAGE, RequestView, StreamScanner, Usage

CONTEXT_UNKNOWN_TOKENS = 2**24
"""The longest answer of an engine that does not tell its context: no model's is that long."""


class Metered(Struct, frozen=True, kw_only=True):
    """What is billed of a request, and how much that says about the engine's counters; the names are `UsageEvent`'s.

    The engine counted at least `usage.input_tokens` × `samples` and `usage.output_tokens`, and at most
    `undelivered_input_max` and `undelivered_output_max` more, unless `estimated`.
    """

    usage: Usage = NO_USAGE
    estimated: bool = False
    cached_predicted: bool = False
    samples: int = 1
    undelivered_input_max: int = 0
    undelivered_output_max: int = 0


NOTHING = Metered()


class Meter:
    """Follows one request: placed or not, its stream if it has one. Making it costs nothing: what only the end of an
    answer or a checkpoint needs is worked out then."""

    __slots__ = (
        "_context",
        "_limits",
        "_per_sample",
        "_placed",
        "_scanner",
        "_size",
        "_view",
        "_warm_bytes",
        "cached_is_predicted",
        "delivered",
    )

    def __init__(self, view: RequestView, size: PromptSize, limits: ContextLimits) -> None:
        """`size` is what is known of the prompt, `limits` what the request was checked against."""
        self._view = view
        self._size = size
        self._limits = limits
        self._placed = False
        self._per_sample = True
        self._scanner: StreamScanner | None = None
        self._warm_bytes = 0
        self._context: int | None = None
        self.delivered: Usage | None = None
        """Of a stream that is held in slices: what its client has had, all that is billed of it if it is cut."""

        self.cached_is_predicted = False
        """Whether the replica that read the prompt first was lost before it told what it had cached."""

    def place(self, warm_bytes: int, context: int | None, *, per_sample: bool = True) -> None:
        """The request is on its way to a replica, which has probably cached the first `warm_bytes` of its prompt and
        serves a context of that many tokens. `per_sample`: its engine counts a prompt once for each of its samples."""
        self._placed = True
        self._per_sample = per_sample
        self._warm_bytes = warm_bytes
        self._context = context

    def counted(self, size: PromptSize) -> None:
        """Its prompt has been counted."""
        self._size = size

    def withdraw(self) -> None:
        """That replica has not taken it, or has failed: what it burnt there is told apart."""
        self._placed = False

    def follow(self, scanner: StreamScanner) -> None:
        """Its answer is a stream, which this scanner reads."""
        self._scanner = scanner

    def finished(self, usage: Usage, *, estimated: bool = False) -> Metered:
        """An answer that reached its end: all that was counted is billed."""
        return Metered(
            usage=usage, estimated=estimated, cached_predicted=self.cached_is_predicted, samples=self._samples
        )

    def estimated(self, prompt: PromptSize | None, output_tokens: int) -> Metered:
        """An answer that reached its end, of which the engine told nothing: what its tokenizer says of the prompt and
        of the generated text."""
        usage = Usage(input_tokens=self._known(prompt).total, output_tokens=output_tokens)
        return self.finished(usage, estimated=True)

    def cut(self, prompt: PromptSize | None = None, output_tokens: int = 0) -> Metered:
        """An answer that ends here, before its engine has said what it used: never more than was generated.

        `prompt` and `output_tokens` are what the engine's tokenizer says of the prompt and of the delivered text, for
        engines that tell nothing in mid-stream. Without it the prompt is billed at its least. Cached input, which vLLM
        tells only at the end, is what the prefix index predicted. A prompt that has not reached its first token is not
        billed, as vLLM does not count it either.
        """
        view, scanner = self._view, self._scanner
        if not self._placed or not view.endpoint.computes:
            return NOTHING
        if scanner is None:
            return self._bounded(NO_USAGE, told=None, samples=1)
        told, events = scanner.usage(), scanner.output_events
        if self.delivered is not None:
            told, events = self.delivered, 0
        elif told is not None and scanner.usage_is_final:
            return self.finished(told)
        output_tokens = max(events, output_tokens)
        if told is None:
            if not events:
                return self._bounded(NO_USAGE, told=None, samples=1)
            usage = Usage(input_tokens=self._known(prompt).total, output_tokens=output_tokens)
        elif told.output_tokens < events:
            usage = replace(told, output_tokens=output_tokens)
        else:
            usage = told
        return self._bounded(
            self._with_cached(usage), told=told, samples=scanner.samples_begun if self._per_sample else 1
        )

    def attempt_most(self) -> tuple[int, int]:
        """The most input and output tokens that an attempt at this request can have burnt."""
        if not self._view.endpoint.computes:
            return 0, 0
        lost = self._bounded(NO_USAGE, told=None, samples=1)
        return lost.undelivered_input_max, lost.undelivered_output_max

    def cached_tokens(self, input_tokens: int) -> int:
        """How many tokens of a prompt of that length its replica is taken to have had in its cache."""
        return self._with_cached(Usage(input_tokens=input_tokens)).input_cached_tokens

    @property
    def _samples(self) -> int:
        """How often its engine counts the prompt."""
        return self._view.samples if self._per_sample else 1

    def _known(self, prompt: PromptSize | None) -> PromptSize:
        return prompt or (self._size if self._size.exact else least(self._view))

    def _with_cached(self, usage: Usage) -> Usage:
        """The predicted share of the prompt, rounded in the tenant's favour, where the engine has told none."""
        prompt_bytes = len(self._view.prompt)
        if usage.input_cached_tokens or not self._warm_bytes:
            return usage
        cached = -(-usage.input_tokens * self._warm_bytes // prompt_bytes)
        return replace(usage, input_cached_tokens=min(usage.input_tokens, cached))

    def _bounded(self, usage: Usage, *, told: Usage | None, samples: int) -> Metered:
        """vLLM counts a prompt at its first token, once for each of its samples; and what it had generated when it
        noticed that nobody reads."""
        view = self._view
        whole_prompt_told = (
            told is not None and self._scanner is not None and self._scanner.prompts_told == view.prompts
        )
        once = usage.input_tokens
        if not whole_prompt_told:
            once = max(once, prompt_most(view, self._size, self._limits))
        longest_least = once if whole_prompt_told and view.prompts == 1 else least(view).longest
        return Metered(
            usage=usage,
            estimated=usage is not NO_USAGE and (told is None or usage.output_tokens != told.output_tokens),
            cached_predicted=usage.input_tokens > 0 and (told is None or not told.input_cached_tokens),
            samples=samples,
            undelivered_input_max=once * self._samples - usage.input_tokens * samples,
            undelivered_output_max=max(0, self._output_most(longest_least) - usage.output_tokens),
        )

    def _output_most(self, longest_least: int) -> int:
        if not self._view.endpoint.generates:
            return 0
        context = max(self._limits.context or 0, self._context or 0) or CONTEXT_UNKNOWN_TOKENS
        limits = replace(self._limits, context=context)
        return output_most(self._view, longest_least, limits) * self._view.answers
