"""Keeps every model's list of replicas true while the gateway serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from gateway.policy import DiscoverSpec, Policies, ReplicaSpec
from gateway.store import end_tasks

from ._dns import DnsAddresses, DnsServices
from ._file import FileList
from ._kubernetes import EndpointSlices
from ._source import DiscoveryFailed, Source

log = logging.getLogger(__name__)

RETRY_S = 5.0
FIRST_WAIT_S = 5.0
"""How long a gateway that starts waits for its first replicas; then it serves with those it knows."""


def source_of(spec: DiscoverSpec) -> Source:
    """The way that a policy asks for."""
    if spec.file is not None:
        return FileList(Path(spec.file))
    if spec.dns is not None:
        assert spec.port is not None, "the loader refuses a name without a port"
        return DnsAddresses(spec.dns, spec.port, scheme=spec.scheme)
    if spec.srv is not None:
        return DnsServices(spec.srv, scheme=spec.scheme)
    assert spec.kubernetes is not None, "the loader refuses a section that says nothing"
    service = spec.kubernetes
    return EndpointSlices(service.service, namespace=service.namespace, port=service.port, scheme=spec.scheme)


class Discovery:
    """One worker's. `async with` ends what runs. `on_change` hears of policies that are complete anew."""

    def __init__(self, *, source_of: Callable[[DiscoverSpec], Source] = source_of, retry_s: float = RETRY_S) -> None:
        self.on_change: Callable[[Policies], None] = _nobody
        self.failing: dict[str, str] = {}
        """By model, why its replicas cannot be found out now."""
        self.found: dict[str, tuple[str, ...]] = {}
        """By model, the addresses that were found last."""
        self._source_of = source_of
        self._retry_s = retry_s
        self._declared: Policies | None = None
        self._tasks: dict[str, tuple[DiscoverSpec, asyncio.Task[None]]] = {}
        self._answered: set[str] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Discovery:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for _, task in self._tasks.values()]
        await end_tasks(tasks)

    async def first(self, policies: Policies, *, within_s: float = FIRST_WAIT_S) -> Policies:
        """The policies with what is found at once: what takes longer comes by `on_change`."""
        self.declare(policies)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._answered.issuperset(self._tasks):
                    self._news.clear()
                    await self._news.wait()
        return self._completed()

    def declare(self, policies: Policies) -> Policies:
        """From now on these are the policies as they are written. Returns them with the replicas that were found."""
        self._declared = policies
        wanted = {name: model.discover for name, model in policies.models.items() if model.discover is not None}
        for name, (spec, task) in list(self._tasks.items()):
            if wanted.get(name) != spec:
                task.cancel()
                del self._tasks[name]
                for kept in (self.found, self.failing):
                    kept.pop(name, None)
                self._answered.discard(name)
        for name, spec in wanted.items():
            if name not in self._tasks:
                task = asyncio.get_running_loop().create_task(self._follow(name, spec), name=f"discover {name}")
                self._tasks[name] = spec, task
        return self._completed()

    def _completed(self) -> Policies:
        assert self._declared is not None
        found = {name: urls for name, urls in self.found.items() if urls}
        if not found:
            return self._declared
        models = dict(self._declared.models)
        for name, urls in found.items():
            written = {one.url for one in models[name].replicas}
            more = tuple(ReplicaSpec(url=url) for url in urls if url not in written)
            models[name] = replace(models[name], replicas=(*models[name].replicas, *more))
        return replace(self._declared, models=models)

    async def _follow(self, model: str, spec: DiscoverSpec) -> None:
        while True:
            try:
                async with aclosing(self._source_of(spec).changes()) as changes:
                    async for urls in changes:
                        self._heard(model, urls)
            except DiscoveryFailed as error:
                if self.failing.get(model) != str(error):
                    kept = len(self.found.get(model, ()))
                    log.error("replicas of %s cannot be found; the %d known last stay: %s", model, kept, error)
                self.failing[model] = str(error)
            except Exception as error:
                log.exception("finding replicas of %s failed unexpectedly; those known last stay", model)
                self.failing[model] = repr(error)
            self._answer(model)
            await asyncio.sleep(self._retry_s)

    def _heard(self, model: str, urls: tuple[str, ...]) -> None:
        if self.failing.pop(model, None) is not None:
            log.info("replicas of %s are found again", model)
        before = self.found.get(model)
        self.found[model] = urls
        if before != urls:
            come, gone = set(urls).difference(before or ()), set(before or ()).difference(urls)
            told = [*(f"+{url}" for url in sorted(come)), *(f"-{url}" for url in sorted(gone))]
            log.warning("replicas of %s: %d found: %s", model, len(urls), ", ".join(told) or "none")
            self.on_change(self._completed())
        self._answer(model)

    def _answer(self, model: str) -> None:
        self._answered.add(model)
        self._news.set()


def _nobody(policies: Policies) -> None:
    """Nobody hears of it."""
