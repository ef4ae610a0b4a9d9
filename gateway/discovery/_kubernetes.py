"""Replicas behind a Kubernetes Service: its EndpointSlices, listed and watched at the API server.

Ready endpoints that do not terminate are replicas: readiness is how a platform says that one is to run empty. The
service account needs `list` and `watch` of `endpointslices` in `discovery.k8s.io`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path

import httpx
import msgspec

from ._source import DiscoveryFailed, url_of

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has its token, which is renewed, the cluster's CA and its namespace."""
WATCH_S = 300
CONNECT_TIMEOUT_S = 10.0
GONE = 410
OK = 200


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Conditions(msgspec.Struct, frozen=True):
    ready: bool | None = None
    terminating: bool | None = None


class _Endpoint(msgspec.Struct):
    addresses: list[str] = []
    conditions: _Conditions = _Conditions()


class _Port(msgspec.Struct):
    port: int | None = None


class _Slice(msgspec.Struct):
    metadata: _Metadata = _Metadata()
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _SliceList(msgspec.Struct):
    metadata: _Metadata
    items: list[_Slice] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class EndpointSlices:
    """A service's. `port` is the engines' own; None: the one that the slices name. `base_url` and `account` are where
    the API server is and who asks it; by default what a pod is told."""

    def __init__(
        self,
        service: str,
        *,
        namespace: str | None = None,
        port: int | None = None,
        scheme: str = "http",
        base_url: str | None = None,
        account: Path = ACCOUNT,
    ) -> None:
        self._service = service
        self._namespace = namespace
        self._port = port
        self._scheme = scheme
        self._base_url = base_url
        self._account = account

    async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        """As `Source`. A watch that ends is begun anew where it was; one that is too old, by listing again."""
        try:
            async with self._client() as http:
                while True:
                    slices, version = await self._list(http)
                    yield self._urls(slices.values())
                    async for _ in self._watch(http, slices, version):
                        yield self._urls(slices.values())
        except httpx.HTTPError as error:
            raise DiscoveryFailed(f"the API server does not answer: {error or type(error).__name__}") from error
        except msgspec.MsgspecError as error:
            raise DiscoveryFailed(f"the API server answers with something else than EndpointSlices: {error}") from error

    def _client(self) -> httpx.AsyncClient:
        base_url = self._base_url
        if base_url is None:
            host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
            if not host:
                raise DiscoveryFailed("KUBERNETES_SERVICE_HOST is not set: this is no pod of a cluster")
            base_url = url_of(host, int(port), scheme="https")
        authority = self._account / "ca.crt"
        try:
            token = (self._account / "token").read_text().strip()
            verify = ssl.create_default_context(cafile=authority) if authority.exists() else True
        except (OSError, ssl.SSLError) as error:
            raise DiscoveryFailed(f"the service account cannot be read: {error}") from error
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=WATCH_S + CONNECT_TIMEOUT_S)
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        return httpx.AsyncClient(base_url=base_url, headers=headers, verify=verify, timeout=timeout, trust_env=False)

    def _path(self) -> str:
        namespace = self._namespace
        if namespace is None:
            try:
                namespace = (self._account / "namespace").read_text().strip()
            except OSError as error:
                raise DiscoveryFailed(f"no namespace is given, and the account's cannot be read: {error}") from error
        return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

    @property
    def _selector(self) -> dict[str, str]:
        return {"labelSelector": f"kubernetes.io/service-name={self._service}"}

    async def _list(self, http: httpx.AsyncClient) -> tuple[dict[str, _Slice], str]:
        answer = await http.get(self._path(), params=self._selector)
        if answer.status_code != OK:
            raise DiscoveryFailed(f"the API server answers {answer.status_code}: {answer.text[:200]}")
        found = msgspec.json.decode(answer.content, type=_SliceList)
        return {one.metadata.name: one for one in found.items or ()}, found.metadata.resource_version

    async def _watch(self, http: httpx.AsyncClient, slices: dict[str, _Slice], version: str) -> AsyncIterator[None]:
        """Changes `slices`, and yields each time; ends when they have to be listed again."""
        while True:
            query = {
                **self._selector,
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_S),
            }
            async with http.stream("GET", self._path(), params=query) as answer:
                if answer.status_code == GONE:
                    return
                if answer.status_code != OK:
                    raise DiscoveryFailed(f"the API server answers {answer.status_code} to a watch")
                async for line in answer.aiter_lines():
                    event = msgspec.json.decode(line, type=_Event)
                    if event.type == "ERROR":
                        status = msgspec.json.decode(event.object, type=_Status)
                        if status.code == GONE:
                            return
                        raise DiscoveryFailed(f"the API server ends the watch: {status.code} {status.message}")
                    one = msgspec.json.decode(event.object, type=_Slice)
                    version = one.metadata.resource_version
                    if event.type == "DELETED":
                        slices.pop(one.metadata.name, None)
                    elif event.type in ("ADDED", "MODIFIED"):
                        slices[one.metadata.name] = one
                    else:
                        continue
                    yield

    def _urls(self, slices: Iterable[_Slice]) -> tuple[str, ...]:
        urls: set[str] = set()
        for one in slices:
            told = next((port.port for port in one.ports or () if port.port is not None), None)
            port = self._port or told
            for endpoint in one.endpoints or ():
                usable = endpoint.conditions.ready is not False and not endpoint.conditions.terminating
                if usable and port is not None:
                    urls.update(url_of(host, port, scheme=self._scheme) for host in endpoint.addresses[:1])
        return tuple(sorted(urls))
