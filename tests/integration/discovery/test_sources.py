"""Where replicas are told: files, a DNS server and an API server of Kubernetes, on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from gateway.discovery import DiscoveryFailed, DnsAddresses, DnsServices, EndpointSlices, FileList, Source, _file


class Looking:
    """Goes through a source's changes; `next` waits for one."""

    def __init__(self, source: Source) -> None:
        self._changes = source.changes()

    async def next(self) -> tuple[str, ...]:
        async with asyncio.timeout(10):
            return await anext(self._changes)

    async def to_the_end(self) -> None:
        while True:
            await self.next()

    async def close(self) -> None:
        await self._changes.aclose()


@asynccontextmanager
async def looking(source: Source) -> AsyncIterator[Looking]:
    look = Looking(source)
    try:
        yield look
    finally:
        await look.close()


# Files


@pytest.mark.parametrize(
    ("content", "urls"),
    [
        ("- http://a:8000\n- https://b:8001/\n- http://a:8000\n", ("http://a:8000", "https://b:8001")),
        ('["http://[::1]:8000"]', ("http://[::1]:8000",)),
        ("[]", ()),
    ],
)
async def test_a_file_is_a_list_of_addresses(tmp_path: Path, content: str, urls: tuple[str, ...]) -> None:
    path = tmp_path / "replicas.yaml"
    path.write_text(content)
    async with looking(FileList(path)) as look:
        assert await look.next() == urls


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file, "LOOK_S", 0.01)
    path = tmp_path / "replicas.yaml"
    path.write_text("- http://a:8000\n")
    async with looking(FileList(path)) as look:
        assert await look.next() == ("http://a:8000",)
        path.write_text("- http://a:8000\n- http://b:8000\n")
        assert await look.next() == ("http://a:8000", "http://b:8000")


@pytest.mark.parametrize("content", [None, "{", "a: 1", "- 5", "- a:8000", "- http://a:8000/v1"])
async def test_a_file_that_says_something_else_fails(tmp_path: Path, content: str | None) -> None:
    """A list that is half right is not half used: whoever writes it sees where the fault is."""
    path = tmp_path / "replicas.yaml"
    if content is not None:
        path.write_text(content)
    async with looking(FileList(path)) as look:
        with pytest.raises(DiscoveryFailed, match=str(path)):
            await look.next()


# DNS


class NameServer(asyncio.DatagramProtocol):
    """Answers with `records`, by name and kind; a name that is not there is unknown."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], dns.rrset.RRset] = {}
        self.asked = 0
        self.is_broken = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked += 1
        if self.is_broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif (name, kind) in self.records:
            answer.answer.append(self.records[name, kind])
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)

    def say(self, name: str, kind: str, *values: str, ttl_s: int = 300) -> None:
        self.records[name, kind] = dns.rrset.from_text_list(name + ".", ttl_s, "IN", kind, list(values))


@pytest.fixture
async def names() -> AsyncIterator[tuple[NameServer, dns.asyncresolver.Resolver]]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    yield server, resolver
    transport.close()


Names = tuple[NameServer, dns.asyncresolver.Resolver]


async def test_each_address_of_a_name_is_a_replica(names: Names) -> None:
    server, resolver = names
    server.say("vllm.test", "A", "10.0.0.2", "10.0.0.1", ttl_s=1)
    server.say("vllm.test", "AAAA", "fd00::1")
    async with looking(DnsAddresses("vllm.test", 8000, resolver=resolver)) as look:
        first = await look.next()
        assert first == ("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000")
        server.say("vllm.test", "A", "10.0.0.3")
        asked = server.asked
        assert await look.next() == ("http://10.0.0.3:8000", "http://[fd00::1]:8000")
        assert server.asked == asked + 2, "asked again once the shortest TTL was over, and not before"


async def test_service_records_name_ports_too(names: Names) -> None:
    """Of several priorities the first one's targets."""
    server, resolver = names
    server.say("_http._tcp.vllm.test", "SRV", "0 1 8001 b.test.", "0 9 8000 a.test.", "5 1 1 spare.test.")
    async with looking(DnsServices("_http._tcp.vllm.test", scheme="https", resolver=resolver)) as look:
        assert await look.next() == ("https://a.test:8000", "https://b.test:8001")


