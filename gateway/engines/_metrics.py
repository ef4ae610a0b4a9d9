"""What the lines of an engine's Prometheus page mean: data, by which `fleet` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

Meaning = Literal[
    "prompt",
    "cached",
    "generation",
    "requests",
    "finished",
    "running",
    "waiting",
    "kv_usage",
    "kv_tokens",
    "kv_blocks",
    "kv_block_tokens",
    "kv_info",
    "preemptions",
    "started_s",
    "prefill_s",
    "decode_s",
]
"""`prompt`, `cached` and `generation` are tokens since the process began, the cached ones in the prompt's; `requests`
and `finished` count HTTP requests by path and sequences by reason. `running` sequences are in the engine's batch,
`waiting` are not yet. `kv_usage` is a part of 1; the cache's size is `kv_tokens`, `kv_blocks` × `kv_block_tokens`, or
in the labels of `kv_info`. `started_s` is when the process began, Unix seconds. `prefill_s` and `decode_s` are the
seconds that requests have spent in either phase."""

TOKENS: tuple[Meaning, ...] = ("prompt", "cached", "generation")


class Series(Struct, frozen=True):
    """One series of a page. `label` (`name="value"`) picks among several of that name; several meanings are all added
    to."""

    name: bytes
    meanings: tuple[Meaning, ...]
    label: bytes = b""


class MetricsPage(Struct, frozen=True):
    """Where the page is and what of it counts. `port` where it is not the API's. Without `counts_tokens` the ledger is
    not held against it."""

    series: tuple[Series, ...]
    path: str = "/metrics"
    port: int | None = None

    def url(self, engine: str) -> str:
        """The page's address, of the engine at this one."""
        if self.port is None:
            return engine + self.path
        parts = urlsplit(engine)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}:{self.port}{self.path}"

    @property
    def counts_tokens(self) -> bool:
        """Whether prompt and generated tokens are told."""
        told = {meaning for one in self.series for meaning in one.meanings}
        return {"prompt", "generation"} <= told


def page(
    named: Mapping[str, Meaning | tuple[Meaning, ...]], *, path: str = "/metrics", port: int | None = None
) -> MetricsPage:
    """A page by its series' names, `name{label="value"}` where one is picked among several."""
    series = []
    for written, meant in named.items():
        name, _, label = written.partition("{")
        meanings = (meant,) if isinstance(meant, str) else meant
        series.append(Series(name.encode(), meanings, label.removesuffix("}").encode()))
    return MetricsPage(tuple(series), path, port)
