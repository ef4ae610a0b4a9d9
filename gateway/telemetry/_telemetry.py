"""What every finished request is told to."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.metering import UsageEvent

from ._metrics import Metrics
from ._tracing import Tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics for all requests, spans for sampled ones."""

    metrics: Metrics
    tracing: Tracing

    def count(self, event: UsageEvent, traceparent: str) -> None:
        """One request has ended. `traceparent` is the client's W3C trace context, or empty."""
        self.metrics.count(event)
        if self.tracing.enabled:
            self.tracing.record(event, traceparent)
