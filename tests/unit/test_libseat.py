"""sinks/drm/libseat.py with the real libseat and seatd. Its seat has no virtual terminals; clients switch it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cffi import FFI
from structlog.testing import capture_logs

from displbe.sinks.drm import libseat
from displbe.sinks.drm._libseat import ffi as libseat_ffi
from displbe.sinks.drm.libseat import Libseat, find_libseat

# The path of seatd's socket is fixed. Where namespaces can be made, this seatd's socket is in one of its own.
SEATD = """
if unshare -m mount -t tmpfs t /run 2>/dev/null; then
    exec unshare -m sh -c 'mount -t tmpfs t /run; exec seatd -n 1 -l debug'
fi
exec seatd -n 1 -l debug
"""
CARD = "/dev/dri/card0"
"""A card that a guest uses. seatd is not asked to open it."""
_ffi = FFI()
_ffi.cdef("int libseat_switch_session(void *seat, int session);")


class Seatd:
    """The session manager."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.start()

    def start(self) -> None:
        """Start it, and return when it can be reached."""
        environment = {**os.environ, "SEATD_VTBOUND": "0"}
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            ["sh", "-c", SEATD], stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.read(1), "seatd does not start"
        self._patch.setenv("SEATD_SOCK", f"/proc/{self._process.pid}/root/run/seatd.sock")

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def seatd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seatd]:
    """A running seatd, unless the test ends it."""
    monkeypatch.setenv("LIBSEAT_BACKEND", "seatd")
    monkeypatch.setattr(libseat, "RETRY", 0.05)
    monkeypatch.setattr(libseat, "ENABLE_WAIT", 50)
    running = Seatd(monkeypatch)
    yield running
    running.end()


def client() -> Libseat:
    """Return libseat, which has to be installed."""
    found = find_libseat()
    assert found is not None, "no libseat: tests/setup.sh installs it"
    return found


@asynccontextmanager
async def running(*clients: Libseat) -> AsyncIterator[list[Libseat]]:
    """Run clients of seatd, which want the seat for a card. Each is appended to the list whenever it is told of a change."""
    changes: list[Libseat] = []
    async with trio.open_nursery() as nursery:
        for one in clients:
            nursery.start_soon(one.run, lambda one=one: changes.append(one))
            assert await trio.to_thread.run_sync(one.use, CARD)
            one.used()
        await trio.sleep(0.1)
        changes.clear()
        yield changes
        nursery.cancel_scope.cancel()
    for one in clients:
        one.give_back()


async def until(what: Callable[[], object]) -> None:
    """Wait for something."""
    with trio.fail_after(10):
        while not what():
            await trio.sleep(0.005)


async def test_switched_away_and_back(seatd: Seatd) -> None:
    """The second client gets the seat when the first one has given it up, and the other way round."""
    none, first, second = client(), client(), client()
    library: Any = _ffi.dlopen(libseat.LIBRARY)
    none.connect()
    none.give_back()  # takes session 0, to which seatd cannot switch
    async with running(first, second) as changes:
        assert (first.active, second.active) == (True, False)
        for turn in range(3):
            has, gets = (second, first) if turn % 2 else (first, second)
            changes.clear()
            with has._lock:
                library.libseat_switch_session(_ffi.cast("void *", has._seat), 1 + (turn + 1) % 2)
            await until(lambda gets=gets: gets.active)  # type: ignore[misc]
            assert not has.active
            await until(lambda: len(changes) == 2)


async def test_the_other_session_ends(seatd: Seatd, tmp_path: Path) -> None:
    """The other session ends: the seat becomes ours, and a card that was opened before is outdated."""
    first, second = client(), client()
    (tmp_path / "card0").touch()
    node = str(tmp_path / "card0")
    async with running(first, second) as changes:
        fd = second.open(node)
        assert (second.manages(fd), second.is_outdated(node, fd)) == (False, False)
        second.close(fd)
        assert second.use(node)
        fd = second.open(node)
        assert (second.manages(fd), second.is_outdated(node, fd)) == (True, False)
        first.give_back()
        await until(lambda: second.active and second in changes)
        assert (second.manages(fd), second.is_outdated(node, fd)) == (True, True)
        second.close(fd)
        assert not second.manages(fd)
        second.leave(node)
        assert not second.is_outdated(node, -1)


