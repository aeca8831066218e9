# Everything happens in .venv; nothing is installed anywhere else.
PYTHON ?= python3
UV_VERSION := 0.13.9

# Where `make run` listens.
PORT := 1053

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(BIN)/uv
# A uv.toml of the caller must not change what lands here.
UV_ENV := UV_NO_CONFIG=1 VIRTUAL_ENV=$(CURDIR)/$(VENV)
COMPILE := $(UV_ENV) $(UV) pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-emit-index-url --no-emit-find-links $(UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help setup run control-plane test lint format bench bench-quick lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with kdns, coredns and all tools, as locked

# Again only when the lock or the project's own metadata changed; kdns itself is editable, so its code is always current.
$(READY): requirements-dev.txt pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdns needs Python 3.11 or later; name one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV_ENV) $(UV) pip install --quiet --require-hashes -r requirements-dev.txt
	$(UV_ENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: setup ## serve the example zones on 127.0.0.1:1053; PORT=2053 chooses
	$(BIN)/kdns serve --inventory zones --listen 127.0.0.1:$(PORT)

control-plane: setup ## build the control plane that tests run into a cache, once: minutes
	@$(BIN)/python tests/cluster/build.py

test: setup control-plane ## run all tests; ARGS="-k name" chooses
	$(BIN)/pytest $(ARGS)

lint: setup ## style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the code in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure kdns beside C, Knot and CoreDNS into docs/benchmarks.md; COREDNS=/path names a binary
	COREDNS='$(COREDNS)' $(BIN)/python -m bench.speed $(if $(BASE),--base $(BASE))
	COREDNS='$(COREDNS)' $(BIN)/python -m bench.sizes --write
	COREDNS='$(COREDNS)' $(BIN)/python -m bench.churn --write
	COREDNS='$(COREDNS)' $(BIN)/python -m bench.overload --write

bench-quick: setup ## the same in under three minutes, printed only; BASE=revision measures that one beside this
	COREDNS='$(COREDNS)' $(BIN)/python -m bench.speed --quick $(if $(BASE),--base $(BASE))

# The locks have hashes and no addresses: whoever installs decides from where.
lock: $(UV) ## lock again after a change of pyproject.toml; UPGRADE=--upgrade takes newer versions
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) pyproject.toml --group dev --constraint requirements.txt -o requirements-dev.txt
	$(COMPILE) --group build -o requirements-build.txt
	@if grep -nE '://|^ *-(-|[a-z])' requirements*.txt | grep -vE -e '--hash='; then echo "a lock names an address" >&2; exit 1; fi

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

clean: ## remove .venv and everything that tools left
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
