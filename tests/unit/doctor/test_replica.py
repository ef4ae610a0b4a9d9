"""What recorded answers of real engines mean, one thing changed at a time."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doctor import (
    Answer,
    LongPrompt,
    ReplicaFacts,
    TokenizerFacts,
    judge_replica,
    judge_replicas,
    judge_tokenizer,
)
from gateway.doctor._probe import measured
from gateway.doctor._replica import Wants, not_examined
from gateway.policy import ModelSpec, ReplicaSpec, load
from tests.unit.doctor.facts import NOT_FOUND, answer, facts, judged, server_info, severities, wants

USUAL = {"version": "note", "long-prompts": "note"}
"""Of the recorded engine: what 0.24 does not tell, and that nobody has waited beside a long prompt yet."""
ALONE = (5.5,) * 8
UNBOUNDED = (190, 265, 320, 400, 430, 510, 550, 620, 670, 720, 790, 850)
"""The steps of a prompt of 100,000 tokens, as measured on an H200 without flags."""


def test_an_engine_with_everything_is_good() -> None:
    assert severities() == USUAL
    findings = judge_replica("a:1", wants(), facts())
    assert {one.check for one in findings if one.severity == "good"} >= {
        *("health", "version", "model", "context", "counters", "prefix-cache"),
        *("usage", "running-usage", "cached-tokens", "load-header", "tokenize"),
    }


@pytest.mark.parametrize("health", [Answer(0, error="All connection attempts failed"), Answer(503)])
def test_a_replica_that_is_not_there_is_one_error(health: Answer) -> None:
    (found,) = judge_replica("a:1", wants(), ReplicaFacts(health=health))
    assert (found.severity, found.check, found.where) == ("error", "health", "a:1")
    assert ("All connection attempts failed" if health.error else "503") in found.finding


def test_another_model_than_the_policys_is_an_error() -> None:
    found = judged(model="llama-70b")["model"]
    assert found.severity == "error"
    assert found.finding == "serves llama-8b, not llama-70b: every request there fails"
    assert found.change.startswith("--served-model-name llama-70b")
    assert severities(facts(models=NOT_FOUND))["model"] == "error"


@pytest.mark.parametrize(
    ("context_tokens", "severity", "change"),
    [
        (131_072, None, ""),
        (None, None, ""),
        (200_000, "error", "--max-model-len 200000, or context_tokens: 131072"),
        (32_768, "note", ""),
    ],
)
def test_contexts_are_compared(context_tokens: int | None, severity: str | None, change: str) -> None:
    """A policy that lets more through than the engine takes is wrong; one that allows less is a choice."""
    found = judged(context_tokens=context_tokens).get("context")
    assert (None if found is None else found.severity) == severity
    assert change == ("" if found is None else found.change)


@pytest.mark.parametrize(
    ("metrics", "flag"),
    [
        (NOT_FOUND, "let /metrics through"),
        (answer("metrics_idle", ("vllm:generation_tokens_total{", "other:tokens{")), "without --disable-log-stats"),
        (Answer(200, body=b"<html>"), "without --disable-log-stats"),
    ],
)
def test_counters_that_cannot_be_read_are_an_error(metrics: Answer, flag: str) -> None:
    found = judged(facts(metrics=metrics))["counters"]
    assert (found.severity, flag in found.change) == ("error", True)


def test_an_engine_that_sleeps_is_an_error() -> None:
    asleep = answer("metrics_idle", ('sleep_state="awake"} 1.0', 'sleep_state="awake"} 0.0'))
    assert severities(facts(metrics=asleep))["awake"] == "error"


def test_no_prefix_cache_is_a_warning() -> None:
    off = answer("metrics_idle", ('enable_prefix_caching="True"', 'enable_prefix_caching="False"'))
    found = judged(facts(metrics=off))["prefix-cache"]
    assert (found.severity, found.change) == ("warning", "--enable-prefix-caching")


@pytest.mark.parametrize(("capacity", "is_found"), [("262144", False), ("262143", True)])
def test_a_request_that_may_take_most_of_the_cache_is_a_warning(capacity: str, is_found: bool) -> None:
    """Whether the policy says the longest request or the engine does."""
    small = answer("metrics_idle", ('kv_cache_size_tokens="381552"', f'kv_cache_size_tokens="{capacity}"'))
    for context_tokens in (131_072, None):
        assert ("kv-cache" in judged(facts(metrics=small), context_tokens=context_tokens)) is is_found


def test_preemptions_and_refusals_of_the_engine_are_told() -> None:
    line = 'vllm:num_preemptions_total{engine="0",model_name="llama-8b"} '
    refused = 'vllm:admission_rejections_total{model_name="llama-8b",reason="max_num_queued_reqs"} 7.0\n'
    found = judged(facts(metrics=answer("metrics_after_recording", (line + "0.0", refused + line + "26.0"))))
    assert "has preempted 26 times in 33 answers" in found["kv-cache"].finding
    assert "has refused 7 requests" in found["engine-queue"].finding


CACHED = ',"prompt_tokens_details":{"cached_tokens":0}'


@pytest.mark.parametrize(("is_priced", "severity"), [(True, "error"), (False, "warning")])
def test_cached_tokens_that_are_not_told_cost_money(is_priced: bool, severity: str) -> None:
    """As vLLM answers without the flag; without a price nobody is billed wrongly."""
    whole = answer("orca_text", ('{"cached_tokens":0,"multimodal_tokens":null}', "null"))
    changed = facts(whole=whole, stream=answer("stream_cont", (CACHED, "")))
    found = judged(changed, is_priced=is_priced)["cached-tokens"]
    assert (found.severity, found.change) == (severity, "--enable-prompt-tokens-details")
    assert found.finding.startswith("does not tell cached_tokens anywhere")
    only_streams = judged(facts(stream=answer("stream_cont", (CACHED, ""))))["cached-tokens"]
    assert only_streams.finding.startswith("does not tell cached_tokens in streams")


@pytest.mark.parametrize(
    "stream",
    [
        answer("stream_usage"),
        answer("stream_cont", ('{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2}', "null")),
    ],
)
def test_usage_that_is_not_in_every_piece_of_a_stream_is_a_warning(stream: Answer) -> None:
    found = severities(facts(stream=stream))
    assert (found["running-usage"], "usage" in found) == ("warning", False)


@pytest.mark.parametrize(
    "stream",
    [
        answer("orca_stream_text"),
        Answer(200, {"content-type": "application/json"}, answer("orca_text").body),
        Answer(400, {}, b'{"error":{"message":"stream_options is not supported"}}'),
        Answer(0, error="ReadTimeout"),
    ],
)
def test_a_stream_without_usage_is_an_error(stream: Answer) -> None:
    assert severities(facts(stream=stream))["usage"] == "error"


def test_a_model_that_only_embeds_is_not_asked_for_streams() -> None:
    assert severities(facts(whole=NOT_FOUND, stream=NOT_FOUND)) == USUAL | {"usage": "note"}


def test_the_load_header_and_the_tokenizer_are_missed() -> None:
    found = judged(facts(whole=answer("completions"), tokenize=NOT_FOUND))
    assert (found["load-header"].severity, found["tokenize"].severity) == ("warning", "warning")
    assert "endpoint-load-metrics-format" in found["load-header"].change
    assert "(404)" in found["tokenize"].finding


@pytest.mark.parametrize(
    ("version", "severity"),
    [("0.23.1", "warning"), ("0.24.0", "note"), ("0.28.0", None), ("0.32.0", None), ("0.33.0rc1", "note")],
)
def test_versions_that_were_not_tested_are_told(version: str, severity: str | None) -> None:
    told = answer("version", ("0.24.0", version))
    assert severities(facts(version=told)).get("version") == severity
    assert severities(facts(version=NOT_FOUND))["version"] == "warning"


def steps(times_ms: tuple[float, ...], alone: tuple[float, ...] = ALONE) -> LongPrompt:
    return LongPrompt(prompt_tokens=100_000, alone_ms=alone, beside_ms=times_ms)


def test_a_full_step_over_the_target_is_an_error_that_names_the_flag() -> None:
    """What an H200 does without flags at a target of 80 ms."""
    found = judged(facts(long_prompt=steps(UNBOUNDED)))["long-prompts"]
    assert (found.severity, found.change) == ("error", "--long-prefill-token-threshold 512")
    assert "beside a prompt of 100000 tokens others wait for full steps of 790 ms, at most 850 ms" in found.finding
    assert "over the 80 ms of class chat" in found.finding


def test_with_the_flag_it_is_good() -> None:
    assert "long-prompts" not in judged(facts(long_prompt=steps((37.0,) * 190 + (199.0,))))


@pytest.mark.parametrize(
    ("times_ms", "itl_ms", "change"),
    [
        ((60.0,) * 195, 40, "--long-prefill-token-threshold 256"),
        ((40.0,) * 195, 10, "--long-prefill-token-threshold 64"),
        ((200.0,) * 195, 20, "--long-prefill-token-threshold 64 and a higher itl_p99_ms: no flag reaches it alone"),
    ],
)
def test_a_tighter_target_needs_a_smaller_share(times_ms: tuple[float, ...], itl_ms: int, change: str) -> None:
    assert judged(facts(long_prompt=steps(times_ms)), itl_ms=itl_ms)["long-prompts"].change == change


def test_a_target_that_one_stream_alone_misses_is_no_flags_fault() -> None:
    found = judged(facts(long_prompt=steps((300.0,), alone=(95.0,) * 8)))["long-prompts"]
    assert (found.severity, found.finding[:40]) == ("error", "takes 95 ms between two tokens of a sing")
    assert "--long" not in found.change


@pytest.mark.parametrize(
    ("scheduler", "severity", "change"),
    [
        ({"long_prefill_token_threshold": 512}, None, ""),
        ({}, "warning", "--long-prefill-token-threshold 512"),
        ({"long_prefill_token_threshold": 4096}, "warning", "--long-prefill-token-threshold 512"),
        (
            {"long_prefill_token_threshold": 512, "long_prefill_token_threshold_adaptive": True},
            "warning",
            "--long-prefill-token-threshold 512, without --long-prefill-token-threshold-adaptive",
        ),
        (
            {"enable_chunked_prefill": False},
            "error",
            "--enable-chunked-prefill --long-prefill-token-threshold 512",
        ),
    ],
)
def test_what_an_engine_in_developer_mode_tells_is_used(
    scheduler: dict[str, object], severity: str | None, change: str
) -> None:
    found = judged(facts(server_info=server_info(**scheduler))).get("long-prompts")
    assert ((None, "") if found is None else (found.severity, found.change)) == (severity, change)


def test_developer_mode_itself_is_a_warning() -> None:
    assert severities(facts(server_info=server_info()))["developer-mode"] == "warning"


def test_bands_want_vllms_priority() -> None:
    """Only where the policies have more than one, and it is to be seen that the engine has another order."""
    assert severities(facts(server_info=server_info()), bands=2)["priority"] == "note"
    assert "priority" not in judged(facts(server_info=server_info()), bands=1)
    assert "priority" not in judged(facts(server_info=server_info(policy="priority")), bands=2)
    assert "priority" not in judged(bands=2)


@pytest.mark.parametrize(("version", "is_found"), [("0.28.0", False), ("0.29.0", True)])
def test_a_queue_limit_that_counts_late_is_known(version: str, is_found: bool) -> None:
    told = answer("version", ("0.24.0", version))
    found = judged(facts(version=told, server_info=server_info(max_num_queued_reqs=64)))
    assert ("engine-queue" in found) is is_found


def gaps(*counts: tuple[str, int]) -> Answer:
    """A page whose times between tokens are so many up to each bound, all steps of 4,097 to 8,192 tokens."""
    lines = [f'vllm:inter_token_latency_seconds_bucket{{engine="0",le="{le}"}} {n}.0' for le, n in counts]
    lines += ['vllm:iteration_tokens_total_bucket{engine="0",le="4096.0"} 0.0']
    lines += [f'vllm:iteration_tokens_total_bucket{{engine="0",le="{le}"}} 9.0' for le in ("8192.0", "+Inf")]
    lines += ["vllm:prompt_tokens_total 1.0", "vllm:generation_tokens_total 1.0", ""]
    head = "# TYPE vllm:inter_token_latency_seconds histogram\n"
    return Answer(200, body=(head + "\n".join(lines)).encode())


def test_what_has_happened_is_told_where_nothing_was_measured() -> None:
    """3 of 100 gaps over 100 ms, the first bound above the target of 80; with 1 of 100 it is held."""
    found = judged(facts(metrics=gaps(("0.05", 900), ("0.1", 970), ("+Inf", 1000))))["long-prompts"]
    assert (found.severity, found.change) == ("warning", "--long-prefill-token-threshold 512")
    assert found.finding.startswith("3.0 % of its times between tokens were over 100 ms, in steps of up to 8192 tokens")
    assert "long-prompts" not in judged(facts(metrics=gaps(("0.05", 900), ("0.1", 990), ("+Inf", 1000))))
    assert severities(facts(metrics=gaps(("0.1", 1), ("+Inf", 999))))["long-prompts"] == "note"


def test_without_a_target_long_prompts_are_nobodys_business() -> None:
    assert "long-prompts" not in judged(facts(long_prompt=steps(UNBOUNDED)), itl_ms=None)


def test_why_nothing_could_be_measured_is_told() -> None:
    assert "it took longer than 120 s" in judged(facts(long_prompt="it took longer than 120 s"))["long-prompts"].finding


def test_a_stream_is_measured_while_the_prompt_is_read() -> None:
    """The step that ends with the answer counts; short steps of the time before and after do not."""
    told = Answer(200, body=b'{"usage":{"prompt_tokens":9000}}')
    at_s = [0.0, 0.005, 0.010, 0.015, 0.020, 0.120, 0.320, 0.325, 0.330]
    assert measured(told, at_s, sent_s=0.012, ended_s=0.319) == LongPrompt(
        prompt_tokens=9000,
        alone_ms=(pytest.approx(5), pytest.approx(5)),
        beside_ms=(pytest.approx(100), pytest.approx(200)),
    )
    assert measured(Answer(503, body=b"{}"), at_s, sent_s=0, ended_s=1) == "the long prompt was answered with 503"
    assert measured(told, [0.0], sent_s=0, ended_s=1) == "the stream beside it got no token meanwhile"


def test_replicas_of_one_model_are_compared() -> None:
    other = facts(version=answer("version", ("0.24.0", "0.25.1")), models=answer("models", ("131072", "32768")))
    found = judge_replicas("llama-8b", {"a:1": facts(), "b:1": other})
    assert [(one.severity, one.where) for one in found] == [("warning", "llama-8b")] * 2
    assert "a:1 0.24.0, b:1 0.25.1" in found[0].finding
    assert "a:1 131072, b:1 32768" in found[1].finding
    assert judge_replicas("llama-8b", {"a:1": facts(), "b:1": facts()}) == []


def test_the_strictest_class_of_those_who_may_use_a_model_counts(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("policies")
    (directory / "fleet.yaml").write_text(
        """
