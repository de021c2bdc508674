"""The command line of displbectl.

Exit codes: 0 done, 1 it could not be done, 2 wrong use; `check`: 1 when something would keep displbe from working.
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
from displbe.ops.status import Status
from displbe.ops.text import escape

from .client import Client, Failure
from .tables import status_lines, top_lines

__all__ = ["main"]

SOCKET: Final = "/run/displbe/control"
CONFIG: Final = "/etc/displbe/displbe.toml"
TRACE: Final = "the last 4,096 requests of a connector and their answers"
CLEAR: Final = "\x1b[H\x1b[J"
"""Cursor home, and clear from there."""


def parser() -> argparse.ArgumentParser:
    """The arguments there are."""
    top = argparse.ArgumentParser(prog="displbectl", description="Asks and tells the displbe that runs here.")
    top.add_argument("--version", action="version", version=f"displbectl {__version__}")
    top.add_argument("--socket", metavar="PATH", default=SOCKET, help=f"its control socket (default: {SOCKET})")
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
            made.add_argument("guest", metavar="GUEST", help="its name in xl, or its domain number")
            made.set_defaults(connector="")
        if guest and connector:
            made.add_argument(
                "--connector",
                metavar="C",
                default="",
                help="the name of its output, or its number (default: the first, or all)",
            )
        return made

    made = command("status", _status, "what every guest's screen is doing", guest=False)
    made.add_argument("--json", action="store_true", help="as JSON (protocol/control.md)")
    made = command("top", _top, "the same, live, a line for each connector", guest=False)
    made.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between two looks (default: 1)"
    )
    made.add_argument("--count", type=int, default=0, metavar="N", help="looks, then end (default: for ever)")
    made = command("screenshot", _screenshot, "what a guest shows, as a PNG file")
    made.add_argument("file", metavar="FILE.png")
    made = commands.add_parser("trace", help=TRACE, description=TRACE)
    made.set_defaults(run=_trace)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("guest", metavar="GUEST", nargs="?", default="", help="its name in xl, or its domain number")
    which.add_argument("--file", metavar="FILE", default="", help="a trace that was kept when a device was shut off")
    made.add_argument(
        "--connector", metavar="C", default="", help="the name of its output, or its number (default: the first)"
    )
    made = command("check", _check, "what would keep displbe from working here, and what mends it", guest=False)
    made.add_argument("--config", metavar="FILE", default=CONFIG, help=f"displbe's configuration (default: {CONFIG})")
    made.add_argument(
        "guests", metavar="XL.CFG", nargs="*", default=[], help="guests' configurations (default: /etc/xen/*.cfg)"
    )
    command("focus", _tell, "give a guest the keyboard and pointer", connector=False)
    command("blank", _tell, "switch a guest's screens off; the guest does not notice")
    command("unblank", _tell, "switch them on again")
    command("kick", _tell, "end a guest's connections; its driver connects anew", connector=False)
    return top


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("0.1 to 3600 seconds")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run displbectl: the exit code."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except Failure as failure:
        print(f"displbectl: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 0


def _look(client: Client) -> Status:
    _, body = client.ask("status")
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as error:
        raise Failure(f"this displbectl is not of the daemon's version: {error}") from error


def _status(arguments: argparse.Namespace) -> int:
    with Client(arguments.socket) as client:
        if arguments.json:
            print(msgspec.json.format(client.ask("status")[1]).decode())
        else:
            print("\n".join(status_lines(_look(client))))
    return 0


def _top(arguments: argparse.Namespace) -> int:
    looks = 0
    while True:
        with Client(arguments.socket) as client:  # anew for each look: the daemon keeps nobody who is silent
            lines = "\n".join(top_lines(_look(client)))
        print(f"{CLEAR}{lines}" if sys.stdout.isatty() else lines, flush=True)
        looks += 1
        if looks == arguments.count:
            return 0
        time.sleep(arguments.interval)


def _ask(arguments: argparse.Namespace) -> tuple[dict[str, int | float | str], bytes]:
    with Client(arguments.socket) as client:
        return client.ask(arguments.command, guest=arguments.guest, connector=arguments.connector)


def _screenshot(arguments: argparse.Namespace) -> int:
    from .picture import write_png

    facts, pixels = _ask(arguments)
    write_png(arguments.file, facts, pixels)
    print(f"{facts['width']}x{facts['height']}, {arguments.file}")
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
    # A file may hold anything: half a record, a time beyond every calendar.
    except (ValueError, OverflowError, struct.error) as error:
        raise Failure(f"{path}: {error}") from error
    print("\n".join(lines))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .check import findings
    from .machine import this_machine

    code = 0
    for finding in findings(this_machine(), arguments.config, arguments.socket, arguments.guests):
        print(f"{finding.grade:6}{escape(finding.what)}", flush=True)
        if finding.fix:
            print(f"      -> {escape(finding.fix)}", flush=True)
        code = max(code, finding.grade == "wrong")
    return int(code)


def _tell(arguments: argparse.Namespace) -> int:
    _ask(arguments)
    return 0
