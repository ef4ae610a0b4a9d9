"""The end of a stream that its engine was not let finish: as if the answer had reached its `max_tokens`."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ._requests import Endpoint, RequestView
from ._usage import Usage

DONE = b"data: [DONE]\n\n"


class _Head(Struct):
    """What all events of a stream have in common."""

    id: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET


_head = msgspec.json.Decoder(_Head)
_encode = msgspec.json.encode


def length_end(view: RequestView, event: bytes, usage: Usage) -> bytes:
    """The events that end a stream of one chat or text completion with `finish_reason: "length"`; with the usage, where
    its client asked for that. `event` is any event of the stream: the new ones carry its id."""
    head = common_members(event)
    choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if view.endpoint is Endpoint.COMPLETIONS:
        choice["text"] = ""
    else:
        choice["delta"] = {}
    events: list[dict[str, object]] = [{**head, "choices": [choice]}]
    if view.wants_usage:
        told = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        events.append({**head, "choices": [], "usage": told})
    return b"".join([b"data: %b\n\n" % _encode(one) for one in events]) + DONE


def with_cost(endpoint: Endpoint, last: bytes, cost_usd: str, price_epoch: str) -> bytes:
    """The last events of a stream with what it cost: in an event without choices before `[DONE]`, or, where the
    dialect's clients know their events by name, in a comment after the last of them."""
    if not endpoint.has_stream_options:
        return b"%b: x-mtok-cost-usd %b %b\n\n" % (last, cost_usd.encode(), price_epoch.encode())
    told = {"object": "mtok.cost", "choices": [], "cost_usd": cost_usd, "price_epoch": price_epoch}
    event = b"data: %b\n\n" % _encode(told)
    before, done, after = last.rpartition(DONE)
    return b"".join((before, event, done, after)) if done else last + event


def common_members(event: bytes) -> dict[str, object]:
    """The members that all events of a stream have in common, read from one of them."""
    for line in event.splitlines():
        try:
            head = _head.decode(line.removeprefix(b"data:"))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        return {name: value for name in head.__struct_fields__ if (value := getattr(head, name)) is not UNSET}
    return {}
