"""Processes: the bounded HTTP server, workers on one socket, and the demo that `make run` starts."""

from ._demo import demo
from ._server import run_worker
from ._workers import StartError, listening, serve

__all__ = ["StartError", "demo", "listening", "run_worker", "serve"]
