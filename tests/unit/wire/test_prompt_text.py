"""One conversation is one text, whatever dialect it is asked in and however its JSON is spelled."""

from __future__ import annotations

import json

import pytest

from gateway.wire import Endpoint, parse, prompt_text

SYSTEM, ASKED, SAID = "Be brief.", 'What is "λ"?\n', "A letter."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def text_of(endpoint: Endpoint, body: dict[str, object], **spelled: bool) -> bytes:
    return prompt_text(parse(endpoint, json.dumps({"model": "m", **body}, **spelled).encode()))  # type: ignore[arg-type]


def chat(*messages: object, **more: object) -> bytes:
    return text_of(Endpoint.CHAT, {"messages": list(messages), **more})


def said(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


TALK = (said("system", SYSTEM), said("user", ASKED), said("assistant", SAID), said("user", "And μ?"))


def test_chat_responses_and_messages_say_the_same() -> None:
    """Four turns with a system prompt, in three dialects, as strings and as parts."""
    expected = chat(*TALK)
    parts = [said(str(m["role"]), [{"type": "text", "text": m["content"]}]) for m in TALK]
    assert chat(*parts) == expected
    assert text_of(Endpoint.RESPONSES, {"instructions": SYSTEM, "input": list(TALK[1:])}) == expected
    items = [{"type": "message", **m, "content": [{"type": "input_text", "text": m["content"]}]} for m in TALK[1:]]
    assert text_of(Endpoint.RESPONSES, {"instructions": SYSTEM, "input": items}) == expected
    assert text_of(Endpoint.MESSAGES, {"system": SYSTEM, "messages": list(TALK[1:]), "max_tokens": 1}) == expected
    blocks = [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}]
    assert text_of(Endpoint.MESSAGES, {"system": blocks, "messages": list(TALK[1:]), "max_tokens": 1}) == expected


def test_a_lone_input_is_a_users_message() -> None:
    """Responses takes a string for one."""
    assert text_of(Endpoint.RESPONSES, {"input": ASKED}) == chat(said("user", ASKED))


@pytest.mark.parametrize("ascii_only", [True, False])
def test_spelling_makes_no_difference(ascii_only: bool) -> None:
    """Escapes and spaces are JSON's, not the prompt's."""
    assert text_of(Endpoint.CHAT, {"messages": list(TALK)}, ensure_ascii=ascii_only) == chat(*TALK)


def test_the_next_turn_goes_on_where_the_last_one_ended() -> None:
    """Its text begins with all of the shorter one's."""
    for turns in range(1, len(TALK)):
        assert chat(*TALK[: turns + 1]).startswith(chat(*TALK[:turns]))


def test_roles_texts_and_their_bounds_make_a_difference() -> None:
    """What an engine would see as another prompt is another text."""
    talks = [
        TALK,
        TALK[1:],
        (said("user", SYSTEM), *TALK[1:]),
        (said("system", SYSTEM + ASKED), *TALK[2:]),
        (*TALK, said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])),
    ]
    assert len({chat(*talk) for talk in talks}) == len(talks)


def test_tools_and_calls_are_the_same_in_all_dialects() -> None:
    """A tool, a call of it and its result."""
    about = {"name": "weather", "description": "Tells it."}
    arguments = '{"city": "Bern"}'
    expected = chat(
        said("user", ASKED),
        said(
            "assistant",
            None,
            tool_calls=[{"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
        ),
        said("tool", "Rain.", tool_call_id="1"),
        tools=[{"type": "function", "function": {**about, "parameters": SCHEMA}}],
    )
    assert expected == text_of(
        Endpoint.MESSAGES,
        {
            "max_tokens": 1,
            "tools": [{**about, "input_schema": SCHEMA}],
            "messages": [
                said("user", ASKED),
                said("assistant", [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Bern"}}]),
                said("user", [{"type": "tool_result", "tool_use_id": "1", "content": "Rain."}]),
            ],
        },
    )
    assert expected == text_of(
        Endpoint.RESPONSES,
        {
            "tools": [{"type": "function", **about, "parameters": SCHEMA}],
            "input": [
                said("user", ASKED),
                {"type": "function_call", "call_id": "1", "name": "weather", "arguments": arguments},
                {"type": "function_call_output", "call_id": "1", "output": "Rain."},
            ],
        },
    )


def test_a_picture_counts_by_its_hash() -> None:
    """A megabyte of it is a kilobyte of text, the same for the same picture and no other."""

    def shown(picture: str) -> bytes:
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
        return chat(said("user", [url, {"type": "text", "text": ASKED}]))

    big = "A" * 1_000_000
    assert shown(big) == shown(big)
    assert shown(big) != shown(big[:-4] + "BBBB")
    assert len(shown(big)) < 1200


def test_completions_are_their_texts() -> None:
    """A string, several, or token ids however they are spaced."""
    assert text_of(Endpoint.COMPLETIONS, {"prompt": ASKED}) == ASKED.encode()
    assert text_of(Endpoint.COMPLETIONS, {"prompt": [ASKED, SAID]}) == f"{ASKED}\0{SAID}".encode()
    spaced = text_of(Endpoint.COMPLETIONS, {"prompt": [1, 22, 333]})
    assert spaced == b"[1,22,333"
    assert text_of(Endpoint.COMPLETIONS, {"prompt": [1, 22, 333, 4]}).startswith(spaced)


def test_odd_prompts_are_their_json() -> None:
    """What no engine would take is no failure here: the engine refuses it."""
    assert chat(said("user", 7)) == b'[{"role": "user", "content": 7}'
