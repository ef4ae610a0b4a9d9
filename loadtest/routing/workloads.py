"""Who asks for what: each workload is a seed's sessions, the engine it runs on, and how many of those there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

from gateway.simulator import PROFILES, Profile, StepTimes

from .texts import Text, content, dice

H200 = PROFILES["h200-llama-8b"]
"""381,552 tokens of cache, about 28,000 prompt tokens a second."""

QWEN_32B = replace(
    H200,
    name="2xh100-qwen-32b",
    max_model_len=40_960,
    kv_blocks=19_209,
    steps=StepTimes(
        decode_base_ms=14.0,
        per_context_kt_ms=0.04,
        per_context_beside_kt_ms=0.06,
        prefill_base_ms=5.0,
        per_prefill_kt_ms=62.8,
        per_attention_kt2_ms=2.0,
        prefill_floor_ms=18.0,
    ),
)
"""llm-d's replicas: 307,328 tokens of cache, 15,928 prompt tokens a second as they measured it; the decode step is
what the weights (64 GB over 2 × 3.35 TB/s, at 70 %) and the cache (256 KiB a token) take to be read."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Planned in seconds from the start of its phase; its input comes after all that was said before."""

    planned_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """Turns that build on each other, after an opening that others may share."""

    name: str
    opening: Text
    turns: Sequence[Turn]
    kind: int = 0
    """Who has the same opening."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A phase begins when all before it has been answered."""

    name: str
    phases: Sequence[Sequence[Session]]
    profile: Profile = H200
    replicas: int = 8
    restarts: Sequence[tuple[int, float, float]] = field(default=())
    """Which replica goes, when, and for how many seconds."""
    beside: StepTimes | None = None
    """Of a step while another replica is at one, where all share one GPU."""


@lru_cache(maxsize=4096)
def opening(name: str, tokens: int) -> Text:
    """A system prompt, a document: the same for all who name it."""
    return Text().plus(content(name, tokens))


def _times(source: random.Random, per_s: float, until_s: float) -> list[float]:
    """Poisson arrivals."""
    times, now = [], 0.0
    while (now := now + source.expovariate(per_s)) < until_s:
        times.append(now)
    return times


def _length(source: random.Random, mean: int, *, cv: float = 0.5) -> int:
    """Lognormal, of that mean; `cv` 0.5 is a sigma of 0.47."""
    sigma = 0.4724 if cv == 0.5 else 0.8326
    return max(1, int(mean * source.lognormvariate(-(sigma**2) / 2, sigma)))


def _turns(source: random.Random, begin_s: float, count: int, *, asks: int, answers: int, gap_s: float) -> list[Turn]:
    turns = []
    for _ in range(count):
        turns.append(Turn(begin_s, _length(source, asks), _length(source, answers)))
        begin_s += gap_s * source.uniform(0.5, 1.5)
    return turns


def chat(seed: int, *, per_s: float = 40.0, until_s: float = 10.0, turns: int = 6) -> Workload:
    """People who talk to 40 assistants: 6 turns of 150 tokens, answers of 120, system prompts of 1,500."""
    source = dice(f"chat {seed}")
    sessions = []
    for number, at_s in enumerate(_times(source, per_s, until_s)):
        kind = source.randrange(40)
        sessions.append(
            Session(
                f"chat {seed} {number}",
                opening(f"chat kind {kind}", 1500),
                _turns(source, at_s, turns, asks=150, answers=120, gap_s=3.0),
                kind,
            )
        )
    return Workload("multi-turn chat", [sessions])


def agents(seed: int, *, per_s: float = 6.0, until_s: float = 10.0, turns: int = 50) -> Workload:
    """Agents of 20 kinds, each a system prompt of 3,000 tokens, and 50 turns: tools answer 250 tokens, the model 40."""
    source = dice(f"agents {seed}")
    sessions = []
    for number, at_s in enumerate(_times(source, per_s, until_s)):
        kind = source.randrange(20)
        sessions.append(
            Session(
                f"agent {seed} {number}",
                opening(f"agent kind {kind}", 3000),
                _turns(source, at_s, turns, asks=250, answers=40, gap_s=1.2),
                kind,
            )
        )
    return Workload("agents", [sessions])


def rag(seed: int, *, per_s: float = 100.0, until_s: float = 20.0, topics: int = 600) -> Workload:
    """Questions of 100 tokens about one of 600 dossiers of 3,200 tokens, some asked for far more often (Zipf, 0.9)."""
    source = dice(f"rag {seed}")
    weights = list(accumulate(1 / rank**0.9 for rank in range(1, topics + 1)))
    times = _times(source, per_s, until_s)
    chosen = source.choices(range(topics), cum_weights=weights, k=len(times))
    sessions = [
        Session(
            f"rag {seed} {number}",
            opening(f"dossier {topic}", 3200),
            [Turn(at_s, _length(source, 100), _length(source, 100))],
            topic,
        )
        for number, (at_s, topic) in enumerate(zip(times, chosen, strict=True))
    ]
    return Workload("RAG", [sessions])


