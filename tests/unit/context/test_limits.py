"""Bounds of a prompt's length: cheap, and never on the wrong side of the truth."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context import (
    ContextLimits,
    PromptSize,
    check,
    estimate,
    granted,
    least,
    limits_for,
    most,
    output_most,
    prompt_most,
    surely_fits,
)
from gateway.engines import dialect_of
from gateway.errors import RefusedBy
from gateway.policy import ClassSpec, ContextSpec, KeySpec, LimitsSpec, ModelSpec, TenantSpec
from gateway.wire import Endpoint, RequestView, parse

TEXT = st.text(max_size=300) | st.text(alphabet='ab \u4e2d\U0001f600\x00"\\', max_size=300)
ROLES = st.sampled_from(["user", "assistant", "system"])
CHATS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT}), min_size=1, max_size=6)


def chat_view(messages: list[dict[str, str]], *, escaped: bool = True, **fields: Any) -> RequestView:
    body = json.dumps({"model": "tiny", "messages": messages, **fields}, ensure_ascii=escaped)
    return parse(Endpoint.CHAT, body.encode())


def byte_tokens(messages: list[dict[str, str]]) -> int:
    """The most tokens any byte-level vocabulary makes of it: one per byte, and a template that spends four special
    tokens a message and the role's letters besides."""
    return sum(len(m["content"].encode()) + len(m["role"]) + 4 for m in messages) + 8


@settings(max_examples=150, deadline=None)
@given(messages=CHATS, escaped=st.booleans())
def test_bounds_hold_for_the_worst_and_the_best_vocabulary(messages: list[dict[str, str]], escaped: bool) -> None:
    """Least <= tokens <= most, for a vocabulary of single bytes and for one of 128-byte tokens."""
    view = chat_view(messages, escaped=escaped)
    worst = byte_tokens(messages)
    best = sum(-(-len(m["content"].encode()) // 128) for m in messages)
    assert least(view).total <= best
    assert worst <= most(view).total
    assert least(view).total <= estimate(view).total <= most(view).total
    assert not least(view).exact


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(TEXT, min_size=1, max_size=5))
def test_bounds_hold_for_several_prompts(prompts: list[str]) -> None:
    """Of several prompts the longest is bounded too: a limit that binds each prompt is never passed unseen."""
    view = parse(Endpoint.COMPLETIONS, json.dumps({"model": "tiny", "prompt": prompts}).encode())
    longest = max(len(prompt.encode()) for prompt in prompts)
    assert longest <= most(view).longest
    assert least(view).longest <= -(-longest // 128) + 1
    assert sum(len(prompt.encode()) for prompt in prompts) <= most(view).total


@given(ids=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), min_size=1, max_size=5))
def test_token_ids_are_exact(ids: list[list[int]]) -> None:
    """Least, most and estimate of token ids are their number."""
    view = parse(Endpoint.COMPLETIONS, json.dumps({"model": "tiny", "prompt": ids}).encode())
    exact = PromptSize(total=sum(map(len, ids)), longest=max(map(len, ids)), exact=True)
    assert least(view) == most(view) == estimate(view) == exact


LIMITS = st.none() | st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(messages=CHATS, context=LIMITS, input_max=LIMITS, output_max=LIMITS, tokens=st.none() | st.integers(1, 3000))
def test_the_bounds_decide_only_what_they_may(
    messages: list[dict[str, str]],
    context: int | None,
    input_max: int | None,
    output_max: int | None,
    tokens: int | None,
) -> None:
    """What the lower bound refuses the exact count refuses; what the upper bound lets through the exact count does."""
    view = chat_view(messages, max_tokens=tokens)
    limits = ContextLimits(context=context, input_max=input_max, output_max=output_max)
    count = min(max(least(view).total, 3 * len(messages)), most(view).total)
    exact = PromptSize(total=count, longest=count, exact=True)
    if check(view, least(view), limits) is not None:
        assert check(view, exact, limits) is not None
    if check(view, most(view), limits) is None:
        assert check(view, exact, limits) is None
    refusal = check(view, exact, limits)
    too_long = (
        (output_max is not None and (tokens or 0) > output_max)
        or (input_max is not None and count > input_max)
        or (context is not None and count + (tokens or 1) > context)
    )
    assert (refusal is not None) == too_long
    if refusal is not None:
        assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
        assert refusal.param in ("messages", "max_tokens")


