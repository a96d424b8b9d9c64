# `make check` is what a change has to pass; .ci/run does the same in a fresh environment.
PYTHON ?= python3

.PHONY: help check lint test compat slow own_tests figures demo format clean

help:
	@awk -F ':.*## ' '/^[a-z_]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: lint test  ## linters, type check and tests: what a change has to pass

lint:  ## ruff, ruff format --check, mypy
	PYTHON=$(PYTHON) .ci/lint

test:  ## the tests, some minutes on two cores
	$(PYTHON) -m pytest

compat:  ## a selection of them with older releases (VERSIONS="5.22.2 lowest": only these)
	$(PYTHON) .ci/compat.py $(VERSIONS)

slow:  ## whole journeys and real corpora (SEQLOOM_DATA names their folder)
	$(PYTHON) -m pytest -m slow

own_tests:  ## transformers' own common tests against our classes (SEQLOOM_TRANSFORMERS_SOURCE names a checkout)
	$(PYTHON) -m pytest -m slow tests/system/test_transformers_own.py

figures:  ## what the house measures: lines, functions, branches, seams
	$(PYTHON) .ci/figures.py

demo:  ## train the built-in demo
	$(PYTHON) -m accelerate.commands.launch training/train.py

format:  ## let ruff rewrite what it can
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

clean:  ## remove caches and build results
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
