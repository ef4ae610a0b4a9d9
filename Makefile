# Two commands do all on a fresh machine: `make run` and `make test`. Everything else is for people who work on Mtok.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install run test test-long lint format test-real simulate-ledger simulate-admission bench bench-admission bench-routing bench-routing-peers chaos chaos-fleet prove-admission lock clean

install: $(VENV)/.installed

run: $(VENV)/.installed
	@exec $(BIN)/mtok demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile -m 'not long'

# What kills processes for half a minute each: the short forms of chaos and prove-admission.
test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/integration -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-real: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/real -s --timeout 1800

# 100,000 schedules of journals, shippers and budgets: about 20 minutes on 2 cores.
simulate-ledger: $(VENV)/.installed-dev
	MTOK_SCHEDULES=100000 $(BIN)/python -m pytest tests/simulation/test_ledger_world.py -n auto

# More seeds of each: some minutes on 2 cores.
simulate-admission: $(VENV)/.installed-dev
	MTOK_SEEDS=20 $(BIN)/python -m pytest tests/simulation/test_fair_queue.py tests/simulation/test_scenarios.py tests/simulation/test_noisy_neighbour.py -n auto --timeout 1800

bench: $(VENV)/.installed-dev
	$(BIN)/python loadtest/bench.py
	$(BIN)/python loadtest/ledger_cost.py
	$(BIN)/python loadtest/refusal_cost.py
	$(BIN)/python loadtest/price_cost.py
	$(BIN)/python loadtest/routing_cost.py

# Overload on the simulated H200, through Mtok and through what others do: some minutes, in virtual time.
bench-admission: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.overload

# make bench-routing ROUTING='--seeds 1 chat': placement in virtual time, beside what others do; all take half an hour.
bench-routing: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.routing $(ROUTING)

# The same on sockets, with vllm-router and sglang-router themselves: some minutes.
bench-routing-peers: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.routing.peers

# make chaos CHAOS='--seed 7': the requests and strikes of a run before.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.chaos $(CHAOS)

# make chaos-fleet FLEET='--requests 2000 --seed 7': replicas die, hang, talk nonsense, come and go.
chaos-fleet: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.fleet_chaos $(FLEET)

# make prove-admission PROOF=limits: one of them; all take some minutes.
prove-admission: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.admission $(PROOF)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Mtok needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python requirements.lock pyproject.toml
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

# Resolves again for every platform and Python from 3.11 on; the indexes in use are not written down.
lock: $(VENV)/.python
	$(PIP) uv
	$(BIN)/uv pip compile pyproject.toml requirements-build.in --universal --python-version 3.11 --generate-hashes --no-annotate --no-header -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml requirements-build.in --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate --no-header -c requirements.lock -q -o requirements-dev.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
