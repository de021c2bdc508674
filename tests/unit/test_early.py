"""What the process does before anything else is loaded."""

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
from displbe.xen import early
from displbe.xen.early import close_what_nobody_serves
from displbe.xen.port import NoEntry
from displbe.xen.store import XenStore

DISPLAY = "backend/vdispl/7/0"


class Place:
    """Domain 0's XenStore, and the device whose lock says that a daemon serves."""

    def __init__(self, folder: Path, server: StoreServer, store: XenStore) -> None:
        self.lock = folder / "gntdev"
        self.lock.touch()
        self.server = server
        self.store = store

    async def display(self, path: str, backend: bytes, frontend: bytes) -> None:
        """A device in XenStore."""
        domid = path.split("/")[2]
        front = f"/local/domain/{domid}/device/vdispl/{path[-1]}"
        await self.store.write(f"{path}/frontend", front.encode())
        await self.store.write(f"{path}/state", backend)
        await self.store.write(f"{front}/state", frontend)

    async def close(self, path: str = "") -> None:
        store = path or str(self.server.socket_of(0))
        await trio.to_thread.run_sync(close_what_nobody_serves, str(self.lock), store)

    async def state(self, path: str = DISPLAY) -> bytes:
        return await self.store.read(f"{path}/state")


@pytest.fixture(params=["xenstored", "oxenstored"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    server = StoreServer(tmp_path, request.param)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, 0)
        store = XenStore(str(server.socket_of(0)))
        await nursery.start(store.run)
        with trio.fail_after(20):
            yield Place(tmp_path, server, store)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("backend", [b"1", b"2", b"4", b"5", b"6", b"four"])
@pytest.mark.parametrize("frontend", [b"1", b"3", b"4", b"5", b"6", b""])
async def test_only_what_is_connected_is_closed(place: Place, backend: bytes, frontend: bytes) -> None:
    await place.display(DISPLAY, backend, frontend)
    await place.close()
    assert await place.state() == (b"6" if (backend, frontend) == (b"4", b"4") else backend)


async def test_all_displays_of_all_guests(place: Place) -> None:
    """One that is broken, or being removed, does not keep the others from being closed."""
    await place.store.write("backend/vdispl/3/0/state", b"4")
    await place.store.write("backend/vdispl/4/0/frontend", b"/nowhere")
    await place.store.write("backend/vdispl/5/0/frontend", b"/\xff\xfe")
    others = ["backend/vdispl/3/1", DISPLAY, "backend/vdispl/7/1", "backend/vdispl/12/0"]
    for path in others:
        await place.display(path, b"4", b"4")
    await place.close()
    assert [await place.state(path) for path in others] == [b"6"] * 4
    assert await place.state("backend/vdispl/3/0") == b"4"
    with pytest.raises(NoEntry):
        await place.state("backend/vdispl/4/0")


async def test_no_displays(place: Place) -> None:
    await place.close()
    with pytest.raises(NoEntry):
        await place.store.read("backend")


async def test_what_another_daemon_serves_stays(place: Place) -> None:
    await place.display(DISPLAY, b"4", b"4")
    with place.lock.open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        await place.close()
        assert await place.state() == b"4"
    await place.close()
    assert await place.state() == b"6"


async def test_without_xen(place: Place, tmp_path: Path) -> None:
    """What cannot be done is not spoken of: the daemon will."""
    await place.display(DISPLAY, b"4", b"4")
    await place.close(str(tmp_path / "no-store"))
    place.lock.unlink()
    await place.close()
    assert await place.state() == b"4"


class Deaf:
    """What poll is for /dev/xen/xenbus, which never says that it takes requests (xenbus_file_poll)."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events & ~select.POLLOUT)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return self._poll.poll(timeout)


async def test_over_the_device(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "select", SimpleNamespace(poll=Deaf, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT))
    await place.display(DISPLAY, b"4", b"4")
    await place.close()
    assert await place.state() == b"6"


@pytest.mark.parametrize(
    "answer", [b"", b"\x01\0\0\0", bytes(12) + b"\xff" * 4, b"\x01" + bytes(11) + b"\x08\0\0\0half"]
)
def test_a_store_that_goes_away(tmp_path: Path, answer: bytes) -> None:
    """Before it answers, or while it does; or what it says is no answer."""
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
        close_what_nobody_serves(str(tmp_path / "gntdev"), path)
        thread.join()


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not there at all, too."""
    monkeypatch.setattr(early, "PATIENCE", 0.2)
    (tmp_path / "gntdev").touch()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        begun = time.monotonic()
        close_what_nobody_serves(str(tmp_path / "gntdev"), path)
        assert time.monotonic() - begun >= 0.2
    close_what_nobody_serves(str(tmp_path / "gntdev"), path)


def test_it_loads_next_to_nothing() -> None:
    """The command line gets that far without what makes the start slow."""
    code = "import sys, displbe.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("displbe")}
    assert ours == {
        "displbe",
        "displbe.cli",
        "displbe.xen",
        *(f"displbe.xen.{name}" for name in ("alone", "early", "places")),
    }
    assert not {"trio", "structlog", "msgspec", "cffi", "_cffi_backend", "asyncio", "ssl", "pathlib"} & set(loaded)
