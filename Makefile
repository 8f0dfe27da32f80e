# `make check` says yes or no. The Python is the clone's own where it has one.
PYTHON ?= $(or $(wildcard .venv/bin/python),python3)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: check test notebooks demo-model

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q

test:
	$(PYTHON) -m pytest -q

# Runs every notebook from top to bottom in a kernel of its own, and writes nothing into it.
notebooks:
ifeq ($(NOTEBOOKS),)
	@echo "No notebooks yet."
else
	$(PYTHON) -m jupyter execute --timeout=600 $(NOTEBOOKS)
endif

# Trains and quantizes the model in data/demo-mixtral: hours on two cores.
demo-model:
	$(PYTHON) data/recipe/build.py
