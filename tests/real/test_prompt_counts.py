"""What is counted before a prompt runs is what real vLLM says it had: `usage.prompt_tokens`, to the token.

With `VLLM_FLAGS="--chat-template tests/real/tools.jinja"` the engine's template shows tools to the model, indented as
Llama's does; without it they take no tokens.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.context import LocalCounts, least, load_tokenizer, most, prompt_texts
from gateway.engines import dialect_of
from gateway.wire import Endpoint, parse
from tests.real.conftest import INSTALLED, MODEL

WORDS = [
    *("import", "os", "def", "the", "quick", "brown", "fox", "x=[1,2]", "3.14159", "I'll", "don't", "<|user|>", "{}"),
    *("中文字符", "日本語", "café", "naïve", "e\u0301", "🙂", "\n\n", "\t", "http://h/a?b=c#d", "ДА", "ελληνικά"),
]


def function(name: str, members: int) -> dict[str, Any]:
    properties = {f"member_{at}": {"type": "string", "enum": ["a", "b"], "description": "x"} for at in range(members)}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


WIDE = {"type": "function", "function": {"name": "wide", "parameters": {"enum": [1] * 300}}}
"""The template's indentation makes several times the client's own bytes of it."""
TOOLS = [function("search", 2), function("open_file", 6)]


def chats() -> list[dict[str, Any]]:
    """Thirty-seven chats: of one to five messages, with and without tools, and twelve that only an engine can count."""
    draw = random.Random(5)

    def text(most_words: int = 60) -> str:
        return (" ".join(draw.choices(WORDS, k=draw.randrange(1, most_words))) or "x").strip() or "x"

    def turns(count: int) -> list[dict[str, Any]]:
        roles = ["user", "assistant"] * 3
        return [{"role": role, "content": text()} for role in roles[:count]]

    asked: list[dict[str, Any]] = []
    for _ in range(6):
        asked += [{"messages": turns(1)}, {"messages": turns(1), "tools": TOOLS}]
        asked += [
            {"messages": [{"role": "system", "content": text()}, *turns(3)]},
            {"messages": turns(3), "tools": TOOLS},
        ]
    asked.append({"messages": turns(1), "tools": [WIDE]})
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": json.dumps({"member_0": "a"})}}
    for _ in range(4):
        used = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": text()}]
        asked.append({"messages": [*turns(1), *used], "tools": TOOLS})
        asked.append({"messages": [{"role": "user", "content": f"  {text()}\n"}]})
        parts = [{"type": "text", "text": text()}, {"type": "text", "text": text()}]
        asked.append({"messages": [{"role": "user", "content": parts}], "tools": TOOLS[:1]})
    return [fields | {"tool_choice": "none"} if "tools" in fields else fields for fields in asked]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    named = os.environ.get("MTOK_REAL_VLLM_URLS")
    return named.split(",")[0] if named else str(request.getfixturevalue("served").engines[0].url)


def test_counts_are_the_engines_usage(url: str) -> None:
    """By its `/tokenize`, and by the model's tokenizer once it has learnt the shape; and the bounds hold."""
    counts = LocalCounts(load_tokenizer(Path(INSTALLED) / "model" / "tokenizer.json"))
    by_engine = by_tokenizer = tried = 0
    tightest = 1.0
    problems: list[str] = []
    asked = chats()
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for number, fields in enumerate(asked):
            body = json.dumps({"model": MODEL, "max_tokens": 1, **fields}).encode()
            answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 200, answer.text
            used: int = answer.json()["usage"]["prompt_tokens"]
            view = parse(Endpoint.CHAT, body)
            if not least(view).total <= used <= most(view).total:
                problems.append(f"{number}: {used} tokens, bounds {least(view).total} and {most(view).total}")
            tightest = min(tightest, 1 - used / most(view).total)
            (question,) = dialect_of("vllm").questions(view, body, MODEL)
            told = http.post(question.path, content=question.body, headers={"content-type": "application/json"}).json()[
                "count"
            ]
            if told != used:
                problems.append(f"{number}: /tokenize says {told}, usage {used}")
            by_engine += told == used
            texts = prompt_texts(view, body)
            if texts is None:
                continue
            tried += 1
            tokens = counts.tokens(texts)
            total = counts.total(texts, tokens)
            if total is not None and total != used:
                problems.append(f"{number}: counted {total}, usage {used}")
            by_tokenizer += total == used
            counts.learn(texts, tokens, used)
    print(
        f"\n{len(asked)} chats: /tokenize equal in {by_engine}; of {tried} for the tokenizer {by_tokenizer} counted "
        f"here and equal, the others taught it; usage was at most {1 - tightest:.0%} of the upper bound"
    )
    assert not problems, "\n".join(problems)
    assert not counts.disagreed
    assert (tried, by_tokenizer) == (25, 12)


