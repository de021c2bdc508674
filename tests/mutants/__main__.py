"""make mutants: plants faults in wire/, xen/, display/ and backend/, one at a time, and looks whether the quick tests notice.

cosmic-ray makes the faults (faults.py). A run takes a sample, the same for the same seed: a fault of each module in turn until the time is
over. Each meets only the tests that execute its lines (witnesses.py), in a copy of the tree. It fails when a fault survives that
equivalent.toml does not explain.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Final

import msgspec

from .faults import Fault, faults
from .witnesses import Witnesses

TREE: Final = Path(__file__).resolve().parents[2]
OUT: Final = TREE / "out" / "mutants"
COPY: Final = OUT / "tree"
RECORDED: Final = OUT / "coverage"
REPORT: Final = OUT / "junit.xml"
PACKAGES: Final = ("wire", "xen", "display", "backend")
NOT_COPIED: Final = (".git", ".venv", "out", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache")
RERUN: Final = ("--reruns", "1", "--only-rerun", "TooSlowError|Exceptions from Trio nursery|FailedHealthCheck")
"""As in the Makefile, and for Hypothesis: a busy machine must not kill a mutant."""
LIMIT: Final = 4 << 30
"""Bytes that the tests may allocate with a fault: a loop that does not end must not take all of the machine's memory."""
WORKERS: Final = 4
"""Tests that run side by side, as in the Makefile."""
PATIENCE: Final = 60.0
"""Seconds that tests may take beyond four times their usual ones. Tests that take longer have noticed the fault."""


class Outcome(enum.Enum):
    """What became of a fault."""

    KILLED = "killed"
    """A test failed."""
    TIMEOUT = "killed by its time"
    """The tests did not end, or one waited in vain: a busy machine can do that, too."""
    SURVIVED = "survived"
    """All tests passed."""
    UNSEEN = "not executed"
    """No test executes anything of the module."""


class Known(msgspec.Struct, frozen=True):
    """A surviving fault that was judged: the changed lines, and why no test can or need notice."""

    file: str
    old: str
    new: str
    reason: str


class Mutant(msgspec.Struct, frozen=True):
    """A planted fault, with its changed lines."""

    fault: Fault
    text: str
    old: str
    new: str

    @property
    def place(self) -> str:
        return f"{self.fault.module}:{self.fault.start[0]}"


def known() -> dict[tuple[str, str, str], Known]:
    """Return the judged survivors, by file and changed lines. Raises SystemExit for one whose code has changed."""
    listed = tomllib.loads((TREE / "tests/mutants/equivalent.toml").read_text()).get("equivalent", [])
    found = msgspec.convert(listed, list[Known])
    for each in found:
        lines = {line.strip() for line in (TREE / each.file).read_text().splitlines()}
        if not set(each.old.splitlines()) <= lines:
            raise SystemExit(f"mutants: equivalent.toml is out of date: {each.file} has no {each.old!r}")
    return {(each.file, each.old, each.new): each for each in found}


def mutants(per_line: int, seed: int, only: str) -> Iterator[Mutant]:
    """Yield faults, one of each module in turn; at most so many of each line. The order is that of the seed."""
    modules = [
        str(path.relative_to(COPY))
        for package in PACKAGES
        for path in sorted((COPY / "displbe" / package).glob("*.py"))
        if not path.name.startswith("_") and only in str(path)
    ]
    for turn in zip_longest(*(_of_module(module, per_line, seed) for module in modules)):
        yield from (mutant for mutant in turn if mutant is not None)


def _of_module(module: str, per_line: int, seed: int) -> Iterator[Mutant]:
    """Yield a module's faults: lines in any order, and of each line a fault of so many kinds."""
    source = (COPY / module).read_text()
    chance = random.Random(f"{seed} {module}")
    lines: defaultdict[int, defaultdict[str, list[Fault]]] = defaultdict(lambda: defaultdict(list))
    for fault in faults(COPY, module):
        lines[fault.start[0]][fault.kind].append(fault)
    for line in chance.sample(sorted(lines), len(lines)):
        kinds = lines[line]
        found = 0
        for kind in chance.sample(sorted(kinds), len(kinds)):
            fault = chance.choice(kinds[kind])
            if found < per_line and (text := fault.planted(source)) is not None:
                found += 1
                yield Mutant(fault, text, *_changed(source, text))


