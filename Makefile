# Two commands matter: `make serve` and `make test`. `make help` lists the rest.

VENV  ?= .venv
HOST  ?= 127.0.0.1
PORT  ?= 8000
ARGS  ?=

BIN    := $(VENV)/bin
TORCH  := torch==2.13.0
NATIVE := $(wildcard src/phloem/kernels/cpu/build.py src/phloem/kernels/cpu/native/*)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install serve test lint types imports pytest model bench format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  variables: HOST PORT VENV PYTHON, and ARGS="--any --option" for serve, pytest and bench'

install: $(VENV)/.runtime  ## create .venv with the commands phloem and viva in it

serve: $(VENV)/.runtime  ## serve the default model on 127.0.0.1:8000 (fetched on first use)
	@exec $(BIN)/phloem serve --host $(HOST) --port $(PORT) $(ARGS)

test: lint types imports pytest  ## everything CI runs: style, types, import contracts, pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	$(BIN)/lint-imports

pytest: $(VENV)/.test model
	$(BIN)/python -m pytest -q $(ARGS)

model: $(VENV)/.runtime  ## fetch the default model into the cache folder
	@$(BIN)/phloem models fetch default || echo 'phloem: no default model, tests that need it are skipped'

format: $(VENV)/.test  ## rewrite the style of every file
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove everything that was built or installed
	rm -rf $(VENV) .venv-* build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src -name '*.so' -delete

# --- stamps: each is made once and again when what it was made from changes --------------------------------------------

$(VENV)/.python:
	@python=''; for name in "$(PYTHON)" python3.11 python3.12 python3.13 python3; do \
	    if [ -n "$$name" ] && "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then python=$$name; break; fi; done; \
	if [ -z "$$python" ]; then \
	    echo 'phloem: no Python 3.11 or newer with venv found; install one or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; fi; \
	echo "phloem: creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	@touch $@

# torch by an exact pin: pip finds a CPU build for it, where an open range would pull gigabytes of CUDA libraries.
$(VENV)/.torch: $(VENV)/.python
	@start=$$(date +%s); echo 'phloem: installing $(TORCH)'; \
	$(BIN)/python -m pip install $(TORCH) && echo "phloem: $(TORCH) installed in $$(( $$(date +%s) - start )) s"
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml setup.py $(NATIVE)
	@start=$$(date +%s); echo 'phloem: installing phloem, building the native kernels'; \
	$(BIN)/python -m pip install --quiet -e '.[viva]' && echo "phloem: phloem installed in $$(( $$(date +%s) - start )) s"
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@start=$$(date +%s); echo 'phloem: installing the test tools'; \
	$(BIN)/python -m pip install --quiet -e '.[test]' && echo "phloem: test tools installed in $$(( $$(date +%s) - start )) s"
	@touch $@

-include bench/Makefile.inc bench/peers/Makefile.inc