@pytest.mark.parametrize(
    ("asked", "context", "output_max", "expected"),
    [(None, None, None, 0), (None, 100, None, 90), (None, 100, 50, 50), (20, 100, 50, 20), (None, 5, None, 1)],
)
def test_the_most_an_answer_may_be(
    asked: int | None, context: int | None, output_max: int | None, expected: int
) -> None:
    """The smallest of what the client, the tenant and the context allow; at least one token."""
    view = chat_view([{"role": "user", "content": "x"}], max_tokens=asked)
    limits = ContextLimits(context=context, input_max=None, output_max=output_max)
    assert output_most(view, 10, limits) == expected


def test_embeddings_have_no_answer() -> None:
    """A prompt that fills the context is served where nothing is generated."""
    view = parse(Endpoint.EMBEDDINGS, json.dumps({"model": "tiny", "input": [1] * 100}).encode())
    limits = ContextLimits(context=100, input_max=None, output_max=10)
    assert check(view, least(view), limits) is None
    assert output_most(view, 100, limits) == 0
    assert check(view, least(view), ContextLimits(context=99, input_max=None, output_max=None)) is not None


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [
        (Endpoint.CHAT, "messages"),
        (Endpoint.COMPLETIONS, "prompt"),
        (Endpoint.RESPONSES, "input"),
        (Endpoint.MESSAGES, "messages"),
        (Endpoint.EMBEDDINGS, "input"),
    ],
)
def test_the_refusal_names_the_endpoints_own_field(endpoint: Endpoint, param: str) -> None:
    """A prompt that is too long is called what the client called it."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    view = parse(endpoint, json.dumps(body).encode())
    size = PromptSize(total=100, longest=100, exact=True)
    refusal = check(view, size, ContextLimits(context=50, input_max=None, output_max=None))
    assert refusal is not None
    assert refusal.param == param
    assert "50 tokens" in refusal.message
    assert "100 tokens" in refusal.message


# What an engine's tokenizer is asked.


def asked(endpoint: Endpoint, **body: Any) -> list[tuple[str, Any]]:
    raw = json.dumps({"model": "small", **body}).encode()
    asked = dialect_of("vllm").questions(parse(endpoint, raw), raw, "tiny")
    return [(question.path, json.loads(question.body)) for question in asked]


def test_questions_to_the_tokenizer() -> None:
    """Each endpoint's prompt is asked about as the engine would build it, under the model's own name."""
    messages = [{"role": "user", "content": "x"}]
    assert asked(Endpoint.CHAT, messages=messages, tools=[{}], temperature=1) == [
        ("/tokenize", {"model": "tiny", "messages": messages, "tools": [{}]})
    ]
    assert asked(Endpoint.COMPLETIONS, prompt=["a", "b"], add_special_tokens=False) == [
        ("/tokenize", {"model": "tiny", "prompt": "a", "add_special_tokens": False}),
        ("/tokenize", {"model": "tiny", "prompt": "b", "add_special_tokens": False}),
    ]
    assert asked(Endpoint.COMPLETIONS, prompt=[1, 2]) == []
    assert asked(Endpoint.EMBEDDINGS, input="a") == [("/tokenize", {"model": "tiny", "prompt": "a"})]
    assert asked(Endpoint.MESSAGES, messages=messages, system="s", max_tokens=5) == [
        ("/v1/messages/count_tokens", {"model": "tiny", "messages": messages, "system": "s"})
    ]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}]
    assert asked(Endpoint.RESPONSES, input=parts, instructions="i") == [
        (
            "/tokenize",
            {"model": "tiny", "messages": [{"role": "system", "content": "i"}, {"role": "user", "content": "ab"}]},
        )
    ]
    assert asked(Endpoint.RESPONSES, input=[{"type": "function_call_output", "output": "x"}]) == []
    assert asked(Endpoint.RESPONSES, input="x", tools=[], previous_response_id=None) != []
    assert asked(Endpoint.TOKENIZE, prompt="x") == []
    ((_, effort),) = asked(Endpoint.CHAT, messages=messages, reasoning_effort="none", chat_template_kwargs={"a": 1})
    assert effort["chat_template_kwargs"] == {"a": 1, "enable_thinking": False, "reasoning_effort": "none"}


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (Endpoint.RESPONSES, {"input": "x", "tools": [{"type": "function", "name": "f"}]}),
        (Endpoint.RESPONSES, {"input": "x", "previous_response_id": "resp_1"}),
        (Endpoint.RESPONSES, {"input": "x", "reasoning": {"effort": "high"}}),
        (Endpoint.EMBEDDINGS, {"input": "x", "padding": "max_length"}),
        (Endpoint.EMBEDDINGS, {"input": "x", "messages": [{"role": "user", "content": "x"}]}),
        (Endpoint.COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA"}),
    ],
)
def test_no_question_where_the_answer_would_be_too_small(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    """The engine's tokenizer would be asked about a part of the prompt, and the rest would be called counted."""
    assert asked(endpoint, **fields) == []


