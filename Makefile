# Everything happens in .venv; nothing is installed outside of it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-all explore lint setup bench bench-peers graphs schema docs docs-site reports clean

run: setup
	$(BIN)/sim run scenarios/two_tokens_4_engines.yaml

# Tests start hundreds of Python processes: they keep their bytecode, whatever the environment says.
test test-all explore: export PYTHONDONTWRITEBYTECODE =

test: setup
	$(BIN)/python -m pytest -m "not slow" -n auto

test-all: setup
	$(BIN)/python -m pytest -n auto

# Property tests with new random examples: what these find becomes a test of its own.
explore: setup
	$(BIN)/python -m pytest --hypothesis-profile=default -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A no-op when done: the stamp is newer than what it was made from.
setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	@echo "installing into .venv; PyTorch is large, this takes a minute or more"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "compiling what large runs need, up to a minute"
	$(BIN)/python -m sim.runs.compile_ahead
	touch .venv/installed

bench: setup
	$(BIN)/python -m benchmarks --write docs/reference/benchmarks.md

# Simulators of others that `make bench` compares with, where they are there: into the user's cache folder; needs Node and npm.
bench-peers: setup
	$(BIN)/python -m benchmarks.peers install

# Files generated from the code and kept in the repository:
graphs: setup
	$(BIN)/python -m models.ship

schema: setup
	$(BIN)/sim schema > sim/schema.json

docs: setup
	$(BIN)/python -m tests.docs

reports: setup
	$(BIN)/python -m tests.reports

# The docs as HTML with search, in build/site; any warning is an error.
docs-site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

clean:
	rm -rf .venv
