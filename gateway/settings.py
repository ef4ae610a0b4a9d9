"""The environment (`MTOK_*`): addresses, directories, secrets, and the bounds on what a client may send.

Read once, at the start, into one frozen value. A bad variable is a `SettingsError` that names it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

__all__ = ["VARIABLES", "LogLevel", "Settings", "SettingsError"]

LogLevel = Literal["debug", "info", "warning", "error"]
_LOG_LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")

_REDIS_SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")

_MIB = 1024 * 1024
CACHE_SECRET_LEAST = 32
"""Characters; as hex digits they are 128 bits."""

VARIABLES: Mapping[str, str] = {
    "MTOK_REDIS_URL": "address of Redis or Valkey, e.g. redis://host:6379/0; unset: the embedded Valkey",
    "MTOK_DATA_DIR": "directory of the embedded Valkey and the journals (default ./.mtok)",
    "MTOK_ADMIN_KEY": "key of the administrator, who may ask for any tenant's usage; unset: nobody may",
    "MTOK_SINK_TOKEN": "bearer token for the policies' ledger.sink; unset: none is sent",
    "MTOK_ALERTS_TOKEN": "bearer token for the policies' alerts.url; unset: none is sent",
    "MTOK_CACHE_SECRET": "secret of the salts that keep tenants' caches apart; unset: one made once and kept in Redis",
    "MTOK_LOG": "level of the log: debug, info, warning or error (default info)",
    "MTOK_MAX_BODY_BYTES": "largest request body in bytes (default 33554432, 32 MiB)",
    "MTOK_READ_TIMEOUT_S": "seconds a client has to send its headers and body (default 30)",
    "MTOK_DRAIN_TIMEOUT_S": "seconds that running requests get to finish when the gateway stops (default 30)",
}
"""Every variable with what it means; the command's help and the documentation print these lines."""

_Value = TypeVar("_Value")


class SettingsError(Exception):
    """A variable of the environment cannot be used. The message names it and says what was meant; never its secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one gateway runs. Times are seconds, sizes bytes. Secrets stay out of `repr`."""

    redis_url: str | None = field(default=None, repr=False)
    data_dir: Path = Path(".mtok")
    admin_key_sha256: bytes | None = field(default=None, repr=False)
    sink_token: str | None = field(default=None, repr=False)
    alerts_token: str | None = field(default=None, repr=False)
    cache_secret: bytes | None = field(default=None, repr=False)
    log_level: LogLevel = "info"
    max_body_bytes: int = 32 * _MIB
    read_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads `environ`, by default the process's own. An empty variable counts as unset.

        Raises `SettingsError` for the first variable that cannot be used. A name one slip away from a setting is
        refused too: a misspelt limit would be a limit that is not there. Other `MTOK_*` names are left alone, since
        Kubernetes makes some (`MTOK_PORT`) for a service named mtok.
        """
        environ = os.environ if environ is None else environ
        for name in sorted(environ):
            if name.startswith("MTOK_") and name not in VARIABLES:
                close = get_close_matches(name, VARIABLES, n=1, cutoff=0.9)
                if close:
                    raise SettingsError(f"{name} is not a setting; did you mean {close[0]}?")

        def read(name: str, parse: Callable[[str, str], _Value], default: _Value) -> _Value:
            text = environ.get(name, "").strip()
            return parse(name, text) if text else default

        return cls(
            redis_url=read("MTOK_REDIS_URL", _redis_url, None),
            data_dir=read("MTOK_DATA_DIR", _directory, Path(".mtok")),
            admin_key_sha256=read("MTOK_ADMIN_KEY", _admin_key, None),
            sink_token=read("MTOK_SINK_TOKEN", _token, None),
            alerts_token=read("MTOK_ALERTS_TOKEN", _token, None),
            cache_secret=read("MTOK_CACHE_SECRET", _cache_secret, None),
            log_level=read("MTOK_LOG", _log_level, "info"),
            max_body_bytes=read("MTOK_MAX_BODY_BYTES", _bytes, 32 * _MIB),
            read_timeout_s=read("MTOK_READ_TIMEOUT_S", _seconds, 30.0),
            drain_timeout_s=read("MTOK_DRAIN_TIMEOUT_S", _seconds_or_zero, 30.0),
        )

    def is_admin(self, key: bytes) -> bool:
        """Whether this whole key is the administrator's. Takes the same time for every wrong key."""
        if self.admin_key_sha256 is None:
            return False
        return hmac.compare_digest(hashlib.sha256(key).digest(), self.admin_key_sha256)


def _redis_url(name: str, text: str) -> str | None:
    # The address may hold a password, so no message repeats it.
    try:
        parts = urlsplit(text)
        valid = parts.scheme in _REDIS_SCHEMES and bool(parts.path if parts.scheme == "unix" else parts.hostname)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise SettingsError(
            f"{name} is not an address of Redis; write redis://HOST:PORT/DB, rediss://… or unix:///PATH"
        )
    return text


def _directory(name: str, text: str) -> Path:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{name} is {str(path)!r}, which is a file; name a directory")
    return path


def _admin_key(name: str, text: str) -> bytes | None:
    return hashlib.sha256(text.encode()).digest()


def _token(name: str, text: str) -> str | None:
    if not (text.isascii() and text.isprintable()):
        raise SettingsError(f"{name} is not a token: it goes into a header, so it is printable ASCII")
    return text


def _cache_secret(name: str, text: str) -> bytes | None:
    if len(text) < CACHE_SECRET_LEAST:
        raise SettingsError(f"{name} could be guessed: write at least {CACHE_SECRET_LEAST} random characters")
    return text.encode()


def _log_level(name: str, text: str) -> LogLevel:
    for level in _LOG_LEVELS:
        if level == text.lower():
            return level
    raise SettingsError(f"{name} is {text!r}; write one of {', '.join(_LOG_LEVELS)}")


def _bytes(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise SettingsError(f"{name} is {text!r}; write a whole number of bytes above 0, e.g. 33554432 for 32 MiB")
    return int(text)


def _seconds(name: str, text: str) -> float:
    seconds = _seconds_or_zero(name, text)
    if seconds == 0:
        raise SettingsError(f"{name} is {text!r}; write a number of seconds above 0, e.g. 30")
    return seconds


def _seconds_or_zero(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:  # also refuses nan and inf
        raise SettingsError(f"{name} is {text!r}; write a number of seconds without a unit, e.g. 30 (at most a day)")
    return seconds
