"""make wheel: builds the sdist and the wheel, and tests the installed wheel outside of this tree. Arguments are passed to pytest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
OUT = TREE / "out" / "dist"
EXTRAS = "headless,drm,wayland,x11,input,metrics,check"
BESIDE = (
    "LICENSE",
    "Makefile",
    "README.md",
    "configs",
    "docs",
    "hatch_build.py",
    "packaging",
    "protocol",
    "pyproject.toml",
    "systemd",
    "tests",
)
"""Files that the tests need and that are not in the wheel."""


def run(*command: str | Path, cwd: Path = TREE) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def build() -> Path:
    """Build the sdist, and the wheel from it; return the wheel."""
    shutil.rmtree(OUT, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", OUT)
    (wheel,) = OUT.glob("*.whl")
    return wheel


def test(wheel: Path, arguments: list[str]) -> None:
    """Install the wheel into a new virtual environment and run the tests there. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="displbe-wheel-") as folder:
        root = Path(folder)
        python = root / "venv/bin/python"
        run(sys.executable, "-m", "venv", root / "venv")
        run(python, "-m", "pip", "install", "-q", "--upgrade", "pip>=25.1")
        group = f"{TREE / 'pyproject.toml'}:test"
        run(python, "-m", "pip", "install", "-q", "--group", group, f"displbe[{EXTRAS}] @ {wheel.as_uri()}")
        tests = root / "tree"
        tests.mkdir()
        for name in BESIDE:
            whole = TREE / name
            (shutil.copytree if whole.is_dir() else shutil.copy)(whole, tests / name)
        run(python, "-m", "pytest", "-pno:cacheprovider", *arguments, cwd=tests)
        where = "import displbe, sys; sys.exit(0 if displbe.__file__.startswith(sys.prefix) else displbe.__file__)"
        run(python, "-c", where, cwd=tests)


if __name__ == "__main__":
    test(build(), sys.argv[1:])
