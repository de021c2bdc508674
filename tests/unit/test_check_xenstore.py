"""`displbectl check` and XenStore: what it reports of a simulated one, and of one that does not answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from displbe.config import Settings
from displbe.ctl import xenstore
from displbe.ctl.check_result import CheckResult
from displbe.ctl.machine import Machine
from displbe.ctl.xenstore import store_results
from displbe.sim.store import StoreServer
from displbe.sim.toolstack import ConnectorSpec, Toolstack
from displbe.xen.settings import XenSettings


class World:
    """A simulated XenStore, and the machine that it is on."""

    def __init__(self, folder: Path, server: StoreServer) -> None:
        self.machine = Machine(folder)
        self.server = server
        self.tools = Toolstack(server)

    async def check(self, domid: int = 0) -> list[CheckResult]:
        """The results in a domain."""
        settings = Settings(xen=XenSettings(store=f"/{self.server.socket_of(domid).name}"))
        return await trio.to_thread.run_sync(lambda: list(store_results(self.machine, settings)))


@pytest.fixture(params=["xenstored", "oxenstored"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    server = StoreServer(tmp_path, request.param)
    async with trio.open_nursery() as nursery:
        for domid in (0, 5):
            await nursery.start(server.serve, domid)
        with trio.fail_after(20):
            world = World(tmp_path, server)
            world.tools.write("/local/domain/0/domid", "0")
            yield world
        nursery.cancel_scope.cancel()


def add_guest(world: World, domid: int, name: str, backend: int = 0) -> None:
    """A guest with a display and a keyboard, as xl makes them."""
    world.tools.create_domain(domid)
    world.tools.write(f"/local/domain/{domid}/name", name, [("n", 0), ("r", domid)])
    world.tools.add_display(domid, [ConnectorSpec("A", 64, 48)], backend=backend)
    world.tools.add_input(domid, {}, backend=backend)


async def test_no_guests(world: World) -> None:
    assert await world.check() == [CheckResult("ok", "XenStore answers; this is domain 0")]


async def test_devices(world: World) -> None:
    """Their states and errors, in the order of the domains."""
    add_guest(world, 12, "late")
    add_guest(world, 7, "cockpit")
    for path, state in ((world.tools.back(7), "4"), (world.tools.front(7), "4"), (world.tools.vinput(7), "2")):
        world.tools.write(f"{path}/state", state)
    world.tools.write(f"{world.tools.vinput(12)}/error", "22 shut off: impossible index")
    _, *results = await world.check()
    assert [(result.grade, result.text) for result in results] == [
        ("ok", "guest cockpit, domain 7: vdispl 0: backend connected, frontend connected"),
        ("ok", "guest cockpit, domain 7: vinput 0: backend init_wait, frontend initialising"),
        ("warning", "guest late, domain 12: vdispl 0: no backend has answered yet"),
        ("warning", "guest late, domain 12: vinput 0: error: 22 shut off: impossible index"),
    ]
    assert all(bool(result.fix) == (result.grade == "warning") for result in results)


async def test_a_driver_domain(world: World) -> None:
    """It reads its own devices, but not its guests' names until Dom0 allows it."""
    world.tools.create_domain(5)
    add_guest(world, 7, "cockpit", backend=5)
    world.tools.write(f"{world.tools.back(7, 0, 5)}/state", "2")
    world.tools.write(f"{world.tools.vinput(7, 0, 5)}/state", "2")
    domid, display, _, names = await world.check(5)
    assert domid == CheckResult("ok", "XenStore answers; this is domain 5")
    assert display.text == "domain 7: vdispl 0: backend init_wait, frontend initialising"
    assert (names.grade, names.text) == (
        "warning",
        "the names of these domains cannot be read: 7; no [guest.NAME] applies to them",
    )
    world.tools.write("/local/domain/7/name", "cockpit", [("n", 0), ("r", 7), ("r", 5)])
    _, display, _ = await world.check(5)
    assert display.text.startswith("guest cockpit, domain 7:")


async def test_an_id_that_cannot_be_read(world: World) -> None:
    world.tools.write("/local/domain/5/domid", "5", [("n", 0)])
    (result,) = await world.check(5)
    assert result.grade == "warning"
    assert "id cannot be read (Permission denied)" in result.text


async def test_odd_nodes_are_no_failure(world: World) -> None:
    """Names that are no numbers, a frontend that is no path, a state that is no state."""
    world.tools.write("/local/domain/0/backend/vdispl/other/0/state", "4")
    world.tools.write("/local/domain/0/backend/vdispl/3/other/state", "4")
    world.tools.write("/local/domain/0/backend/vdispl/3/0/frontend", b"/\xff\xfe")
    world.tools.write("/local/domain/0/backend/vdispl/3/0/state", b"four")
    _, device, names = await world.check()
    assert "cannot be read: 3;" in names.text
    assert device == CheckResult("ok", "domain 3: vdispl 0: backend unknown, frontend missing")


def settings_for(folder: Path) -> tuple[Machine, Settings]:
    """A machine with XenStore's socket in a folder."""
    return Machine(folder), Settings(xen=XenSettings(store="/socket"))


def test_without_pyxs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "find_spec", lambda name: None)
    (result,) = store_results(*settings_for(tmp_path))
    assert result.grade == "warning"
    assert result.text == f"XenStore was not read, because Python has no pyxs. Left out: {xenstore.LEFT_OUT}"


def test_nothing_is_opened_that_is_no_store(tmp_path: Path) -> None:
    """The checks of files have reported it."""
    assert list(store_results(*settings_for(tmp_path))) == []
    (tmp_path / "socket").touch()
    assert list(store_results(*settings_for(tmp_path))) == []


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "TIMEOUT", 0.3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        start = time.monotonic()
        (result,) = store_results(*settings_for(tmp_path))
        assert 0.3 <= time.monotonic() - start < 5
    assert result.grade == "warning"
    assert "no answer within 0 s" in result.text
    assert xenstore.LEFT_OUT in result.text


@pytest.mark.parametrize("reply", [b"", b"\x02\0\0\0half", b"\xff" * 12 + bytes(4)])
def test_a_store_that_closes_the_connection(tmp_path: Path, reply: bytes) -> None:
    """Or sends a reply that is none. pyxs alone would wait for ever."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def answer() -> None:
            for _ in range(2):  # the first connection is closed at once
                end, _ = listener.accept()
                with end:
                    if end.recv(1000):
                        end.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        start = time.monotonic()
        (result,) = store_results(*settings_for(tmp_path))
        assert time.monotonic() - start < xenstore.TIMEOUT
        thread.join()
    assert result.grade == "warning"
    assert xenstore.LEFT_OUT in result.text


def test_a_stale_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (result,) = store_results(*settings_for(tmp_path))
    assert "Connection refused" in result.text
