"""Prometheus metrics, OpenTelemetry traces, structured logs."""

from ._log import configure
from ._metrics import Metrics
from ._telemetry import Telemetry
from ._tracing import Tracing, TracingError

__all__ = ["Metrics", "Telemetry", "Tracing", "TracingError", "configure"]
