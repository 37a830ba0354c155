# Two doors for a newcomer: `make demo` and `make test`. Both make .venv/ themselves and need nothing but Python 3.11 or 3.12.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# `make PYTHON=python3.12 test` chooses another interpreter.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,12))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## .venv/ with everything, pinned by constraints.txt; nothing when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Stagecoach needs Python 3.11 or 3.12, found neither; install one, or: make PYTHON=/path/to/python3.11 install" >&2; exit 2; }
	@echo "== installing into $(VENV)/ with $(PYTHON) (about a minute and 2 GB of disk; once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -U pip
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job, embedded: five stages of a miniature MM1.5, a rank killed on the way, scores, report.html
	$(BIN)/python demo/run.py

test: check unit distributed smoke  ## everything that needs no GPU, and five tests of a cluster: at most 30 minutes on two cores

check: $(STAMP)  ## ruff, mypy strict, the arrows between the rooms, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run tests/cluster/run

unit: $(STAMP)  ## tests that need one process
	$(BIN)/python -m pytest tests/unit tests/render -n 2 --dist loadfile --durations 5

distributed: $(STAMP)  ## tests that start real processes; GPU and browser tests say what they lack
	$(BIN)/python -m pytest tests --ignore tests/unit --ignore tests/render --ignore tests/cluster -n 2 --dist loadfile --durations 15

smoke: $(STAMP)  ## five tests on a real Kubernetes; where none can be had they say what is missing
	STAGECOACH_TEST_UP='--fake-nodes 4' tests/cluster/run $(BIN)/python -m pytest $$(cat tests/cluster/smoke.txt) -n 4 --dist load

test-cluster: test-objects test-pods  ## all tests that need a real Kubernetes and S3

test-objects: $(STAMP)  ## those that need no node: found by KUBECONFIG and AWS_ENDPOINT_URL_S3; and the chart's, which need helm and promtool
	tests/cluster/run $(BIN)/python -m pytest tests/cluster tests/unit/chart -n 4 --dist loadfile --durations 5

test-pods: $(STAMP)  ## stages in pods on two real nodes of ../shared/cluster, with faults, and the chart's page; builds both images (minutes)
	STAGECOACH_TEST_BUILD=yes tests/cluster/run $(BIN)/python -m pytest tests/cluster/pods tests/cluster/install --durations 5

verify: $(STAMP)  ## regenerates what is generated and fails on a difference
	$(BIN)/python -m stagecoach.recipes.readme README.md
	$(BIN)/python helm/generate.py
	@command -v helm >/dev/null && command -v kubectl >/dev/null || { echo "make verify: helm and kubectl are needed to render helm/ and manifests/; put them on the PATH" >&2; exit 2; }
	helm/render.sh
	git diff --exit-code -- README.md helm manifests

chaos: $(STAMP)  ## many kills; figures into workloads/results/
	$(BIN)/python benchmarks/chaos.py --kills-per-phase 15 --torn 500 --json workloads/results/chaos.json
	$(BIN)/python benchmarks/faults.py --kills 20
	$(BIN)/python benchmarks/corruption_checkpoints.py --markdown workloads/results/corruption.md
	STAGECOACH_TEST_UP='--fake-nodes 1000' tests/cluster/run $(BIN)/python benchmarks/cluster_scale.py --pods 2 --quota 250 --markdown workloads/results/scale.md

bench: $(STAMP)  ## ratios against a peer or a limit, in one run each
	for script in benchmarks/storage.py benchmarks/storage_faults.py benchmarks/data_plan.py benchmarks/data_decode.py benchmarks/model.py benchmarks/checkpoint.py benchmarks/train.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

learn: $(STAMP)  ## trains a larger miniature for an hour and says what it learned from what; figures into workloads/results/
	$(BIN)/python demo/learn.py

lock: $(STAMP)  ## rewrites the lower part of constraints.txt with what is installed
	{ sed '/^# --- locked/q' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v '^torch=='; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## removes the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

.PHONY: help install demo test check unit distributed smoke test-cluster test-objects test-pods verify chaos bench learn lock clean
