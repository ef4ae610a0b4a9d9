"""The `mtok` command: serve, demo, simulate, keys, policy, usage, why, price. Each is a thin face over the room it
calls."""

from ._app import app, main

__all__ = ["app", "main"]
