"""No more files, threads or memory, wherever displbe needs one: that costs the operation, with one line in the log, and never the daemon.

First a scenario runs that uses everything that the daemon does; each place that needs a resource is recorded. Then the scenario runs once
for each place, whose first call fails. The other tests take the resources away in reality.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
import trio
from hostile.kernel import Fault, Kernel
from hostile.shortages import KINDS, Shortages
from hostile.stage import create, raw_buffer
from hostile.test_faults import (
    TOLERATED,
    allow_be_alloc,
    connects_again,
    nothing_is_held,
    of_part,
    patch,
    play,
    try_each,
    works,
)
from scenario.world import World, descriptors, exchange, flip_on, spec, until

from displbe import daemon as daemon_module
from displbe.backend.guests import GuestSettings
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops import clients
from displbe.ops.service_manager import ServiceManager
from displbe.ops.settings import ControlSettings, LogSettings, MetricsSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.wire.displif import decode_response
from displbe.wire.errors import Errno
from displbe.xen.port import Ledger

__all__ = ["patch"]

CONFIG: Final = "sink = 'headless'\n[guest.hostile]\nbe-alloc = true\n"


def configured(folder: Path, refresh: float) -> Settings:
    """Write the configuration that a reload reads. Return that of the daemon, with all that operators use."""
    (folder / "displbe.toml").write_text(CONFIG)
    return Settings(
        sink="headless",
        headless=HeadlessSettings(refresh=refresh, directory=str(folder)),
        guest={"hostile": GuestSettings(be_alloc=True)},
        control=ControlSettings(socket=str(folder / "control")),
        metrics=MetricsSettings(socket=str(folder / "metrics"), textfile=str(folder / "displbe.prom"), interval=1),
        log=LogSettings(traces=str(folder / "traces")),
    )


async def ask(socket: Path, command: str, **arguments: str) -> dict[str, Any]:
    """Return the header of a command's answer; an error if there is none."""
    try:
        with trio.fail_after(5):
            async with await trio.open_unix_socket(socket) as client:
                await client.send_all(json.dumps({"version": 1, "command": command, **arguments}).encode() + b"\n")
                data = b""
                while b"\n" not in data:
                    more = await client.receive_some()
                    if not more:
                        return {"ok": False, "error": "the connection was closed"}
                    data += more
                return dict(json.loads(data.partition(b"\n")[0]))
    except (OSError, trio.BrokenResourceError) as error:
        return {"ok": False, "error": str(error)}


async def metrics(socket: Path) -> bytes:
    """Return the answer to a request for the metrics."""
    try:
        with trio.fail_after(5):
            async with await trio.open_unix_socket(socket) as client:
                await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join([data async for data in client])
    except (OSError, trio.BrokenResourceError):
        return b""


async def operate(daemon: Daemon, folder: Path) -> None:
    """Do what operators, systemd and Prometheus do."""
    control = folder / "control"
    await ask(control, "status")
    await ask(control, "screenshot", guest="hostile")
    await ask(control, "trace", guest="hostile")
    await ask(control, "focus", guest="hostile")
    await ask(control, "blank", guest="hostile")
    await ask(control, "unblank", guest="hostile")
    await metrics(folder / "metrics")
    await daemon.reload(str(folder / "displbe.toml"))


async def break_protocol(guest: Guest) -> None:
    """Publish an impossible index: the device is shut off, and its trace is written."""
    connector = guest.display.connectors[0]
    connector.ring_page.store(0, connector.ring._req_prod + 1000 & 0xFFFFFFFF)  # req_prod
    connector.channel.notify()
    await trio.sleep(0.05)


async def run(patch: pytest.MonkeyPatch, folder: Path, wanted: Fault | None) -> Shortages:
    """Run the scenario with one shortage."""
    settings = configured(folder, 1000)
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        kernel = Kernel(xen)
        with kernel.under(patch), patch.context() as counting:
            counting.setattr(daemon_module, "STATUS_PERIOD", 0.01)
            counting.setattr(clients, "ACCEPT_RETRY", 0.01)
            counting.setattr(clients, "ACCEPT_INTERVAL", 0.0)
            shortages = Shortages(counting, wanted)
            world = World(xen, nursery, settings)
            host = kernel.host(counting)
            manager = ServiceManager({"NOTIFY_SOCKET": str(folder / "notify")})
            daemon = Daemon(settings, host, manager, runtime=folder)
            daemon.sink.wants_dmabuf = True
            await nursery.start(daemon.run)
            shortages.armed = True
            try:
                async with world.booted(1, spec("screen-1")) as guest:
                    allow_be_alloc(world)
                    try:
                        await play(guest)
                    except TOLERATED:
                        assert wanted, "nothing went wrong"
                    await operate(daemon, folder)
                    if wanted is None or not shortages.failed:
                        await break_protocol(guest)
                    if shortages.failed:
                        shortages.armed = False
                        await connects_again(world, guest)
            except* TOLERATED:
                assert wanted, "nothing went wrong"
            await until(lambda: not daemon.displays.devices)
            shortages.armed = False
            nothing_is_held(daemon, host, kernel)
            assert [pool.used for pool in daemon.quotas.total.pools.values()] == [0, 0, 0, 0]
            await works(world, 2, patch)
            assert (await ask(folder / "control", "status"))["ok"]
            assert b"200 OK" in await metrics(folder / "metrics")
            await until(lambda: not daemon.displays.devices)
            assert host.ledger == Ledger()
            nursery.cancel_scope.cancel()
    return shortages


