"""Which replicas a model has, as files, DNS or Kubernetes say while the gateway serves."""

from ._discovery import Discovery, source_of
from ._dns import DnsAddresses, DnsServices
from ._file import FileList
from ._kubernetes import EndpointSlices
from ._source import DiscoveryFailed, Source

__all__ = [
    "Discovery",
    "DiscoveryFailed",
    "DnsAddresses",
    "DnsServices",
    "EndpointSlices",
    "FileList",
    "Source",
    "source_of",
]
