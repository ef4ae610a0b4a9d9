"""Prometheus metrics and structured logs."""

from ._log import configure
from ._metrics import Metrics

__all__ = ["Metrics", "configure"]
