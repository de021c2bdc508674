# The two commands of the README set up all they need: a virtual environment in .venv, Debian packages where they are missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check unit lint bench fuzz fuzz-short lab figures wheel deb man clean

demo: .venv/ready
	$(BIN)/displbe demo --output displbe-demo.png

# The quick tests are among those of the wheel.
test: lint fuzz-short bench wheel deb lab

check: lint unit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most tests wait more than they work. One whose wait was too short, as on a busy machine, is tried once more (trio packs it into a
# group); the output says so.
UNIT := -q -n 4 --dist worksteal --reruns 1 --only-rerun 'TooSlowError|Exceptions from Trio nursery'
unit: .venv/ready
	$(BIN)/python -m pytest $(UNIT) -m 'not slow'

fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --requests 1000000
	$(BIN)/python -m tests.fuzz --seconds 900

fuzz-short: .venv/ready
	$(BIN)/python -m tests.fuzz --seconds 30

bench: .venv/ready
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.windows
	$(BIN)/python -m tests.bench.converting

# Emulated machines depend on what else their host does: what fails is tried once more, and both tries are shown.
LAB := $(BIN)/python -m pytest -q -s -o faulthandler_timeout=0
lab: .venv/ready
	$(LAB) --reruns 1 --durations 15 tests/lab

# On a machine with nothing else to do: figures that are not what is wanted are failures.
figures: .venv/ready
	$(LAB) --hold -m figure tests/lab

.venv/ready displbe/sinks/wayland/protocol/__init__.py &: pyproject.toml tests/setup.sh hatch_build.py protocol/wayland/ivi-application.xml \
		$(wildcard displbe/xen/*.h displbe/sinks/drm/*.h)
	PYTHON=$(PYTHON) sh tests/setup.sh

# Sdist and wheel in out/dist, and all the tests against that wheel. What guests' requests and input go through, wire/, display/ and
# input/, must be covered to 95 % of lines and branches: [tool.coverage].
wheel: .venv/ready
	$(BIN)/python packaging/wheel.py $(UNIT) --cov

# The Debian package in out/deb, built and checked in a Debian 13 of its own.
deb: .venv/ready
	$(BIN)/python packaging/deb.py

man: .venv/ready
	$(BIN)/python packaging/manual.py man out/man

clean:
	rm -rf .venv out displbe-demo.png