def _changed(source: str, text: str) -> tuple[str, str]:
    """Return the lines that are changed, without their indentation: the old ones and the new ones."""
    lines = [line for line in difflib.ndiff(source.splitlines(), text.splitlines()) if line[0] in "+-"]
    old, new = ("\n".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return old, new


def copy_tree() -> None:
    """Copy the tree as it is, with what hatch_build.py has made."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(TREE, COPY, ignore=shutil.ignore_patterns(*NOT_COPIED))


def pytest(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start pytest in the copy, in a group of processes of its own."""
    return subprocess.Popen(
        [str(TREE / ".venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *RERUN, *arguments],
        cwd=COPY,
        env={**os.environ, "PYTHONPATH": str(COPY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def record() -> None:
    """Run the quick tests without a fault, and record which lines each executes. tests/proof is about the C only."""
    print("mutants: the quick tests, without a fault", flush=True)
    sources = [f"--cov=displbe.{package}" for package in PACKAGES]
    with pytest(
        *("--ignore=tests/proof", "-n", str(WORKERS), "--dist", "worksteal", "-m", "not slow", f"--junitxml={REPORT}"),
        *(*sources, "--cov-context=test", "--cov-report=", "--cov-fail-under=0"),
        COVERAGE_FILE=str(RECORDED),
    ) as process:
        output, _ = process.communicate()
    if process.returncode not in (0, 1) or not RECORDED.exists():
        raise SystemExit(f"mutants: the tests did not run\n{output[-3000:]}")


def collected() -> set[str]:
    """Return the names of all quick tests, FILE::FUNCTION. A name that pytest does not know would look like a failure."""
    with pytest("--collect-only", "-m", "not slow") as process:
        output, _ = process.communicate()
    return {line.partition("[")[0] for line in output.splitlines() if "::" in line}


def judge(mutant: Mutant, tests: list[str], usual: float, workers: int) -> tuple[Outcome, str]:
    """Plant a fault, run tests that take `usual` seconds without it, and restore the module. Return the outcome, and which test failed."""
    if not tests:
        return Outcome.UNSEEN, ""
    path = COPY / mutant.fault.module
    original = path.read_text()
    path.write_text(mutant.text)
    try:
        with pytest(
            "-x",
            "-n",
            str(workers),
            "--hypothesis-profile=mutants",
            "--no-header",
            "--tb=line",
            *tests,
            PYTHONDONTWRITEBYTECODE="1",
            COLUMNS="160",
        ) as process:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (LIMIT, LIMIT))
            try:
                output, _ = process.communicate(timeout=4 * usual + PATIENCE)
            except subprocess.TimeoutExpired:
                return Outcome.TIMEOUT, ""
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        path.write_text(original)
    by = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    match process.returncode:
        case 0:
            return Outcome.SURVIVED, ""
        case 1 if "TooSlowError" in by:
            return Outcome.TIMEOUT, by
        case 1 | 2 | 3 | 4:  # 2 to 4: the tests' modules cannot be imported
            return Outcome.KILLED, by
        case other:
            raise SystemExit(f"mutants: pytest ended with {other} at {mutant.place}\n{output[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="for the faults; the recording comes before (30)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only modules whose paths contain this text")
    parser.add_argument("--per-line", type=int, default=1, help="the most faults of a line (1)")
    parser.add_argument(
        "--test-seconds",
        type=float,
        default=30,
        help="of the tests that each fault meets alone (30); those that survive them meet the rest side by side",
    )
    parser.add_argument("--keep", action="store_true", help="use the recording of the last run")
    arguments = parser.parse_args()
    os.nice(19)
    explained = known()
    OUT.mkdir(parents=True, exist_ok=True)
    copy_tree()
    if not arguments.keep:
        record()
    witnesses = Witnesses(COPY, RECORDED, REPORT, collected())
    for test in sorted(witnesses.failed):
        print(f"mutants: fails without a fault, and is left out: {test}")
    end = time.monotonic() + 60 * arguments.minutes
    counts: Counter[str] = Counter()
    unexplained = 0
    for mutant in mutants(arguments.per_line, arguments.seed, arguments.only):
        if time.monotonic() > end:
            break
        if reason := explained.get((mutant.fault.module, mutant.old, mutant.new)):
            counts["explained"] += 1
            print(f"explained {mutant.place}: {reason.reason}", flush=True)
            continue
        tests = witnesses.of(mutant.fault)
        first = witnesses.within(tests, arguments.test_seconds)
        outcome, output = judge(mutant, tests[:first], witnesses.usual(tests[:first]), 0)
        if outcome is Outcome.SURVIVED and tests[first:]:
            outcome, output = judge(mutant, tests[first:], witnesses.usual(tests[first:]), WORKERS)
        counts[outcome.value] += 1
        if outcome in (Outcome.KILLED, Outcome.TIMEOUT):
            print(f"{outcome.value} {mutant.place} {mutant.fault.operator} {output}", flush=True)
            continue
        unexplained += 1
        print(f"{outcome.value.upper()} {mutant.place} {mutant.fault.operator}; {len(tests)} tests")
        print(
            f"    - {mutant.old}\n    + {mutant.new}".replace("\n", "\n      ").replace("      +", "    +"), flush=True
        )
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