@pytest.mark.parametrize("way", ["unknown", "empty", "broken"])
async def test_names_without_addresses_fail(names: Names, way: str) -> None:
    """A name server that has lost its records is no reason to send nobody anything."""
    server, resolver = names
    server.is_broken = way == "broken"
    if way == "empty":
        server.say("vllm.test", "TXT", "hello")
    for source in (DnsAddresses("vllm.test", 8000, resolver=resolver), DnsServices("vllm.test", resolver=resolver)):
        async with looking(source) as look:
            with pytest.raises(DiscoveryFailed, match=r"vllm\.test"):
                await look.next()


# Kubernetes


class ApiServer:
    """Lists `slices` and streams `events` to whoever watches, as the API server does."""

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.version = 1
        self.asked: list[tuple[str, dict[str, str], str]] = []
        self.status = 200
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = urlsplit(head.split(" ")[1])
                query = {name: values[0] for name, values in parse_qs(target.query).items()}
                token = next(line for line in head.split("\r\n") if line.startswith("authorization: "))
                self.asked.append((target.path, query, token))
                if "watch" in query:
                    await self._watch(writer)
                else:
                    listed = {"metadata": {"resourceVersion": str(self.version)}, "items": self.slices}
                    body = json.dumps(listed).encode()
                    writer.write(b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while (event := await self.events.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        writer.write(b"0\r\n\r\n")

    def tell(self, kind: str, one: dict[str, Any]) -> None:
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        self.events.put_nowait({"type": kind, "object": one})


def slice_of(name: str, *addresses: str, port: int | None = 8000, **conditions: bool) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "resourceVersion": "1"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [one], "conditions": {"ready": True} | conditions} for one in addresses],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    api = ApiServer()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield api
    server.close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("the-accounts-token\n")
    (tmp_path / "namespace").write_text("models")
    return tmp_path


async def test_ready_endpoints_of_a_service_are_replicas_and_changes_come_by_a_watch(
    api: ApiServer, account: Path
) -> None:
    """An endpoint that is not ready, or terminates, is none: what runs there may finish."""
    api.slices = [slice_of("a", "10.0.0.1", "10.0.0.2"), slice_of("b", "10.0.0.3", ready=False)]
    async with looking(EndpointSlices("vllm", base_url=api.url, account=account)) as look:
        assert await look.next() == ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
        path, query, token = api.asked[0]
        assert path == "/apis/discovery.k8s.io/v1/namespaces/models/endpointslices"
        assert query == {"labelSelector": "kubernetes.io/service-name=vllm"}
        assert token == "authorization: Bearer the-accounts-token"
        api.tell("MODIFIED", slice_of("b", "10.0.0.3"))
        assert len(await look.next()) == 3
        api.tell("MODIFIED", slice_of("a", "10.0.0.1", "10.0.0.2", ready=True, terminating=True))
        assert await look.next() == ("http://10.0.0.3:8000",)
        api.tell("DELETED", slice_of("b"))
        assert await look.next() == ()
        api.tell("BOOKMARK", slice_of(""))
        api.events.put_nowait(None)  # the API server ends watches from time to time
        api.tell("ADDED", slice_of("c", "10.0.0.9"))
        assert await look.next() == ("http://10.0.0.9:8000",)
        assert [query.get("resourceVersion") for _, query, _ in api.asked] == [None, "1", "5"]


async def test_a_watch_that_is_too_old_is_listed_again(api: ApiServer, account: Path) -> None:
    async with looking(EndpointSlices("vllm", namespace="x", port=9000, base_url=api.url, account=account)) as look:
        assert await look.next() == ()
        api.slices, api.version = [slice_of("a", "10.0.0.1", port=None)], 7
        api.events.put_nowait({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
        assert await look.next() == ("http://10.0.0.1:9000",)


def forbidden(api: ApiServer) -> None:
    api.status = 403


def ends_the_watch(api: ApiServer) -> None:
    api.events.put_nowait({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "boom"}})


def says_something_else(api: ApiServer) -> None:
    api.slices = [{"metadata": 5}]


@pytest.mark.parametrize("fault", [forbidden, ends_the_watch, says_something_else])
async def test_what_the_api_server_refuses_or_garbles_fails(
    api: ApiServer, account: Path, fault: Callable[[ApiServer], None]
) -> None:
    fault(api)
    async with looking(EndpointSlices("vllm", base_url=api.url, account=account)) as look:
        with pytest.raises(DiscoveryFailed, match="API server"):
            await look.to_the_end()


async def test_outside_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with looking(EndpointSlices("vllm", account=tmp_path)) as look:
        with pytest.raises(DiscoveryFailed, match="no pod of a cluster"):
            await look.next()
