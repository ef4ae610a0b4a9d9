"""Two real vLLM replicas on this CPU and the gateway in front of them, each a process, as in production.

`make test-real`. The replicas' scripts are found by MTOK_REAL_VLLM_DIR (default: `../shared/real-vllm` beside this
repository); vLLM itself is installed by them, once, into `~/.cache/real-vllm`. MTOK_REAL_VLLM_URLS names replicas that
run already (`http://127.0.0.1:9001,http://127.0.0.1:9002`, fresh or idle), which saves a minute a run; tests that kill
a replica are skipped then.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
import redis

from gateway.metering import UsageEvent
from gateway.store import TenantKeys, embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running

REPOSITORY = Path(__file__).parents[2]
INSTALLED = Path.home() / ".cache" / "real-vllm"
INSTALL_TIMEOUT_S = 1200.0
START_TIMEOUT_S = 300.0
MODEL = "tiny"
CONTEXT_TOKENS = 4096
STEADY_S = 0.3

_POLICIES = """\
models:
  tiny:
    replicas: [{{url: "{first}"}}, {{url: "{second}"}}]
    on_replica_loss: error
    price: {{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}}
tenants:
  exact: {{class: queued, keys: [{{id: exact, sha256: "{exact}"}}]}}
  cut: {{class: queued, keys: [{{id: cut, sha256: "{cut}"}}]}}
  plain: {{keys: [{{id: plain, sha256: "{plain}"}}]}}
  hurried: {{keys: [{{id: hurried, sha256: "{hurried}"}}], limits: {{requests_per_minute: 1}}}}
  broke: {{keys: [{{id: broke, sha256: "{broke}"}}], limits: {{budget_usd: 0.000001, budget_period: month}}}}
classes:
  queued: {{max_wait_s: 60, slo: {{ttft_p99_ms: 5000, itl_p99_ms: 200}}}}
"""
TENANTS = ("exact", "cut", "plain", "hurried", "broke")

_SERIES = re.compile(r"^vllm:(prompt_tokens_total|generation_tokens_total|num_requests_\w+)\{[^}]*\} (\S+)$", re.M)


@dataclass(frozen=True)
class Counters:
    """What an engine says it has done and does."""

    prompt: int
    generation: int
    running: int
    waiting: int

    def __sub__(self, before: Counters) -> Counters:
        return Counters(self.prompt - before.prompt, self.generation - before.generation, self.running, self.waiting)

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.prompt + other.prompt,
            self.generation + other.generation,
            self.running + other.running,
            self.waiting + other.waiting,
        )


@dataclass
class Engine:
    """One replica; `process` when it is ours to kill."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, timeout=10))

    @property
    def name(self) -> str:
        """The replica's name in events."""
        return self.url.removeprefix("http://")

    @property
    def alive(self) -> bool:
        """Whether it is ours and runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Ends the replica with all its processes, at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)

    def kill_core(self) -> None:
        """Ends the engine behind its API server."""
        self._signal("EngineCore", signal.SIGKILL)

    def pause(self) -> None:
        """Holds the computing process: nothing more is generated, all else goes on."""
        self._signal("Worker", signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a pause."""
        self._signal("Worker", signal.SIGCONT)

    def yield_cores(self) -> None:
        """Lets everything else go before the computing process. Where all share two cores the API server otherwise
        does nothing for seconds but read tokens, and hears neither a hang-up nor a scrape."""
        for pid in self._processes("Worker"):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 15)

    def _signal(self, name: str, what: signal.Signals) -> None:
        for pid in self._processes(name):
            os.kill(pid, what)

    def _processes(self, name: str) -> list[int]:
        assert self.process is not None
        found = [pid for pid in _descendants(self.process.pid) if name in Path(f"/proc/{pid}/cmdline").read_text()]
        assert found, f"{self.url} has no process named {name}"
        return found

    def counters(self) -> Counters:
        found = dict(_SERIES.findall(self.http.get(f"{self.url}/metrics").text))
        return Counters(
            prompt=int(float(found["prompt_tokens_total"])),
            generation=int(float(found["generation_tokens_total"])),
            running=int(float(found["num_requests_running"])),
            waiting=int(float(found["num_requests_waiting"])),
        )

    def idle_counters(self, timeout_s: float = 30.0) -> Counters:
        """The counters once nothing runs and they have stood still for `STEADY_S`."""
        deadline_s = time.monotonic() + timeout_s
        before = self.counters()
        while time.monotonic() < deadline_s:
            time.sleep(STEADY_S)
            now = self.counters()
            if now == before and not now.running and not now.waiting:
                return now
            before = now
        raise AssertionError(f"{self.url} is not idle after {timeout_s:g} s: {before}")


