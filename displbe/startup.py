"""Starts displbe: the command line, and what comes first.

First of all, `close_stale_displays` closes displays that an earlier daemon left connected: their guests wait for an answer. Therefore all
other modules are loaded after it. `process` goes on with the configuration, the lock against a second daemon, and the daemon.

Exit codes: 0 success, 1 the daemon failed, 2 wrong usage or configuration, 69 this machine lacks something that displbe needs (Xen,
a package).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import Final, NoReturn

from displbe import __version__
from displbe.xen import stale_devices

__all__ = ["main", "parser"]

CONFIG: Final = "/etc/displbe/displbe.toml"


class _Version(argparse.Action):
    """Prints the version, and whether the compiled pump can be used here. Only then is the pump opened."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from displbe.pump.library import describe

        print(f"displbe {__version__} (pump: {describe()})")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    top = argparse.ArgumentParser(prog="displbe", description="Shows Xen guests' paravirtual displays.")
    about = "print the version, and whether this installation has the compiled pump, and exit"
    top.add_argument("--version", action=_Version, nargs=0, help=about)
    top.add_argument("--config", metavar="FILE", default=CONFIG, help=f"the configuration (default: {CONFIG})")
    top.add_argument(
        "--check", action="store_true", help="check the configuration, print what this machine supports, and exit"
    )
    commands = top.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="run a simulated Xen with a guest that draws; needs no Xen")
    demo.add_argument(
        "--output",
        metavar="FILE",
        default="displbe-demo.png",
        help="the picture that is written when there is no window",
    )
    demo.add_argument("--frames", type=int, help="number of page flips")
    demo.add_argument(
        "--no-window", action="store_true", help="write a picture even if there is a Wayland compositor or an X server"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run displbe and return the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.command is None and not arguments.check:
        stale_devices.close_stale_displays()
    gc.disable()  # importing creates no garbage
    try:
        from displbe.lean_imports import import_lean

        import_lean()
        from displbe import process

        return process.run(arguments)
    finally:
        gc.enable()