@given(
    prompt=st.integers(0, 400),
    counted=st.none() | st.integers(1, 400),
    output=st.none() | st.integers(1, 400),
    generates=st.booleans(),
    bounds=st.tuples(*[st.none() | st.integers(1, 700)] * 3),
)
def test_what_surely_fits_is_what_passes_at_its_largest(
    prompt: int,
    counted: int | None,
    output: int | None,
    generates: bool,
    bounds: tuple[int | None, int | None, int | None],
) -> None:
    """The quick look at a prompt far from every limit never disagrees with the full one."""
    limits = ContextLimits(context=bounds[0], input_max=bounds[1], output_max=bounds[2])
    view = RequestView(
        endpoint=Endpoint.CHAT if generates else Endpoint.EMBEDDINGS,
        model="tiny",
        prompt=b"x" * prompt,
        prompt_tokens=counted,
        longest_tokens=counted,
        output_tokens=output,
    )
    assert surely_fits(view, limits) == (check(view, most(view), limits) is None)


# Caps and totals.


ALL_LIMITS = st.builds(
    ContextLimits,
    context=LIMITS,
    input_max=LIMITS,
    output_max=LIMITS,
    total_max=LIMITS,
    context_caps=st.booleans(),
    output_caps=st.booleans(),
    total_caps=st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(
    messages=CHATS,
    share=st.floats(0, 1),
    tokens=st.none() | st.integers(1, 3000),
    generates=st.booleans(),
    limits=ALL_LIMITS,
)
def test_what_is_granted_never_exceeds_a_limit(
    messages: list[dict[str, str]], share: float, tokens: int | None, generates: bool, limits: ContextLimits
) -> None:
    """Of a counted prompt that passes: its answer is within every limit of the gateway's, and within the context if the
    client named a bound; nothing that the client asked for is cut without need."""
    view = chat_view(messages, max_tokens=tokens)
    if not generates:
        view = parse(Endpoint.EMBEDDINGS, json.dumps({"model": "tiny", "input": messages[0]["content"]}).encode())
    count = least(view).total + round(share * (most(view).total - least(view).total))
    exact = PromptSize(total=count, longest=count, exact=True)
    bound = granted(view, exact, limits)
    if check(view, exact, limits) is not None:
        return
    if not generates:
        assert bound is None
        return
    output = bound or tokens
    bounds = [limits.output_max, None if limits.total_max is None else limits.total_max - count]
    for allowed in bounds:
        assert allowed is None or (output is not None and 1 <= output <= allowed)
    if tokens is None:
        assert bound is None or bound in bounds
        return
    assert output is not None
    context = None if limits.context is None else limits.context - count
    assert context is None or 1 <= output <= context
    assert output == min([tokens, *(allowed for allowed in (*bounds, context) if allowed is not None)])
    if bound is not None:
        assert limits.context_caps or limits.output_caps or limits.total_caps


@settings(max_examples=400, deadline=None)
@given(messages=CHATS, tokens=st.none() | st.integers(1, 3000), limits=ALL_LIMITS)
def test_a_prompt_that_surely_fits_is_granted_the_same_whatever_its_size(
    messages: list[dict[str, str]], tokens: int | None, limits: ContextLimits
) -> None:
    """Nobody needs to count it: it passes at its largest, and its answer's bound does not depend on its size."""
    view = chat_view(messages, max_tokens=tokens)
    if surely_fits(view, limits):
        assert check(view, most(view), limits) is None
        assert granted(view, least(view), limits) == granted(view, most(view), limits)


def test_too_long_an_answer_is_cut_or_refused_by_its_limits_owner() -> None:
    """The smallest limit decides, with its own `on_excess`, and the refusal says whose it is."""
    tenant = TenantSpec(
        name="acme",
        keys=(KeySpec(id="a-ci", sha256="0" * 64, context=ContextSpec(max_output_tokens=50)),),
        limits=LimitsSpec(max_output_tokens=90, max_input_tokens=1000),
        context=ContextSpec(on_excess="cap"),
    )
    service = ClassSpec(name="batch", context=ContextSpec(max_total_tokens=80, max_output_tokens=70))
    model = ModelSpec(name="tiny", replicas=(), context=ContextSpec(max_input_tokens=60))

    def limits(key: str, service: ClassSpec, model: ModelSpec) -> ContextLimits:
        return limits_for(tenant, key, service=service, model=model, context_tokens=4096)

    plain_class, plain_model = ClassSpec(name="default"), ModelSpec(name="tiny", replicas=())
    view = chat_view([{"role": "user", "content": "x"}], max_tokens=100)
    size = PromptSize(total=61, longest=61, exact=True)

    def message(limits: ContextLimits, **asked: int | None) -> str:
        refusal = check(chat_view([{"role": "user", "content": "x"}], **asked), size, limits)
        assert refusal is not None
        return refusal.message

    of_tenant = limits("other", plain_class, plain_model)
    assert (of_tenant.output_max, of_tenant.input_max, of_tenant.output_caps) == (90, 1000, True)
    assert check(view, size, of_tenant) is None
    assert granted(view, size, of_tenant) == 90

    assert message(limits("a-ci", service, plain_model), max_tokens=51) == (
        "You asked for 51 output tokens ('max_tokens'), but your key's limit is 50. Set 'max_tokens' to at most 50."
    )
    assert "the limit of class 'batch' is 70" in message(limits("other", service, plain_model), max_tokens=71)
    assert message(limits("other", service, plain_model), max_tokens=20) == (
        "The limit of class 'batch' is 80 tokens in all. Your prompt has 61 tokens and you asked for 20 output tokens, "
        "81 in all. Shorten the prompt, or set 'max_tokens' to at most 19."
    )
    assert "the limit of model 'tiny' is 60 input tokens" in message(limits("other", service, model), max_tokens=5)
    assert granted(chat_view([{"role": "user", "content": "x"}]), size, limits("a-ci", service, plain_model)) == 19


def test_without_blocks_the_tenants_limits_are_as_they_were() -> None:
    """A total above the context binds nothing; without any block the limits are the tenant's and the model's."""
    tenant = TenantSpec(name="acme", limits=LimitsSpec(max_output_tokens=90))
    service, model = ClassSpec(name="default"), ModelSpec(name="tiny", replicas=())
    plain = limits_for(tenant, "k", service=service, model=model, context_tokens=4096)
    assert plain == ContextLimits(context=4096, input_max=None, output_max=90)
    wide = ModelSpec(name="tiny", replicas=(), context=ContextSpec(max_total_tokens=4096))
    assert limits_for(tenant, "k", service=service, model=wide, context_tokens=4096).total_max is None
    assert limits_for(tenant, "k", service=service, model=wide, context_tokens=None).total_max == 4096
    assert limits_for(tenant, "k", service=service, model=wide, context_tokens=8192).total_max == 4096


def test_bytes_bound_no_picture() -> None:
    """A picture's tokens are bound by the context alone, its bytes are in no estimate, and a text too long beside it is
    refused all the same."""
    limits = ContextLimits(context=4096, input_max=None, output_max=100)
    by_url = [{"type": "image_url", "image_url": {"url": "http://h/x.png"}}]
    whole = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000_000}}]
    for parts in (by_url, whole):
        view = chat_view([{"role": "user", "content": parts}])  # type: ignore[dict-item]
        assert not surely_fits(view, limits)
        assert prompt_most(view, estimate(view), limits) == 4096
        assert 1000 <= estimate(view).total <= 1050
        assert check(view, least(view), limits) is None
    text = [{"type": "text", "text": "x" * 4_000_000}, *by_url]
    view = chat_view([{"role": "user", "content": text}])  # type: ignore[dict-item]
    refusal = check(view, least(view), limits)
    assert refusal is not None
    assert "at least 5208 tokens" in refusal.message
    own = chat_view([{"role": "user", "content": "x"}], chat_template="{% for i in range(9999) %}x{% endfor %}")
    assert not surely_fits(own, limits)


