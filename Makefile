# Two commands for a fresh clone: `make train` and `make test`. Needs Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS)
PIP := $(BIN)/python $(PIP_INSTALL) -c constraints.txt

# Processes that share the tests: one more than there are cores, as some tests wait. Each of them
# imports all tests, for 5 to 10 seconds of a core.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# How long `make soak` is.
KILLS ?= 300
FUZZ_MINUTES ?= 10
SOAK_MINUTES ?= 120

.PHONY: help install train test docs lint lowest soak clean

help:
	@echo "make install   .venv with a working .venv/bin/rlpg"
	@echo "make train     train CartPole-v1, evaluate it, say what to do next"
	@echo "make test      install everything, run the tests, the linters and the type checker"
	@echo "make docs      the documentation as a site, in build/docs/index.html"
	@echo "make lowest    install the lowest versions of pyproject.toml in .venv-lowest, train and test there"
	@echo "make soak      what takes hours: learning to a threshold, 300 kills, mutants, fuzzing, two"
	@echo "               hours of training; shorter: make soak KILLS=30 FUZZ_MINUTES=1 SOAK_MINUTES=4"

install: .venv/installed

# The stamp makes a second call start at once: pip runs only when what it reads has changed.
.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large: the first time takes minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	@echo "installing into .venv, with what the tests need (the first time takes minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) -e ".[dev]"
	touch .venv/installed $@

train: install
	$(BIN)/rlpg train CartPole-v1

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --maxprocesses 8 --dist worksteal

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W -q docs build/docs
	@echo "open build/docs/index.html"

# The lowest versions that pyproject.toml promises work. torch is the pinned one.
LOWEST := $(CURDIR)/.venv-lowest/bin
LOWEST_TESTS := tests/test_settings.py tests/cli/test_help.py tests/cli/test_parsing.py tests/runs

.venv-lowest/packages: constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python $(PIP_INSTALL) -r constraints-lowest.txt
	touch $@

.venv-lowest/installed: pyproject.toml .venv-lowest/packages
	$(LOWEST)/python $(PIP_INSTALL) -c constraints-lowest.txt -e .
	touch $@

lowest: .venv-lowest/installed
	folder=$$(mktemp -d) && cd $$folder && \
		$(LOWEST)/rlpg train CartPole-v1 --total-steps 4000 --run-dir run --quiet && \
		$(LOWEST)/rlpg train Pendulum-v1 --agent ppo --backend async --total-steps 4000 --quiet && \
		$(LOWEST)/rlpg resume run --total-steps 8000 --exact --quiet && \
		$(LOWEST)/rlpg evaluate run --episodes 5 && rm -rf $$folder
	$(LOWEST)/python -m pytest -q -m "not slow" $(LOWEST_TESTS)

soak: .venv/installed-dev
	KILLS=$(KILLS) $(BIN)/python -m pytest -m slow
	$(BIN)/python scripts/mutants.py
	$(BIN)/python scripts/fuzz.py --minutes $(FUZZ_MINUTES)
	$(BIN)/python scripts/soak.py --minutes $(SOAK_MINUTES)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info
