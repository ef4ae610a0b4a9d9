"""One sample of an answer on its way out: tokens in, text out, ended by length, by itself, or by a stop string."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._answers import Answer
from ._params import Sampling
from ._tokenizer import word


@dataclass(frozen=True, slots=True)
class Delta:
    """What a sample has gained since it was last asked."""

    text: str
    ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(slots=True)
class Sample:
    """Counts tokens as the engine makes them (`push`) and hands out text as the connection takes it (`take`).

    Stop strings are looked for when a token is made, not when it is read: what is counted must not depend on how slow
    the reader is. Text that could be the beginning of a stop string is held back, as vLLM's detokenizer does.
    """

    job_id: str
    index: int
    prompt_tokens: int
    answer: Answer
    sampling: Sampling
    tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    last_token_s: float = 0.0
    _taken: int = 0
    _searched: str = ""
    _cut: int = -1
    _sent_text: int = field(default=0)

    def push(self) -> bool:
        """One more token; True if it ends the sample."""
        token = self.answer.token_at(self.tokens) if self.sampling.stop or self.sampling.stop_token_ids else 0
        self.tokens += 1
        if self.tokens > self.sampling.min_tokens and token:
            if token in self.sampling.stop_token_ids:
                self.stop_reason = token
                self.finish_reason = "stop"
                return True
            if self._find_stop(word(token)):
                return True
        if self.tokens == self.answer.length:
            self.finish_reason = "stop" if self.answer.ends_itself else "length"
            return True
        return False

    @property
    def pending(self) -> bool:
        """Whether there is something to take."""
        return self.tokens > self._taken

    @property
    def taken(self) -> int:
        """Tokens handed out: what the usage of a chunk says."""
        return self._taken

    def take(self) -> Delta:
        """Everything since the last call, as one piece: a reader that lags gets several tokens at once."""
        answer = self.answer
        ids = [answer.token_at(index) for index in range(self._taken, self.tokens)]
        self._taken = self.tokens
        if not self.sampling.stop:
            return Delta("".join(map(word, ids)), ids, self.finish_reason, self.stop_reason)
        hold = max(map(len, self.sampling.stop)) - 1
        whole = len(self._searched)
        end = self._cut if self._cut >= 0 else whole if self.finish_reason else max(self._sent_text, whole - hold)
        text = self._searched[self._sent_text : end]
        self._sent_text = end
        return Delta(text, ids, self.finish_reason, self.stop_reason)

    def _find_stop(self, text: str) -> bool:
        if not self.sampling.stop:
            return False
        start = len(self._searched)
        self._searched += text
        found = [
            (at, stop)
            for stop in self.sampling.stop
            if (at := self._searched.find(stop, max(0, start - len(stop) + 1))) >= 0
        ]
        if not found:
            return False
        at, stop = min(found)
        self._cut = at + len(stop) if self.sampling.keep_stop else at
        self.finish_reason, self.stop_reason = "stop", stop
        return True
