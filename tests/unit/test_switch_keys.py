"""sinks/drm/switch_keys.py on pipes in place of keyboards. tests/lab/test_x86.py presses the keys of a real one."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from displbe.sinks.drm import switch_keys
from displbe.sinks.drm.switch_keys import Keyboard, SwitchKeys

KEY_A, KEY_F1, KEY_F2, KEY_F10, KEY_F11, KEY_F12 = 30, 59, 60, 68, 87, 88


class Desk:
    """A folder of named pipes, each of which is a keyboard, or a mouse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: set[str] = set()
        """The keyboards on which Ctrl and Alt are down."""
        self.opened: list[str] = []
        self.asked: list[int] = []
        """The terminals that have been asked for."""
        self._ends: dict[str, int] = {}

    def plug(self, name: str) -> None:
        os.mkfifo(self.folder / name)

    def open(self, path: str) -> Keyboard:
        """Open a node as SwitchKeys does it."""
        desk, name = self, Path(path).name

        class Pipe(Keyboard):
            def can_switch(self) -> bool:
                return "mouse" not in name

            def is_held(self) -> bool:
                return name in desk.held

        keyboard = Pipe(path)
        self.opened.append(name)
        self._ends[name] = os.open(path, os.O_WRONLY)
        return keyboard

    def press(self, name: str, code: int, value: int = 1, kind: int = 1) -> None:
        """Write an event."""
        os.write(self._ends[name], struct.pack("llHHi", 0, 0, kind, code, value))

    def unplug(self, name: str) -> None:
        (self.folder / name).unlink()
        os.close(self._ends.pop(name))

    def close(self) -> None:
        for end in self._ends.values():
            os.close(end)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[SwitchKeys, Desk]]:
    """Run on a desk."""
    desk = Desk(folder)
    keys = SwitchKeys(desk.asked.append, folder, desk.open)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        yield keys, desk
        nursery.cancel_scope.cancel()
    desk.close()


async def until(what: Callable[[], object]) -> None:
    """Wait for something."""
    with trio.fail_after(10):
        while not what():
            await trio.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_keys, "SEARCH", 0.02)


async def test_keys(tmp_path: Path) -> None:
    """Each of the twelve keys asks for its terminal when it goes down while Ctrl and Alt are held, and nothing else does."""
    async with running(tmp_path) as (keys, desk):
        desk.plug("event0")
        keys.seat_changed(is_ours=True)
        await until(lambda: desk.opened)
        desk.press("event0", KEY_F1)
        desk.press("event0", KEY_A)
        await trio.sleep(0.05)
        desk.held.add("event0")
        desk.press("event0", KEY_A)
        desk.press("event0", KEY_F2, 0)
        desk.press("event0", KEY_F2, 2)
        desk.press("event0", KEY_F2, kind=2)
        for code in (*range(KEY_F1, KEY_F10 + 1), KEY_F11, KEY_F12):
            desk.press("event0", code)
        await until(lambda: len(desk.asked) == 12)
        assert desk.asked == list(range(1, 13))


async def test_only_with_the_seat(tmp_path: Path) -> None:
    """No keyboard is open while displbe does not have the seat."""
    async with running(tmp_path) as (keys, desk):
        desk.plug("event0")
        desk.held.add("event0")
        for turn in range(1, 4):
            await trio.sleep(0.05)
            assert len(desk.opened) == turn - 1
            keys.seat_changed(is_ours=True)
            await until(lambda turn=turn: len(desk.opened) == turn)  # type: ignore[misc]
            desk.press("event0", KEY_F2)
            await until(lambda turn=turn: len(desk.asked) == turn)  # type: ignore[misc]
            keys.seat_changed(is_ours=False)
            await trio.sleep(0.02)
            with pytest.raises(BrokenPipeError):
                desk.press("event0", KEY_F2)
            desk.close()
            desk._ends.clear()


async def test_keyboards_come_and_go(tmp_path: Path) -> None:
    """A keyboard that is plugged in later is read, a mouse is not, and one that is unplugged does no harm."""
    async with running(tmp_path) as (keys, desk):
        desk.held.update(("event1", "event2"))
        keys.seat_changed(is_ours=True)
        desk.plug("event1")
        await until(lambda: desk.opened == ["event1"])
        desk.plug("event2")
        desk.plug("event-mouse")
        await until(lambda: len(desk.opened) == 3)
        desk.unplug("event1")
        desk.press("event2", KEY_F11)
        await until(lambda: desk.asked)
        desk.plug("event1")
        await until(lambda: desk.opened.count("event1") == 2)
        desk.press("event1", KEY_F12)
        await until(lambda: desk.asked == [11, 12])
        await trio.sleep(0.05)
        with pytest.raises(BrokenPipeError):
            desk.press("event-mouse", KEY_F12)
        assert len(desk.opened) == 4


async def test_no_input_devices(tmp_path: Path) -> None:
    """Without a folder of devices there is nothing to read."""
    async with running(tmp_path / "none") as (keys, desk):
        keys.seat_changed(is_ours=True)
        await trio.sleep(0.1)
        assert desk.opened == []
