"""The command line of displbectl.

Exit codes: 0 success, 1 failure, 2 wrong usage; `check`: 1 when it reports an error.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from displbe import __version__
from displbe.ops.text import escape

from .client import Client, Failure, read_status
from .tables import status_lines, top_lines

__all__ = ["main"]

SOCKET: Final = "/run/displbe/control"
CONFIG: Final = "/etc/displbe/displbe.toml"
TRACE: Final = "show the last 4,096 requests of a connector and their responses"
CLEAR: Final = "\x1b[H\x1b[J"
"""Escape sequence: cursor home, and clear the screen."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    top = argparse.ArgumentParser(prog="displbectl", description="Shows and controls the displbe that runs here.")
    top.add_argument("--version", action="version", version=f"displbectl {__version__}")
    top.add_argument("--socket", metavar="PATH", default=SOCKET, help=f"displbe's control socket (default: {SOCKET})")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        about: str,
        *,
        guest: bool = True,
        connector: bool = True,
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.set_defaults(run=run)
        if guest:
            made.add_argument("guest", metavar="GUEST", help="the guest's name in xl, or its domain id")
            made.set_defaults(connector="")
        if guest and connector:
            made.add_argument(
                "--connector",
                metavar="C",
                default="",
                help="the name of the connector's output, or its number (default: the first, or all)",
            )
        return made

    made = command("status", _status, "show the state of each guest's devices", guest=False)
    made.add_argument("--json", action="store_true", help="print JSON (protocol/control.md)")
    made = command("top", _top, "show one line for each connector, updated at an interval", guest=False)
    made.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between two updates (default: 1)"
    )
    made.add_argument("--count", type=int, default=0, metavar="N", help="number of updates (default: no limit)")
    made = command("screenshot", _screenshot, "write a guest's picture to a PNG file")
    made.add_argument("file", metavar="FILE.png")
    made = commands.add_parser("trace", help=TRACE, description=TRACE)
    made.set_defaults(run=_trace)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("guest", metavar="GUEST", nargs="?", default="", help="the guest's name in xl, or its domain id")
    which.add_argument(
        "--file", metavar="FILE", default="", help="a trace file that was written when a device was shut off"
    )
    made.add_argument(
        "--connector",
        metavar="C",
        default="",
        help="the name of the connector's output, or its number (default: the first)",
    )
    made = command(
        "check", _check, "find what would keep displbe from working here, and tell how to fix it", guest=False
    )
    made.add_argument("--config", metavar="FILE", default=CONFIG, help=f"displbe's configuration (default: {CONFIG})")
    made.add_argument(
        "guests", metavar="XL.CFG", nargs="*", default=[], help="guests' configurations (default: /etc/xen/*.cfg)"
    )
    command("focus", _command, "give a guest the keyboard and pointer", connector=False)
    command("blank", _command, "switch a guest's screens off, without the guest noticing")
    command("unblank", _command, "switch a guest's screens on again")
    command("reopen", _command, "open a guest's windows again that their user has closed or iconified or cannot see")
    command("kick", _command, "end a guest's connections; its driver connects again", connector=False)
    return top


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600 seconds")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run displbectl and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except Failure as failure:
        print(f"displbectl: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # the reader of the output has ended
        sys.stderr.close()
        return 0


def _status(arguments: argparse.Namespace) -> int:
    with Client(arguments.socket) as client:
        if arguments.json:
            print(msgspec.json.format(client.ask("status")[1]).decode())
        else:
            print("\n".join(status_lines(read_status(client))))
    return 0


def _top(arguments: argparse.Namespace) -> int:
    updates = 0
    while True:
        with Client(arguments.socket) as client:  # one connection for each update: the daemon closes idle connections
            lines = "\n".join(top_lines(read_status(client)))
        print(f"{CLEAR}{lines}" if sys.stdout.isatty() else lines, flush=True)
        updates += 1
        if updates == arguments.count:
            return 0
        time.sleep(arguments.interval)


def _ask(arguments: argparse.Namespace) -> tuple[dict[str, int | float | str], bytes]:
    with Client(arguments.socket) as client:
        return client.ask(arguments.command, guest=arguments.guest, connector=arguments.connector)


def _screenshot(arguments: argparse.Namespace) -> int:
    from .picture import write_png

    facts, pixels = _ask(arguments)
    write_png(arguments.file, facts, pixels)
    print(f"{arguments.file}: {facts['width']}x{facts['height']}")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from displbe.display.trace import trace_lines

    if not arguments.guest:
        return _trace_file(arguments.file)
    facts, records = _ask(arguments)
    for line in trace_lines(records, float(facts["epoch"])):
        print(line)
    return 0


def _trace_file(path: str) -> int:
    from displbe.display.trace import trace_lines
    from displbe.ops.traces import read_traces

    lines: list[str] = []
    try:
        for piece, records in read_traces(Path(path).read_bytes()):
            lines.append(escape(f"{piece.guest}, {piece.connector}: shut off: {piece.reason}"))
            lines += trace_lines(records, piece.epoch)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    # The file may hold anything: half a record, or a time beyond the calendar.
    except (ValueError, OverflowError, struct.error) as error:
        raise Failure(f"{path}: {error}") from error
    print("\n".join(lines))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .check import run_checks
    from .machine import this_machine

    code = 0
    for result in run_checks(this_machine(), arguments.config, arguments.socket, arguments.guests):
        print(f"{result.grade:8}{escape(result.text)}", flush=True)
        if result.fix:
            print(f"        -> {escape(result.fix)}", flush=True)
        code = max(code, result.grade == "error")
    return int(code)


def _command(arguments: argparse.Namespace) -> int:
    _ask(arguments)
    return 0
