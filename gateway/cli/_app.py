"""All commands together, and the last word on errors.

What imports redis or a server is imported by the command that needs it: that takes 0.2 to 0.4 s, and a help page or
`mtok policy check` in an editor's save hook should answer in 0.1.
"""

from __future__ import annotations

import signal

import typer

from . import (
    _audit,
    _bill,
    _correct,
    _cost,
    _doctor,
    _drain,
    _economics,
    _keys,
    _policy,
    _price,
    _serve,
    _top,
    _usage,
    _why,
)
from ._words import ENVIRONMENT

app = typer.Typer(
    name="mtok",
    help="Mtok: the OpenAI-compatible metering gateway for vLLM fleets.",
    epilog=ENVIRONMENT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help and errors are plain text: the same in a terminal, a pipe and a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_serve.add_to(app)
app.add_typer(_keys.app, name="keys")
app.add_typer(_policy.app, name="policy")
_usage.add_to(app)
_why.add_to(app)
_correct.add_to(app)
_audit.add_to(app)
_top.add_to(app)
_doctor.add_to(app)
_drain.add_to(app)
app.add_typer(_price.app, name="price")
_bill.add_to(app)
app.add_typer(_cost.app, name="cost")
_economics.add_to(app)


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 it could not be done, 2 it was asked wrongly, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