SCHEMAS = st.recursive(
    st.integers(0, 9) | st.text(alphabet='a"\\é中[},:', max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(alphabet="ab", max_size=3), inner, max_size=4),
    max_leaves=40,
)


@settings(max_examples=200, deadline=None)
@given(tools=st.lists(SCHEMAS, min_size=1, max_size=3), arguments=SCHEMAS, compact=st.booleans())
def test_tools_and_calls_are_bounded_as_templates_write_them(tools: list[Any], arguments: Any, compact: bool) -> None:
    """Indented by four, with spaces after separators, in a vocabulary of single bytes."""
    separators = (",", ":") if compact else None
    said = json.dumps(arguments, separators=separators, ensure_ascii=False)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": said}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    body = {"model": "tiny", "messages": messages, "tools": tools}
    view = parse(Endpoint.CHAT, json.dumps(body, separators=separators, ensure_ascii=False).encode())
    written = json.dumps(tools, indent=4, ensure_ascii=False) + json.dumps(arguments, ensure_ascii=False)
    assert len(written.encode()) + 700 <= most(view).total


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"output_max": 10}, RefusedBy(dimension="max_output_tokens", limit=10, asked=20)),
        (
            {"input_max": 30, "input_of": "key ci"},
            RefusedBy(dimension="max_input_tokens", scope="key ci", limit=30, asked=40),
        ),
        (
            {"total_max": 50, "total_of": "class c"},
            RefusedBy(dimension="max_total_tokens", scope="class c", limit=50, asked=60),
        ),
        ({"context": 59}, RefusedBy(dimension="context_tokens", scope="model tiny", limit=59, asked=60)),
    ],
)
def test_the_refusal_keeps_the_rule_and_its_numbers(limits: dict[str, Any], kept: RefusedBy) -> None:
    """For whoever asks why: 40 tokens of a prompt and an answer of 20."""
    view = RequestView(endpoint=Endpoint.CHAT, model="tiny", prompt=b"", output_tokens=20)
    refused = check(
        view,
        PromptSize(total=40, longest=40, exact=True),
        ContextLimits(**{"context": None, "input_max": None, "output_max": None} | limits),
    )
    assert refused is not None
    assert refused.refused_by == kept


