"""Chaos: thousands of requests while everything is killed, and an audit of what was billed. `make chaos` runs it.

    python -m loadtest.chaos [--short] [--requests N] [--kills N] [--seed N]

Two gateways of two workers, two simulated engines and one Valkey with an append-only file; a seeded schedule of
SIGKILLs hits all of them, Valkey stands still for a minute, comes back with older files once, and is flushed once.
Every client writes down what it saw. At the end each answer that was seen whole has one event with the usage that its
client saw, and the event streams, the sums, the budgets and the journals agree to the nano-dollar.
"""

from ._run import SHORT, Options, Verdict, run

__all__ = ["SHORT", "Options", "Verdict", "run"]
