# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Runtimes that the tests run: those of phones by default, 1.3 GB; `make test RUNTIMES=` does without.
RUNTIMES ?= ,mobile
# Processes that share the tests, file by file.
WORKERS ?= 2
BIN = $(VENV)/bin

.PHONY: quickstart test install check clean

quickstart: $(VENV)/.installed
	$(BIN)/autospace run configs/quickstart.toml -o quickstart

test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest --doctest-modules autospace latency devices
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev$(RUNTIMES)]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) quickstart build *.egg-info .mypy_cache .ruff_cache .pytest_cache
