# make demo and make test install everything that they need: a virtual environment in .venv, and missing Debian packages. make deb installs
# mmdebstrap only, and builds in its own Debian.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check unit lint before-bench bench fuzz fuzz-short mutants lab wheel deb man clean

demo: .venv/demo
	$(BIN)/displbe demo --output displbe-demo.png

# `make wheel` includes the quick tests. On a new machine the lab's kernel and disks are made beside them. The packages take one processor,
# and what comes before the measurements takes the other.
test: .venv/ready
	$(MAKE) -j 2 --output-sync=target deb before-bench
	$(MAKE) bench
	PYTHONPATH=tests $(BIN)/python -m lab.images & images=$$!; trap "kill -- -$$images 2>/dev/null" EXIT INT TERM; \
	$(MAKE) wheel && wait $$images && $(MAKE) lab

before-bench: lint
	$(MAKE) fuzz-short

check: lint unit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most tests wait more than they compute. On a busy machine a wait may be too short: a test that fails with TooSlowError (trio puts it into
# an exception group) runs once more, and the output says so.
UNIT := -q -n 4 --dist worksteal --reruns 1 --only-rerun 'TooSlowError|Exceptions from Trio nursery'
unit: .venv/ready
	$(BIN)/python -m pytest $(UNIT) -m 'not slow'

# Parsers, then the whole daemon with several guests at once. A failed run prints the seed that repeats it.
STATEFUL := PYTHONPATH=tests $(BIN)/python -m fuzz.stateful
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --requests 1000000
	$(BIN)/python -m tests.fuzz --seconds 900
	$(STATEFUL) --seconds 1800

# The same seeds each time: new ones are for `make fuzz`.
fuzz-short: .venv/ready
	$(BIN)/python -m tests.fuzz --seconds 30
	$(STATEFUL) --seconds 30 --seed 3

# Faults planted in wire/, xen/, display/ and backend/, half an hour of them after the quick tests have run once. It prints those that no
# test notices, and fails if tests/mutants/equivalent.toml does not explain them. MUTANTS="--seed 2 --minutes 300" plants others, for longer.
MUTANTS :=
mutants: .venv/ready out/mutants/venv/ready
	out/mutants/venv/bin/python -m tests.mutants $(MUTANTS)

out/mutants/venv/ready: pyproject.toml
	$(PYTHON) -m venv out/mutants/venv
	out/mutants/venv/bin/python -m pip install -q --upgrade 'pip>=25.1'
	out/mutants/venv/bin/python -m pip install -q --group mutants
	touch $@

bench: .venv/ready
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.windows
	$(BIN)/python -m tests.bench.converting

# Two emulated machines at a time: a machine has one processor, and its clock counts instructions. A module's tests share a machine. Only
# answers of disks and cards come by the host's clock: a test that fails runs once more, and the output shows both runs.
lab: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -o faulthandler_timeout=0 --reruns 1 --durations 15 tests/lab

SETUP := pyproject.toml tests/setup.sh hatch_build.py protocol/wayland/ivi-application.xml packaging/compile_pump.py \
	$(wildcard displbe/xen/*.h displbe/sinks/drm/*.h displbe/pump/*.[ch])
.venv/ready displbe/sinks/wayland/protocol/__init__.py &: $(SETUP)
	PYTHON=$(PYTHON) sh tests/setup.sh

# Of the above, what displbe itself needs: no compiler and no compositor.
.venv/demo: $(SETUP)
	PYTHON=$(PYTHON) sh tests/setup.sh demo

# Sdist and wheels in out/dist, and all tests except the lab against the wheel with the pump. The code for guests' requests and input (wire/,
# display/, input/) must have a coverage of 95 % of lines and branches: [tool.coverage].
wheel: .venv/ready
	$(BIN)/python packaging/wheel.py $(UNIT) --cov

# The Debian packages for amd64 and arm64 in out/deb, built and checked in their own Debian 13.
deb:
	$(PYTHON) packaging/deb.py

man: .venv/ready
	$(BIN)/python packaging/manual.py man out/man

clean:
	rm -rf .venv out displbe-demo.png
