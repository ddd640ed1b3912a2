# An interpreter of your choice: make PYTHON=python3.11 demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Nothing of this machine or its package index goes into the files.
LOCK := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-emit-options $(LOCK_ARGS)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-unit test-integration test-browser check format lock bench clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Start the server, ask it two questions, stop it
	@$(BIN)/python -m local demo

serve: $(READY) ## Serve Triton, the gateway and the page until Ctrl-C; MODEL=<hub id or folder>, GATEWAY_PORT=..., UI_PORT=...
	@$(if $(MODEL),TRITON_CHAT_MODEL='$(MODEL)') $(BIN)/python -m local serve

test: $(READY) ## Run all tests but those in a browser
	@$(BIN)/python -m pytest -m "not browser"

test-unit: $(READY) ## Run the tests that need no server
	@$(BIN)/python -m pytest -m "not integration and not browser"

test-integration: $(READY) ## Run the tests against a real tritonserver
	@$(BIN)/python -m pytest -m integration

test-browser: $(READY) ## Run the tests of the page in a real Chromium
	@$(BIN)/python -m pytest -m browser

check: $(READY) ## Lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

lock: $(READY) ## Pin the dependencies of pyproject.toml in requirements/; LOCK_ARGS=--upgrade for newer ones
	@$(LOCK) --all-extras --output-file requirements/dev.txt pyproject.toml
	@$(LOCK) --extra server --constraint requirements/dev.txt --output-file requirements/server.txt pyproject.toml
	@$(LOCK) --output-file requirements/client.txt pyproject.toml requirements/client.in
	@sed -i -E 's/\+cpu$$//; /^#|^$$/d' requirements/*.txt

bench: $(READY) ## Compare the engine with its peers (about six minutes)
	@$(BIN)/python -m benchmarks.engine

clean: ## Remove the environment, caches and logs
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist client/*.egg-info

# The stamp comes last, so that a failed or interrupted install is tried again.
$(READY): pyproject.toml requirements/dev.txt
	@$(PYTHON) local/preflight.py
	@rm -f $@
	@echo "[1/3] environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] packages of requirements/dev.txt (about 400 MB the first time; a few minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements/dev.txt
	@echo "[3/3] triton-chat itself"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
