# make repro and make test are all a newcomer needs; each sets up what it uses. README names the plain commands.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
LOG := .venv/install.log
# Of what pip says: mistakes, attempts to reach an index, large files, and that unpacking has begun.
TOLD := ^ERROR.*|^WARNING: Retrying.*|(Downloading|Using cached) .*[0-9]{2}\.[0-9] [MG]B\)|^Installing collected packages
# DVC runs `python` as it finds it: the virtual environment comes first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Of `mlflow ui` too; what a person has set stays.
export MLFLOW_DISABLE_TELEMETRY ?= true
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: repository help repro test soak cluster bench record ui lint schema lock

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

repro: $(READY) ## run what changed of the whole pipeline: data, kernel check, training, evaluation, export, record
	dvc repro
	@python -m lenet5.record.summary

test: $(READY) ## the unit tests, then the real stages and tools on the real data; about twenty minutes
	python -m pytest tests/unit tests/gpu
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not soak" tests/integration

soak: $(READY) ## more tests: engines that agree, full disks, queues, a server on PostgreSQL, a result reproduced
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "soak and not alone" tests/integration
	python -m pytest -m alone tests/integration

cluster: $(READY) ## install Ray, with which `lenet5 cluster` lets several machines train
	python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-cluster.lock

bench: $(READY) ## training side by side with the tutorial's loop and Lightning; make bench BENCH=--quick tries it
	python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement bench/requirements.lock
	python bench/run.py $(BENCH)

record: $(READY) ## bring the MLflow record of the outs in this folder back, whole
	dvc repro --force --single-item register

# What MLflow would say besides hides the link: a line for every request, and that a library it is built on is old.
ui: export MLFLOW_UVICORN_OPTS ?= --log-level warning
ui: export MLFLOW_WORKERS ?= 1
ui: export PYTHONWARNINGS ?= ignore:starlette.middleware.wsgi is deprecated
ui: export MLFLOW_BACKEND_STORE_URI ?= $(or $(value MLFLOW_TRACKING_URI),sqlite:///mlflow.db)
ui: $(READY) ## the MLflow UI, and the link to its page of curves; of a server (MLFLOW_TRACKING_URI) the link alone
	@python -m lenet5.record.pages || true
	$(if $(filter http://% https://%,$(MLFLOW_TRACKING_URI)),,mlflow ui)

lint: $(READY) ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

schema: $(READY) ## write params.schema.json and sweep.schema.json anew after a change of src/lenet5/params.py
	python -m lenet5.params > params.schema.json
	python -m lenet5.search.plan > sweep.schema.json

lock: ## pin anew what pyproject.toml asks for (needs uv); what requirements.lock pins stays where it can
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --group cluster --no-deps --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements-cluster.lock

# DVC and lineage need it. Asked before anything is installed: a ZIP download has none. What git has against one that
# is there, it says itself.
repository:
	@git rev-parse --git-dir >/dev/null 2>&1 || test -e .git || grep -qs no_scm .dvc/config.local || { printf '%s\n' \
		"No git repository here, which DVC and the record need:" \
		"    git init && git add --all && git commit --message 'As downloaded'" \
		"Without git, and then without 'dvc exp run' and without a commit in any record:" \
		"    printf '[core]\nno_scm = true\n' > .dvc/config.local" >&2; exit 1; }

# The stamp is written last: an installation that broke off is taken up again. Wheels are unpacked beside it: /tmp may
# be a part of the memory, and too small.
$(READY): export TMPDIR := $(CURDIR)/.venv/tmp
$(READY): requirements.lock pyproject.toml | repository
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	rm -rf .venv/tmp && mkdir -p .venv/tmp
	$(PYTHON) -m venv .venv
	@echo "Installing what requirements.lock pins, some minutes; $(LOG) has every word of it"
	@(python -m pip install --disable-pip-version-check --progress-bar off --log $(LOG) \
		--require-hashes --requirement requirements.lock && touch .venv/tmp/installed) 2>&1 \
		| grep --line-buffered --only-matching --extended-regexp "$(TOLD)"; \
		test -e .venv/tmp/installed || { echo "The installation failed: $(LOG) says why" >&2; exit 1; }
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	rm -rf .venv/tmp
	touch $@
