"""The model checker cbmc: that of this machine, or Debian 13's, which is unpacked into the user's cache folder and needs no root."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from lab.build import SUITE, Apt, cached, log, run

__all__ = ["Model", "Property", "Tools", "tools"]

PACKAGES: Final = ("cbmc", "minisat", "libc6", "libgcc-s1", "libstdc++6", "zlib1g")
"""Debian 13's cbmc, and all that it loads: Debian 12's C library is too old for it."""
OLDEST: Final = 6
"""The oldest major version of cbmc that checks all of this without being asked."""


class Property(msgspec.Struct, frozen=True):
    """A property of a program, and whether cbmc has proved it."""

    name: str = msgspec.field(name="property")
    description: str
    status: str

    @property
    def holds(self) -> bool:
        """Whether it is proved."""
        return self.status == "SUCCESS"


class _Output(msgspec.Struct):
    """A part of cbmc's output."""

    result: list[Property] = []


class Tools(msgspec.Struct, frozen=True):
    """The commands, without their names' last part: `prefix` is put before each."""

    prefix: tuple[str, ...]
    folder: str

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run a program. Raises SystemExit with its output when it fails."""
        run([*self.prefix, f"{self.folder}{program}", *arguments])

    def check(self, *arguments: str | Path) -> list[Property]:
        """Run cbmc and return all properties."""
        done = subprocess.run(
            [*self.prefix, f"{self.folder}cbmc", "--json-ui", *map(str, arguments)],
            check=False,
            capture_output=True,
        )
        if done.returncode not in (0, 10):  # 10: some property does not hold
            raise SystemExit(f"cbmc: exit {done.returncode}\n{done.stdout[-3000:].decode()}{done.stderr.decode()}")
        return [each for part in msgspec.json.decode(done.stdout, type=list[_Output]) for each in part.result]


class Model(msgspec.Struct, frozen=True):
    """A compiled program, in cbmc's own form."""

    tools: Tools
    path: Path

    @classmethod
    def compiled(cls, tools: Tools, path: Path, *arguments: str | Path) -> Model:
        """Compile a program; the arguments are those of a C compiler."""
        tools.run("goto-cc", "-o", path, *arguments)
        return cls(tools, path)

    def check(
        self, entry: str, replaced: dict[str, str], unwind: int, loops: dict[str, int], options: Sequence[str]
    ) -> list[Property]:
        """Check all properties from one function on. Calls are replaced: name -> name of the function that is called instead. Loops have at
        most `unwind` turns, or as many as `loops` says (`FUNCTION.NUMBER`); that they end is a property, too.
        """
        path = self.path.with_name(f"{entry}.gb")
        pairs = [part for pair in replaced.items() for part in ("--replace-calls", ":".join(pair))]
        self.tools.run("goto-instrument", *pairs, self.path, path)
        bounds = ["--unwindset", ",".join(f"{name}:{turns}" for name, turns in loops.items())] if loops else []
        how = ("--unwinding-assertions", "--drop-unused-functions", "--slice-formula", "--unwind", str(unwind))
        return self.tools.check("--function", entry, *how, *bounds, *options, path)


def tools() -> Tools:
    """Return the model checker. Raises SystemExit when it cannot be fetched."""
    if all(map(shutil.which, ("cbmc", "goto-cc", "goto-instrument"))):
        found = re.match(r"\d+", run(["cbmc", "--version"]))
        if found is not None and int(found[0]) >= OLDEST:
            return Tools((), "")
    root = cached("cbmc", [SUITE, PACKAGES], _fetch)
    (loader,) = [found for found in (root / "usr/lib").glob("*-linux-gnu/ld-linux*") if found.is_file()]
    return Tools((str(loader), "--library-path", f"{loader.parent}:{root / 'usr/lib'}"), f"{root}/usr/bin/")


def _fetch(made: Path) -> None:
    log(f"fetching {SUITE}'s model checker, once")
    apt = Apt()
    host = run(["dpkg", "--print-architecture"]).strip()
    for package in PACKAGES:
        apt.fetch(f"{package}:{host}", made)
    shutil.rmtree(made / "usr/share")
