"""Clients of the control plane, which reads pages and asks questions."""

from __future__ import annotations

import ssl
from functools import cache

import httpx


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificate authorities takes 40 ms of CPU: once for all clients of a process."""
    return httpx.create_ssl_context()


def http_client(timeout_s: float) -> httpx.AsyncClient:
    """A client that goes to replicas directly, whatever proxy the environment names."""
    return httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=_tls())