async def test_the_seat_is_held_only_for_a_card_in_use(seatd: Seatd) -> None:
    """A client of seatd takes the keyboard from the kernel, so there is one only while a card is used."""
    one = client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, lambda: None)
        for _ in range(3):
            await trio.sleep(0.1)
            assert (one._seat, one.active) == (None, False)
            for card in (CARD, "/dev/dri/card1"):
                assert one.could_ask(card)
                assert await trio.to_thread.run_sync(one.use, card)
                one.used()
                assert not one.could_ask(card)
            assert one.active
            one.leave(CARD)
            await trio.sleep(0.1)
            assert one.active
            one.keep([])  # the other card has gone
            await until(lambda: one._seat is None)
        nursery.cancel_scope.cancel()


async def test_switched_by_displbe(seatd: Seatd) -> None:
    """displbe asks for another session, as the kernel does at Ctrl+Alt+F2 without a session manager."""
    none, first, second = client(), client(), client()
    none.connect()
    none.give_back()  # takes session 0, to which seatd cannot switch
    async with running(first, second):
        await trio.to_thread.run_sync(first.switch, 2)
        await until(lambda: second.active and not first.active)
        await trio.to_thread.run_sync(second.switch, 1)
        await until(lambda: first.active and not second.active)


async def test_refused_device(seatd: Seatd, tmp_path: Path) -> None:
    """A file that seatd refuses is opened without it, and seatd is not asked for it again."""
    (tmp_path / "card0").touch()
    node = str(tmp_path / "card0")
    one = client()
    async with running(one):
        assert one.use(node)
        assert one.is_outdated(node, -1)
        with capture_logs() as logs:
            fd = one.open(node)
            assert os.path.samestat(os.fstat(fd), os.stat(node))
            assert (one.manages(fd), one.is_outdated(node, fd)) == (False, False)
            os.close(one.open(node))
            assert (one.use(node), one.could_ask(node)) == (False, False)
        # One line; its reason is ENOENT, or EAGAIN with newer versions of libseat.
        assert [bool(line["reason"]) for line in logs] == [True]
        one.close(fd)


async def test_seatd_dies(seatd: Seatd) -> None:
    """The loss of seatd is noticed once, and a new seatd is found."""
    one = client()
    with capture_logs() as logs:
        async with running(one) as changes:
            seatd.end()
            await until(lambda: not one.active and changes)
            await trio.sleep(0.3)
            assert len(changes) == 1
            seatd.start()
            await until(lambda: one.active and len(changes) == 2)
    assert [line["event"] for line in logs] == [
        *("seat opened", "the seat is ours", "seat lost", "no seat: cards are opened without a session manager"),
        *("seat opened", "the seat is ours", "seat given back"),
    ]


async def test_another_program_has_the_seat(seatd: Seatd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seat with a terminal that another program has is refused (EBUSY). displbe does not ask again while it uses this card."""
    one = client()
    asked = []

    class Busy:
        """libseat, whose session manager refuses the seat."""

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def libseat_open_seat(self, listener: Any, data: Any) -> Any:
            asked.append(True)
            libseat_ffi.errno = errno.EBUSY
            return libseat_ffi.NULL

    library, one._library = one._library, Busy()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, lambda: None)
        for turn in range(1, 3):
            for card in (CARD, "/dev/dri/card1"):
                assert not await trio.to_thread.run_sync(one.use, card)
                one.used()
                assert not one.could_ask(card)
            await trio.sleep(0.2)
            assert len(asked) == turn
            one.leave(CARD)
        one._library = library
        assert await trio.to_thread.run_sync(one.use, CARD)
        nursery.cancel_scope.cancel()
    one.give_back()


async def test_a_session_manager_that_comes_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seatd: Seatd) -> None:
    """Without a session manager a card is used like any file. It is outdated when there is one."""
    socket = os.environ["SEATD_SOCK"]
    monkeypatch.setenv("SEATD_SOCK", str(tmp_path / "none"))
    one, changes = client(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, lambda: changes.append(one.active))
        assert not await trio.to_thread.run_sync(one.use, CARD)
        one.used()
        assert not one.could_ask(CARD)
        assert not one.is_outdated(CARD, 1000)
        monkeypatch.setenv("SEATD_SOCK", socket)
        await until(lambda: changes)
        assert one.is_outdated(CARD, 1000)
        nursery.cancel_scope.cancel()
    one.give_back()


async def test_no_seatd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without seatd, cards are opened like any file. Without the library there is no Libseat."""
    monkeypatch.setenv("LIBSEAT_BACKEND", "seatd")
    monkeypatch.setenv("SEATD_SOCK", str(tmp_path / "none"))
    one = client()
    one.connect()
    assert not one.active
    node = tmp_path / "card0"
    node.touch()
    fd = one.open(str(node))
    assert not one.manages(fd)
    one.close(fd)
    one.give_back()
    monkeypatch.setattr(libseat, "LIBRARY", "libnone.so.1")
    assert find_libseat() is None
