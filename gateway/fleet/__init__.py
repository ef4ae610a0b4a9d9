"""Replicas: upstream connections, health, what context they serve, control-plane calls to them, their own counters."""

from ._connection import Connection, Interrupted, UpstreamLost, UpstreamSilent
from ._counters import NoCounters, Reading, read_counters
from ._fleet import Fleet, ModelFleet
from ._replica import ConnectFailed, Replica
from ._retries import RetryBudget
from ._scraper import SILENT_MS, Scraper

__all__ = [
    "SILENT_MS",
    "ConnectFailed",
    "Connection",
    "Fleet",
    "Interrupted",
    "ModelFleet",
    "NoCounters",
    "Reading",
    "Replica",
    "RetryBudget",
    "Scraper",
    "UpstreamLost",
    "UpstreamSilent",
    "read_counters",
]
