"""The process around the daemon: one in a domain, signals, exit codes."""

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
from displbe.xen import early
from displbe.xen.alone import alone
from displbe.xen.places import GNTDEV
from displbe.xen.port import Unavailable

if TYPE_CHECKING:
    from displbe.daemon import Daemon

__all__ = ["keep_for_good", "only_one", "run", "serve"]

OK: Final = 0
USAGE: Final = 2
UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE of sysexits.h."""
PATIENCE: Final = early.PATIENCE + 0.5
"""Seconds that another one may hold the lock: longer than one that only begins."""


def run(arguments: argparse.Namespace) -> int:
    """What the command line asks for: the exit code."""
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
    keep_for_good()
    trio.run(run_demo, arguments.output, arguments.frames, not arguments.no_window)
    return OK


def _daemon(arguments: argparse.Namespace) -> int:
    settings = load(arguments.config)
    log.configure(settings.log.format, settings.log.level)
    if arguments.check:
        print("configuration: good")
    from displbe.daemon import Daemon
    from displbe.xen.host import Host

    runtime = os.environ.get("RUNTIME_DIRECTORY")  # systemd's: it outlasts a restart
    daemon = Daemon(
        settings, Host(settings.xen.store or None), ServiceManager(), runtime=Path(runtime) if runtime else None
    )
    if arguments.check:
        _tell_abilities(daemon)
    else:
        with only_one():
            keep_for_good()
            trio.run(serve, daemon, arguments.config)
    return OK


def keep_for_good() -> None:
    """What has been imported and built stays until the end. To look through all of it for garbage takes 10 ms and more each time, in which
    no ring is served: from now on, only what is newer is looked through.
    """
    gc.freeze()
    gc.enable()


def _tell_abilities(daemon: Daemon) -> None:
    abilities = daemon.hypervisor.abilities
    print(f"guests' pages as dma-bufs: {'yes' if abilities.dmabuf_export else 'no'}")
    print(f"dma-bufs as guests' pages: {'yes' if abilities.dmabuf_import else 'no'}")
    if abilities.reason:
        print(f"because: {abilities.reason}")


async def serve(daemon: Daemon, config: str) -> None:
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
def only_one(device: str = GNTDEV) -> Iterator[None]:
    """Two daemons would take each other's guests. Raises Unavailable when another one runs in this domain."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(device, PATIENCE))
        except BlockingIOError as error:
            raise Unavailable("another displbe runs in this domain") from error
        except OSError as error:
            raise Unavailable(f"{device}: {error.strerror}") from error
        yield
