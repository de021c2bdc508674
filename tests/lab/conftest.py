"""Tests inside the emulated Xen: `pytest tests/lab`. The machine boots for each module; Dom0 has a copy of this project in `TREE`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from lab import tried as trials
from lab.figures import PROPERTY, Figure, figure_of
from lab.pictures import Picture
from lab.tried import Tried
from lab.vm import LabError, Machine, reference_picture, tarball

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "out" / "lab"
TREE = "/root/displbe-tree"
PUMP = "displbe/pump/_pump.so"
LONGEST = (
    "test_x86",
    "test_hostile",
    "test_counted",
    "test_weston",
    "test_display",
    "test_input",
    "test_drm_unbind",
    "test_package",
)
"""Modules that take minutes, the longest first."""
SEEN: set[trials.Row] = set()
"""What was tried in this run."""
REMARKS: list[str] = []
"""What is wrong with README.md's table."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, so that two machines end at about the same time."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the failure of a test that is run again (pytest-rerunfailures), and take down what was tried."""
    if str(report.outcome) == "rerun":
        print(f"\n{report.longreprtext}")
    if report.when == "call" and report.passed:
        SEEN.update(
            trials.Row(*cast("list[str]", row)) for kind, row in report.user_properties if kind == trials.PROPERTY
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Compare what was tried with README.md's table, or write the table. A difference is a failure."""
    config = session.config
    if hasattr(config, "workerinput") or exitstatus != 0:
        return
    is_whole = config.args == ["tests/lab"] and not config.option.keyword and not config.option.markexpr
    if is_whole and trials.wanted_in_writing():
        trials.write(SEEN)
    errors, remarks = trials.compare(SEEN, is_whole=is_whole)
    REMARKS.extend(errors + remarks)
    if errors:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what the tests have measured."""
    terminalreporter.section("figures")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for kind, text in report.user_properties if report.when == "call" else ():
            if kind == PROPERTY:
                terminalreporter.line(f"{report.nodeid.rpartition('/')[2]}: {text}")
    for text in REMARKS:
        terminalreporter.line(text)


def project() -> bytes:
    """Return the part of this project that Dom0 needs as a tar file: the package, with the pump, and the tests that run on any machine."""
    tests = [path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / "tests").iterdir()) if path.name != "lab"]
    present = [name for name in ("pyproject.toml", "displbe", "configs", "protocol") if (REPOSITORY / name).exists()]
    return tarball(REPOSITORY, [*present, *map(str, tests)], {PUMP: pump()})


def pump() -> bytes:
    """Return the compiled pump for Dom0's architecture."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "pump.so"
        command = [sys.executable, str(REPOSITORY / "packaging/compile_pump.py"), "--output", str(library)]
        subprocess.run(command, env={**os.environ, "CC": "aarch64-linux-gnu-gcc"}, check=True)
        return library.read_bytes()


@pytest.fixture(scope="module")
def out(request: pytest.FixtureRequest) -> Path:
    """The folder for a module's pictures and logs, without those of an earlier run."""
    folder = OUT / request.path.stem.removeprefix("test_")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def machine(out: Path) -> Iterator[Machine]:
    """Xen and Dom0 with two cards, booted for each module. The pictures and, at the end, the logs are written to `out`."""
    with Machine(out=out, gpus=("gpu0", "gpu1")) as running:
        running.put_tree(project(), TREE)
        try:
            yield running
        finally:
            with contextlib.suppress(LabError):
                running.keep_logs()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """`figure(text)` takes down what the test has measured."""
    return figure_of(request.node)


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """`tried(machine, guest, connector, sink, way, result)` takes down what the test has shown, for README.md's table."""
    return trials.taker_of(request.node)


@pytest.fixture(scope="module")
def reference(machine: Machine, out: Path) -> Callable[..., Picture]:
    """`reference(mode, pattern)` returns modetest's picture. Dom0 draws it at the first call; its card must be free then."""
    drawn: dict[tuple[str, str], Picture] = {}

    def picture(mode: str = "1024x768", pattern: str = "smpte") -> Picture:
        if (mode, pattern) not in drawn:
            drawn[mode, pattern] = reference_picture(machine, mode, pattern)
            drawn[mode, pattern].save(out / f"reference-{pattern}-{mode}.png")
        return drawn[mode, pattern]

    return picture