def hostile() -> list[tuple[Endpoint, dict[str, Any]]]:
    """Prompts whose tokens are many for their bytes, on every endpoint."""
    music, combining = "\U0001d160" * 50, "e\u0301\u0323" * 50
    members = {f"m{at}": at for at in range(40)}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "search", "arguments": json.dumps({**members, "x": 1e15})},
    }
    used = [{"role": "assistant", "tool_calls": [call] * 3}, {"role": "tool", "tool_call_id": "1", "content": music}]
    user = {"role": "user", "content": music}
    item = {"type": "function_call", "call_id": "1", "name": "search", "arguments": json.dumps(members)}
    output = {"type": "function_call_output", "call_id": "1", "output": combining}
    tool = {"type": "function", **TOOLS[1]["function"]}
    block = {"type": "tool_use", "id": "1", "name": "search", "input": members}
    result = {"type": "tool_result", "tool_use_id": "1", "content": combining}
    schema = {"name": "search", "description": "x", "input_schema": TOOLS[1]["function"]["parameters"]}
    return [
        (Endpoint.CHAT, {"messages": [user, {"role": "assistant", "content": combining}] * 2 + [user]}),
        (Endpoint.CHAT, {"messages": [user, *used], "tools": TOOLS, "tool_choice": "none"}),
        (Endpoint.CHAT, {"messages": [user], "chat_template_kwargs": {"enable_thinking": False}}),
        (Endpoint.CHAT, {"messages": [user], "reasoning_effort": "low"}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "x"}] * 60}),
        (Endpoint.COMPLETIONS, {"prompt": music}),
        (Endpoint.COMPLETIONS, {"prompt": [music, combining, "x"]}),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}),
        (Endpoint.RESPONSES, {"input": music, "instructions": combining}),
        (Endpoint.RESPONSES, {"input": [user, item, output], "tools": [tool], "tool_choice": "none"}),
        (Endpoint.MESSAGES, {"messages": [user], "system": combining}),
        (
            Endpoint.MESSAGES,
            {
                "messages": [user, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}],
                "tools": [schema],
                "tool_choice": {"type": "none"},
            },
        ),
    ]


def test_the_bounds_hold_for_what_has_many_tokens_for_its_bytes(url: str) -> None:
    """Whether JSON's letters are escaped or not."""
    problems: list[str] = []
    highest = 0.0
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for number, (endpoint, fields) in enumerate(hostile()):
            for escaped in (False, True):
                bound = "max_output_tokens" if endpoint is Endpoint.RESPONSES else "max_tokens"
                body = json.dumps({"model": MODEL, bound: 1, **fields}, ensure_ascii=escaped).encode()
                answer = http.post(endpoint.path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code == 200, f"{number}: {answer.text}"
                usage = answer.json()["usage"]
                used: int = usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"]
                used += sum(usage.get(f"cache_{how}_input_tokens") or 0 for how in ("read", "creation"))
                view = parse(endpoint, body)
                highest = max(highest, used / most(view).total)
                if not least(view).total <= used <= most(view).total:
                    problems.append(f"{number}: {used} tokens, bounds {least(view).total} and {most(view).total}")
                headers = {"content-type": "application/json"}
                asked = dialect_of("vllm").questions(view, body, MODEL)
                told = [http.post(one.path, content=one.body, headers=headers).json() for one in asked]
                counted = sum(count["count"] if "count" in count else count["input_tokens"] for count in told)
                if asked and counted != used:
                    problems.append(f"{number}: the tokenizer says {counted}, usage {used}")
    print(f"\n{len(hostile())} prompts, twice: usage was at most {highest:.0%} of the upper bound")
    assert not problems, "\n".join(problems)
