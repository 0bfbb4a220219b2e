# Two commands set everything up on a fresh Debian or Ubuntu with Python 3.10-3.13:
#   make demo    the real thing in a few minutes, no GPU needed
#   make test    style, types, tests, coverage

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test lint clean

demo: $(VENV)/.runtime
	$(BIN)/trtq demo $(DEMO)
	$(BIN)/trtq build $(DEMO)/model.onnx --int8

test: $(VENV)/.dev lint
	$(BIN)/pytest --cov

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml setup.py calibrators/kernel.c
	$(BIN)/python -m pip install --quiet --editable ".[rtx]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable ".[rtx,images,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info src/*.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
