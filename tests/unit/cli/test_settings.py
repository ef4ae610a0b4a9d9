"""The environment: defaults, what each variable may be, and secrets that stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import VARIABLES, Settings, SettingsError

ADMIN = "correct-horse-battery-staple"


def test_without_variables_the_defaults_hold() -> None:
    """Embedded Valkey in ./.mtok, no administrator, info, 32 MiB, 30 s to send and 30 s to drain."""
    assert Settings.from_environment({}) == Settings(
        redis_url=None,
        data_dir=Path(".mtok"),
        admin_key_sha256=None,
        log_level="info",
        max_body_bytes=33_554_432,
        read_timeout_s=30.0,
        drain_timeout_s=30.0,
    )


def test_every_variable_is_read(tmp_path: Path) -> None:
    """All ten at once; case of the level and spaces do not matter."""
    settings = Settings.from_environment(
        {
            "MTOK_REDIS_URL": "redis://:pw@host:6379/0",
            "MTOK_DATA_DIR": str(tmp_path),
            "MTOK_ADMIN_KEY": ADMIN,
            "MTOK_SINK_TOKEN": "om_123",
            "MTOK_ALERTS_TOKEN": "hook_456",
            "MTOK_CACHE_SECRET": "0123456789abcdef0123456789abcdef",
            "MTOK_LOG": " Warning ",
            "MTOK_MAX_BODY_BYTES": "1024",
            "MTOK_READ_TIMEOUT_S": "2.5",
            "MTOK_DRAIN_TIMEOUT_S": "0",
        }
    )
    assert settings.redis_url == "redis://:pw@host:6379/0"
    assert (settings.data_dir, settings.log_level, settings.max_body_bytes) == (tmp_path, "warning", 1024)
    assert (settings.read_timeout_s, settings.drain_timeout_s) == (2.5, 0.0)
    assert settings.is_admin(ADMIN.encode())
    assert (settings.sink_token, settings.alerts_token) == ("om_123", "hook_456")
    assert settings.cache_secret == b"0123456789abcdef0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings)
    assert "om_123" not in repr(settings)
    assert "hook_456" not in repr(settings)


def test_an_empty_variable_is_an_unset_one() -> None:
    """Compose files write `MTOK_REDIS_URL=` for nothing."""
    assert Settings.from_environment(dict.fromkeys(VARIABLES, " ")) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MTOK_REDIS_URL", "localhost:6379", "MTOK_REDIS_URL is not an address of Redis; write redis://HOST:PORT/DB"),
        ("MTOK_CACHE_SECRET", "guess me", "MTOK_CACHE_SECRET could be guessed: write at least 32 random characters"),
        ("MTOK_REDIS_URL", "redis://", "MTOK_REDIS_URL is not an address of Redis"),
        ("MTOK_REDIS_URL", "redis://h:port", "MTOK_REDIS_URL is not an address of Redis"),
        ("MTOK_REDIS_URL", "http://h", "MTOK_REDIS_URL is not an address of Redis"),
        ("MTOK_DATA_DIR", "/dev/null", "MTOK_DATA_DIR is '/dev/null', which is a file; name a directory"),
        ("MTOK_LOG", "loud", "MTOK_LOG is 'loud'; write one of debug, info, warning, error"),
        ("MTOK_MAX_BODY_BYTES", "32MiB", "MTOK_MAX_BODY_BYTES is '32MiB'; write a whole number of bytes above 0"),
        ("MTOK_MAX_BODY_BYTES", "0", "MTOK_MAX_BODY_BYTES is '0'; write a whole number of bytes above 0"),
        ("MTOK_MAX_BODY_BYTES", "-1", "MTOK_MAX_BODY_BYTES is '-1'; write a whole number of bytes above 0"),
        ("MTOK_READ_TIMEOUT_S", "0", "MTOK_READ_TIMEOUT_S is '0'; write a number of seconds above 0, e.g. 30"),
        ("MTOK_READ_TIMEOUT_S", "nan", "MTOK_READ_TIMEOUT_S is 'nan'; write a number of seconds without a unit"),
        ("MTOK_DRAIN_TIMEOUT_S", "30s", "MTOK_DRAIN_TIMEOUT_S is '30s'; write a number of seconds without a unit"),
        ("MTOK_DRAIN_TIMEOUT_S", "1e9", "MTOK_DRAIN_TIMEOUT_S is '1e9'; write a number of seconds without a unit"),
        ("MTOK_REDIS_URI", "redis://h", "MTOK_REDIS_URI is not a setting; did you mean MTOK_REDIS_URL?"),
        ("MTOK_READ_TIMEOUT", "5", "MTOK_READ_TIMEOUT is not a setting; did you mean MTOK_READ_TIMEOUT_S?"),
    ],
)
def test_a_bad_value_names_its_variable_and_says_what_to_write(name: str, value: str, told: str) -> None:
    """One clear sentence for each way to get one wrong, misspelt names included."""
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({name: value})
    assert str(refused.value).startswith(told)


def test_variables_that_others_set_are_left_alone() -> None:
    """Kubernetes adds these for services called mtok and mtok-redis."""
    others = ("MTOK_PORT", "MTOK_SERVICE_HOST", "MTOK_PORT_8000_TCP_ADDR", "MTOK_REDIS_PORT", "MTOK_REDIS_SERVICE_HOST")
    assert Settings.from_environment(dict.fromkeys(others, "tcp://10.0.0.1:8000")) == Settings()


def test_secrets_are_in_no_repr_and_no_error() -> None:
    """Neither the administrator's key nor the password in the address."""
    settings = Settings.from_environment({"MTOK_ADMIN_KEY": ADMIN, "MTOK_REDIS_URL": "redis://:hunter22@h"})
    assert ADMIN not in repr(settings)
    assert "hunter22" not in repr(settings)
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({"MTOK_REDIS_URL": "http://:hunter22@h"})
    assert "hunter22" not in str(refused.value)


def test_only_the_administrators_key_is_the_administrators() -> None:
    """Compared whole; without one set nobody is."""
    settings = Settings.from_environment({"MTOK_ADMIN_KEY": ADMIN})
    assert not settings.is_admin(ADMIN[:-1].encode())
    assert not settings.is_admin(b"")
    assert not Settings().is_admin(b"")