models:
  chat: {replicas: [{url: "http://a:1"}], price: {output_usd_per_mtok: 1}}
  batch: {replicas: [{url: "http://a:2"}], context_tokens: 4096}
classes:
  fast: {priority: 5, slo: {itl_p99_ms: 40}}
  slow: {slo: {itl_p99_ms: 80}}
tenants:
  one: {class: fast, models: [chat]}
  two: {class: slow}
"""
    )
    policies = load(directory)
    assert Wants.of(policies, policies.models["chat"]) == Wants(
        model="chat", is_priced=True, itl_ms=40, itl_class="fast", bands=2
    )
    assert Wants.of(policies, policies.models["batch"]) == Wants(
        model="batch", context_tokens=4096, itl_ms=80, itl_class="slow", bands=1
    )


def test_a_tokenizer_is_compared_with_the_engines() -> None:
    """One text that differs is enough; what the engine did not count says nothing."""

    def found(**facts: object) -> tuple[str, str]:
        (one,) = judge_tokenizer("llama-8b", msgspec.convert({"path": "t.json", **facts}, TokenizerFacts))
        return one.severity, one.finding

    assert found(error="its model is Unigram")[0] == "warning"
    assert found(counts=[("one", 1, 1), ("two", 2, None), ("three", 3, 3)]) == (
        "good",
        "t.json counts as the engine does, in 2 texts",
    )
    severity, finding = found(counts=[("one", 1, 1), ("two", 2, 3)])
    assert (severity, finding[:47]) == ("warning", "t.json counts 2 tokens in 'two', its engine 3: ")
    assert judge_tokenizer("llama-8b", TokenizerFacts(path="t.json")) == []


_ANSWERS = st.builds(
    Answer,
    st.sampled_from([0, 200, 200, 404, 500]),
    st.sampled_from([{}, {"content-type": "text/event-stream"}]),
    st.one_of(
        st.binary(max_size=80), st.sampled_from([b"{}", b"null", b'data: {"usage":{}}', b'{"data":[{"id":null}]}'])
    ),
)


@given(st.lists(_ANSWERS, min_size=7, max_size=7))
def test_any_answers_are_judged(answers: list[Answer]) -> None:
    """Whatever stands where an engine should."""
    names = ("models", "metrics", "version", "server_info", "tokenize", "whole", "stream")
    odd = ReplicaFacts(health=Answer(200), **dict(zip(names, answers, strict=True)))
    findings = judge_replica("a:1", wants(), odd)
    assert msgspec.json.encode(findings)
    judge_replicas("llama-8b", {"a:1": odd})


def test_another_engine_is_named_and_not_judged_by_vllms_flags() -> None:
    model = ModelSpec(name="small", replicas=(ReplicaSpec(url="http://a:8080"),), engine="llamacpp")
    finding = not_examined(model)
    assert (finding.severity, finding.where) == ("note", "small")
    assert "llamacpp" in finding.finding
