"""What others ask: GPUs by the hour and hosted models by the token, each figure with its date and source.

The figures are data, `policies/gpus.yaml` and `policies/hosted.yaml`, and travel with the package. They start a
calculation until an operator's own replace them.
"""

from ._figures import PURCHASES, Catalogue, Figure, Gpu, Hosted, HostedModel, Hourly, Offer, Purchase
from ._read import CATALOGUE_FILES, CatalogueError, Fault, builtin, read

__all__ = [
    "CATALOGUE_FILES",
    "PURCHASES",
    "Catalogue",
    "CatalogueError",
    "Fault",
    "Figure",
    "Gpu",
    "Hosted",
    "HostedModel",
    "Hourly",
    "Offer",
    "Purchase",
    "builtin",
    "read",
]
