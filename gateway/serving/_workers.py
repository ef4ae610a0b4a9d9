"""`mtok serve`: one listening socket, one store, N worker processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from gateway import telemetry
from gateway.app import Gateway
from gateway.policy import Policies, PolicyError, load
from gateway.settings import Settings
from gateway.store import embedded

from ._server import run_worker

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


def serve(policies: Path, *, host: str, port: int, workers: int, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises `PolicyError` and `StartError` before anything has been started."""
    telemetry.configure(settings.log_level)
    loaded = load(policies)
    try:
        telemetry.Tracing.from_environment().close()
    except telemetry.TracingError as error:
        raise StartError(str(error)) from error
    with listening(host, port) as sock, _store(settings) as redis_url:
        if workers == 1:
            _work(loaded, policies, settings, redis_url, sock)
        else:
            _supervise(workers, loaded, policies, settings=settings, redis_url=redis_url, sock=sock)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """The one socket all workers accept from: when a worker dies, no connection that waited for it is lost."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(4096)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port."
            ) from error
        yield sock


@contextlib.contextmanager
def _store(settings: Settings) -> Iterator[str]:
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    with embedded(settings.data_dir) as url:
        yield url


def _work(policies: Policies, directory: Path, settings: Settings, redis_url: str, sock: socket.socket) -> None:
    """One worker, in this process."""
    telemetry.configure(settings.log_level)
    run_worker(Gateway(policies, settings, redis_url, directory=directory), sock, settings)


def _supervise(
    count: int, policies: Policies, directory: Path, *, settings: Settings, redis_url: str, sock: socket.socket
) -> None:
    """Keeps `count` workers running until told to stop, then lets them drain."""
    # Workers write their metrics to files that any of them can add up; prometheus_client reads this at import.
    metrics_dir = settings.data_dir / "metrics" / str(os.getpid())
    metrics_dir.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir.resolve())
    context = multiprocessing.get_context("spawn")

    def start() -> BaseProcess:
        process = context.Process(target=_work, args=(policies, directory, settings, redis_url, sock))
        process.start()
        return process

    def start_again() -> BaseProcess:
        """With the policies that are there now, or with those that were good last."""
        nonlocal policies
        try:
            policies = load(directory)
        except PolicyError as error:
            log.error("a worker starts with the last good policies; those there now cannot be used:\n%s", error)
        return start()

    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        _tell(signal.SIGTERM, processes)

    def reload(signum: int, frame: object) -> None:
        _tell(signal.SIGHUP, processes)

    def is_stopping() -> bool:
        return stopping

    processes = [start() for _ in range(count)]
    signal.signal(signal.SIGHUP, reload)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        while not is_stopping():
            wait([process.sentinel for process in processes], timeout=1.0)
            for position, process in enumerate(processes):
                if not is_stopping() and not process.is_alive():
                    log.error("worker %s died with status %s; starting another", process.pid, process.exitcode)
                    mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                    time.sleep(RESTART_PAUSE_S)
                    if is_stopping():
                        break
                    processes[position] = start_again()
                    if is_stopping():  # told while it was not among them
                        _tell(signal.SIGTERM, processes[position : position + 1])
        for process in processes:
            process.join()
    finally:
        shutil.rmtree(metrics_dir, ignore_errors=True)


def _tell(signum: signal.Signals, processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signum)
