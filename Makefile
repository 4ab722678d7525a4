# Everything that is done to this repository by hand has its word here.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The order of a target's prerequisites matters, and the programs below use both cores themselves.
.NOTPARALLEL:

.PHONY: chart soak chaos chaos-sum help up down images run venv test lint format docs lock bench bench-docs bench-micro profile clean wheels

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## build the images and start the example tree with Docker Compose (PYTTPD_HTTP_PORT=8080)
	scripts/up

down: ## end what `make up` started
	scripts/down

images: ## build the images only
	scripts/images

wheels: ## download the hash-pinned wheels that the images are built from (where pip inside a build can't)
	scripts/wheels

venv: ## make .venv: every role and the command `pyttpd`, from hash-pinned locks (PYTHON=... chooses the interpreter)
	@scripts/venv

run: venv ## start the example tree as plain processes, as root or as an ordinary user; Ctrl-C ends it
	@if [ -f examples/static/generate.py ]; then .venv/bin/python examples/static/generate.py; fi
	@exec .venv/bin/pyttpd run examples/pyttpd.toml

test: ## set everything up and run every test with coverage (ONLY="tests/unit -k head": those alone, without coverage)
	@scripts/test $(ONLY)

lint: ## ruff, mypy --strict, import-linter
	@scripts/lint

format: ## let ruff format the code and put imports in order
	@scripts/venv test
	.venv-test/bin/ruff check --select I --fix --quiet .
	.venv-test/bin/ruff format .

docs: ## write what is made from the configuration's schema: docs/configuration.md, docs/pyttpd.schema.json, the chart's
	@scripts/venv test
	.venv-test/bin/python -m pyttpd.config.document > docs/configuration.md
	.venv-test/bin/python -m pyttpd.config.json_schema > docs/pyttpd.schema.json
	.venv-test/bin/python -m scripts.chart

chart: ## write what is made from the chart: its schema of values, the table in its README, k8s/base
	@scripts/venv test
	.venv-test/bin/python -m scripts.chart

lock: ## write the hash-pinned locks anew (KEEP=1: only what the projects' dependencies changed)
	@scripts/venv lock
	@KEEP=$(KEEP) .venv-lock/bin/python scripts/lock

bench: ## measure pyttpd beside what people would use instead (BENCH=case: one only)
	@scripts/bench

bench-docs: ## put a run of `make bench` into docs/benchmarks.md and README (FROM=build/bench/results.json; without: the last one)
	@scripts/venv test
	@cd bench && ../.venv-test/bin/python -m suite.report $(if $(FROM),$(abspath $(FROM))) $(if $(INCOMPLETE),--incomplete)

bench-micro: ## measure the parts of the hot path by themselves: scanner, codec, routing, responses (ONLY="-k scan")
	@scripts/venv bench
	@mkdir -p build/bench
	@cd bench && ../.venv-bench/bin/python -m pytest -c micro/pytest.toml micro --benchmark-json=../build/bench/micro.json $(ONLY)

profile: ## leave a flame graph of each role's processes under load in build/profile (BENCH=case: another than wsgi)
	@scripts/bench profile

soak: ## 60 seconds (SOAK=60) of load on workers that die all the time: no request may fail
	@PYTTPD_SOAK=$${SOAK:-60} scripts/test tests/integration/test_pools.py -q -s -k soak

chaos: ## 600 seconds (SECONDS=600 SEED=1) of kills, stops, replacements, reloads under load, plain and in containers
	@PYTTPD_CHAOS_SECONDS=$(or $(SECONDS),600) PYTTPD_CHAOS_SEED=$(or $(SEED),1) scripts/test tests/chaos -q -s

chaos-sum: ## all runs of `make chaos` in build/chaos added up: a violation, or fewer than 200 events of a kind, is an error
	@scripts/venv test
	@PYTHONPATH=tests:src:services/init/src .venv-test/bin/python -m chaos.sums

clean: ## remove what was made here (not the images)
	rm -rf .venv .venv-* build .cache .mypy_cache .ruff_cache .pytest_cache
	rm -rf .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
	find src services -name '*.egg-info' -prune -exec rm -rf {} +
