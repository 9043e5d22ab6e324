# Every target makes its own environment in .venv the first time. `make test VENV=/elsewhere` puts it elsewhere.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-large test-s3 lint bench clean

quickstart: $(VENV)/.installed  ## train a LoRA on the embedded base, merge it, draw before and after
	$(BIN)/sdkit quickstart

test: $(VENV)/.installed-dev  ## what must pass before a change goes in
	$(BIN)/python -m pytest -q -n auto

test-large: $(VENV)/.installed-dev  ## with files of several gigabytes: 30 GB of disk, some minutes
	$(BIN)/python -m pytest -q -m "slow or large"

test-s3: $(VENV)/.installed-dev  ## against a server that answers as S3 does; installs s3fs and moto
	$(BIN)/pip install -q s3fs 'moto[server]'
	$(BIN)/python -m pytest -q tests/hubs/test_s3.py

lint: $(VENV)/.installed-dev  ## style, types, and which floor may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## time and memory beside cp; docs/benchmarks.md explains
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/.installed
