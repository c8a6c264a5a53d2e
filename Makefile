# The newest of the usual names that is new enough; `make PYTHON=/path/to/python demo` takes another.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo setup dev check check-page check-extras format test test-full bench-quick page schema docs clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: setup  ## train a small model for a minute, and see what it writes
	$(BIN)/vitrine demo

setup: .venv/installed  ## make .venv and install Vitrine into it

dev: .venv/installed-dev  ## what the tests need, too

check: dev check-page  ## formatting, lint, types, the order of imports, of Python and of the page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/architecture.py

# A machine without npm, or with an old one, still checks the Python.
HAS_NPM := command -v npm >/dev/null && node -e 'process.exit(+(process.versions.node.split(".")[0] < 20))'

check-page:
	@if $(HAS_NPM); then $(MAKE) --no-print-directory web/node_modules/.package-lock.json && cd web && npm run --silent check; \
	else echo "There is no npm with node 20 or newer on this machine: the page's code (web/) was not checked."; fi

check-extras:  ## whether pip finds a solution for every extra, alone and together
	$(PYTHON) tests/extras.py

format: dev  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	@if $(HAS_NPM); then $(MAKE) --no-print-directory web/node_modules/.package-lock.json && cd web && npm run --silent format; fi

test: dev  ## the tests, in minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not full'

test-full: dev  ## all tests, the long ones too
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench-quick: dev  ## whether anything became slow: ratios, in under three minutes
	$(BIN)/python -m benchmarks.quick

page: web/node_modules/.package-lock.json  ## the studio's page, from web/ into the package
	cd web && npm run check && npm test && npm run build

schema: dev  ## web/openapi.json, from the studio's routes
	$(BIN)/python -m vitrine.studio.openapi

docs: dev  ## docs/hyperparameters.md and the list of files in ARCHITECTURE.md, from the code
	$(BIN)/python docs/hyperparameters.py
	$(BIN)/python docs/architecture.py --write

clean:  ## remove .venv and what the tools leave behind
	rm -rf .venv build dist web/node_modules vitrine/studio/page .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Vitrine needs Python 3.11 or newer: none was found. Try make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci --no-audit --no-fund
