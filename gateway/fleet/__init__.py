"""Replicas: upstream connections, health, what context they serve, control-plane calls to them, their own counters."""

from ._connection import Connection, Interrupted, UpstreamLost, UpstreamMoved, UpstreamSilent
from ._counters import NoCounters, Reading, read_counters
from ._first_bytes import FirstBytes
from ._fleet import Fleet
from ._health import Health, Reason, State, last_resorts
from ._liveness import Liveness
from ._model import ModelFleet
from ._replica import ConnectFailed, Rank, Replica
from ._retries import RetryBudget
from ._salts import SALTED_ALWAYS
from ._scraper import SILENT_MS, Scraper

__all__ = [
    "SALTED_ALWAYS",
    "SILENT_MS",
    "ConnectFailed",
    "Connection",
    "FirstBytes",
    "Fleet",
    "Health",
    "Interrupted",
    "Liveness",
    "ModelFleet",
    "NoCounters",
    "Rank",
    "Reading",
    "Reason",
    "Replica",
    "RetryBudget",
    "Scraper",
    "State",
    "UpstreamLost",
    "UpstreamMoved",
    "UpstreamSilent",
    "last_resorts",
    "read_counters",
]
