"""What the engine knows about one prompt and one answer: sizes, block keys, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ._blocks import KEY_SEED, chain_keys, root_key


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine sees it: its length, and the keys of its full leading blocks.

    Only `tokens` is needed: blocks without keys are never found again, which is what a prompt that shares nothing
    with others is, and costs a simulation no hashing. `tail` and `root` let the answer's blocks continue the chain.
    """

    tokens: int
    keys: Sequence[int] = ()
    tail: tuple[int, ...] = ()
    root: int = KEY_SEED

    @classmethod
    def of(cls, ids: Sequence[int], block_size: int, salt: str = "") -> Prompt:
        """The prompt made of these token ids; prompts with different salts share nothing."""
        full = len(ids) // block_size * block_size
        keys = chain_keys(ids, block_size, salt)
        root = keys[-1] if keys else root_key(salt)
        return cls(tokens=len(ids), keys=keys, tail=tuple(ids[full:]), root=root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One answer to generate. The core knows its length from the start, but uses it only where vLLM would learn it."""

    id: str
    prompt: Prompt
    output_tokens: int
    """Tokens until it ends by itself or by its limit, at least 1."""
    token_at: Callable[[int], int] | None = None
    """Its i-th token id, so that its blocks can be found by the next turn; None: they cannot."""
    reads_cache: bool = True
    """False for prompts whose own log probabilities are asked for: vLLM computes those from the start."""


class State(Enum):
    """Where a sequence stands; `ENDING` has its last step planned and holds its blocks until that is over."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    ENDING = "ending"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Request:
    """A job in the engine. Fields below the times belong to the engine alone."""

    job: Job
    arrival_s: float
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    cached_tokens: int = -1
    """Prompt tokens found in the cache when it was first scheduled; -1 before that."""

    state: State = State.WAITING
    computed: int = 0
    """Tokens whose KV is in the cache once the scheduled steps are over; while decoding, as of the last prefill."""
    target: int = 0
    """Tokens its prefill must compute: the prompt, and after a preemption also what it had generated."""
    emitted: int = 0
    """Tokens generated up to and including batch `decode_from - 1`."""
    decode_from: int = 0
    """First batch that computes one token for it; meaningful while decoding or ending."""
    last_batch: int = 0
    chain: Sequence[int] = ()
    keys: list[int] = field(default_factory=list)
    anonymous: int = 0

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def blocks(self) -> int:
        """Blocks it references."""
        return len(self.keys) + self.anonymous

    def context_at(self, batch: int) -> int:
        """Tokens its attention reads in that batch, while decoding."""
        return self.target + batch - self.decode_from + 1

    def extend_chain(self, block: int, block_size: int) -> int | None:
        """The key of a block filled by the answer, or None if its contents are not known."""
        token_at, prompt = self.job.token_at, self.job.prompt
        if token_at is None or len(prompt.keys) != prompt.tokens // block_size:
            return None
        chain = self.chain
        while len(chain) <= block:
            if not isinstance(chain, list) or chain is prompt.keys:
                self.chain = chain = list(chain)
            start = len(chain) * block_size
            ids = prompt.tail if start < prompt.tokens else ()
            first = max(start, prompt.tokens)
            ids += tuple(token_at(i - prompt.tokens) for i in range(first, start + block_size))
            assert len(ids) == block_size
            chain.append(hash((chain[-1] if chain else prompt.root, ids)))
        return chain[block]
