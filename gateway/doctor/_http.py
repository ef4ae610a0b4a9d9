"""One request to an engine. A failure is an answer with status 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx
import msgspec

from ._facts import Answer

TIMEOUT_S: Final = 10.0
PROMPT: Final = "one two three"


async def get(http: httpx.AsyncClient, url: str, *, timeout_s: float = TIMEOUT_S) -> Answer:
    """A GET."""
    try:
        return _answer(await http.get(url, timeout=timeout_s))
    except httpx.HTTPError as error:
        return _none(error)


async def post(
    http: httpx.AsyncClient,
    url: str,
    body: Mapping[str, object],
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """A POST with JSON."""
    head = {"content-type": "application/json", **(headers or {})}
    try:
        return _answer(await http.post(url, content=msgspec.json.encode(body), headers=head, timeout=timeout_s))
    except httpx.HTTPError as error:
        return _none(error)


def _answer(answer: httpx.Response) -> Answer:
    return Answer(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.content)


def _none(error: httpx.HTTPError) -> Answer:
    return Answer(0, error=str(error) or type(error).__name__)
