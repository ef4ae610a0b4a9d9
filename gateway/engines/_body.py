"""The body an engine gets: the client's own bytes, and what the gateway asks for."""

from __future__ import annotations

from gateway.wire import RequestView, end_with_field, set_fields

from ._dialect import Dialect


def engine_body(
    dialect: Dialect,
    view: RequestView,
    body: bytes,
    *,
    model: str,
    bound: int | None,
    priority: int | None,
    salt: str = "",
    token_ids: bool = False,
) -> bytes:
    """`body` with the engine's own name for the `model`, the granted `bound` of the answer's tokens, its class's
    `priority` (None: the engine does not schedule by it), the `salt` of the tenant's own cache, and in a stream usage
    asked for, and the `token_ids` by which another replica could go on with it."""
    replaced: dict[str, object] = {}
    if view.cache_salt and salt:
        replaced["cache_salt"] = salt
    if priority is not None and dialect.priority_sign and view.endpoint.has_priority:
        replaced["priority"] = dialect.priority_sign * priority
    if bound is not None:
        replaced[view.output_field] = bound
    if view.model != model:
        replaced["model"] = model
    if replaced:
        body = set_fields(body, replaced)
    if salt and not view.cache_salt:
        body = end_with_field(body, b'"cache_salt":"%b"' % salt.encode())
    if not view.stream:
        return body
    return dialect.ask_usage(view, body, token_ids=token_ids and view.wants_token_ids is None)
