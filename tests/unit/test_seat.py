"""sinks/drm/seat.py with the real libseat and seatd: a seat without virtual terminals, between whose clients the tests switch."""

from __future__ import annotations

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

from displbe.sinks.drm import seat
from displbe.sinks.drm.seat import Seat, find_seat

# seatd's socket has a fixed path; in a mount namespace, where one can be created, no other seatd uses it.
SEATD = """
if unshare -m mount -t tmpfs t /run 2>/dev/null; then
    exec unshare -m sh -c 'mount -t tmpfs t /run; exec seatd -n 1 -l debug'
fi
exec seatd -n 1 -l debug
"""
_ffi = FFI()
_ffi.cdef("int libseat_switch_session(void *seat, int session);")


class Seatd:
    """A seatd process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.start()

    def start(self) -> None:
        """Start it, and wait until it accepts clients."""
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
    """A running seatd."""
    monkeypatch.setenv("LIBSEAT_BACKEND", "seatd")
    monkeypatch.setattr(seat, "RETRY", 0.05)
    monkeypatch.setattr(seat, "ENABLE_WAIT", 50)
    running = Seatd(monkeypatch)
    yield running
    running.end()


def client() -> Seat:
    """libseat; the test fails where it is missing."""
    found = find_seat()
    assert found is not None, "no libseat: tests/setup.sh installs it"
    return found


@asynccontextmanager
async def running(*clients: Seat) -> AsyncIterator[list[Seat]]:
    """Run clients of seatd. Each client that is told of a change is appended to the list."""
    changes: list[Seat] = []
    async with trio.open_nursery() as nursery:
        for one in clients:
            await trio.to_thread.run_sync(one.connect)
            nursery.start_soon(one.run, lambda one=one: changes.append(one))
        yield changes
        nursery.cancel_scope.cancel()
    for one in clients:
        one.leave()


async def until(what: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(10):
        while not what():
            await trio.sleep(0.005)


async def test_switched_away_and_back(seatd: Seatd) -> None:
    """The seat passes from one client to the other once the first has acknowledged, in both directions."""
    none, first, second = client(), client(), client()
    library: Any = _ffi.dlopen(seat.LIBRARY)
    none.connect()
    none.leave()  # session 0, which no client has
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


async def test_the_other_one_leaves(seatd: Seatd, tmp_path: Path) -> None:
    """A seat that another client had becomes ours; files that were opened before must be opened again."""
    first, second = client(), client()
    (tmp_path / "card0").touch()
    node = str(tmp_path / "card0")
    async with running(first, second) as changes:
        fd = second.open(node)
        assert (second.manages(fd), second.outdated(node, fd)) == (True, False)
        first.leave()
        await until(lambda: second.active and second in changes)
        assert (second.manages(fd), second.outdated(node, fd)) == (True, True)
        second.close(fd)
        assert not second.manages(fd)


async def test_what_it_does_not_open(seatd: Seatd, tmp_path: Path) -> None:
    """A file that is not one of the seat's devices is opened directly, and the seat is not asked for it again."""
    (tmp_path / "card0").touch()
    node = str(tmp_path / "card0")
    one = client()
    async with running(one):
        assert one.outdated(node, -1)
        with capture_logs() as logs:
            fd = one.open(node)
            assert os.path.samestat(os.fstat(fd), os.stat(node))
            assert (one.manages(fd), one.outdated(node, fd)) == (False, False)
            os.close(one.open(node))
        # Logged once; the reason is ENOENT, or EAGAIN with newer libseats.
        assert [bool(line["reason"]) for line in logs] == [True]
        one.close(fd)


async def test_it_dies(seatd: Seatd) -> None:
    """The end of seatd is noticed once and does no harm; a new seatd is found."""
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
        *("seat opened", "the seat is ours"),
    ]


async def test_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without seatd, files are opened directly; without libseat there is no seat."""
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
    one.leave()
    monkeypatch.setattr(seat, "LIBRARY", "libnone.so.1")
    assert find_seat() is None
