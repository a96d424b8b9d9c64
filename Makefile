# `make check` is what a change has to pass; .ci/run does the same in a fresh environment.
PYTHON ?= python3

.PHONY: help check lint test compat slow own_tests figures demo format clean

help:
	@echo "make check   linters, type check and tests: what a change has to pass"
	@echo "make lint    ruff, ruff format --check, mypy"
	@echo "make test    the tests, some minutes on two cores"
	@echo "make compat  a selection of them with older releases (VERSIONS=\"5.22.2 lowest\": only these)"
	@echo "make slow    whole journeys and real corpora (SEQLOOM_DATA names their folder)"
	@echo "make own_tests  transformers' own common tests against our classes (SEQLOOM_TRANSFORMERS_SOURCE names a checkout)"
	@echo "make figures  what the house measures: lines, functions, branches, seams"
	@echo "make demo    train the built-in demo"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove caches and build results"

check: lint test

lint:
	PYTHON=$(PYTHON) .ci/lint

test:
	$(PYTHON) -m pytest

compat:
	$(PYTHON) .ci/compat.py $(VERSIONS)

slow:
	$(PYTHON) -m pytest -m slow

own_tests:
	$(PYTHON) -m pytest -m slow tests/system/test_transformers_own.py

figures:
	$(PYTHON) .ci/figures.py

demo:
	$(PYTHON) -m accelerate.commands.launch training/train.py

format:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
