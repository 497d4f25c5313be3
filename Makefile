# make train, make test: each sets itself up once (virtual environment .venv), then starts at once.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= train_configs/debug.toml
MINUTES ?= 8

.PHONY: train test test-slow check-gpu campaign lint clean

train: .venv/.installed
	$(BIN)/python -m recipes.train --job.config_file $(CONFIG)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

# Recipes, export, parity and what NITP costs, on the GPUs that are here: one report.
check-gpu: .venv/.installed
	$(BIN)/python scripts/check_gpu.py --minutes $(MINUTES)

# Forty kills, twenty rounds of rivals on one directory, then 132 bad inputs. The kills are kept:
# started again, it goes on where it ended.
campaign: .venv/.installed
	$(BIN)/python -m tests.campaign.kills --output outputs/campaign
	$(BIN)/python -m tests.campaign.rivals --output "$$(mktemp -d)"
	$(BIN)/python -m pytest tests/campaign/test_bad_inputs.py -m slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv outputs
