"""What is deployed is what is tested: no daemon is needed to know that the image's and compose's commands are real."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from gateway.cli._app import app
from gateway.policy import load
from gateway.settings import Settings

SERVICES = ("gateway", "replica-1", "replica-2")


@pytest.fixture(scope="module")
def deploy(repository: Path) -> Path:
    """The directory of compose's files."""
    return repository / "deploy"


@pytest.fixture(scope="module")
def compose(deploy: Path) -> dict[str, Any]:
    """The compose document."""
    document: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text())
    return document


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options that `mtok` reads in a command line. Raises what the command line would print."""
    group = typer.main.get_command(app)
    context = group.make_context("mtok", list(arguments))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
    options: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return options


@pytest.mark.parametrize("service", SERVICES)
def test_compose_commands_are_command_lines_of_mtok(compose: dict[str, Any], service: str) -> None:
    """Every option exists and every value fits; it listens where other containers can reach it."""
    options = parsed(compose["services"][service]["command"])
    assert options["host"] == "0.0.0.0"
    probe = compose["services"][service]["healthcheck"]["test"][-1]
    assert f":{options['port']}/" in probe, "the healthcheck asks another port"


def test_the_images_command_is_a_command_line_of_mtok(repository: Path) -> None:
    """`docker run mtok` serves the policies that the image has a directory for, as a user that is not root."""
    dockerfile = (repository / "Dockerfile").read_text()
    entrypoint, command = (
        json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", dockerfile, re.M)
    )
    assert entrypoint == ["mtok"]
    options = parsed(command)
    assert str(options["policies"]) in dockerfile.partition("install -d")[2].splitlines()[0]
    assert re.search(r"^USER (?!root)", dockerfile, re.M)
    assert "--require-hashes -r requirements.lock" in dockerfile


def test_what_the_image_copies_is_in_its_context(repository: Path) -> None:
    """`.dockerignore` shuts out all but what the Dockerfile copies."""
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", (repository / "Dockerfile").read_text(), re.M)
        for name in line.split()
    ]
    allowed = re.findall(r"^!(.+)$", (repository / ".dockerignore").read_text(), re.M)
    assert sorted(copied) == sorted(allowed)
    assert all((repository / name).exists() for name in copied)


def test_compose_policies_load_and_name_the_replicas(deploy: Path, compose: dict[str, Any]) -> None:
    """The policies that compose mounts are valid, and each replica's address is a service that serves that model."""
    gateway = compose["services"]["gateway"]
    mount = next(volume for volume in gateway["volumes"] if volume.startswith("./"))
    source, target, _ = mount.split(":")
    assert str(parsed(gateway["command"])["policies"]) == target
    policies = load(deploy / source)
    urls = [replica.url for model in policies.models.values() for replica in model.replicas]
    assert urls
    for model in policies.models.values():
        for replica in model.replicas:
            address = urlsplit(replica.url)
            options = parsed(compose["services"][address.hostname]["command"])
            assert (options["port"], options["model"]) == (address.port, model.name)


def test_compose_environment_is_what_mtok_reads(compose: dict[str, Any]) -> None:
    """No misspelt variable, no value that cannot be used; the store is the service beside it."""
    gateway = compose["services"]["gateway"]
    environment = {name: re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value) for name, value in gateway["environment"].items()}
    settings = Settings.from_environment(environment)
    assert urlsplit(settings.redis_url).hostname in compose["services"]
    grace_s = int(gateway["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_timeout_s, "compose would kill a gateway that drains"
