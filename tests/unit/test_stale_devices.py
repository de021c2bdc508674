"""Displays that a killed daemon has left connected are closed before anything else is loaded."""

from __future__ import annotations

import fcntl
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from displbe.sim.store import StoreServer
from displbe.xen import stale_devices
from displbe.xen.port import NoEntry
from displbe.xen.stale_devices import close_stale_displays
from displbe.xen.store import XenStore

DISPLAY = "backend/vdispl/7/0"


class World:
    """Domain 0's XenStore, and the device whose lock a running daemon holds."""

    def __init__(self, folder: Path, server: StoreServer, store: XenStore) -> None:
        self.lock = folder / "gntdev"
        self.lock.touch()
        self.server = server
        self.store = store

    async def display(self, path: str, backend: bytes, frontend: bytes) -> None:
        """Write the nodes of a display."""
        domid = path.split("/")[2]
        front = f"/local/domain/{domid}/device/vdispl/{path[-1]}"
        await self.store.write(f"{path}/frontend", front.encode())
        await self.store.write(f"{path}/state", backend)
        await self.store.write(f"{front}/state", frontend)

    async def close(self, path: str = "") -> None:
        store = path or str(self.server.socket_of(0))
        await trio.to_thread.run_sync(close_stale_displays, str(self.lock), store)

    async def state(self, path: str = DISPLAY) -> bytes:
        return await self.store.read(f"{path}/state")


@pytest.fixture(params=["xenstored", "oxenstored"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    server = StoreServer(tmp_path, request.param)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, 0)
        store = XenStore(str(server.socket_of(0)))
        await nursery.start(store.run)
        with trio.fail_after(20):
            yield World(tmp_path, server, store)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("backend", [b"1", b"2", b"4", b"5", b"6", b"four"])
@pytest.mark.parametrize("frontend", [b"1", b"3", b"4", b"5", b"6", b""])
async def test_only_connected_displays_are_closed(world: World, backend: bytes, frontend: bytes) -> None:
    await world.display(DISPLAY, backend, frontend)
    await world.close()
    assert await world.state() == (b"6" if (backend, frontend) == (b"4", b"4") else backend)


async def test_all_displays_of_all_guests(world: World) -> None:
    """A broken one, or one that is being removed, does not keep the others from being closed."""
    await world.store.write("backend/vdispl/3/0/state", b"4")
    await world.store.write("backend/vdispl/4/0/frontend", b"/nowhere")
    await world.store.write("backend/vdispl/5/0/frontend", b"/\xff\xfe")
    others = ["backend/vdispl/3/1", DISPLAY, "backend/vdispl/7/1", "backend/vdispl/12/0"]
    for path in others:
        await world.display(path, b"4", b"4")
    await world.close()
    assert [await world.state(path) for path in others] == [b"6"] * 4
    assert await world.state("backend/vdispl/3/0") == b"4"
    with pytest.raises(NoEntry):
        await world.state("backend/vdispl/4/0")


async def test_no_displays(world: World) -> None:
    await world.close()
    with pytest.raises(NoEntry):
        await world.store.read("backend")


async def test_displays_of_a_running_daemon_stay(world: World) -> None:
    await world.display(DISPLAY, b"4", b"4")
    with world.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await world.close()
        assert await world.state() == b"4"
    await world.close()
    assert await world.state() == b"6"


async def test_without_xen(world: World, tmp_path: Path) -> None:
    """Failures are silent: the daemon reports them."""
    await world.display(DISPLAY, b"4", b"4")
    await world.close(str(tmp_path / "no-store"))
    world.lock.unlink()
    await world.close()
    assert await world.state() == b"4"


class NeverWritable:
    """`select.poll` as /dev/xen/xenbus answers it: never POLLOUT (xenbus_file_poll)."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events & ~select.POLLOUT)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return self._poll.poll(timeout)


async def test_over_the_device(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stale_devices, "select", SimpleNamespace(poll=NeverWritable, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT)
    )
    await world.display(DISPLAY, b"4", b"4")
    await world.close()
    assert await world.state() == b"6"


@pytest.mark.parametrize(
    "answer", [b"", b"\x01\0\0\0", bytes(12) + b"\xff" * 4, b"\x01" + bytes(11) + b"\x08\0\0\0half"]
)
def test_a_store_that_closes_the_connection(tmp_path: Path, answer: bytes) -> None:
    """It closes the connection before its reply or within it, or its reply is none."""
    (tmp_path / "gntdev").touch()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def go_away() -> None:
            end, _ = listener.accept()
            with end:
                end.recv(100)
                end.send(answer)

        thread = threading.Thread(target=go_away)
        thread.start()
        close_stale_displays(str(tmp_path / "gntdev"), path)
        thread.join()


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that does not exist."""
    monkeypatch.setattr(stale_devices, "TIMEOUT", 0.2)
    (tmp_path / "gntdev").touch()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        begun = time.monotonic()
        close_stale_displays(str(tmp_path / "gntdev"), path)
        assert time.monotonic() - begun >= 0.2
    close_stale_displays(str(tmp_path / "gntdev"), path)


def test_it_loads_few_modules() -> None:
    """The command line gets this far without the modules that are slow to load."""
    code = "import sys, displbe.startup; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("displbe")}
    assert ours == {
        "displbe",
        "displbe.startup",
        "displbe.wire",
        "displbe.wire.xs",
        "displbe.xen",
        *(f"displbe.xen.{name}" for name in ("paths", "single_instance", "stale_devices")),
    }
    assert not {"trio", "structlog", "msgspec", "cffi", "_cffi_backend", "asyncio", "ssl", "pathlib"} & set(loaded)
