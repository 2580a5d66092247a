# Every target works in a fresh checkout with Python 3.11 or newer (with pip and venv) and make; none needs a database
# server or writes outside the checkout.

VERSIONS := 3.11 3.12 3.13

# python_of: the interpreter of one version. The one on PATH may be a pyenv shim that doesn't start, so ask it; then pyenv's own.
python_of = $(firstword $(foreach python,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python$(1)),\
  $(shell $(python) -c 'import ensurepip, venv; print("$(python)")' 2>/dev/null)))

ifeq ($(origin PYTHON),undefined)
PYTHON := $(or $(shell python3 -c 'import sys; sys.version_info < (3, 11) or print("python3")' 2>/dev/null),\
  $(call python_of,3.13),$(call python_of,3.12),$(call python_of,3.11),python3)
endif

VENV ?= .venv
QUICKSTART_VENV ?= .venv-quickstart
BENCH_VENV ?= .venv-bench
WHEELHOUSE ?= wheelhouse

MANIFESTS := pyproject.toml $(wildcard */pyproject.toml plugins/*/pyproject.toml examples/*/pyproject.toml)
QUICKSTART_SOURCES := $(shell find src flujo_core/src plugins/flujo_sqlite/src -type f -not -name '*.pyc')

# An environment is made anew when a manifest changes, and when the checkout or the interpreter is another one: both names
# are written into it.
KEY := $(shell { pwd; $(PYTHON) --version; } 2>/dev/null | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.installed-$(KEY)
QUICKSTART_INSTALLED := $(QUICKSTART_VENV)/.installed-$(KEY)
BENCH_INSTALLED := $(BENCH_VENV)/.installed-$(KEY)

# new_venv: an empty environment.
define new_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo 'Python 3.11 or newer is needed, and $(PYTHON) is not: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
@echo 'installing into $(1) …'
@$(PYTHON) -m venv --clear $(1)
endef

# -qq leaves errors, and what a failed build printed.
PIP_INSTALL := -m pip --disable-pip-version-check install -qq

.PHONY: help quickstart test test-all test-pgbouncer race selftest bench bench-full lint format wheelhouse clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

quickstart: $(QUICKSTART_INSTALLED)  ## install the facade, core and SQLite backend, and run the example
	$(QUICKSTART_VENV)/bin/python examples/quickstart.py

test: $(INSTALLED)  ## run every test; PYTEST_ARGS='-k name' for some
	$(VENV)/bin/python -m pytest -n auto $(PYTEST_ARGS)

test-all:  ## run every test on each Python version that is installed
	@failed=; summary=; \
	for found in $(foreach version,$(VERSIONS),$(version)=$(call python_of,$(version))); do \
	  version=$${found%%=*}; python=$${found#*=}; \
	  if [ -z "$$python" ]; then result='NOT RUN, no interpreter found'; \
	  elif $(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venv-$$version"; then result=passed; \
	  else result=FAILED; failed=1; fi; \
	  summary="$$summary\nPython $$version: $$result"; \
	done; \
	printf "$$summary\n"; [ -z "$$failed" ]

test-pgbouncer:  ## prove that PostgreSQL works behind PgBouncer in transaction mode, where that is installed
	@PATH="$$PATH:/usr/sbin" command -v pgbouncer >/dev/null || \
	  { echo 'NOT RUN: pgbouncer is not installed (apt install pgbouncer, or brew install pgbouncer)'; exit 3; }
	@$(MAKE) --no-print-directory test PYTEST_ARGS='plugins/flujo_postgres/tests/pgbouncer_check.py $(PYTEST_ARGS)'

race: $(INSTALLED)  ## prove that processes which open a new database at once migrate it once; RACE_ARGS='--rounds 9'
	$(VENV)/bin/python tests/migration_race.py $(RACE_ARGS)

selftest: $(INSTALLED)  ## prove that the conformance suite finds bugs: it must kill every broken backend of the zoo
	$(VENV)/bin/flujo-conformance selftest

bench: $(INSTALLED)  ## measure Flujo beside the drivers alone, in minutes; BENCH_ARGS='--only load'
	$(VENV)/bin/python -m benchmarks --json build/benchmarks.json $(BENCH_ARGS)

bench-full: $(BENCH_INSTALLED)  ## measure 1,000,000 runs and the peers, in hours, and write docs/benchmarks.md
	$(BENCH_VENV)/bin/python -m benchmarks --full --json docs/benchmarks/results.json $(BENCH_ARGS)
	$(BENCH_VENV)/bin/python -m benchmarks.page docs/benchmarks/results.json

lint: $(INSTALLED)  ## check style, format and types
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m mypy

format: $(INSTALLED)  ## mend style and format
	$(VENV)/bin/python -m ruff check --fix
	$(VENV)/bin/python -m ruff format

wheelhouse:  ## build all five wheels and download what they depend on, for installing without a network
	@rm -f "$(WHEELHOUSE)"/*.whl
	$(PYTHON) -m pip --disable-pip-version-check wheel -qq --wheel-dir "$(WHEELHOUSE)" \
	  './flujo_core[cli]' ./plugins/flujo_sqlite ./plugins/flujo_postgres './conformance_tests[postgres]' .
	@echo "now, in any environment: PIP_NO_INDEX=1 PIP_FIND_LINKS=$(WHEELHOUSE) pip install 'flujo[postgres]'"

clean:  ## remove the environments, caches and builds
	rm -rf .venv .venv-* build wheelhouse dist site quickstart_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements-dev.txt $(MANIFESTS)
	$(call new_venv,$(VENV))
	@$(VENV)/bin/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(BENCH_INSTALLED): benchmarks/requirements.txt requirements-dev.txt $(MANIFESTS)
	$(call new_venv,$(BENCH_VENV))
	@$(BENCH_VENV)/bin/python $(PIP_INSTALL) -r benchmarks/requirements.txt
	@touch $@

$(QUICKSTART_INSTALLED): $(MANIFESTS) $(QUICKSTART_SOURCES)
	$(call new_venv,$(QUICKSTART_VENV))
	@$(QUICKSTART_VENV)/bin/python $(PIP_INSTALL) './flujo_core[cli]' ./plugins/flujo_sqlite .
	@touch $@
