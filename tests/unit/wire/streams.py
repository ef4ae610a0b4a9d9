"""Event streams for properties: built from parts, so that what should remain of them is known without a scanner."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            ',"usage":{"prompt_tokens":1}',
            "data: [DONE]\n\n",
            '{"choices":[],"usage":{"completion_tokens":99}}',
            "\r\n\r\n",
            '\\"usage\\":',
            '"error"',
            "}\n\n",
            "\u2028\u0085\x0b\x0c",
        ]
    ),
)
COUNTS = st.integers(0, 2**40)


@dataclass(frozen=True)
class Reported:
    """Usage as an engine writes it."""

    prompt: int
    completion: int
    cached: int | None = None
    extra: Any = None

    def json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"prompt_tokens": self.prompt, "total_tokens": self.prompt + self.completion}
        told["completion_tokens"] = self.completion
        if self.cached is not None:
            told["prompt_tokens_details"] = {"cached_tokens": self.cached}
        if self.extra is not None:
            told["extra"] = self.extra
        return told


@dataclass(frozen=True)
class Event:
    """One event. `members` are those of its JSON without usage; `raw` stands for data that is no such chunk."""

    line_end: str
    before: tuple[str, ...] = ()
    members: tuple[tuple[str, Any], ...] = ()
    usage: Reported | None = None
    usage_at: int = 0
    usage_null: bool = False
    final: bool = False
    index: int = 0
    separators: tuple[str, str] = (",", ":")
    lines: bool = False
    space: bool = True
    raw: str | None = None
    ascii: bool = True

    def payload_parts(self, *, with_usage: bool) -> list[str]:
        colon = self.separators[1]
        parts = [
            f"{json.dumps(name)}{colon}{json.dumps(value, ensure_ascii=self.ascii, separators=self.separators)}"
            for name, value in self.members
        ]
        if self.usage is not None and with_usage:
            told = json.dumps(self.usage.json(), separators=self.separators, ensure_ascii=self.ascii)
            parts.insert(self.usage_at % (len(parts) + 1), f'"usage"{colon}{told}')
        elif self.usage_null:
            parts.append(f'"usage"{colon}null')
        return parts

    def encoded(self, *, with_usage: bool = True) -> bytes:
        """The event's bytes, its empty line included."""
        data = "data: " if self.space else "data:"
        lines = list(self.before)
        if self.raw is not None:
            lines += [data + line for line in self.raw.split("\n")]
        elif self.members:
            parts = self.payload_parts(with_usage=with_usage)
            comma = self.separators[0]
            if self.lines:
                lines += [data + "{" + parts[0], *(data + comma + part for part in parts[1:]), data + "}"]
            else:
                lines.append(data + "{" + comma.join(parts) + "}")
        return "".join(line + self.line_end for line in [*lines, ""]).encode()


@dataclass(frozen=True)
class Stream:
    """Events, and how many samples and prompts the request had."""

    events: tuple[Event, ...]
    samples: int
    prompts: int
    cuts: tuple[int, ...] = field(default=())

    def encoded(self) -> bytes:
        return b"".join(event.encoded() for event in self.events)

    def pieces(self) -> list[bytes]:
        """The bytes as they are read: cut anywhere."""
        body = self.encoded()
        places = sorted({cut % (len(body) + 1) for cut in self.cuts})
        return [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


@st.composite
def _values(draw: st.DrawFn) -> Any:
    """What engines put into choices: nested objects, some of them called usage."""
    return draw(
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-5, 2**53),
                st.floats(allow_nan=False, allow_infinity=False),
                TEXTS,
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2),
                st.dictionaries(
                    st.one_of(st.sampled_from(["usage", "choices", "delta", "a"]), TEXTS), inner, max_size=2
                ),
            ),
            max_leaves=4,
        )
    )


USAGES = st.builds(
    Reported,
    prompt=COUNTS,
    completion=COUNTS,
    cached=st.none() | COUNTS,
    extra=st.none() | st.just({"a": {"b": [1]}}) | TEXTS,
)


@st.composite
def events(draw: st.DrawFn, line_ends: st.SearchStrategy[str], indices: int) -> Event:
    """One event of any kind."""
    line_end = draw(line_ends)
    plain_text = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=8)
    before = draw(
        st.lists(
            st.one_of(
                plain_text.map(lambda text: ":" + text),
                st.sampled_from(["event: message", "id: 7", "retry: 10", "id", "nonsense", ': ,"usage":{}}']),
            ),
            max_size=2,
        )
    )
    kind = draw(st.sampled_from(["chunk"] * 6 + ["final"] * 2 + ["comment", "raw", "empty choices"]))
    if kind == "comment":
        return Event(line_end, before=tuple(before) or (": ping",))
    if kind == "raw":
        raw = draw(st.sampled_from(["[DONE]", "{}", "not json", "[1]", '{"usage":', "null", '"usage"']))
        return Event(line_end, before=tuple(before), raw=raw)
    index = draw(st.integers(0, indices - 1))
    choices = [] if kind != "chunk" else [{"index": index, "delta": draw(_values()), "finish_reason": None}]
    members: list[tuple[str, Any]] = [("id", draw(TEXTS)), ("choices", choices)]
    for name in draw(st.lists(st.sampled_from(["x", "object", "prompt_text", "nested"]), max_size=2, unique=True)):
        members.append((name, draw(_values())))
    if draw(st.booleans()):
        members = draw(st.permutations(members))
    usage = draw(USAGES) if kind == "final" or (kind == "chunk" and draw(st.integers(0, 3))) else None
    return Event(
        line_end,
        before=tuple(before),
        members=tuple(members),
        usage=usage,
        usage_at=draw(st.sampled_from([-1, 0, 1, 2])),
        usage_null=usage is None and draw(st.booleans()),
        final=kind == "final",
        index=index,
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (",\t", ": ")])),
        lines=draw(st.integers(0, 4)) == 0,
        space=draw(st.booleans()),
        ascii=draw(st.booleans()),
    )


@st.composite
def streams(draw: st.DrawFn, *, samples: int | None = None, prompts: int | None = None) -> Stream:
    """Any stream: its events keep one line end each, mostly LF; cut into reads anywhere."""
    chosen_samples = samples or draw(st.integers(1, 3))
    chosen_prompts = prompts or draw(st.integers(1, 2))
    ends = draw(st.sampled_from([st.just("\n"), st.just("\n"), st.sampled_from(["\n", "\r\n", "\r"])]))
    several = draw(st.lists(events(ends, chosen_samples * chosen_prompts), max_size=8))
    inputs = draw(st.lists(st.tuples(COUNTS, st.none() | COUNTS), min_size=chosen_prompts, max_size=chosen_prompts))
    for position, event in enumerate(several):  # a prompt has one length, whichever of its samples tells it
        if event.usage is not None and not event.final:
            prompt, cached = inputs[event.index // chosen_samples]
            several[position] = replace(event, usage=replace(event.usage, prompt=prompt, cached=cached))
    cuts = draw(st.lists(st.integers(0, 10_000), max_size=12))
    return Stream(tuple(several), chosen_samples, chosen_prompts, tuple(cuts))
