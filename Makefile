# make demo: set up an environment and run the main job at scale=demo. make test: set it up and run the tests.
# make docs: build the documentation into build/docs; a broken link or anchor is an error.
PYTHON ?= python3
VENV ?= .venv
# Installed first, so that nothing else chooses another build of it; on a GPU machine this is the CUDA build.
TORCH ?= torch==2.13.0

BIN = $(VENV)/bin

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.PHONY: demo test lint docs
demo: $(VENV)/installed
	$(BIN)/python -m slaterl.run scale=demo

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
