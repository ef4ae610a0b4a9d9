"""`mtok demo`, what `make run` starts: two simulated replicas, the embedded Valkey and the gateway, ready for calls."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx

from gateway.settings import Settings
from gateway.tenants import hash_key, new_key

from ._workers import StartError, listening, serve

START_TIMEOUT_S = 30.0
MODEL = "llama-8b"

_POLICIES = """\
# Written by `mtok demo` at every start. Copy it to begin your own.
models:
  {model}:
    engine: vllm
    replicas: [{{url: "{first}"}}, {{url: "{second}"}}]
    gpu: {{sku: H200, count: 1}}
    price: {{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}}
tenants:
  demo:
    keys: [{{id: demo, sha256: "{sha256}"}}]
    models: ["*"]
    class: interactive
    limits:
      requests_per_minute: 600
      tokens_per_minute: 2000000
      concurrent_requests: 64
      budget_usd: 50
      budget_period: month
classes:
  interactive: {{priority: 10, weight: 1, max_wait_s: 2, slo: {{ttft_p99_ms: 600, itl_p99_ms: 80}}}}
"""

_GREETING = """
Mtok is ready.

  base URL   {url}/v1
  demo key   {key}

With curl:

curl {url}/v1/chat/completions \\
  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

With the OpenAI SDK (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content, answer.usage)

What it used and cost:

curl {url}/v1/usage -H 'Authorization: Bearer {key}'

Ctrl-C stops everything.
"""


def demo(*, host: str, port: int, workers: int, settings: Settings) -> None:
    """Serves the demo until SIGTERM or SIGINT. Raises `StartError`; for a taken port before anything is started."""
    with listening(host, port):
        pass
    key = new_key("demo")
    with _replicas() as urls:
        policies = settings.data_dir / "demo" / "policies"
        policies.mkdir(parents=True, exist_ok=True)
        document = _POLICIES.format(model=MODEL, first=urls[0], second=urls[1], sha256=hash_key(key))
        (policies / "demo.yaml").write_text(document)
        shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
        url = f"http://{shown_host}:{port}"
        threading.Thread(target=_greet, args=(url, key), daemon=True).start()
        serve(policies, host=host, port=port, workers=workers, settings=settings)


@contextlib.contextmanager
def _replicas() -> Iterator[list[str]]:
    """Two simulated replicas, in sessions of their own: Ctrl-C must not take them from answers that still run."""
    ports = [_free_port() for _ in range(2)]
    processes = []
    try:
        for replica_port in ports:
            command = [sys.executable, "-m", "gateway.cli", "simulate", "--port", str(replica_port), "--model", MODEL]
            processes.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL))  # noqa: S603
        urls = [f"http://127.0.0.1:{replica_port}" for replica_port in ports]
        for url, process in zip(urls, processes, strict=True):
            _wait_for(f"{url}/health", process)
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise StartError(f"a simulated replica ended with status {process.returncode} before it was ready")
        if _answers(url):
            return
        time.sleep(0.05)
    raise StartError(f"{url} did not answer within {START_TIMEOUT_S:g} s")


def _greet(url: str, key: str) -> None:
    """Says how to call the gateway, once it can be called."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if _answers(f"{url}/readyz"):
            print(_GREETING.format(url=url, key=key, model=MODEL), flush=True)
            return
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