def attempt(patch: pytest.MonkeyPatch, wanted: Fault | None) -> tuple[Shortages, list[str]]:
    """Run the scenario in a world of its own. Return also the lines of the log that have a traceback. No further file may be open then."""
    before = descriptors()
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs() as lines:
        shortages = trio.run(run, patch, Path(folder), wanted)
    assert descriptors() == before
    return shortages, [str(line["event"]) for line in lines if line.get("exc_info")]


PARTS: Final = 3
"""The number of tests among which the places are divided, so that as many processes can run them."""
TRIES: Final = 5
"""The number of runs in which a place should be reached again."""


@pytest.mark.parametrize("part", range(PARTS))
def test_each_shortage_costs_its_operation(patch: pytest.MonkeyPatch, part: int) -> None:
    quiet, tracebacks = attempt(patch, None)
    assert not tracebacks
    assert {place.call for place in quiet.places} >= {"worker", "thread", "socket", "listdir", "memfd_create", "mmap"}
    assert {place.call for place in quiet.places} <= KINDS.keys()
    print(f"{len(quiet.places)} places, {sum(quiet.places.values())} calls")

    def is_reached(place: Fault) -> bool:
        shortages, tracebacks = attempt(patch, place)
        if shortages.failed:
            assert not tracebacks
        return shortages.failed

    chosen = of_part(quiet.places, part, PARTS)
    missed = try_each(chosen, is_reached, TRIES)
    assert len(missed) <= len(chosen) // 4, "not reached again:\n" + "\n".join(missed)


# In reality


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no further file in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.dup(0)]
    while spare[-1] < 200:  # fill the gaps, so that the limit is the number of open files
        spare.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)


NO_FILES: Final = {"cannot accept a client: trying again", "cannot write the metrics file"}
"""What the log says when there are no more files."""


async def without_files(folder: Path, lines: Sequence[MutableMapping[str, Any]]) -> None:
    """Serve a guest, operators and Prometheus while this process has no file left, and then again."""
    settings = configured(folder, 250)
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        world = World(xen, nursery, settings, folder)
        daemon = Daemon(settings, xen.hypervisor(0), ServiceManager({"NOTIFY_SOCKET": str(folder / "notify")}))
        await nursery.start(daemon.run)
        async with world.booted(1, spec("screen-1")) as guest:
            allow_be_alloc(world)
            with trio.fail_after(30):
                await guest.display.connected.wait()
            connector = guest.display.connectors[0]
            directory = raw_buffer(guest)
            async with flip_on(guest) as times:
                await until(lambda: len(times) > 2)
                waiting = [trio.socket.socket(trio.socket.AF_UNIX) for _ in range(2)]
                with no_more_files():
                    for client, name in zip(waiting, ("control", "metrics"), strict=True):
                        await client.connect(str(folder / name))
                    await waiting[0].send(b'{"version":1,"command":"status"}\n')
                    await waiting[1].send(b"GET / HTTP/1.0\r\n\r\n")
                    answer = await exchange(connector, create(directory, 0x77, flags=1))
                    assert decode_response(answer).status in (-Errno.ENOMEM, -Errno.EIO)
                    await daemon.reload(str(folder / "displbe.toml"))
                    already = len(times)
                    await until(lambda: {line["event"] for line in lines} >= NO_FILES)  # the textfile comes round
                    await until(lambda: len(times) > already + 20)
                for client, begin in zip(waiting, (b'{"ok":true', b"HTTP/1.1 200 OK"), strict=True):
                    with trio.fail_after(10):
                        assert (await client.recv(100)).startswith(begin)
                    client.close()
                answer = await exchange(connector, create(directory, 0x77, flags=1))
                assert decode_response(answer).status == 0
                await until((folder / "displbe.prom").exists)
        await until(lambda: not daemon.displays.devices)
        assert [pool.used for pool in daemon.quotas.total.pools.values()] == [0, 0, 0, 0]
        nursery.cancel_scope.cancel()


def test_no_more_files_in_reality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "STATUS_PERIOD", 0.05)
    before = descriptors()
    with structlog.testing.capture_logs() as lines:
        trio.run(without_files, tmp_path, lines)
    assert descriptors() == before
    assert [line["event"] for line in lines if line.get("exc_info")] == []
    reasons = {line["event"]: line.get("reason", "") for line in lines}
    for event in NO_FILES:
        assert "Too many open files: raise LimitNOFILE= in displbe.service" in str(reasons[event])


CHILD: Final = """
import os, resource, trio
from displbe.threads import NoThread, run_in_thread, run_in_thread_or_here, start_thread
async def main():
    if os.geteuid() == 0:
        os.setuid(65534)  # root has no limit of processes
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    limiter = trio.CapacityLimiter(1)
    try:
        await run_in_thread(len, "ab", limiter=limiter)
    except NoThread as error:
        print(error.errno, error.strerror)
    try:
        start_thread("x", len, "ab")
    except NoThread as error:
        print(error.errno, error.strerror)
    assert limiter.borrowed_tokens == 0
    print(await run_in_thread_or_here(len, "abc"))
trio.run(main)
"""


def test_no_more_threads_in_reality() -> None:
    """The kernel refuses a thread: that is an OSError which names the way out. Work that must be done is done all the same."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False)
    way_out = "raise TasksMax= in displbe.service, or give this machine more memory"
    said = f"{errno.EAGAIN} no thread can be started: {way_out}"
    assert done.stdout.splitlines() == [said, said, "3"], done.stderr
