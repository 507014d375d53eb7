# Python >= 3.10 with venv is all that a fresh machine needs: every target makes .venv itself and installs into it once per pyproject.toml.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# One thread per test worker: more than one each makes small tensor operations slower, not faster.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow slurm studies check docs format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## audit the embedded network on generated pictures; ends in the path of what it wrote
	$(BIN)/gradspec demo

test: $(VENV)/.installed-dev  ## the tests and the examples in the docstrings, without the slow ones
	$(PYTEST) -n $(WORKERS)

slow: $(VENV)/.installed-dev  ## the slow tests alone
	$(PYTEST) -n $(WORKERS) -m "slow and not network" || test $$? -eq 5  # 5: no test is marked slow

slurm: $(VENV)/.installed-dev  ## a real one-node SLURM: killed jobs, job arrays (apt install slurm-wlm munge)
	$(PYTEST) -m slurm -rs tests/test_slurm.py

studies: $(VENV)/.installed-dev  ## the paper's experiments, hours; with NETS=folder IMAGES=folder on trained networks, PAPER=1 as in the paper
	$(BIN)/python studies/all_studies.py --scheduler $(or $(SCHEDULER),local:$(WORKERS)) $(if $(SHARD),--shard $(SHARD)) $(if $(RUN),--run "$(RUN)") \
		$(if $(NETS),--nets "$(NETS)") $(if $(IMAGES),--images "$(IMAGES)") $(if $(PAPER),--paper)

check: $(VENV)/.installed-dev  ## lint, formatting, types, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/codespell

docs: $(VENV)/.installed-dev  ## the documentation as a site, strictly: site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.installed-dev  ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, builds and caches, but no results
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "gradspec needs Python 3.10 or newer, but there is no $(PYTHON); name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "gradspec needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $(VENV)/.installed $@
