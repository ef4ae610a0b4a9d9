"""A replica's recorded answers, and changes to them."""

from __future__ import annotations

import json

import msgspec

from gateway.doctor import Answer, Finding, LongPrompt, ReplicaFacts, judge_replica
from gateway.doctor._replica import Wants
from tests.conformance.simulator.recordings import recorded

MODEL = "llama-8b"
NOT_FOUND = Answer(404, body=b'{"detail":"Not Found"}')
SCHEDULER = {
    "runner_type": "generate",
    "max_num_batched_tokens": 8192,
    "max_num_scheduled_tokens": None,
    "max_num_seqs": 1024,
    "max_num_active_seqs": None,
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "max_num_queued_reqs": None,
    "max_num_queued_tokens": None,
    "enable_chunked_prefill": True,
    "policy": "fcfs",
    "scheduler_cls": None,
    "watermark": 0.0,
    "stream_interval": 1,
}
"""Of vLLM 0.32's `/server_info?config_format=json`, which it tells in developer mode."""


def answer(name: str, *replaced: tuple[str, str]) -> Answer:
    """The recording of that name, changed."""
    told = recorded(name)
    body = told.body.decode()
    for old, new in replaced:
        assert old in body, f"{name} does not hold {old}"
        body = body.replace(old, new)
    return Answer(int(told.status.split()[1]), dict(told.headers), body.encode())


def server_info(**scheduler: object) -> Answer:
    config = {"model_config": {}, "scheduler_config": SCHEDULER | scheduler}
    return Answer(200, body=json.dumps({"vllm_config": config, "vllm_env": {}}).encode())


def facts(**changes: Answer | LongPrompt | str | None) -> ReplicaFacts:
    """vLLM 0.24.0 on an H200, with all that Mtok relies on."""
    recordings = ReplicaFacts(
        health=answer("health"),
        models=answer("models"),
        metrics=answer("metrics_after_recording"),
        version=answer("version"),
        tokenize=answer("tokenize"),
        whole=answer("orca_text"),
        stream=answer("stream_cont"),
        server_info=NOT_FOUND,
    )
    return msgspec.structs.replace(recordings, **changes)


def wants(**changes: object) -> Wants:
    fields = {"model": MODEL, "is_priced": True, "context_tokens": 131_072, "itl_ms": 80, "itl_class": "chat"}
    return msgspec.convert(fields | changes, Wants)


def judged(changed: ReplicaFacts | None = None, **policy: object) -> dict[str, Finding]:
    """What is found that is not good, by the rule's name."""
    findings = judge_replica("a:1", wants(**policy), changed or facts())
    return {one.check: one for one in findings if one.severity != "good"}


def severities(changed: ReplicaFacts | None = None, **policy: object) -> dict[str, str]:
    return {check: one.severity for check, one in judged(changed, **policy).items()}
