"""OpenTelemetry: a span per sampled request, made when it has ended, so that the others cost one comparison.

Configured by OpenTelemetry's own environment: `OTEL_TRACES_EXPORTER` (`none`, `console`, `otlp`),
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`.

Attribute names follow the semantic conventions for generative AI. Never a prompt or an answer.
"""

from __future__ import annotations

import importlib
import os

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.metering import UsageEvent

_OTLP_MODULE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class TracingError(Exception):
    """The environment asks for an exporter that is not there."""


class Tracing:
    """Makes and exports spans. `exporter` None: tracing is off."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        self.enabled = exporter is not None
        self._provider = TracerProvider(resource=Resource.create({"service.name": _service_name()}))
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gateway")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> Tracing:
        """Raises `TracingError` for an exporter that is unknown or not installed."""
        match os.environ.get("OTEL_TRACES_EXPORTER", "none"):
            case "none" | "":
                return cls(None)
            case "console":
                return cls(ConsoleSpanExporter())
            case "otlp":
                try:
                    return cls(importlib.import_module(_OTLP_MODULE).OTLPSpanExporter())
                except ModuleNotFoundError as error:
                    raise TracingError(
                        "OTEL_TRACES_EXPORTER=otlp needs the package opentelemetry-exporter-otlp-proto-http"
                    ) from error
            case other:
                raise TracingError(f"OTEL_TRACES_EXPORTER is {other!r}; write none, console or otlp")

    def record(self, event: UsageEvent, traceparent: str) -> None:
        """One request's span, from its arrival to its end, below the client's own span if it sent one."""
        context = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            event.endpoint, context=context, kind=SpanKind.SERVER, start_time=event.arrived_ms * 1_000_000
        )
        if span.is_recording():
            span.set_attributes(_attributes(event))
            if event.first_token_ms:
                span.add_event("first token", timestamp=event.first_token_ms * 1_000_000)
            if event.status != "ok":
                span.set_status(Status(StatusCode.ERROR, event.code or event.status))
        span.end(event.ended_ms * 1_000_000)

    def close(self) -> None:
        """Exports what is left."""
        self._provider.shutdown()


def _service_name() -> str:
    return os.environ.get("OTEL_SERVICE_NAME", "mtok")


def _attributes(event: UsageEvent) -> dict[str, str | int]:
    return {
        "gen_ai.request.model": event.model,
        "gen_ai.usage.input_tokens": event.usage.input_tokens,
        "gen_ai.usage.output_tokens": event.usage.output_tokens,
        "mtok.request_id": event.id,
        "mtok.tenant": event.tenant,
        "mtok.key": event.key,
        "mtok.replica": event.replica,
        "mtok.status": event.status,
        "mtok.input_cached_tokens": event.usage.input_cached_tokens,
        "mtok.cost_nanousd": event.cost_nanousd,
    }
