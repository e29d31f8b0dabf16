# Three commands on a machine that has only Python, pip and make:
#
#   make fast          search 5,277 icons and drawings with the small model that comes with the package
#   make quickstart    pre-train a small VLMo through all stages, then see what it knows
#   make test          run the tests
#
# All create .venv on the first run and reuse it afterwards. More arguments go through ARGS:
#
#   make quickstart ARGS=--help
#   make test ARGS="tests/model -x"
#
# pip's own settings apply. On Linux the default build of torch brings the CUDA libraries; for the smaller CPU build,
# set PIP_EXTRA_INDEX_URL (an index) or PIP_FIND_LINKS (a folder of wheels) to where you get it from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Each test process keeps to one thread. Many tests wait for processes of their own, so three keep two cores busy.
JOBS ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help fast quickstart test check lowest audit docs dist format clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

fast: $(VENV)/.installed-quickstart  ## search 5,277 icons and drawings with the small model that comes with the package: one to two minutes
	$(BIN)/vlmo quickstart --fast $(ARGS)

quickstart: $(VENV)/.installed-quickstart  ## all stages on scenes of shapes: fourteen minutes to half an hour on two CPU cores
	$(BIN)/vlmo quickstart $(ARGS)

test: $(VENV)/.installed-dev  ## all tests (some need a GPU); some drive Chromium (on Debian: apt install chromium)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev  ## format, lint, types, import contract, spelling, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/deptry src

# The lowest torch needs the libraries that it was built with: name an index of CPU builds by PIP_EXTRA_INDEX_URL, or leave
# it out with LOWEST_WITHOUT="torch torchvision".
LOWEST_WITHOUT ?=
LOWEST_TESTS ?= tests/model tests/losses tests/processing tests/folder tests/training/test_trainer.py tests/serving \
  tests/data/test_headers.py tests/data/test_decoding.py \
  tests/test_cli.py::test_recipes_are_a_table_of_tasks_or_one_with_its_settings_and_the_papers

lowest: $(VENV)/.installed-dev  ## tests with the lowest versions of the core's packages and of those that read requests
	rm -rf build/lowest
	$(BIN)/python -m pip install --quiet --no-deps --target build/lowest $$($(BIN)/python .ci/bounds $(LOWEST_WITHOUT))
	PYTHONPATH=build/lowest $(BIN)/python -m pytest --numprocesses $(JOBS) -W ignore::DeprecationWarning $(LOWEST_TESTS)

audit: $(VENV)/.installed-dev  ## known weaknesses of the installed packages; needs a network
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

# Not with --quiet: that hides warnings from `strict` too, so that a wrong link would pass.
docs: $(VENV)/.installed-dev  ## the site, into build/site; a wrong link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

dist: $(VENV)/.installed-dev  ## wheel and source archive, into build/dist; the wheel is tried in a new environment
	rm -rf build/dist build/dist-venv
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/twine check --strict build/dist/*
	$(BIN)/python -m venv --without-pip build/dist-venv
	$(BIN)/python -m pip --python build/dist-venv install "vlmo[quickstart] @ file://$$(echo $(CURDIR)/build/dist/*.whl)"
	cd build/dist-venv && bin/vlmo quickstart --fast

format: $(VENV)/.installed-dev  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and build results (runs/ stays)
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is renewed when pyproject.toml changes. `dev` holds everything that `quickstart` needs.
$(VENV)/.installed-quickstart: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --editable '.[quickstart]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/.installed-quickstart

# Debian keeps `ensurepip` in a package of its own; where it is missing, the system's pip fills the environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: Python 3.11 or later is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "       Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv' 2>/dev/null || { \
	    echo "error: '$(PYTHON)' has no venv module. Install it (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; \
	else \
	    echo "error: '$(PYTHON)' can make no environment with pip. Install what is missing" \
	         "(on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
	fi
