"""What the fleet costs and what tokens cost for it: GPU hours, epochs of the live price, each tenant's tariff.

One worker of all gateways counts hours and makes the next epoch's prices; whoever is first writes an epoch down, and
it never changes. All others read it.
"""

from ._epochs import Epoch, EpochPrice, decide, epoch_name, epoch_start, measured_window, of_pool, pools
from ._hours import GPU_GAP_S, read_spans, tell_gpus, write_spans
from ._imports import CostImportError, focus_spans, opencost_spans
from ._keeper import PriceKeeper
from ._records import epoch_names, read_epochs, read_named_epochs, write_epoch
from ._tariffs import Tariffs

__all__ = [
    "GPU_GAP_S",
    "CostImportError",
    "Epoch",
    "EpochPrice",
    "PriceKeeper",
    "Tariffs",
    "decide",
    "epoch_name",
    "epoch_names",
    "epoch_start",
    "focus_spans",
    "measured_window",
    "of_pool",
    "opencost_spans",
    "pools",
    "read_epochs",
    "read_named_epochs",
    "read_spans",
    "tell_gpus",
    "write_epoch",
    "write_spans",
]
