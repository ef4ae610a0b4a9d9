"""What a replica's answers mean for Mtok: each rule says what is wrong and which of vLLM's flags changes it. Pure.

Sources: vLLM's answers as recorded (0.24.0 on an H200, 0.32.0), its scheduler, and its issues where they are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Final

import msgspec

from gateway.engines import dialect_of
from gateway.fleet import NoCounters, read_counters
from gateway.policy import ModelSpec, Policies

from ._facts import LongPrompt, ReplicaFacts, TokenizerFacts
from ._findings import Finding, Report
from ._read import (
    Page,
    Scheduler,
    Usage,
    cards_of,
    count_of,
    page_of,
    scheduler_of,
    stream_usage_of,
    usage_of,
    version_of,
)

_VLLM: Final = dialect_of("vllm")
RECORDED: Final = ((0, 24), (0, 32))
"""The oldest and the newest vLLM whose answers Mtok's readers are tested on."""
QUEUE_COUNTED_LATE: Final = (0, 29)
"""From here on vLLM can bound its own queue, but counts a request after it has been preprocessed (its #58192)."""
THRESHOLD: Final = 512
"""Tokens of one prompt in one step. On an H200 others' time between tokens beside a prompt of 100,000: 359 ms without
it, 37 ms with it, and the long prompt takes 12 % longer; beyond 680 the last steps alone are over 80 ms."""
THRESHOLD_LEAST: Final = 64
HEADROOM: Final = 0.8
GAPS_LEAST: Final = 1000
"""Fewer times between tokens say nothing about one in a hundred."""
FULL_STEP_PART: Final = 0.9
"""Of the waits beside a long prompt: with the flag many are alike and one is late, without it few are all long."""
LATE_PART: Final = 0.01
"""The target is of the 99th in a hundred."""
PREEMPTED_PART: Final = 0.01
CACHE_PART: Final = 0.5
"""Of a replica's KV cache in one request: others beside it are preempted for it."""


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """What the policies expect of a model's replicas. `itl_ms` is the strictest time between tokens among the classes
    of those who may use it, and `itl_class` whose it is; `bands` are different priorities among them."""

    model: str
    context_tokens: int | None = None
    is_priced: bool = False
    itl_ms: int | None = None
    itl_class: str = ""
    bands: int = 1

    @classmethod
    def of(cls, policies: Policies, model: ModelSpec) -> Wants:
        """For one of the policies' models."""
        classes = [policies.class_of(tenant) for tenant in policies.tenants.values() if tenant.may_use(model)]
        strictest = min(((one.slo.itl_p99_ms, one.name) for one in classes if one.slo.itl_p99_ms), default=(None, ""))
        return cls(
            model=model.name,
            context_tokens=model.context_tokens,
            is_priced=model.price is not None,
            itl_ms=strictest[0],
            itl_class=strictest[1],
            bands=len({one.priority for one in classes}) or 1,
        )


def judge_replica(name: str, wants: Wants, facts: ReplicaFacts) -> list[Finding]:
    """Everything that can be said of one replica."""
    report = Report(name)
    health = facts.health
    if health.status != 200:
        told = f"answers {health.status} on /health" if health.status else f"does not answer: {health.error}"
        report.add("error", "health", told, "start the engine, or take its url out of the policies")
        return report.findings
    report.good("health", "is healthy")
    _version(report, facts)
    context_tokens = _model(report, wants, facts)
    page = None if facts.metrics is None else page_of(facts.metrics)
    _counters(report, facts)
    if page is not None:
        _state(report, page, context_tokens)
    _usage(report, wants, facts)
    _load(report, facts)
    _tokenizer(report, facts)
    _long_prompts(report, wants, facts, page)
    _scheduler(report, wants, facts)
    return report.findings


def not_examined(model: ModelSpec) -> Finding:
    """Of a model whose engine is another than vLLM."""
    report = Report(model.name)
    told = f"runs on {model.engine}, whose flags the doctor does not know: nothing was asked there"
    report.add("note", "engine", told, "see docs/engines.md for what it tells, and which of its flags that needs")
    return report.findings[0]


