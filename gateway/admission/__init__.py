"""May it run now? What a request asks for, what it is granted or denied, and how the client is told.

No I/O and no clock: the account itself is decided in one atomic script (`store/scripts/account.lua`), which
`metering.Ledger` calls; here are the values that go in and come out. Where a replica's capacity is what is short,
`Work` says what a request asks of it.
"""

from ._account import UNIT, Accounts, Held, Refusing
from ._alerts import Alert, Crossing, Thresholds
from ._allowance import Allowance
from ._explain import Explanation, Question, Rule, explain
from ._first_tokens import FirstTokens
from ._guards import Gauges
from ._headers import go_duration, ratelimit_headers, soft_limit_headers
from ._holding import HELD, SLICE_TOKENS, Holding, output_left
from ._knee import Knee, KneeLimits
from ._lanes import Lanes, is_held, preferred
from ._left import Left, denial
from ._money import usd
from ._periods import Period, PeriodKind, period_at
from ._pool import Heard, Pool, Told
from ._predict import Predictor
from ._queue import FairQueue
from ._refusal import refusal
from ._values import Ask, Denial, Dimension, Grant, Lease, Note, Standing
from ._words import amount, decided, seconds, unit_of, would_pass
from ._work import BandLoad, Cost, Turned, Work

__all__ = [
    "HELD",
    "SLICE_TOKENS",
    "UNIT",
    "Accounts",
    "Alert",
    "Allowance",
    "Ask",
    "BandLoad",
    "Cost",
    "Crossing",
    "Denial",
    "Dimension",
    "Explanation",
    "FairQueue",
    "FirstTokens",
    "Gauges",
    "Grant",
    "Heard",
    "Held",
    "Holding",
    "Knee",
    "KneeLimits",
    "Lanes",
    "Lease",
    "Left",
    "Note",
    "Period",
    "PeriodKind",
    "Pool",
    "Predictor",
    "Question",
    "Refusing",
    "Rule",
    "Standing",
    "Thresholds",
    "Told",
    "Turned",
    "Work",
    "amount",
    "decided",
    "denial",
    "explain",
    "go_duration",
    "is_held",
    "output_left",
    "period_at",
    "preferred",
    "ratelimit_headers",
    "refusal",
    "seconds",
    "soft_limit_headers",
    "unit_of",
    "usd",
    "would_pass",
]
