# `make check` says yes or no in minutes; `make check-all` runs everything that needs no browser.
# The Python is the clone's own where it has one.
PYTHON ?= $(or $(wildcard .venv/bin/python),python3)
PYTEST = $(PYTHON) -m pytest -q -n logical --dist loadfile

.PHONY: check check-all lint test test-all notebooks browser pictures badges lab demo-model

check: lint test

check-all: lint test-all notebooks

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:
	$(PYTEST)

# Every instruction set, all drawn examples, whole products.
test-all:
	$(PYTEST) --everything --durations=10

# Opens JupyterLab on the notebooks; makes .venv and installs into it first where that is to do.
lab: .venv/installed
	.venv/bin/python -m jupyterlab $(or $(LAB_OPTIONS),notebooks)

.venv/installed: requirements.txt setup.py
	[ -x .venv/bin/python ] || python3 -m venv .venv
	DISABLE_CUDA=1 .venv/bin/pip install -q -r requirements.txt
	touch $@

# Runs every notebook from top to bottom in a kernel of its own, offline, and writes nothing into it.
notebooks:
	$(PYTHON) -m pytest -q -m notebooks --durations=0 -o faulthandler_timeout=900 tests/notebooks/test_run.py

# Opens the chat notebook in JupyterLab and Chromium, with two versions of Jupyter's widgets.
browser:
	$(PYTHON) tests/support/browser/kernels.py
	$(PYTHON) -m pytest -q -m browser --durations=5 tests/browser

# Makes the pictures in README.md from the notebooks, in Chromium.
pictures:
	PYTHONPATH=tests $(PYTHON) -m support.browser.readme_pictures

# Writes the badges of Colab and Kaggle into the notebooks, once setup.py has the repository's url.
badges:
	$(PYTHON) notebooks/badges.py

# Trains and quantizes the model in data/demo-mixtral: hours on two cores.
demo-model:
	$(PYTHON) recipes/demo_model/build.py