def judge_replicas(model: str, facts: Mapping[str, ReplicaFacts]) -> list[Finding]:
    """What differs between a model's replicas and should not."""
    report = Report(model)
    versions = {name: told[0] for name, one in facts.items() if (told := version_of(one.version)) is not None}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        report.add("warning", "alike", f"its replicas run different versions: {listed}", "run one version")
    contexts = {
        name: card.max_model_len
        for name, one in facts.items()
        for card in (cards_of(one.models) or [] if one.models is not None else [])
        if card.id == model and card.max_model_len is not None
    }
    if len(set(contexts.values())) > 1:
        listed = ", ".join(f"{name} {context}" for name, context in contexts.items())
        report.add(
            "warning",
            "alike",
            f"its replicas have different contexts: {listed}; requests are held to the smallest",
            "set the same --max-model-len on all of them",
        )
    return report.findings


def judge_tokenizer(model: str, facts: TokenizerFacts) -> list[Finding]:
    """Whether a model's prompts can be counted in the gateway."""
    report = Report(model)
    if facts.error:
        report.add(
            "warning",
            "tokenizer",
            f"{facts.path} cannot be used: {facts.error}; its engine counts prompts instead",
            "the path of the model's own tokenizer.json, or no tokenizer in the policy",
        )
        return report.findings
    compared = [one for one in facts.counts if one[2] is not None]
    wrong = next((one for one in compared if one[1] != one[2]), None)
    if wrong is not None:
        text, here, engine = wrong
        report.add(
            "warning",
            "tokenizer",
            f"{facts.path} counts {here} tokens in {text[:40]!r}, its engine {engine}: it is another model's; "
            "the engine counts prompts instead",
            "the path of the tokenizer.json that the engine was started with",
        )
    elif compared:
        report.good("tokenizer", f"{facts.path} counts as the engine does, in {len(compared)} texts")
    return report.findings


def _version(report: Report, facts: ReplicaFacts) -> None:
    told = version_of(facts.version)
    if told is None:
        report.add("warning", "version", "does not tell vLLM's version: it is another engine, or behind a proxy")
        return
    version, numbers = told
    if numbers < RECORDED[0]:
        oldest = ".".join(map(str, RECORDED[0]))
        report.add(
            "warning", "version", f"runs vLLM {version}, which Mtok was not tested on", f"use vLLM {oldest} or newer"
        )
    elif numbers > RECORDED[1]:
        report.add("note", "version", f"runs vLLM {version}, newer than any that Mtok was tested on")
    else:
        report.good("version", f"runs vLLM {version}")
    if numbers == RECORDED[0]:
        report.add(
            "note",
            "version",
            f"vLLM {version} tells neither reasoning tokens nor cache writes (completion_tokens_details, "
            "created_cache_tokens); they are billed as output and input all the same",
            "vLLM 0.32 tells them",
        )


def _model(report: Report, wants: Wants, facts: ReplicaFacts) -> int | None:
    """The longest request that comes to it, where that is known."""
    cards = None if facts.models is None else cards_of(facts.models)
    if cards is None:
        report.add("error", "model", "does not list its models on /v1/models", "let /v1/models through to the engine")
        return wants.context_tokens
    card = next((card for card in cards if card.id == wants.model), None)
    if card is None:
        served = ", ".join(card.id for card in cards) or "nothing"
        report.add(
            "error",
            "model",
            f"serves {served}, not {wants.model}: every request there fails",
            f"--served-model-name {wants.model}, or name the model in the policies as the engine does",
        )
        return wants.context_tokens
    report.good("model", f"serves {wants.model}")
    engine, policy = card.max_model_len, wants.context_tokens
    if engine is None:
        report.add("note", "context", "does not tell its context", "" if policy else "set the model's context_tokens")
    elif policy is None or policy == engine:
        report.good("context", f"takes {engine} tokens")
    elif policy > engine:
        report.add(
            "error",
            "context",
            f"takes {engine} tokens, but the policy lets requests of {policy} through: the engine refuses them",
            f"--max-model-len {policy}, or context_tokens: {engine}",
        )
    else:
        report.add("note", "context", f"takes {engine} tokens, of which the policy allows {policy}")
    return min((context for context in (engine, policy) if context is not None), default=None)