@dataclass(frozen=True)
class Served:
    """The running gateway: where it is, a key for each tenant, its replicas, its Valkey."""

    url: str
    keys: dict[str, str]
    engines: tuple[Engine, Engine]
    valkey: redis.Redis
    valkey_url: str

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes."""
        return f"{self.url}/v1"

    def events(self, tenant: str) -> dict[str, UsageEvent]:
        """The tenant's usage events by request id, read off its stream in Valkey. Each id has one."""
        entries = self.valkey.xrange(TenantKeys(tenant).events)
        events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
        by_id = {event.id: event for event in events}
        assert len(by_id) == len(events), "two events have the same id"
        return by_id

    def event(self, tenant: str, request_id: str, timeout_s: float = 3.0) -> UsageEvent:
        """One request's event; of one that was cut it comes shortly after the cut."""
        deadline_s = time.monotonic() + timeout_s
        while (found := self.events(tenant).get(request_id)) is None:
            assert time.monotonic() < deadline_s, f"no usage event for {request_id} within {timeout_s:g} s"
            time.sleep(0.02)
        return found

    def usage_totals(self, tenant: str) -> dict[str, object]:
        """`totals` of `GET /v1/usage` over the last two days, asked by the tenant itself."""
        answer = httpx.get(
            f"{self.base_url}/usage",
            params={"bucket": "1h", "start": int(time.time()) - 86_400},
            headers={"Authorization": f"Bearer {self.keys[tenant]}"},
            trust_env=False,
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        totals: dict[str, object] = answer.json()["totals"]
        return totals


def scripts() -> Path:
    """Where the scripts that install and start vLLM are. Skips when they are not there."""
    given = os.environ.get("MTOK_REAL_VLLM_DIR")
    directory = Path(given) if given else REPOSITORY.parent / "shared" / "real-vllm"
    if not (directory / "start.sh").is_file():
        pytest.skip(f"no real vLLM: {directory} holds no start.sh; set MTOK_REAL_VLLM_DIR")
    return directory


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """Two replicas, installed first if need be."""
    if given := os.environ.get("MTOK_REAL_VLLM_URLS"):
        first, second = given.split(",")
        yield Engine(first), Engine(second)
        return
    directory = scripts()
    if not (INSTALLED / "venv" / "bin" / "vllm").exists():
        subprocess.run([directory / "setup.sh"], check=True, timeout=INSTALL_TIMEOUT_S)
    logs = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:
        started = []
        for name in ("first", "second"):
            port = free_port()
            command = [str(directory / "start.sh"), str(port)]
            process = stack.enter_context(running(command, log=logs / f"{name}.log"))
            started.append(Engine(f"http://127.0.0.1:{port}", process))
        for engine in started:
            _wait_for(engine, logs)
            engine.yield_cores()
        yield started[0], started[1]


@pytest.fixture(scope="session")
def served(engines: tuple[Engine, Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway with its embedded Valkey, one for the session."""
    directory = tmp_path_factory.mktemp("gateway")
    policies, data = directory / "policies", directory / "data"
    policies.mkdir()
    keys = {tenant: new_key(tenant) for tenant in TENANTS}
    hashes = {tenant: hash_key(key) for tenant, key in keys.items()}
    document = _POLICIES.format(first=engines[0].url, second=engines[1].url, **hashes)
    (policies / "policies.yaml").write_text(document)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running(
            mtok("serve", "--policies", str(policies), "--port", str(port)),
            log=directory / "gateway.log",
            ready_url=f"{url}/readyz",
            environment={"MTOK_DATA_DIR": str(data), "MTOK_REDIS_URL": "", "MTOK_LOG": "info"},
        ),
        embedded(data) as valkey_url,
        redis.Redis.from_url(valkey_url) as valkey,
    ):
        yield Served(url, keys, engines, valkey, valkey_url)
        print(f"\nthe gateway's log: {directory / 'gateway.log'}")


def _wait_for(engine: Engine, logs: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if engine.http.get(f"{engine.url}/health").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        assert engine.process is not None
        assert engine.process.poll() is None, f"vLLM ended while it started; see {logs}"
        assert time.monotonic() < deadline_s, f"vLLM did not start within {START_TIMEOUT_S:g} s; see {logs}"
        time.sleep(0.5)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
