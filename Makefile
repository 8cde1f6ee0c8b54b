# make install | demo | test | check | bench: each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find quant/csrc engine/csrc -type f 2>/dev/null)

.PHONY: install demo test check bench clean
install: $(STAMP)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# Rebuilt when the package's dependencies or its native code change.
$(STAMP): $(BIN)/pip pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/pip install -q -c constraints.txt "scikit-build-core>=1.1" "nanobind>=3.1" cmake ninja
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)
	$(BIN)/python -m pytest -q

demo: $(STAMP)
	$(BIN)/lltool demo

bench: $(STAMP)
	$(BIN)/lltool bench --help

clean:
	rm -rf build $(VENV)