def _counters(report: Report, facts: ReplicaFacts) -> None:
    answer = facts.metrics
    if answer is None or answer.status != 200:
        told = "" if answer is None else f": {answer.error or answer.status}"
        report.add(
            "error",
            "counters",
            f"does not answer /metrics{told}; the ledger cannot be held against its counters",
            "let /metrics through to the engine",
        )
        return
    try:
        assert _VLLM.metrics is not None
        read_counters(answer.body, _VLLM.metrics, asked_ms=0, answered_ms=0)
    except NoCounters as error:
        report.add(
            "error",
            "counters",
            f"has no token counters ({error}); the ledger cannot be held against them",
            "start it without --disable-log-stats",
        )
    else:
        report.good("counters", "has the counters that the audit reads")


def _state(report: Report, page: Page, longest: int | None) -> None:
    if page.asleep:
        report.add("error", "awake", "sleeps: its weights are not loaded", "POST /wake_up to it")
    cache = page.cache
    if cache is None:
        report.add(
            "warning",
            "prefix-cache",
            "does not tell its cache's settings (vllm:cache_config_info): resident tokens are not bounded there",
            "let vllm:cache_config_info through, and start it without --disable-log-stats",
        )
    elif cache.get("enable_prefix_caching") != "True":
        report.add(
            "warning",
            "prefix-cache",
            "keeps no prefixes: every turn of a conversation is computed again, and sending it where it was is no use",
            "--enable-prefix-caching",
        )
    else:
        report.good("prefix-cache", "keeps prefixes")
    capacity = _capacity(cache)
    if capacity and longest and longest > CACHE_PART * capacity:
        report.add(
            "warning",
            "kv-cache",
            f"holds {capacity} tokens in its cache, and one request may take {longest}: others are preempted for it",
            "a larger --gpu-memory-utilization, a smaller context_tokens, or max_input_tokens in the limits",
        )
    preempted = page.sums.get("vllm:num_preemptions_total", 0.0)
    ended = page.sums.get("vllm:request_success_total", 0.0)
    if preempted > PREEMPTED_PART * max(1.0, ended):
        report.add(
            "warning",
            "kv-cache",
            f"has preempted {preempted:.0f} times in {ended:.0f} answers: its cache was full, and streams stood still",
            "a larger --gpu-memory-utilization, or a smaller --max-num-seqs",
        )
    rejected = page.sums.get("vllm:admission_rejections_total", 0.0)
    if rejected:
        report.add(
            "note",
            "engine-queue",
            f"has refused {rejected:.0f} requests by its own queue limit; they were placed elsewhere or waited",
            "leave --max-num-queued-reqs and --max-num-queued-tokens unset: the gateway keeps the queue short",
        )


def _capacity(cache: Mapping[str, str] | None) -> int:
    told = "" if cache is None else cache.get("kv_cache_size_tokens", "")
    return int(told) if told.isdigit() else 0


def _usage(report: Report, wants: Wants, facts: ReplicaFacts) -> None:
    if facts.whole is None or facts.stream is None:
        return
    if facts.whole.status in {404, 405} or facts.stream.status in {404, 405}:
        report.add("note", "usage", "does not answer /v1/completions: not checked, as for a model that only embeds")
        return
    for answer in (facts.whole, facts.stream):
        if answer.status != 200:
            told = answer.error or answer.body[:200].decode(errors="replace")
            report.add("error", "usage", f"does not complete a prompt of three words: {answer.status} {told}")
            return
    if not facts.stream.headers.get("content-type", "").startswith("text/event-stream"):
        report.add(
            "error", "usage", "does not stream: what comes is not server-sent events", "take away what buffers it"
        )
        return
    is_running, last = stream_usage_of(facts.stream)
    if last is None or last.prompt_tokens is None or last.completion_tokens is None:
        report.add(
            "error",
            "usage",
            "does not tell the usage of a stream, though stream_options asks for it: streams are billed by guesses",
            "use an engine that takes stream_options.include_usage, with nothing between that takes it out",
        )
        return
    report.good("usage", "tells the usage at a stream's end")
    if is_running:
        report.good("running-usage", "tells the usage in every piece of a stream")
    else:
        report.add(
            "warning",
            "running-usage",
            "tells the usage only at a stream's end: of one that is cut, what was delivered is counted instead",
            "use an engine that takes stream_options.continuous_usage_stats, as vLLM does",
        )
    _cached(report, wants, last, usage_of(facts.whole))


