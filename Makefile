# Everything from python3 (3.11, 3.12 or 3.13) and make:
#   make run     set up, then train configs/quickstart.py
#   make test    set up, then the whole test suite
#   make test-fast  likewise, without the tests marked slow
#   make docs    set up, then the site into docs/_build/html
#   make lint    set up, then ruff and pyright
#   make lock    rewrite constraints.txt from pyproject.toml
# `PYTHON=python3.12 make test` chooses the interpreter, TFDS_DATA_DIR the data sets.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/quickstart.py
ARGS ?=
# Test processes: one a core, at most this many.
WORKERS ?= 4

BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt

.PHONY: run test test-fast docs lint lock clean FORCE
.DELETE_ON_ERROR:

run: $(VENV)/.installed-train
	@$(BIN)/python -m train.run --config $(CONFIG) $(ARGS)

# Test processes share an accelerator: none may claim all of its memory.
test test-fast: $(VENV)/.installed-train,test
	@XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -n logical \
	  --maxprocesses $(WORKERS) --dist worksteal $(if $(filter %-fast,$@),-m "not slow") $(ARGS)

docs: $(VENV)/.installed-train,docs
	@JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -E -W --keep-going -q $(ARGS) docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.installed-train,imagenet,tensorboard,lint
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

lock: $(VENV)/.made
	@$(PIP) install uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header \
	  --no-annotate --all-extras --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) build dist docs/_build

# A virtual environment that works is kept, unless PYTHON asks for another version.
ifneq ($(origin PYTHON),file)
version = $(shell { $(1) --version; } 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
REMAKE := FORCE
endif
endif

$(VENV)/.made: $(REMAKE)
	@if [ -n "$(REMAKE)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'eoi_jax: `$(PYTHON)` is not Python 3.11 or newer, set PYTHON=python3.12' >&2; \
	    exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'eoi_jax: `$(PYTHON)` has no venv (Debian: apt install python3-venv)' >&2; \
	    exit 1; }; \
	  $(PYTHON) -m venv --clear $(VENV); \
	fi
	@touch $@

# The name of the stamp holds the extras: `.installed-train,test` is `.[train,test]`.
$(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing eoi_jax[$*] into $(VENV) with $$($(BIN)/python --version) (once, about a minute)"
	@$(INSTALL) --editable '.[$*]'
	@touch $@
