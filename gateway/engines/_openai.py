"""Hosted providers behind OpenAI's API: Together, Fireworks, DeepInfra, Groq, Cerebras, Anyscale's and others' bases,
Bedrock's and Vertex' compatible endpoints. Written after their documentation.

They take OpenAI's fields and refuse others, report usage at a stream's end (Together, Fireworks and Cerebras beside the
last choice even when nobody asked, Groq in `x_groq` too), tell neither load nor tokenizer, and are reached with a key.
"""

from __future__ import annotations

from gateway.wire import Endpoint

from ._dialect import Dialect


class OpenAI(Dialect):
    name = "openai"
    paths = frozenset(
        endpoint.path for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES)
    )
    full = frozenset({429, 498, 503, 529})
    """498 is Groq's for its flex tier without capacity, 529 an overloaded provider's."""
    failed = frozenset({408, 409})
    health_path = None
    about_path = None
    has_base_path = True
    kept_headers = frozenset({b"content-type", b"cache-control"})
    """A provider's rate limits and account are the platform's, not the client's."""
    idle_ttl_s = 30.0

    def path(self, base: str, path: str) -> str:
        return (base or "/v1") + path.removeprefix("/v1")