def _cached(report: Report, wants: Wants, streamed: Usage, whole: Usage | None) -> None:
    told = [usage is not None and _cached_tokens(usage) is not None for usage in (streamed, whole)]
    if all(told):
        report.good("cached-tokens", "tells which prompt tokens came from its cache")
        return
    where = "anywhere" if not any(told) else "in streams" if not told[0] else "in answers that come whole"
    billed = ": cached input is billed as if it had been computed" if wants.is_priced else ""
    report.add(
        "error" if wants.is_priced else "warning",
        "cached-tokens",
        f"does not tell cached_tokens {where}{billed}",
        "--enable-prompt-tokens-details",
    )


def _cached_tokens(usage: Usage) -> int | None:
    details = usage.prompt_tokens_details
    return None if details is None else details.cached_tokens


def _load(report: Report, facts: ReplicaFacts) -> None:
    if facts.whole is None or facts.whole.status != 200:
        return
    if "endpoint-load-metrics" in facts.whole.headers:
        report.good("load-header", "tells its load on answers that come whole")
    else:
        report.add(
            "warning",
            "load-header",
            "does not tell its load when asked by endpoint-load-metrics-format; only /metrics does, every few seconds",
            "let the headers endpoint-load-metrics-format and endpoint-load-metrics through to and from vLLM",
        )


def _tokenizer(report: Report, facts: ReplicaFacts) -> None:
    answer = facts.tokenize
    if answer is None:
        return
    if count_of(answer) is not None:
        report.good("tokenize", "counts tokens")
    else:
        report.add(
            "warning",
            "tokenize",
            f"does not count tokens on /tokenize ({answer.error or answer.status}): prompts near a limit are estimated",
            "let /tokenize through to the engine",
        )


def _long_prompts(report: Report, wants: Wants, facts: ReplicaFacts, page: Page | None) -> None:
    """Whether a full step is over the target for the time between tokens."""
    itl_ms = wants.itl_ms
    if itl_ms is None:
        return
    scheduler = scheduler_of(facts.server_info)
    measured = facts.long_prompt
    if scheduler is not None and scheduler.enable_chunked_prefill is False:
        report.add(
            "error",
            "long-prompts",
            "computes a prompt in one step, however long it is: everybody else waits for its end",
            f"--enable-chunked-prefill --long-prefill-token-threshold {THRESHOLD}",
        )
    elif isinstance(measured, LongPrompt) and measured.beside_ms:
        _measured(report, wants, itl_ms, measured, scheduler)
    elif scheduler is not None:
        _told(report, wants, itl_ms, scheduler)
    else:
        _seen(report, wants, itl_ms, page)
    if isinstance(measured, str):
        report.add("note", "long-prompts", f"could not be measured beside a long prompt: {measured}")


def _measured(report: Report, wants: Wants, itl_ms: int, measured: LongPrompt, scheduler: Scheduler | None) -> None:
    waits_ms = sorted(measured.beside_ms)
    step_ms = waits_ms[int(FULL_STEP_PART * len(waits_ms))]
    alone_ms = median(measured.alone_ms) if measured.alone_ms else 0.0
    target = f"the {itl_ms} ms of class {wants.itl_class}"
    if alone_ms > itl_ms:
        report.add(
            "error",
            "long-prompts",
            f"takes {alone_ms:.0f} ms between two tokens of a single stream, over {target}: no limit can hold that",
            "a higher itl_p99_ms, or a faster engine",
        )
        return
    told = (
        f"beside a prompt of {measured.prompt_tokens} tokens others wait for full steps of {step_ms:.0f} ms, at most "
        f"{waits_ms[-1]:.0f} ms"
    )
    if step_ms <= itl_ms:
        report.good("long-prompts", f"{told}: within {target}")
        return
    step_tokens = measured.prompt_tokens / len(measured.beside_ms)
    report.add(
        "error",
        "long-prompts",
        f"{told}: over {target}, whatever the gateway does",
        _threshold_flag(int(HEADROOM * step_tokens * itl_ms / step_ms), scheduler),
    )


