"""make wheel: builds the sdist and both wheels: one for this kind of machine, with the pump, and one for all machines, without it.

Both are installed and show a few frames. The tests run with the installed wheel with the pump, outside of this tree. Arguments are passed
to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import displbe

TREE = Path(__file__).resolve().parents[1]
OUT = TREE / "out" / "dist"
LIBRARY = "displbe/pump/_pump.so"
EXTRAS = "headless,drm,wayland,x11,input,metrics,check"
BESIDE = (
    "LICENSE",
    "Makefile",
    "README.md",
    "configs",
    "displbe/pump/pump.c",
    "displbe/pump/pump.h",
    "docs",
    "hatch_build.py",
    "packaging",
    "protocol",
    "pyproject.toml",
    "systemd",
    "tests",
)
"""Files that the tests need and that are not in the wheel."""


def run(*command: str | Path, cwd: Path = TREE, **environment: str) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, env={**os.environ, **environment})


def build() -> tuple[Path, Path]:
    """Build the sdist, and the wheels from it. Return the wheel with the pump and the one without. Raises SystemExit."""
    shutil.rmtree(OUT, ignore_errors=True)
    for wanted in ("require", "off"):
        run(sys.executable, "-m", "build", "--outdir", OUT, DISPLBE_PUMP=wanted)
    (pure,) = OUT.glob("*-py3-none-any.whl")
    (pumped,) = set(OUT.glob("*.whl")) - {pure}
    for wheel, has_pump in ((pumped, True), (pure, False)):
        with zipfile.ZipFile(wheel) as archive:
            if (LIBRARY in archive.namelist()) != has_pump:
                raise SystemExit(f"wheel: {wheel.name} must {'' if has_pump else 'not '}contain {LIBRARY}")
    return pumped, pure


def try_wheel(wheel: Path, version: str) -> None:
    """Install the wheel into a new virtual environment, and let it show a few frames. Raises CalledProcessError; SystemExit when the
    version that it reports does not begin with `version`.
    """
    with tempfile.TemporaryDirectory(prefix="displbe-wheel-") as folder:
        root = Path(folder)
        run(sys.executable, "-m", "venv", root / "venv")
        run(root / "venv/bin/python", "-m", "pip", "install", "-q", f"displbe[headless] @ {wheel.as_uri()}", cwd=root)
        program = str(root / "venv/bin/displbe")
        said = subprocess.run(
            [program, "--version"], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()
        print(f"{wheel.name}: {said}", flush=True)
        if not said.startswith(version):
            raise SystemExit(f"wheel: displbe --version should begin with: {version}")
        run(program, "demo", "--no-window", "--frames", "5", cwd=root)


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
            (tests / name).parent.mkdir(parents=True, exist_ok=True)
            if whole.is_dir():
                shutil.copytree(whole, tests / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(whole, tests / name)
        run(python, "-m", "pytest", "-pno:cacheprovider", *arguments, cwd=tests)
        where = "import displbe, sys; sys.exit(0 if displbe.__file__.startswith(sys.prefix) else displbe.__file__)"
        run(python, "-c", where, cwd=tests)


if __name__ == "__main__":
    with_pump, without = build()
    try_wheel(with_pump, f"displbe {displbe.__version__} (pump: compiled)")
    try_wheel(without, f"displbe {displbe.__version__} (pump: none: there is no ")
    test(with_pump, sys.argv[1:])
