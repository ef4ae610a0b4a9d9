"""`mtok serve`, `mtok demo`, `mtok simulate`: what runs until it is stopped."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.policy import PolicyError

from ._words import ENVIRONMENT, FAILED, MISUSED, fail, fail_policies, settings

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.", metavar="ADDRESS")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
Workers = Annotated[int, typer.Option(help="Processes that share the port; about one per core.", min=1, max=256)]


def add_to(app: typer.Typer) -> None:
    """Adds the three commands."""
    app.command(epilog=ENVIRONMENT)(serve)
    app.command(epilog=ENVIRONMENT)(demo)
    app.command()(simulate)


def serve(
    policies: Annotated[Path, typer.Option(help="Directory of policy documents; every *.yaml in it.", metavar="DIR")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Workers = 1,
) -> None:
    """Run the gateway.

    Apps point their OpenAI SDK's base_url at http://HOST:PORT/v1. SIGTERM stops it: /readyz turns to 503, running
    requests finish (MTOK_DRAIN_TIMEOUT_S), everything is metered.

    Example: mtok serve --policies policies --host 0.0.0.0 --workers 4
    """
    from gateway.serving import StartError
    from gateway.serving import serve as run
    from gateway.store import EmbeddedStoreFailed

    try:
        run(policies, host=host, port=port, workers=workers, settings=settings())
    except PolicyError as error:
        fail_policies(error)
    except (StartError, EmbeddedStoreFailed) as error:
        fail(str(error))


def demo(host: Host = "127.0.0.1", port: Port = 8000, workers: Workers = 1) -> None:
    """Run everything on this machine: two simulated vLLM replicas, an embedded Valkey and the gateway.

    Prints the base URL, a key, and a curl and an OpenAI SDK snippet that work when pasted. Needs no GPU.

    Example: mtok demo --port 8080
    """
    from gateway.serving import StartError
    from gateway.serving import demo as run
    from gateway.store import EmbeddedStoreFailed

    try:
        run(host=host, port=port, workers=workers, settings=settings())
    except (StartError, EmbeddedStoreFailed) as error:
        fail(str(error))


def simulate(  # noqa: PLR0917 - options have names on the command line
    port: Port,
    profile: Annotated[str | None, typer.Option(help="Engine to imitate, by its name.", metavar="NAME")] = None,
    host: Host = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="Name of the served model.")] = None,
    speed: Annotated[float | None, typer.Option(help="Times as fast as the profile.", min=0.001)] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Sequences that run at once.", min=1)] = None,
    kv_blocks: Annotated[int | None, typer.Option(help="KV cache, in blocks.", min=2)] = None,
    context: Annotated[int | None, typer.Option(help="Longest prompt and answer, in tokens.", min=1)] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of one step.", min=1)] = None,
    long_prefill_token_threshold: Annotated[
        int | None, typer.Option(help="Prompt tokens of one request in one step; 0: no such limit.", min=0)
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Answer /v1/embeddings too.")] = False,
) -> None:
    """Run one vLLM replica without a GPU: the same endpoints, bytes, metrics, batching and times.

    What is not given comes from the profile; the default one was measured on vLLM 0.24 with one H200.

    Example: mtok simulate --port 9001 --profile tiny --model tiny
    """
    from gateway.simulator import PROFILES, run

    chosen = PROFILES.get(profile) if profile is not None else next(iter(PROFILES.values()))
    if chosen is None:
        fail(f"there is no profile {profile!r}; known are {', '.join(PROFILES)}", MISUSED)
    try:
        chosen = chosen.override(
            model=model,
            context=context,
            max_num_seqs=max_num_seqs,
            kv_blocks=kv_blocks,
            speed=speed,
            max_num_batched_tokens=max_num_batched_tokens,
            long_prefill_token_threshold=long_prefill_token_threshold,
        )
    except ValueError as error:
        fail(f"profile {chosen.name!r} cannot be changed so: {error}", MISUSED)
    try:
        run(host=host, port=port, profile=chosen, embeddings=embeddings)
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.", FAILED)
