# make repro and make test are all a newcomer needs; each sets up what it uses. README names the plain commands.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
# DVC runs `python` as it finds it: the virtual environment comes first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Of `mlflow ui` too; what a person has set stays.
export MLFLOW_DISABLE_TELEMETRY ?= true

.DEFAULT_GOAL := help
.PHONY: help repro test soak bench record ui lint schema lock

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

repro: $(READY) ## run what changed of the whole pipeline: data, kernel check, training, evaluation, export, record
	dvc repro

test: $(READY) ## the unit tests, then the real stages and tools on the real data; about ten minutes
	python -m pytest tests/unit
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not soak" tests/integration

soak: $(READY) ## more tests: engines that agree, full disks, queues, a server on PostgreSQL, a result reproduced
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m soak tests/integration

bench: $(READY) ## training side by side with the tutorial's loop and Lightning; make bench BENCH=--quick tries it
	python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement bench/requirements.lock
	python bench/run.py $(BENCH)

record: $(READY) ## bring the MLflow record of the outs in this folder back, whole
	dvc repro --force --single-item register

ui: $(READY) ## the MLflow UI on http://127.0.0.1:5000
	mlflow ui

lint: $(READY) ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

schema: $(READY) ## write params.schema.json anew after a change of src/lenet5/params.py
	python -m lenet5.params > params.schema.json

lock: ## pin anew what pyproject.toml asks for (needs uv); what requirements.lock pins stays where it can
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements.lock pyproject.toml

# The stamp is written last: an installation that broke off is taken up again.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