def unique(seed: int, *, per_s: float = 160.0, until_s: float = 12.0) -> Workload:
    """Nothing in common: the GPU's Poisson load, 800 tokens in and 200 out, at two thirds of what 8 replicas carry."""
    source = dice(f"unique {seed}")
    sessions = [
        Session(f"unique {seed} {number}", Text(), [Turn(at_s, _length(source, 800, cv=1), _length(source, 200, cv=1))])
        for number, at_s in enumerate(_times(source, per_s, until_s))
    ]
    return Workload("no reuse", [sessions])


LLM_D_STAGES = ((3, 10), (20, 10), (40, 10), (60, 10))
"""Requests a second, seconds: theirs climb from 3 to 60 too, in more and longer stages."""


def llm_d(seed: int, *, stages: Sequence[tuple[float, float]] = LLM_D_STAGES, answer: int = 1000) -> Workload:
    """llm-d's published workload: 150 groups of 6,000-token prefixes, 5 users each with a question of 1,200 tokens."""
    source = dice(f"llm-d {seed}")
    phases = []
    for stage, (per_s, until_s) in enumerate(stages):
        sessions = []
        for number, at_s in enumerate(_times(source, per_s, until_s)):
            group, user = source.randrange(150), source.randrange(5)
            sessions.append(
                Session(f"llm-d {seed} {stage} {number}", _llm_d_prompt(group, user), [Turn(at_s, 0, answer)], group)
            )
        phases.append(sessions)
    return Workload("llm-d b2b", phases, profile=QWEN_32B)


@lru_cache(maxsize=750)
def _llm_d_prompt(group: int, user: int) -> Text:
    return opening(f"llm-d group {group}", 6000).plus(content(f"llm-d user {group} {user}", 1200))


def one_group(seed: int, *, per_s: float = 3.0, until_s: float = 60.0) -> Workload:
    """SGLang's counter-example: two replicas, 3 requests/s that share a quarter of their long prompts."""
    source = dice(f"one group {seed}")
    sessions = [
        Session(
            f"one group {seed} {number}",
            opening("the one group", 3120),
            [Turn(at_s, _length(source, 8880), 100)],
        )
        for number, at_s in enumerate(_times(source, per_s, until_s))
    ]
    return Workload("one prefix group", [sessions], replicas=2)


def burst(seed: int, *, per_s: float = 60.0, until_s: float = 12.0, size: int = 160) -> Workload:
    """Beside a chat's load: a prefix of 6,000 tokens nobody knows, asked for 160 times within a second."""
    source = dice(f"burst {seed}")
    sessions = list(unique(seed, per_s=per_s, until_s=until_s).phases[0])
    fresh = opening(f"burst {seed}", 6000)
    for number in range(size):
        at_s = 5.0 + source.random()
        sessions.append(
            Session(f"burst {seed} {number}", fresh, [Turn(at_s, _length(source, 100), _length(source, 200))], 1)
        )
    return Workload("burst of a new prefix", [sessions])


def hot(seed: int, *, per_s: float = 100.0, until_s: float = 15.0) -> Workload:
    """60 % of all requests begin with the same 4,000 tokens; the others are 200 system prompts of 2,000."""
    source = dice(f"hot {seed}")
    sessions = []
    for number, at_s in enumerate(_times(source, per_s, until_s)):
        if source.random() < 0.6:
            kind, start = 0, opening("the hot prefix", 4000)
        else:
            kind = 1 + source.randrange(200)
            start = opening(f"hot others {kind}", 2000)
        turn = Turn(at_s, _length(source, 200), _length(source, 200))
        sessions.append(Session(f"hot {seed} {number}", start, [turn], kind))
    return Workload("one hot prefix (60 %)", [sessions])


def restart(seed: int, *, per_s: float = 40.0) -> Workload:
    """The chat, and one replica that goes after 8 s and is back, empty, 6 s later."""
    return replace(chat(seed, per_s=per_s), name="chat, a replica restarts", restarts=[(3, 8.0, 6.0)])


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "chat": chat,
    "agents": agents,
    "rag": rag,
    "unique": unique,
    "llm-d": llm_d,
    "one-group": one_group,
    "burst": burst,
    "hot": hot,
    "restart": restart,
}
