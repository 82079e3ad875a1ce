# `make check` is everything that CI runs, against the environment that is active.
PYTHON ?= python
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.inl \
	csrc/*/*/*.h csrc/*/*/*.cpp csrc/*/*/*.inl)

.PHONY: check lint format-check types layers test format bench build clean

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

build:
	$(PYTHON) -m build

clean:
	rm -rf build dist *.egg-info diffgen/_native*.so diffgen/_native_build.txt