def _told(report: Report, wants: Wants, itl_ms: int, scheduler: Scheduler) -> None:
    threshold, budget = scheduler.long_prefill_token_threshold, scheduler.max_num_batched_tokens
    adaptive = scheduler.long_prefill_token_threshold_adaptive
    if not adaptive and 0 < threshold <= 2 * THRESHOLD:
        report.good("long-prompts", f"a long prompt gets {threshold} tokens of a step")
        return
    takes = f"{threshold} tokens" if threshold and not adaptive else "half" if threshold else "all"
    of = f" of {budget} tokens" if budget else ""
    report.add(
        "warning",
        "long-prompts",
        f"a long prompt may take {takes} of a step{of}: others may wait longer than the {itl_ms} ms of class "
        f"{wants.itl_class}; --probe measures how long",
        _threshold_flag(THRESHOLD, scheduler),
    )


def _seen(report: Report, wants: Wants, itl_ms: int, page: Page | None) -> None:
    """Without developer mode vLLM does not tell its scheduler's settings: what has happened there says something."""
    gaps = None if page is None else page.histograms.get("vllm:inter_token_latency_seconds")
    steps = None if page is None else page.histograms.get("vllm:iteration_tokens_total")
    if gaps is None or gaps.total < GAPS_LEAST:
        report.add(
            "note",
            "long-prompts",
            "has not shown yet how long others wait beside a long prompt, and does not tell its flags",
            "mtok doctor --probe measures it",
        )
        return
    part, bound_s = gaps.part_above(itl_ms / 1000)
    largest = None if steps is None else steps.largest()
    told = f"{100 * part:.1f} % of its times between tokens were over {1000 * bound_s:.0f} ms"
    if part <= LATE_PART:
        report.good("long-prompts", told)
        return
    steps_told = "" if largest is None else f", in steps of up to {largest:.0f} tokens"
    report.add(
        "warning",
        "long-prompts",
        f"{told}{steps_told}: the target of class {wants.itl_class} is {itl_ms} ms; --probe measures what flags can do",
        f"--long-prefill-token-threshold {THRESHOLD}",
    )


def _threshold_flag(at_most: int, scheduler: Scheduler | None) -> str:
    tokens = min(THRESHOLD, 1 << max(0, at_most.bit_length() - 1))
    if tokens < THRESHOLD_LEAST:
        return f"--long-prefill-token-threshold {THRESHOLD_LEAST} and a higher itl_p99_ms: no flag reaches it alone"
    if scheduler is not None and scheduler.long_prefill_token_threshold_adaptive:
        return f"--long-prefill-token-threshold {tokens}, without --long-prefill-token-threshold-adaptive"
    return f"--long-prefill-token-threshold {tokens}"


def _scheduler(report: Report, wants: Wants, facts: ReplicaFacts) -> None:
    scheduler = scheduler_of(facts.server_info)
    if scheduler is None:
        return
    report.add(
        "warning",
        "developer-mode",
        "runs in developer mode: whoever reaches it can put it to sleep or drop its cache",
        "start it without VLLM_SERVER_DEV_MODE outside of tests",
    )
    if wants.bands > 1 and scheduler.policy == "fcfs":
        report.add(
            "note",
            "priority",
            "orders its own queue by arrival; the gateway's bands decide before that",
            "--scheduling-policy priority",
        )
    version = version_of(facts.version)
    bounds_queue = scheduler.max_num_queued_reqs is not None or scheduler.max_num_queued_tokens is not None
    if bounds_queue and version is not None and version[1] >= QUEUE_COUNTED_LATE:
        report.add(
            "warning",
            "engine-queue",
            "bounds its own queue, but counts a request only after preprocessing it (vLLM #58192): a burst pays for "
            "requests that are refused then",
            "leave --max-num-queued-reqs and --max-num-queued-tokens unset: the gateway keeps the queue short",
        )
