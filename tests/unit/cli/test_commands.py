"""The command line without a store: help, exit codes, one clear line for what was asked wrongly."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.settings import VARIABLES

COMMANDS = [
    ["serve"],
    ["demo"],
    ["simulate"],
    ["usage"],
    ["usage", "show"],
    ["usage", "export"],
    ["correct"],
    ["why"],
    ["top"],
    ["drain"],
    ["doctor"],
    *(["keys", name] for name in ("create", "list", "rotate", "revoke")),
    ["policy", "check"],
    ["policy", "explain"],
    ["policy", "diff"],
    ["cost", "import"],
    *([name] for name in ("bill", "economics", "plan", "what-if")),
    *(["price", name] for name in ("quote", "show", "history", "why")),
]


def mtok(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environ)


def test_the_commands_are_these() -> None:
    """The names people put into scripts; `mtok` alone shows them."""
    listed = re.findall(r"^  ([a-z-]+) ", mtok("--help").stdout.split("Commands:")[1].split("Environment")[0], re.M)
    names = (
        "audit bill correct cost demo doctor drain economics keys plan policy price serve simulate top usage what-if"
    )
    assert sorted(listed) == [*names.split(), "why"]
    assert "Commands:" in mtok().output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_help_page_says_what_it_does_and_gives_an_example(command: list[str]) -> None:
    """Help is complete: a sentence, every option with a text, an example that begins with the command."""
    result = mtok(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: mtok {' '.join(command)}" in result.stdout
    options = re.findall(r"^  --[a-z-]+.*(?:\n {4,}.*)?", result.stdout, re.M)
    assert all(re.search(r"  [A-Z]", option) for option in options)


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"]], ids=["mtok", "serve", "demo"])
def test_help_names_every_setting(command: list[str]) -> None:
    """What the environment can say is on the pages of what reads it."""
    page = mtok(*command, "--help").stdout
    assert all(name in page for name in VARIABLES)


def test_help_does_not_wait_for_the_gateways_imports() -> None:
    """A help page imports neither redis nor a server."""
    code = "import sys, gateway.cli; sys.exit(bool({'redis', 'uvicorn', 'starlette'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_is_the_command_too() -> None:
    """`python -m gateway.cli` is `mtok`, exit code included."""
    command = [sys.executable, "-m", "gateway.cli", "policy", "check", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mtok: 1 problem in /nowhere:\n/nowhere: there is no such directory\n"


def test_policy_check_counts_what_is_good() -> None:
    """The example is good, and the line says what was read."""
    result = mtok("policy", "check", "policies")
    assert result.exit_code == 0
    assert re.fullmatch(r"policies: good\. 1 model, 1 tenant, 1 class; sha256 [0-9a-f]{12}\n", result.stdout)


def test_policy_check_tells_every_problem_on_its_own_line(tmp_path: Path) -> None:
    """On stderr, with exit code 2, so that a pipeline stops."""
    (tmp_path / "a.yaml").write_text('models: {m: {replicas: [{url: "h:1"}], engin: vllm}}\n')
    result = mtok("policy", "check", str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"mtok: 2 problems in {tmp_path}:\n"
        f"{tmp_path}/a.yaml:1: models.m.engin: unknown field 'engin'; did you mean 'engine'?\n"
        f"{tmp_path}/a.yaml:1: models.m.replicas[0].url: 'h:1' must begin with http:// or https://: write http://h:1\n"
    )


def test_serve_refuses_bad_policies_before_it_starts(tmp_path: Path) -> None:
    """Exit code 2 and the problems, no traceback."""
    (tmp_path / "a.yaml").write_text("models: {}\n")
    result = mtok("serve", "--policies", str(tmp_path))
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"mtok: the policies cannot be used:\n{tmp_path}: models: no model is defined; name one with its replicas\n"
    )


def test_a_bad_variable_is_one_line(tmp_path: Path) -> None:
    """Every command that reads the environment says which variable is wrong."""
    result = mtok("keys", "list", MTOK_LOG="loud", MTOK_DATA_DIR=str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == "mtok: MTOK_LOG is 'loud'; write one of debug, info, warning, error\n"


def test_price_quote_of_scenario_a() -> None:
    """2 x H100 at 4,800 tokens/s: the figures of the economics page."""
    two = ("--gpu", "h100", "--count", "2")
    result = mtok("price", "quote", *two, "--usd-per-hour", "2.99", "--output-tok-s", "4800")
    assert result.exit_code == 0
    assert result.stdout == (
        "2 x H100 (2.99 $/h each): 5.980 $/h, 17.280 Mtok/h\n"
        "output               0.346 $/Mtok\n"
        "input (0.28)         0.097 $/Mtok\n"
        "cached (0.1)         0.035 $/Mtok\n"
        "blended 3:1          0.159 $/Mtok  (0.460 x output)\n"
    )
    listed = mtok("price", "quote", *two, "--output-tok-s", "4800", "--blend", "3:1", "--input-ratio", "0.30")
    assert listed.stdout.startswith("2 x H100 (2.99 $/h each, on demand, list 2026-06-15, ")
    assert " days old): 5.980 $/h, 17.280 Mtok/h\n" in listed.stdout
    assert listed.stdout.endswith("blended 3:1          0.164 $/Mtok  (0.475 x output)\n")


def test_price_quote_shows_overhead_apart() -> None:
    """What the GPUs alone cost, and what idle hours, egress and headroom put on top of it."""
    result = mtok("price", "quote", "--usd-per-hour", "5.99", "--output-tok-s", "7200", "--overhead", "1.5")
    assert result.stdout.splitlines()[1:4] == [
        "GPUs alone           0.231 $/Mtok output",
        "overhead x1.5        0.116 $/Mtok on top, in all prices below",
        "output               0.347 $/Mtok",
    ]


def test_price_quote_as_json_has_amounts_as_strings() -> None:
    """Scenario B by its bill, with overhead; no float on the way."""
    arguments = ["--usd-per-hour", "$5.99", "--output-tokens-per-second", "7200", "--overhead", "1.5", "--json"]
    quoted = json.loads(mtok("price", "quote", *arguments).stdout)
    assert quoted == {
        "object": "price.quote",
        "usd_per_hour": "5.99",
        "output_tokens_per_second": "7200",
        "output_mtok_per_hour": "25.92",
        "overhead": "1.5",
        "input_ratio": "0.28",
        "cached_ratio": "0.1",
        "blend_ratio": "3",
        "output_usd_per_mtok": "0.346643519",
        "input_usd_per_mtok": "0.097060185",
        "cached_usd_per_mtok": "0.034664352",
        "blended_usd_per_mtok": "0.159456019",
    }


EXPLAIN = ["policy", "explain", "--policies", "policies", "--model", "tiny", "--prompt-tokens", "9"]


def test_policy_explain_without_a_redis_takes_every_limit_as_whole() -> None:
    """Exit code 0 where it would be served, 1 where not; JSON has all that the table has."""
    served = mtok(*EXPLAIN, "--tenant", "acme", "--at", "2026-11-25T10:00:00Z")
    assert served.exit_code == 0
    assert served.stdout.splitlines()[-1] == "SERVED"
    assert "month:2026-11, begins anew 2026-12-01 00:00:00 UTC" in served.stdout
    assert "as if nobody had used them: no Redis was named" in served.stdout
    refused = mtok(*EXPLAIN[:-1], "3001", "--tenant", "acme", "--json")
    assert refused.exit_code == 1
    told = json.loads(refused.stdout)
    assert (told["object"], told["served"], told["limits"]) == ("policy.explanation", False, "whole")
    assert (told["decided_by"]["dimension"], told["decided_by"]["limit"]) == ("max_input_tokens", 3000)
    assert told["would_pass"] == ["a prompt of at most 3000 tokens", "max_input_tokens of at least 3001 tokens"]


RATE = ["--output-tokens-per-second", "100"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["price", "quote", *RATE], "mtok: say what an hour costs: --gpu SKU or --usd-per-hour USD, with --count"),
        (
            ["price", "quote", *RATE, "--gpu", "H1000"],
            "mtok: --gpu 'H1000' is not in the catalogue; did you mean H100?",
        ),
        (["price", "quote", *RATE, "--gpu", "B100"], "mtok: nobody says what B100 costs on demand"),
        (["price", "quote", *RATE, "--gpu", "L4", "--blend", "3:0"], "'3:0' is no blend; write input to output"),
        (["price", "quote", *RATE, "--gpu", "L4", "--purchase", "gift"], "'gift' is none of on_demand, reserved, spot"),
        (["price", "quote", *RATE, "--gpu", "L4", "--input-ratio", "28"], "mtok: input_ratio is a share of the output"),
        (["price", "quote", *RATE, "--gpu", "L4", "--overhead", "x"], "'x' is not a plain number, e.g. 2.99"),
        (["price", "quote", "--gpu", "L4"], "Missing option '--output-tok-s'"),
        (["usage", "--bucket", "2h", "acme"], "mtok: bucket is '2h'; it is one of 1m, 1h, 1d."),
        (["usage", "show", "export", "--bucket", "2h"], "mtok: bucket is '2h'; it is one of 1m, 1h, 1d."),
        (["usage", "export"], "Missing option '--format'"),
        (["usage", "acme", "--bucket", "2h"], "mtok: bucket is '2h'; it is one of 1m, 1h, 1d."),
        (["usage", "acme", "--start", "yesterday"], "mtok: start is 'yesterday'; send Unix seconds"),
        (["usage", "acme", "--group-by", "tenant"], "mtok: group_by is 'tenant'; it is some of model, key, "),
        (["keys", "rotate", "a", "--grace", "1x"], "'1x' is not a duration; write a number with a unit, e.g. 30s, 15m"),
        (["simulate", "--port", "9001", "--profile", "nope"], "mtok: there is no profile 'nope'; known are "),
        (["simulate", "--port", "90010"], "Invalid value for '--port': Input should be less than or equal to 65535"),
        (
            ["simulate", "--port", "9001", "--context", "999999999"],
            "mtok: profile 'h200-llama-8b' cannot be changed so: a context of 999999999 tokens does not fit",
        ),
        ([*EXPLAIN, "--tenant", "acne"], "mtok: no tenant is named 'acne'; there are acme"),
        ([*EXPLAIN, "--tenant", "acme", "--at", "noon"], "mtok: --at is 'noon'; send Unix seconds"),
        ([*EXPLAIN, "--tenant", "acme", "--redis-url", "http://h"], "mtok: --redis-url: "),
        ([*EXPLAIN, "--tenant", "acme", "--redis-url", "redis://127.0.0.1:1"], "mtok: Redis does not answer; is its"),
        (["why", "r", "--start", "yesterday"], "mtok: start is 'yesterday'; send Unix seconds"),
        (["serve"], "Missing option '--policies'"),
        (["serv"], "No such command 'serv'. Did you mean 'serve'?"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_line_with_exit_code_2(arguments: list[str], told: str) -> None:
    """No traceback, nothing on stdout."""
    result = mtok(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_redis_that_does_not_answer_is_one_line() -> None:
    """Exit code 1: it was asked rightly and could not be done."""
    environ = os.environ | {"MTOK_REDIS_URL": "redis://127.0.0.1:1"}
    for arguments in (["keys", "list"], ["usage", "acme"], ["usage", "export", "--format", "csv"]):
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments], env=environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"mtok: Redis does not answer.*; is MTOK_REDIS_URL right\?\n", done.stderr)


@pytest.mark.parametrize(
    "arguments", [["serve", "--policies", "policies"], ["demo"], ["simulate"]], ids=["serve", "demo", "simulate"]
)
def test_a_taken_port_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    """Exit code 1, the port, and what to do; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = os.environ | {"MTOK_DATA_DIR": str(tmp_path)}
        command = [sys.executable, "-m", "gateway.cli", *arguments, "--port", port]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert port in done.stderr
    assert "address already in use" in done.stderr.lower()
    assert done.stderr.count("\n") == 1
