# Each target installs what it needs in a virtual environment first.
#
# make train   trains the CNN and prints its accuracies
# make test    runs the tests
# make check   checks format, lint and types, as CI does
# make docs    builds the documentation's site in build/site
# make clean   removes everything that can be made again, but not runs/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test check docs clean

train: $(VENV)/installed
	$(BIN)/python -m mnist_jax.train --model CNN

test: $(VENV)/installed
	$(BIN)/python -m pytest

check: $(VENV)/checkers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Without --quiet, as with it --strict counts no warnings.
docs: $(VENV)/documenters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml
	@echo build/site/index.html

$(VENV)/installed: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/checkers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $@

$(VENV)/documenters: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
