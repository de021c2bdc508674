"""What `make` installs on this machine, by purpose: with a Python and an apt-get that only note what they are asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

TREE: Final = Path(__file__).parents[2]
APT: Final = '#!/bin/sh\nif [ "$1" = install ]; then shift; echo "$@" >>"$(dirname "$0")/../installed"; fi\n'
PYTHON: Final = """#!/bin/sh
[ "$1" != -c ] || exit 1
[ "$2" != venv ] || { mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$(dirname "$0")/true" "$3/bin/displbe"; }
[ "$2" != pip ] || echo "$@" >>pip
"""
"""An interpreter that can do nothing but make a virtual environment, and notes what pip installs there."""
DEMO: Final = {"python3-venv", "libatomic1", "wayland-protocols"}


class Machine:
    """A machine without any of the programs that `make` may install."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for name in ("sh", "mktemp", "cat", "mkdir", "cp", "chmod", "touch", "true", "dirname"):
            (self.bin / name).symlink_to(shutil.which(name) or name)
        for name, script in (("apt-get", APT), ("python3", PYTHON)):
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        environment = {"PATH": str(self.bin), "HOME": str(self.root)}
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def installed(self) -> set[str]:
        """Return the Debian packages that have been installed."""
        words = (self.root / "installed").read_text().split()
        return {word for word in words if not word.startswith("-")}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_demonstration(machine: Machine) -> None:
    """It gets no compiler, no compositor, and no seatd, which would change who owns the console."""
    done = machine.run("sh", str(TREE / "tests/setup.sh"), "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert DEMO - {"wayland-protocols"} <= machine.installed() <= DEMO
    assert (machine.root / "pip").read_text() == "-m pip install -q -e .[headless,wayland,x11]\n"
    assert sorted(path.name for path in (machine.root / ".venv").iterdir()) == ["bin", "demo"]


def test_the_tests(machine: Machine) -> None:
    """They get all, also without a variable PYTHON; and the demonstration then needs nothing more."""
    done = machine.run("sh", str(TREE / "tests/setup.sh"))
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.installed() > {*DEMO - {"wayland-protocols"}, "gcc", "weston", "sway", "seatd", "xvfb", "groff-base"}
    assert "--group test" in (machine.root / "pip").read_text()
    assert sorted(path.name for path in (machine.root / ".venv").iterdir()) == ["bin", "demo", "ready"]


def test_the_package(machine: Machine) -> None:
    """`make deb` needs Python and its standard library. It installs mmdebstrap, which makes the Debian in which the package is built."""
    code = "import runpy; runpy.run_path({!r})['install_host_tools']()".format(str(TREE / "packaging/deb.py"))
    done = machine.run(sys.executable, "-I", "-S", "-c", code)
    assert done.returncode == 0, done.stderr
    assert machine.installed() == {"mmdebstrap", "debian-archive-keyring", "ca-certificates"}


@pytest.mark.parametrize(("target", "setup"), [("deb", None), ("demo", "demo"), ("unit", ""), ("wheel", "")])
def test_targets(target: str, setup: str | None) -> None:
    """Each target of the Makefile sets up what it needs. `-W` makes the set-up out of date."""
    command = ["make", "-n", "-W", "pyproject.toml", "PYTHON=python3", target]
    lines = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.removeprefix("PYTHON=python3 sh tests/setup.sh").strip() for line in lines if "setup.sh" in line]
    assert found == ([] if setup is None else [setup])
