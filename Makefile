# Everything runs in a virtual environment of its own, $(VENV); nothing but Python 3.11+ and make is needed beforehand.
#
#   make demo      train the autoencoder of configs/digits_autoencoder.toml and say where its picture is
#   make test      the tests and the examples in the docstrings, a third of the cases where they take long; with
#                  UPCONV_REQUIRE_PARITY=1 also those that compare with the genuine TensorFlow, Keras and PyTorch layers
#   make parity    those alone
#   make test-all  every case of all tests, and the tests that take long
#   make fuzz      the properties of tests/test_properties.py on FUZZ random cases each, drawn from SEED
#   make mutations whether the tests catch what is broken on purpose
#   make lint      ruff and mypy
#   make coverage  all tests, and the lines that none of them reaches
#   make docs      docs/api.md, from the docstrings, the tables of figures, from benchmarks/*.json, and the drawings of
#                  docs/how-it-works.md
#   make bench     python -m upconv.bench
#   make clean     remove the environment and the caches

# python3 first, for it may be the one the user chose; then the newest that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
CONFIG ?= configs/digits_autoencoder.toml
# Overrides for the trainer, such as `make demo DEMO="--train.steps 30"`.
DEMO ?=
PYTEST ?= --numprocesses=auto --maxprocesses=4
# The I-th of each N cases: two shares of three run two thirds between them.
SHARE ?= 1/3
FUZZ ?= 1000
SEED ?= $(shell date +%s)
BENCH ?= --json benchmarks/cpu.json --chart docs/images/speed.svg

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --editable
ifneq ($(filter-out 0,$(UPCONV_REQUIRE_PARITY)),)
TEST_STAMPS := $(VENV)/.installed-test $(VENV)/.installed-parity
else
TEST_STAMPS := $(VENV)/.installed-test
endif

.PHONY: help demo test test-all test-installed parity fuzz mutations lint coverage docs bench clean
.DEFAULT_GOAL := help
# A stamp whose recipe failed must not be taken for an installation.
.DELETE_ON_ERROR:
# Two installations into one environment at a time would spoil it.
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-examples
	$(BIN)/python examples/train.py $(CONFIG) --run runs/demo --overwrite $(DEMO)

test: test-installed
	$(BIN)/python -m pytest $(PYTEST) --share $(SHARE) -m "not long"

test-all: test-installed
	$(BIN)/python -m pytest $(PYTEST)

test-installed: $(TEST_STAMPS)

parity: $(VENV)/.installed-test $(VENV)/.installed-parity
	UPCONV_REQUIRE_PARITY=1 $(BIN)/python -m pytest -m parity $(PYTEST)

fuzz: $(TEST_STAMPS)
	UPCONV_FUZZ=$(FUZZ) UPCONV_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest $(PYTEST) tests/test_properties.py

mutations: $(TEST_STAMPS)
	$(BIN)/python tests/mutations.py

lint: $(VENV)/.installed-dev $(VENV)/.installed-examples
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

coverage: $(TEST_STAMPS)
	$(BIN)/python -m pytest $(PYTEST) --cov

docs: $(VENV)/.installed-test
	$(BIN)/python docs/api.py
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/sizes.py
	$(BIN)/python examples/checkerboard.py

bench: $(VENV)/.installed-bench
	$(BIN)/python -m upconv.bench $(BENCH)

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

# One stamp per set of extras: installed again only when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing upconv[$*] into $(VENV)"
	@$(INSTALL) '.[$*]'
	@touch '$@'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "upconv needs Python 3.11 or later; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "upconv needs Python 3.11 or later; $(PYTHON) is older" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
