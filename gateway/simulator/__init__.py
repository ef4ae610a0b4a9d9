"""A vLLM 0.24 replica without a GPU: the same endpoints, bytes, metrics, scheduling and times.

Two halves. The core (`EngineCore`) is pure and runs in virtual time: continuous batching, chunked prefill, KV blocks
with prefix caching, preemption, aborts; tests and simulations of a million requests use it directly. The server
(`build_app`, `run`) drives the same core in real time behind vLLM's HTTP interface, so that a client, the gateway and a
dashboard cannot tell. What an engine is like, its limits and its times, is a `Profile`; the default one was measured on
an H200. The room stands alone: it imports no other one.
"""

from ._engine import EngineCore
from ._faults import Fault
from ._profiles import PROFILES, ApiTimes, Profile, StepTimes
from ._requests import Job, Prompt, Request, State
from ._server import build_app, run
from ._steps import Counters, Step, StepResult

__all__ = [
    "PROFILES",
    "ApiTimes",
    "Counters",
    "EngineCore",
    "Fault",
    "Job",
    "Profile",
    "Prompt",
    "Request",
    "State",
    "Step",
    "StepResult",
    "StepTimes",
    "build_app",
    "run",
]
