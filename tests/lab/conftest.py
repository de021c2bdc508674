"""Tests inside the emulated Xen: `pytest tests/lab`. The machine boots once; Dom0 has a copy of this project in `TREE`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.figures import Figures
from lab.pictures import Picture
from lab.vm import LabError, Machine, reference_picture, tarball

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "out" / "lab"
TREE = "/root/displbe-tree"
PUMP = "displbe/pump/_pump.so"
LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hold", action="store_true", help="fail where a figure is not good")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the failure of a test that is run again (pytest-rerunfailures)."""
    if str(report.outcome) == "rerun":
        print(f"\n{report.longreprtext}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("figures")
    for line in config.stash[LINES]:
        terminalreporter.line(line)


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


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Xen and Dom0, booted once for all lab tests. The pictures and, at the end, the logs are written to `out/lab`."""
    for old in (*OUT.glob("*.png"), *OUT.glob("*.log")):
        old.unlink()
    with Machine(out=OUT, gpus=("gpu0", "gpu1")) as running:
        running.put_tree(project(), TREE)
        try:
            yield running
        finally:
            with contextlib.suppress(LabError):
                running.keep_logs()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """The figures of this test."""
    return Figures(
        f"{request.path.stem}::{request.node.name}", request.config.getoption("--hold"), request.config.stash[LINES]
    )


@pytest.fixture(scope="session")
def reference(machine: Machine) -> Callable[..., Picture]:
    """`reference(mode, pattern)` returns modetest's picture. Dom0 draws it at the first call; its card must be free then."""
    drawn: dict[tuple[str, str], Picture] = {}

    def picture(mode: str = "1024x768", pattern: str = "smpte") -> Picture:
        if (mode, pattern) not in drawn:
            drawn[mode, pattern] = reference_picture(machine, mode, pattern)
            drawn[mode, pattern].save(OUT / f"reference-{pattern}-{mode}.png")
        return drawn[mode, pattern]

    return picture
