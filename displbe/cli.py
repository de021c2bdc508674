"""The command line.

Exit codes: 0 done, 1 the daemon failed, 2 wrong use or configuration, 69 this machine lacks what displbe needs (Xen, a package).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from displbe import __version__
from displbe.config import ConfigError, load
from displbe.ops import log
from displbe.ops.health import Health
from displbe.xen import gntdev
from displbe.xen.port import Unavailable

if TYPE_CHECKING:
    from displbe.daemon import Daemon

__all__ = ["main", "parser"]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE of sysexits.h."""
CONFIG: Final = "/etc/displbe/displbe.toml"


def parser() -> argparse.ArgumentParser:
    """The arguments there are."""
    top = argparse.ArgumentParser(prog="displbe", description="Shows Xen guests' paravirtual displays.")
    top.add_argument("--version", action="version", version=f"displbe {__version__}")
    top.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG})")
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
    try:
        return _demo(arguments) if arguments.command == "demo" else _daemon(arguments)
    except ConfigError as error:
        return _end(USAGE, error)
    except Unavailable as error:
        return _end(UNAVAILABLE, error)
    except BaseExceptionGroup as group:
        missing, others = group.split(Unavailable)
        if missing is None or others is not None:
            raise
        return _end(UNAVAILABLE, _leaf(missing))


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _end(code: int, error: BaseException) -> int:
    print(f"displbe: {error}", file=sys.stderr)
    return code


def _demo(arguments: argparse.Namespace) -> int:
    from displbe.demo import run_demo  # what it imports may be missing, which is said in a sentence

    log.configure()
    trio.run(run_demo, arguments.output, arguments.frames, not arguments.no_window)
    return OK


def _daemon(arguments: argparse.Namespace) -> int:
    settings = load(arguments.config or CONFIG)
    log.configure(settings.log.format, settings.log.level)
    if arguments.check:
        print("configuration: good")
    gc.disable()  # nothing that is imported is garbage, and guests wait for a daemon that starts again
    try:
        from displbe.daemon import Daemon
        from displbe.xen.host import Host
    finally:
        gc.enable()

    runtime = os.environ.get("RUNTIME_DIRECTORY")  # systemd's: it outlasts a restart
    daemon = Daemon(settings, Host(settings.xen.store or None), Health(), runtime=Path(runtime) if runtime else None)
    if arguments.check:
        _tell_abilities(daemon)
    else:
        with _only_one():
            _keep_for_good()
            trio.run(_serve, daemon, arguments.config or CONFIG)
    return OK


def _keep_for_good() -> None:
    """What has been imported and built stays until the end. To look through all of it for garbage takes 10 ms and more each time, in which
    no ring is served: from now on, only what is newer is looked through.
    """
    gc.freeze()


def _tell_abilities(daemon: Daemon) -> None:
    abilities = daemon.hypervisor.abilities
    print(f"guests' pages as dma-bufs: {'yes' if abilities.dmabuf_export else 'no'}")
    print(f"dma-bufs as guests' pages: {'yes' if abilities.dmabuf_import else 'no'}")
    if abilities.reason:
        print(f"because: {abilities.reason}")


async def _serve(daemon: Daemon, config: str) -> None:
    """The daemon, until a signal ends it. SIGHUP has it read its configuration again."""
    # Outside of what is cancelled: a second signal must not kill what says goodbye.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, nursery.cancel_scope, daemon, config)
            await daemon.run()


async def _obey(signals: AsyncIterator[int], scope: trio.CancelScope, daemon: Daemon, config: str) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            daemon.reload(config)
        else:
            scope.cancel()


@contextlib.contextmanager
def _only_one(device: str = gntdev.PATH) -> Iterator[None]:
    """Two daemons would take each other's guests. Raises Unavailable when another one runs in this domain.

    The mark is a lock on a device that both need and nobody else can open; it goes with the process, however that ends.
    """
    try:
        mark = gntdev.open_gntdev(device)
    except OSError as error:
        raise Unavailable(f"{device}: {error.strerror}") from error
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(mark)
        raise Unavailable("another displbe runs in this domain") from error
    try:
        yield
    finally:
        os.close(mark)