def test_what_templates_write_longer_than_clients_do() -> None:
    """A tag around each parameter of a call, as Qwen3-Coder's template has them, and numbers in full."""
    members = ",".join(f'"m{at}":{at}' for at in range(300))
    numbers = ",".join(["1e15"] * 300)
    tags = "".join(f"<parameter=m{at}>\n{at}\n</parameter>\n" for at in range(300))
    for said, tokens in ((f"{{{members}}}", len(tags) // 2), (f'{{"a":[{numbers}]}}', 300 * len("1000000000000000.0"))):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": said}}
        used = {"type": "tool_use", "id": "1", "name": "f", "input": msgspec.Raw(said.encode())}
        for endpoint, field, item in (
            (Endpoint.CHAT, "messages", {"role": "assistant", "tool_calls": [call]}),
            (Endpoint.RESPONSES, "input", {"type": "function_call", "call_id": "1", "name": "f", "arguments": said}),
            (Endpoint.MESSAGES, "messages", {"role": "assistant", "content": [used]}),
        ):
            body = msgspec.json.encode({"model": "tiny", field: [{"role": "user", "content": "x"}, item]})
            assert tokens <= most(parse(endpoint, body)).total


def test_a_schema_for_the_answer_may_be_in_the_prompt() -> None:
    """Some templates show it to the model."""
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x" * 50] * 100}}}
    bare = chat_view([{"role": "user", "content": "x"}])
    asks = chat_view([{"role": "user", "content": "x"}], response_format=schema)
    assert most(asks).total - most(bare).total >= len(json.dumps(schema, indent=4))


@given(
    text=st.text(alphabet="\U0001d160\u0958\ufb2c\u0344e\u0301\u0323\u00e9中", max_size=40), ascii_only=st.booleans()
)
def test_letters_that_get_longer_when_composed_are_bounded(text: str, ascii_only: bool) -> None:
    """Qwen's tokenizer puts texts into NFC, which makes twelve bytes, and as many tokens, of the four of U+1D160."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    view = parse(Endpoint.CHAT, json.dumps(body, ensure_ascii=ascii_only).encode())
    assert len(unicodedata.normalize("NFC", text).encode()) + 256 <= most(view).total
    many = text * 100
    body = {"model": "tiny", "prompt": many}
    view = parse(Endpoint.COMPLETIONS, json.dumps(body, ensure_ascii=ascii_only).encode())
    assert len(unicodedata.normalize("NFC", many).encode()) <= most(view).total
