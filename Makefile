# Every habit of this project. `make` alone lists them.
UV_VERSION := 0.13.9
SHELL := /bin/bash
PY := .venv/bin/python
ARGS ?=
# Images set it to save room. Compiling all modules at each start makes everything here several times slower.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup install outside demo demo-fleet run test deep nightly test-all without faults fleet-chaos exact models simulate soak lint types arrows format bench bench-beside bench-fleet lock docs pictures clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv from requirements.lock (builds llama.cpp the first time: 5-10 minutes on 2 cores)
	@tools/setup.sh $(UV_VERSION)

outside: setup ## Install what some tests need beside it: Chromium, nginx, Node …, client libraries, a second model
	@tools/outside.sh

install: ## Install the worker for running, without these tools (TO=/opt/worker-orcd-1, a new folder; EXTRAS=ray: a fleet)
	@tools/install.sh $(UV_VERSION) $(TO)

demo-fleet: setup outside ## See a fleet at work: cancels from anywhere, a worker is killed (needs Ray)
	@$(PY) -m tools.demo_fleet

demo: setup ## See a cancel at work on the bundled model
	@.venv/bin/worker-orcd demo

run: setup ## Start the worker (options in ARGS, e.g. make run ARGS="--port 9000")
	@.venv/bin/worker-orcd $(ARGS)

test: setup ## The quick lane: lint, types, arrows, and the tests that every change needs
	@tools/lane.sh quick $(ARGS)

deep: setup ## The deep lane: browser, clients, proxies, faults, soak, documentation examples, models in depth
	@tools/lane.sh deep $(ARGS)

nightly: setup ## The long proofs: everything that takes more than a few minutes (some hours)
	@tools/outside.sh nightly || echo "some programs are missing; their tests are skipped" >&2
	@tools/lane.sh nightly --timeout 7200 $(ARGS)
	$(MAKE) --no-print-directory exact models faults fleet-chaos demo-fleet simulate soak

test-all: ## All that CI runs: `test`, then `deep`, then `without`
	@$(MAKE) --no-print-directory test deep without

without: setup ## The tests that need optional programs, without these programs (EACH=1: each missing alone)
	@tools/without.sh chromium curl fish gemma3 nginx node node-clients npm promtool python-benchmarks python-clients python-frameworks ray systemd-analyze zsh

faults: setup ## Kill, stop and storm, ten times the sample that is in `make deep` (FAULT_TRIALS=10; half an hour)
	FAULT_TRIALS=$${FAULT_TRIALS:-10} $(PY) -m pytest tests/faults -s --timeout 1800 </dev/null

fleet-chaos: setup ## 1,000 cancels, and ten minutes in which workers and routers of a fleet are killed (FLEET_CANCELS, FLEET_MINUTES)
	FLEET_CANCELS=$${FLEET_CANCELS:-1000} FLEET_MINUTES=$${FLEET_MINUTES:-10} $(PY) -m pytest tests/fleet/test_ray.py -s --timeout 7200 </dev/null

exact: setup ## Streams of `--exact` in a storm of aborts, compared bit by bit (EXACT_STREAMS=3000; half an hour)
	EXACT_STREAMS=$${EXACT_STREAMS:-3000} $(PY) -m pytest tests/real/test_exact_storm.py -s --timeout 7200 </dev/null

models: setup ## Aborted steps on a tiny model of each kind of memory, 200 a model (MODEL_ABORTS=200)
	MODEL_ABORTS=$${MODEL_ABORTS:-200} $(PY) -m pytest -m "" tests/models/test_aborts.py -s --timeout 7200 </dev/null

simulate: setup ## Seeded histories of the whole worker in virtual time (SIMULATED=5000; ten minutes)
	SIMULATION_SEEDS=0:$${SIMULATED:-5000} $(PY) -m pytest tests/simulation -s </dev/null

soak: setup ## 10,000 jobs on each engine, half of them stopped: nothing may grow (SOAK_JOBS=10000)
	SOAK_JOBS=$${SOAK_JOBS:-10000} $(PY) -m pytest tests/soak -s --timeout 7200 </dev/null

lint: setup ## Style and likely bugs (ruff), and the vocabulary (tools/words.py)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m tools.words

types: setup ## Types (mypy --strict over src and tests)
	$(PY) -m mypy

arrows: setup ## Who may import whom (import-linter)
	.venv/bin/lint-imports

format: setup ## Format, and fix what ruff can fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: setup ## Measure how fast a cancel is (bench/cancel.py)
	$(PY) bench/cancel.py $(ARGS)

bench-beside: setup ## The same requests to llama-server (built once) and to the worker, as ratios
	$(PY) -m bench.beside $(ARGS)

bench-fleet: setup outside ## The same cancels through LiteLLM, plain Ray Serve (in front of llama-servers) and a fleet, as ratios
	$(PY) -m bench.fleet $(ARGS)

lock: setup ## Regenerate requirements.lock (ARGS=--upgrade for newer versions)
	.venv/bin/uv pip compile pyproject.toml --group dev --extra worker --extra model --extra mcp --extra otel --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet \
		$(ARGS) --output-file requirements.lock
	.venv/bin/uv pip compile pyproject.toml --extra ray --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet \
		$(ARGS) --output-file requirements-ray.lock
	for name in requirements frameworks benchmarks; do \
		.venv/bin/uv pip compile tests/clients/python/$$name.in --excludes tests/clients/python/excluded.txt --universal \
			--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
			--custom-compile-command "make lock" --quiet $(ARGS) --output-file tests/clients/python/$$name.lock || exit; \
	done
	cd tests/clients/node && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

docs: setup ## Regenerate the generated pages, and build the site: open site/index.html
	$(PY) -m tools.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

pictures: setup ## Make the README's pictures of the console and the command line from a real worker (Chromium)
	$(PY) -m tools.pictures

clean: ## Remove .venv, caches and build results
	rm -rf .venv dist build site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
