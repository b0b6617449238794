# Everything that is done with the relay by hand. `make help` lists it.

PYTHON ?=
ORDERS ?=
ARGS ?=
SECONDS ?= 300
# Tests wait for most of their time: more processes than cores. Each group in one of them, and in
# the order in which they are collected.
SIDE_BY_SIDE := -n 4 --dist loadgroup --no-loadscope-reorder
UPGRADE ?=
# Each order service of examples/ has a package `app`: one run of mypy takes one of them. A cache
# apart keeps them from invalidating that of the application's own `app`.
MYPY_OF_EXAMPLES = $(BIN)/mypy --cache-dir .mypy_cache/examples

export PYTHON
BIN := .venv/bin
# Uv resolves for every Python and platform at once; hashes of all wheels and the source go in.
UV_COMPILE = $(LOCK_VENV)/bin/uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
	$(if $(UPGRADE),--upgrade)
LOCK_VENV := .venv-lock
DOCS_VENV := .venv-docs
RELEASE_VENV := .venv-release

.DEFAULT_GOAL := help
.PHONY: help run test test-quick test-faust fuzz check format dashboards docs site release lock clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=/path/to/python3 chooses the interpreter, 3.11 or newer; .venv is made on demand."

run: ## show it at work until Ctrl-C; ORDERS=500 pays 500 orders and prints the ledger; CONSUMERS=order_logging,notifications
	@scripts/venv run
	@exec $(BIN)/python -m demo $(if $(ORDERS),--orders '$(ORDERS)')

test: ## run every test; ARGS='-k breaker -x' goes to pytest, ARGS=-n0 runs them in one process
	@scripts/venv dev
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-quick: ## the same without real Kafka and without the shipped commands: unit and integration
	@scripts/venv dev
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit tests/integration $(ARGS)

test-faust: ## what Faust itself does, and what the harness needs: when a pinned version has moved
	@scripts/venv dev
	@$(BIN)/python -m pytest tests/kafka/faust
	@$(BIN)/python -m tests.kafka.faust.versions write

fuzz: ## search at random for what breaks a property: SECONDS=300; ARGS='-k claim' chooses some
	@scripts/venv dev
	@$(BIN)/python -m pytest -p tests.fuzz -m hypothesis --hypothesis-profile=fuzz -x -q \
		--fuzz-seconds='$(SECONDS)' $(ARGS)

check: ## format, lint, types, the one-way flow of imports, the budget of lines and the links of docs/, changing nothing
	@scripts/venv dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MYPY_OF_EXAMPLES) examples/fastapi/app
	$(MYPY_OF_EXAMPLES) examples/flask/app
	$(MYPY_OF_EXAMPLES) --allow-subclassing-any --allow-untyped-decorators examples/django/app
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.budget
	@$(MAKE) --no-print-directory site

format: ## format and mend what can be mended
	@scripts/venv dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

dashboards: ## write Grafana's dashboards anew from grafana/*.py, and the Helm chart's copies of them and of the alerts
	@scripts/venv dev
	$(BIN)/python -m grafana.build
	$(BIN)/python -m scripts.chart

docs: ## write the reference pages anew from the code, check all links, and serve the documentation's site
	@scripts/venv dev
	$(BIN)/python -m scripts.reference
	@$(MAKE) --no-print-directory site
	$(DOCS_VENV)/bin/zensical serve

# A link to a page or a heading that does not exist fails the build.
site: $(DOCS_VENV)/locks.stamp
	$(DOCS_VENV)/bin/zensical build --strict --clean

$(DOCS_VENV)/locks.stamp: requirements/docs.txt
	@rm -rf $(DOCS_VENV)
	@$(or $(PYTHON),python3) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --only-binary :all: -r requirements/docs.txt
	@touch $@

release: ## build wheel, source, chart, bill of materials and image of the last commit into dist/, publishing nothing
	@$(MAKE) --no-print-directory $(RELEASE_VENV)/locks.stamp
	@$(RELEASE_VENV)/bin/python -m scripts.release $(ARGS)

$(RELEASE_VENV)/locks.stamp: requirements/build.txt requirements/release.txt
	@rm -rf $(RELEASE_VENV)
	@$(or $(PYTHON),python3) -m venv $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --only-binary :all: -r requirements/build.txt -r requirements/release.txt
	@touch $@

lock: ## write the lock files anew from pyproject.toml; UPGRADE=1 takes newer versions
	@rm -rf $(LOCK_VENV)
	@$(or $(PYTHON),python3) -m venv $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --only-binary :all: -r requirements/lock-tools.txt
	$(UV_COMPILE) --group build -o requirements/build.txt
	$(UV_COMPILE) pyproject.toml --all-extras -o requirements/run.txt
	$(UV_COMPILE) pyproject.toml --all-extras --group dev -c requirements/run.txt -o requirements/dev.txt
	$(UV_COMPILE) --group oldest -o requirements/oldest.txt
	$(UV_COMPILE) --group release -o requirements/release.txt
	$(UV_COMPILE) --group docs -o requirements/docs.txt
	$(UV_COMPILE) --group lock -o requirements/lock-tools.txt
	@rm -rf $(LOCK_VENV)

clean: ## remove .venv, caches and build leftovers
	rm -rf .venv .venv-lock .venv-docs .venv-release site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis build dist *.egg-info
	find order_relay app agents tables demo tests benchmarks grafana scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
