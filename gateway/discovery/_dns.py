"""Replicas behind a name in DNS: its A and AAAA records with a port, or its SRV records; asked again by their TTL.

The system's resolver tells neither TTLs nor SRV records, so the name servers that it uses are asked directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from ._source import DiscoveryFailed, url_of

TTL_LEAST_S = 1.0
TTL_MOST_S = 300.0
TIMEOUT_S = 5.0


class DnsAddresses:
    """Every address of a name, at one port."""

    def __init__(
        self, name: str, port: int, *, scheme: str = "http", resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        self._name = name
        self._port = port
        self._scheme = scheme
        self._resolver = resolver

    async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        """As `Source`. A name without any address fails: a name server that has lost its records says the same."""
        while True:
            resolver = self._resolver or _system_resolver()
            answers = await asyncio.gather(*(_ask(resolver, self._name, kind) for kind in ("A", "AAAA")))
            hosts = [data.address for answer in answers for data in answer or () if isinstance(data, A | AAAA)]
            if not hosts:
                raise DiscoveryFailed(f"{self._name} has no address")
            yield tuple(url_of(host, self._port, scheme=self._scheme) for host in sorted(hosts))
            await asyncio.sleep(_ttl_s(answers))


class DnsServices:
    """The targets of a name's SRV records. Of several priorities the first one's; their weights are not looked at."""

    def __init__(self, name: str, *, scheme: str = "http", resolver: dns.asyncresolver.Resolver | None = None) -> None:
        self._name = name
        self._scheme = scheme
        self._resolver = resolver

    async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        """As `Source`."""
        while True:
            answer = await _ask(self._resolver or _system_resolver(), self._name, "SRV")
            found = [data for data in answer or () if isinstance(data, SRV)]
            if answer is None or not found:
                raise DiscoveryFailed(f"{self._name} has no SRV record")
            first = min(data.priority for data in found)
            targets = sorted(
                (data.target.to_text(omit_final_dot=True), data.port) for data in found if data.priority == first
            )
            yield tuple(url_of(host, port, scheme=self._scheme) for host, port in targets)
            await asyncio.sleep(_ttl_s([answer]))


def _system_resolver() -> dns.asyncresolver.Resolver:
    """Read anew each time: the name servers of a machine change too."""
    try:
        return dns.asyncresolver.Resolver()
    except (OSError, dns.exception.DNSException) as error:
        raise DiscoveryFailed(f"no name server is known: {error}") from error


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> dns.resolver.Answer | None:
    """None: there are no such records."""
    try:
        return await resolver.resolve(name, kind, lifetime=TIMEOUT_S, search=True)
    except dns.resolver.NoAnswer:
        return None
    except (OSError, dns.exception.DNSException) as error:
        raise DiscoveryFailed(f"{name} ({kind}): {error or type(error).__name__}") from error


def _ttl_s(answers: list[dns.resolver.Answer | None] | list[dns.resolver.Answer]) -> float:
    """The shortest of the chain's and the records' own."""
    told = [answer.rrset.ttl for answer in answers if answer is not None and answer.rrset is not None]
    return min(TTL_MOST_S, max(TTL_LEAST_S, min(told, default=0)))
