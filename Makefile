# make demo | bench | check | test | gate: each sets up what it needs, once; make install: all. Wants Python 3.11 and g++.
# make test-arm | sanitize: the native tests under qemu, and under sanitizers (.ci/ says what they want).
PYTHON ?= python3
# What `make bench` compares with, where it is installed: a Python with llama-cpp-python, paths of llama-bench programs (those
# of llama.cpp and ik_llama.cpp; llama-batched-bench beside them runs several sequences). Each peer runs in its best mode.
LLAMA_CPP_PYTHON ?= $(shell $(PYTHON) -c "import llama_cpp, sys; print(sys.executable)" 2>/dev/null)
LLAMA_BENCH ?= $(shell command -v llama-bench)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
NATIVE := $(shell find gguf/csrc quant/csrc engine/cpu/csrc -type f 2>/dev/null)
GATED := .cache/models/smollm2-q4_1.gguf
MODEL := .cache/demo/SmolLM2-135M-Instruct

.PHONY: install extras demo bench check test page docs wheel fuzz test-arm sanitize sanitize-short gate clean
install: $(VENV)/.developed

demo: $(VENV)/.installed
	$(BIN)/lltool demo

BENCH_MODELS ?= $(MODEL)-Q4_0.gguf $(MODEL)-Q8_0.gguf
PEERS = $(LLAMA_BENCH:%=--peer llama-bench:%)
COMMA := ,
EMPTY :=
MODELS_OF_BENCH = -m $(subst $(EMPTY) $(EMPTY),$(COMMA),$(strip $(BENCH_MODELS)))
# A prompt and generation, a few tokens at once, and eight sequences: reports/bench*.csv, .json and .png
bench: $(if $(filter $(MODEL)%,$(BENCH_MODELS)),demo,$(VENV)/.installed)
	$(BIN)/lltool bench $(MODELS_OF_BENCH) -p 2,4,8,512 -n 128 -r 7 $(PEERS) \
	  $(if $(LLAMA_CPP_PYTHON),--peer llama-cpp-python:$(LLAMA_CPP_PYTHON)) --save reports/bench
	$(BIN)/lltool bench $(MODELS_OF_BENCH) -p 0 -n 32 -npl 8 -r 7 $(PEERS) --save reports/bench-8-sequences

check: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.developed
	$(BIN)/python -m pytest -q

test-arm sanitize: $(VENV)/.developed
	.ci/$(subst -,_,$@)

sanitize-short: $(VENV)/.developed
	.ci/sanitize short

# The web page's types, unit tests, and that its built files are those of its source. Wants Node.js.
page:
	.ci/page

# build/docs: the manual in English and Chinese; a dead link ends it
docs: $(VENV)/.installed
	$(PIP) "lltool[docs]"
	$(BIN)/python docs/assemble.py build/manual build/library
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q -f docs/mkdocs.yml

# dist/: the sdist and the wheels, checked and run on each Python that is installed. Wants g++, but no .venv.
wheel:
	.ci/wheel $(PYTHONS)

# After a change that is meant: lltool gate record -m $(GATED) -f eval/data/britannica_1911.txt -o the baseline
gate: $(GATED)
	$(BIN)/lltool gate check reports/baselines/smollm2-q4_1.json

$(GATED): | $(VENV)/.installed
	$(BIN)/python -c "from pathlib import Path; from lltool.eval.common import sample_models; \
	  sample_models.fetch_sample('smollm2-q4_1', Path('.cache/models'))"

$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "lltool needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Made again when the package's dependencies or its native code change.
$(VENV)/.installed: $(BIN)/pip pyproject.toml constraints.txt tools/api/package.py.in $(NATIVE)
	$(PIP) "scikit-build-core>=1.1" "nanobind>=3.1" cmake ninja
	$(PIP) --no-build-isolation -e ".[plot,pandas]"
	touch $@

# What checks and tests need besides, torch and transformers among others. lltool is installed already, so only what its
# extras name is added; a package that comes as a source distribution is built in an environment of its own.
$(VENV)/.developed: $(VENV)/.installed
	$(PIP) "lltool[dev]"
	touch $@

# Packages that single tests want; CI has them, elsewhere these tests are skipped.
extras: $(VENV)/.developed
	$(PIP) "lltool[lm-eval,bert-score,fuzz]"

# make fuzz SECONDS=600: looks for inputs that end in anything but one clear line; SECONDS=0 SEED=1: always the same ones
SECONDS ?= 60
SEED ?= 0
fuzz: $(VENV)/.developed
	$(PIP) "lltool[fuzz]"
	$(BIN)/python -m tests.fuzz $(SECONDS) --seed $(SEED)

clean:
	rm -rf build $(VENV)
