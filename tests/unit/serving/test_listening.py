"""The listening socket: made once, or a sentence that says why not."""

from __future__ import annotations

import socket

import pytest

from gateway.serving import StartError, listening


def test_a_taken_port_is_named() -> None:
    """The message names the port that is taken, before anything else has been started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=str(port)), listening("127.0.0.1", port):
            pass


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host", "not.a.host.invalid"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    """So does one that this machine does not have."""
    with pytest.raises(StartError, match=host), listening(host, 0):
        pass


def test_a_port_that_was_just_used_is_free_again() -> None:
    """A restart does not wait for the kernel to forget old connections; what came meanwhile is accepted."""
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = first.accept()
            accepted.close()
    with listening("127.0.0.1", port) as second, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = second.accept()
        accepted.close()
