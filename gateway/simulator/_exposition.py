"""Prometheus' text format as vLLM's client library writes it: families, buckets, and a `_created` gauge for each.

Own and small because the engine observes a latency for every token of every step: here that is one addition per step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

Labels = Mapping[str, str]


def labels_text(labels: Labels) -> str:
    """`{a="1",b="2"}`, sorted by name; nothing for none."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def number(value: float) -> str:
    """A float as the client library prints it: 1e+07 from ten million on, for example `1.795463059e+09`."""
    if value == float("inf"):
        return "+Inf"
    text = repr(float(value))
    whole, dot, fraction = text.partition(".")
    if dot and "e" not in text and len(whole) > 7:
        digits = (whole + fraction).rstrip("0")
        return f"{digits[0]}.{digits[1:] or '0'}e+0{len(whole) - 1}"
    return text


def family(name: str, kind: str, text: str, lines: Iterable[str]) -> list[str]:
    """HELP, TYPE and the samples of one metric."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]


def plain(name: str, kind: str, text: str, values: Sequence[tuple[Labels, float]]) -> list[str]:
    """A gauge, or a counter whose name ends in `_total`."""
    return family(name, kind, text, [f"{name}{labels_text(labels)} {number(value)}" for labels, value in values])


def created(name: str, text: str, labels: Iterable[Labels], at_s: float) -> list[str]:
    """The `_created` gauge of a counter or histogram; `at_s` is Unix time."""
    base = name.removesuffix("_total") + "_created"
    return plain(base, "gauge", text, [(one, at_s) for one in labels])


def counter(name: str, text: str, values: Sequence[tuple[Labels, float]], at_s: float) -> list[str]:
    """A counter and its `_created`."""
    return plain(name, "counter", text, values) + created(name, text, [labels for labels, _ in values], at_s)


class Histogram:
    """Cumulative buckets, a sum and a count."""

    __slots__ = ("_bounds", "_counts", "count", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascending, without infinity."""
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, once or several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.count += times
        self.total += value * times

    def lines(self, name: str, labels: Labels) -> list[str]:
        """Its samples."""
        text, running = [], 0
        for bound, count in zip([*self._bounds, float("inf")], self._counts, strict=True):
            running += count
            text.append(f"{name}_bucket{labels_text({**labels, 'le': number(bound)})} {number(running)}")
        text.append(f"{name}_count{labels_text(labels)} {number(self.count)}")
        text.append(f"{name}_sum{labels_text(labels)} {number(self.total)}")
        return text
