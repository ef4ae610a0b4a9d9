"""The gateway's own refusals that need no numbers. Those with numbers are made where the numbers are."""

from __future__ import annotations

from gateway.errors import Refusal, RefusedBy

NO_KEY = Refusal(
    status=401,
    code="invalid_api_key",
    message="No API key was given. Send your key as 'Authorization: Bearer mtok-...' (or 'x-api-key').",
)
UNKNOWN_KEY = Refusal(
    status=401,
    code="invalid_api_key",
    message="This API key is not known here, or it has been revoked. Ask your platform team for a valid one.",
)
NOT_ADMIN = Refusal(
    status=403, code="admin_key_required", message="Only the admin key may ask for another tenant.", param="tenant"
)
ADMIN_ONLY = Refusal(
    status=403, code="admin_key_required", message="This page is for the administrator: send MTOK_ADMIN_KEY as the key."
)
DRAINING = Refusal(
    status=503, code="shutting_down", message="This gateway is stopping. Send the request again.", retry_after_ms=1000
)
STORE_AWAY = Refusal(
    status=503,
    code="store_unavailable",
    message="Limits and usage cannot be kept right now, so nothing may run. Try again shortly.",
    retry_after_ms=1000,
)
JOURNAL_AWAY = Refusal(
    status=503,
    code="journal_unavailable",
    message="What this request uses cannot be written to disk right now, so it may not run. Try again shortly.",
    retry_after_ms=2000,
)
NO_REPLICA = Refusal(
    status=503,
    code="no_healthy_replica",
    message="No replica of this model is healthy right now. Try again shortly.",
    retry_after_ms=2000,
)
REPLICAS_BUSY = Refusal(
    status=503,
    code="replicas_busy",
    message="Every replica of this model is full right now. Try again shortly.",
    retry_after_ms=1000,
)
UPSTREAM_LOST = Refusal(
    status=502,
    code="upstream_lost",
    message="The model's engine was lost before it had answered. Nothing was billed; send the request again.",
)
TOO_MANY_STREAMS = Refusal(
    status=429,
    code="too_many_streams",
    message="Too many live streams of usage are open here. Close one, or read /v1/usage/requests.",
    retry_after_ms=10_000,
)
INTERNAL = Refusal(
    status=500, type="api_error", code="internal_error", message="The gateway failed on this request. It was logged."
)
STREAM_LOST = (
    "The model's engine was lost before the answer was complete. What was delivered is billed; the rest is not."
)

STREAM_UNBOOKED = "What this answer used could not be written to disk, so it ends here. What was delivered is billed."


def not_isolated(path: str) -> Refusal:
    """The engine would share cached blocks between tenants there."""
    return Refusal(
        status=400,
        code="cache_not_isolated",
        message=(
            f"This model keeps tenants' caches apart, and its engine cannot do that at {path}. Use "
            "/v1/chat/completions, /v1/completions or /v1/responses."
        ),
    )


ISOLATION_UNKNOWN = Refusal(
    status=503,
    code="isolation_unknown",
    message=(
        "This model keeps tenants' caches apart, and its engine has not yet said whether it can do that here. "
        "Try again shortly."
    ),
    retry_after_ms=2000,
)
KV_TRANSFER = Refusal(
    status=400,
    code="invalid_request",
    message="This model keeps tenants' caches apart: 'kv_transfer_params' may not be sent. Leave it out.",
    param="kv_transfer_params",
)


def model_not_found(name: str) -> Refusal:
    """The same for a model that is not there and one the tenant may not use."""
    return Refusal(
        status=404,
        code="model_not_found",
        message=f"The model '{name[:100]}' does not exist or you may not use it. GET /v1/models lists yours.",
        param="model",
        refused_by=RefusedBy(dimension="models", scope=f"model {name[:100]}"),
    )


def not_served(model: str, path: str) -> Refusal:
    """A path the gateway serves, and the model's engine does not."""
    return Refusal(
        status=404,
        code="not_found",
        message=f"The model '{model}' is not served at {path}: its engine has no such endpoint. "
        "Use /v1/chat/completions.",
        param="model",
    )


def unknown_path(method: str, path: str) -> Refusal:
    """A path the gateway does not serve."""
    return Refusal(
        status=404, code="unknown_url", message=f"Unknown request URL: {method} {path[:200]}. Check the path."
    )


def unknown_replica(replica: str) -> Refusal:
    """An administrator asks for a replica that no model has."""
    return Refusal(
        status=404,
        code="unknown_replica",
        message=f"No model has a replica {replica[:200]!r}. Give its URL, or host:port.",
    )


def wrong_method(method: str, path: str, allowed: str) -> Refusal:
    """A served path with another method."""
    return Refusal(
        status=405,
        code="method_not_allowed",
        message=f"{path} does not take {method}. Use {allowed}.",
    )


def body_too_large(limit_bytes: int) -> Refusal:
    """Read no further."""
    return Refusal(
        status=413,
        code="request_too_large",
        message=f"The body is over {limit_bytes} bytes. Send a smaller one.",
    )


def body_too_slow(timeout_s: float) -> Refusal:
    """The deadline for a whole request has passed."""
    return Refusal(
        status=408, code="request_timeout", message=f"The request did not arrive within {timeout_s:g} s. Send it again."
    )


def tenant_not_found(name: str | None) -> Refusal:
    """An admin asked for a tenant that the policies do not have, or for none."""
    if name is None:
        message = "Name the tenant whose usage you want: ?tenant=NAME."
        return Refusal(status=400, code="invalid_request", message=message, param="tenant")
    return Refusal(status=404, code="tenant_not_found", message=f"No tenant is named '{name[:100]}'.", param="tenant")
