# The two commands of the README set up all they need: a virtual environment in .venv, Debian packages where they are missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check unit lint bench lab clean

demo: .venv/ready
	$(BIN)/displbe demo --output displbe-demo.png

test: check lab

check: lint unit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/ready
	$(BIN)/python -m pytest -q

bench: .venv/ready
	$(BIN)/python -m tests.bench

lab: .venv/ready
	$(BIN)/python -m pytest -q -s tests/lab

.venv/ready: pyproject.toml tests/setup.sh
	PYTHON=$(PYTHON) sh tests/setup.sh

clean:
	rm -rf .venv out displbe-demo.png
