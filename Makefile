# `make check` is everything that CI runs, against the environment that is active.
PYTHON ?= python
NATIVE := $(foreach suffix,h cpp inl cuh cu,$(wildcard csrc/*.$(suffix) csrc/*/*.$(suffix) \
	csrc/*/*/*.$(suffix)))

.PHONY: check lint format-check types layers test format bench gpu build clean

check: lint test

lint: format-check types layers

format-check:
	ruff format --check .
	ruff check .
	clang-format --dry-run --Werror $(NATIVE)

types:
	mypy

layers:
	lint-imports

# Installed, not editable: the tests see what a user gets, compiled core included.
test:
	$(PYTHON) -m pip install '.[test]'
	pytest

format:
	ruff format .
	ruff check --fix .
	clang-format -i $(NATIVE)

# On a quiet machine: about a quarter of an hour. Then commit what it wrote.
bench:
	$(PYTHON) -m pytest benchmarks --benchmark-only --benchmark-quiet \
		--benchmark-json=.benchmarks/latest.json
	$(PYTHON) -m benchmarks.report --record .benchmarks/latest.json --write

# On a machine with a GPU, after an install there; without one it says what is missing.
gpu:
	$(PYTHON) -m benchmarks.gpu_suite

build:
	$(PYTHON) -m build

clean:
	rm -rf build dist *.egg-info diffgen/_native*.so diffgen/_native*_build.txt
