"""The command line. What it needs is loaded late: the guests of a daemon that starts again wait for it.

Exit codes: 0 done, 1 the daemon failed, 2 wrong use or configuration, 69 this machine lacks what displbe needs (Xen, a package).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import Final

from displbe import __version__
from displbe.xen import stale_devices

__all__ = ["main", "parser"]

CONFIG: Final = "/etc/displbe/displbe.toml"


def parser() -> argparse.ArgumentParser:
    """The arguments there are."""
    top = argparse.ArgumentParser(prog="displbe", description="Shows Xen guests' paravirtual displays.")
    top.add_argument("--version", action="version", version=f"displbe {__version__}")
    top.add_argument("--config", metavar="FILE", default=CONFIG, help=f"the configuration (default: {CONFIG})")
    top.add_argument(
        "--check", action="store_true", help="check the configuration and what this machine offers, then end"
    )
    commands = top.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="a simulated Xen with a guest that draws; needs no Xen")
    demo.add_argument(
        "--output", metavar="FILE", default="displbe-demo.png", help="where the picture goes without a window"
    )
    demo.add_argument("--frames", type=int, help="page flips before it ends")
    demo.add_argument(
        "--no-window", action="store_true", help="a picture, also where there is a Wayland compositor or an X server"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run displbe: the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.command is None and not arguments.check:
        stale_devices.close_stale_displays()
    gc.disable()  # nothing that is imported is garbage
    try:
        from displbe import process

        return process.run(arguments)
    finally:
        gc.enable()
