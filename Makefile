# make train, make test: each installs what it needs into the virtual environment .venv, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
CONFIG ?= train_configs/debug.toml
MINUTES ?= 8

# Where the environment forbids bytecode, each process would compile its packages anew.
export PYTHONDONTWRITEBYTECODE :=

.NOTPARALLEL:
.PHONY: train test test-slow check-gpu campaign lint clean

train: .venv/.installed
	$(BIN)/python -m recipes.train --job.config_file $(CONFIG)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

# Recipes, export, parity and what NITP costs, on the GPUs that are here: one report.
check-gpu: .venv/.installed-dev
	$(BIN)/python scripts/check_gpu.py --minutes $(MINUTES)

# Forty kills, twenty rounds of rivals on one directory, then 132 bad inputs. The kills are kept:
# started again, it goes on where it ended.
campaign: .venv/.installed-dev
	$(BIN)/python -m tests.campaign.kills --output outputs/campaign
	$(BIN)/python -m tests.campaign.rivals --output "$$(mktemp -d)"
	$(BIN)/python -m pytest tests/campaign/test_bad_inputs.py -m slow

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Half of a package, as a set-up that was killed may leave it, is whole to pip: all begins again.
BEGIN = if [ -e .venv/.begun ]; then rm -rf .venv; fi; \
	mkdir -p .venv && touch .venv/.begun && rm -f .venv/.installed && $(PYTHON) -m venv .venv

# Of the packages' bytecode only what a run imports is written, when it first does.
.venv/.installed: pyproject.toml
	$(BEGIN)
	$(INSTALL) --no-compile --editable .
	touch $@ && rm .venv/.begun

# With the extras, which may want other versions of what is there.
.venv/.installed-dev: pyproject.toml
	$(BEGIN)
	$(INSTALL) --editable ".[dev]"
	touch .venv/.installed $@ && rm .venv/.begun

clean:
	rm -rf .venv outputs
