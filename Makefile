# Two commands for a fresh clone: `make train` and `make test`. Needs Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help install train test lint soak clean

help:
	@echo "make install   .venv with a working .venv/bin/rlpg"
	@echo "make train     train CartPole-v1, evaluate it, say what to do next"
	@echo "make test      install everything, run the tests, the linters and the type checker"
	@echo "make soak      the tests that take minutes: learning to a threshold"

install: .venv/installed

# The stamp makes a second call start at once: pip runs only when what it reads has changed.
.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large: the first time takes minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	touch $@

train: install
	$(BIN)/rlpg train CartPole-v1

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -m "not slow"

soak: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info
