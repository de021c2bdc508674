"""The process around the daemon: the lock against a second daemon, signals, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from displbe.config import ConfigError, load
from displbe.ops import log
from displbe.ops.service_manager import ServiceManager
from displbe.resources import raise_file_limit
from displbe.wire.errors import first_leaf
from displbe.xen import stale_devices
from displbe.xen.paths import GNTDEV
from displbe.xen.port import Unavailable
from displbe.xen.single_instance import single_instance

if TYPE_CHECKING:
    from displbe.daemon import Daemon

__all__ = ["exempt_from_gc", "only_one", "run", "serve"]

OK: Final = 0
USAGE: Final = 2
UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE of sysexits.h."""
TIMEOUT: Final = stale_devices.TIMEOUT + 0.5
"""Seconds to wait for the lock. A starting process holds it for less than this while it closes stale displays."""


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon, its check or the demo, as the command line says, and return the exit code."""
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
        return _end(UNAVAILABLE, first_leaf(missing))


def _end(code: int, error: BaseException) -> int:
    print(f"displbe: {error}", file=sys.stderr)
    return code


def _demo(arguments: argparse.Namespace) -> int:
    from displbe.demo import run_demo  # late: it may raise Unavailable

    log.configure()
    exempt_from_gc()
    trio.run(run_demo, arguments.output, arguments.frames, not arguments.no_window)
    return OK


def _daemon(arguments: argparse.Namespace) -> int:
    settings = load(arguments.config)
    raise_file_limit()
    log.configure(settings.log.format, settings.log.level)
    if arguments.check:
        print("configuration: valid")
    from displbe.daemon import Daemon
    from displbe.xen.host import Host

    runtime = os.environ.get("RUNTIME_DIRECTORY")  # set by systemd; the directory persists over a restart
    daemon = Daemon(
        settings, Host(settings.xen.store or None), ServiceManager(), runtime=Path(runtime) if runtime else None
    )
    if arguments.check:
        _print_abilities(daemon)
    else:
        with only_one():
            exempt_from_gc()
            trio.run(serve, daemon, arguments.config, clock=daemon.lag)
    return OK


def exempt_from_gc() -> None:
    """Exempt all present objects from garbage collection.

    Imported modules stay until the process ends. Each scan of all their objects takes 10 ms or more, during which no ring is served.
    """
    gc.freeze()
    gc.enable()


def _print_abilities(daemon: Daemon) -> None:
    abilities = daemon.hypervisor.abilities
    print(f"guests' pages as dma-bufs: {'yes' if abilities.dmabuf_export else 'no'}")
    print(f"dma-bufs as guests' pages: {'yes' if abilities.dmabuf_import else 'no'}")
    if abilities.reason:
        print(f"reason: {abilities.reason}")


async def serve(daemon: Daemon, config: str) -> None:
    """Run the daemon until SIGTERM or SIGINT. SIGHUP makes it read its configuration again."""
    # Outside of the cancelled nursery: a second signal must not kill the process while it closes the guests' devices.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_handle_signals, signals, nursery, daemon, config)
            await daemon.run()


async def _handle_signals(signals: AsyncIterator[int], nursery: trio.Nursery, daemon: Daemon, config: str) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            nursery.start_soon(daemon.reload, config)  # SIGTERM must not wait for a slow disk
        else:
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def only_one(device: str = GNTDEV) -> Iterator[None]:
    """Hold the lock while the block lasts, because two daemons would serve the same guests.

    Raises Unavailable when another daemon runs, or when the device cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(single_instance(device, TIMEOUT))
        except BlockingIOError as error:
            raise Unavailable("another displbe runs in this domain") from error
        except OSError as error:
            raise Unavailable(f"{device}: {error.strerror}") from error
        yield
