"""The keys that switch to another virtual terminal, Ctrl+Alt+F1 to F12, while displbe has the seat.

A session manager such as seatd switches the kernel's own handling of the keyboard off for as long as displbe is its client. So displbe has
to ask for the other terminal, as a compositor does. It reads the keyboards for this only while it has the seat. From a keyboard that is
grabbed for a guest nothing can be read: the guest gets these keys, until `release` in [input] takes the keyboard back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import brief, severity
from displbe.threads import NoThread, run_in_thread

__all__ = ["Keyboard", "SwitchKeys"]

INPUT: Final = Path("/dev/input")
SEARCH: Final = 5.0
"""Seconds between two searches for keyboards."""

# include/uapi/linux/input-event-codes.h
_EV_KEY: Final = 1
_CTRL: Final = 29, 97
_ALT: Final = 56, 100
_TERMINALS: Final = {**{58 + number: number for number in range(1, 11)}, 87: 11, 88: 12}
"""KEY_F1 to KEY_F12 -> the terminal's number."""
_KEY_BYTES: Final = 0x300 // 8
"""Bytes of a bit field of all keys (KEY_CNT)."""

# include/uapi/linux/input.h
_EVENT: Final = struct.Struct("llHHi")
"""struct input_event: the time in two words of the kernel's length, type, code, value."""
_PRESSED: Final = 1
_READ: Final = 2 << 30 | _KEY_BYTES << 16 | ord("E") << 8
_EVIOCGKEY: Final = _READ | 0x18
_EVIOCGBIT_KEY: Final = _READ | (0x20 + _EV_KEY)

_log = structlog.get_logger("displbe.drm")


class Keyboard:
    """An open evdev node. Raises OSError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def can_switch(self) -> bool:
        """Return whether it has the keys. Raises OSError."""
        there = self._keys(_EVIOCGBIT_KEY)
        return _has(there, _CTRL) and _has(there, _ALT) and _has(there, tuple(_TERMINALS))

    def is_held(self) -> bool:
        """Return whether Ctrl and Alt are down. Raises OSError."""
        down = self._keys(_EVIOCGKEY)
        return _has(down, _CTRL) and _has(down, _ALT)

    def close(self) -> None:
        os.close(self.fd)

    def _keys(self, number: int) -> bytes:
        return fcntl.ioctl(self.fd, number, bytes(_KEY_BYTES))


def _has(field: bytes, keys: tuple[int, ...]) -> bool:
    """Return whether a bit field has one of these keys."""
    return any(field[key // 8] >> key % 8 & 1 for key in keys)


class SwitchKeys:
    """Reads the keyboards while displbe has the seat, and calls `switch` with a terminal's number, in a worker thread.

    Tests hand in another folder and other keyboards.
    """

    def __init__(
        self,
        switch: Callable[[int], None],
        folder: Path = INPUT,
        open_keyboard: Callable[[str], Keyboard] = Keyboard,
    ) -> None:
        self._switch = switch
        self._folder = folder
        self._open = open_keyboard
        self._seat_changed = trio.Event()
        self._has_seat = False
        self._say = SparseLog(_log)

    def seat_changed(self, *, is_ours: bool) -> None:
        """Take note that displbe has got the seat, or has lost it."""
        if is_ours != self._has_seat:
            self._has_seat = is_ours
            self._seat_changed.set()

    async def run(self) -> None:
        """Read keyboards until cancelled."""
        while True:
            changed = self._seat_changed = trio.Event()
            async with trio.open_nursery() as nursery:
                if self._has_seat:
                    nursery.start_soon(self._search, nursery)
                await changed.wait()
                nursery.cancel_scope.cancel()

    async def _search(self, nursery: trio.Nursery) -> None:
        """Start to read each keyboard that comes, until cancelled."""
        known: set[tuple[str, int]] = set()
        while True:
            try:
                nodes = {
                    (node.path, node.inode()) for node in os.scandir(self._folder) if node.name.startswith("event")
                }
            except OSError:  # there is no input device
                nodes = set()
            known &= nodes
            for node in sorted(nodes - known):
                known.add(node)
                nursery.start_soon(self._serve, node, known)
            await trio.sleep(SEARCH)

    async def _serve(self, node: tuple[str, int], known: set[tuple[str, int]]) -> None:
        """Read a node until it has gone, if it is a keyboard. Forget it then, or if it cannot be opened, to try again."""
        path, _ = node
        try:
            keyboard = self._open(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._say("a keyboard cannot be read for Ctrl+Alt+F1 to F12", f"{path}: {error.strerror}", level="info")
            known.discard(node)
            return
        try:
            if keyboard.can_switch():
                await self._read(keyboard)
                known.discard(node)
        except OSError:  # it has gone
            known.discard(node)
        except Exception as error:
            self._say("reading a keyboard failed", f"{path}: {brief(error)}", level=severity(error))
        finally:
            trio.lowlevel.notify_closing(keyboard.fd)
            keyboard.close()

    async def _read(self, keyboard: Keyboard) -> None:
        """Read a keyboard's events. Raises OSError at its end."""
        while True:
            await trio.lowlevel.wait_readable(keyboard.fd)
            data = os.read(keyboard.fd, 64 * _EVENT.size)
            if not data:
                return
            for _, _, kind, code, value in _EVENT.iter_unpack(data[: len(data) // _EVENT.size * _EVENT.size]):
                if kind == _EV_KEY and value == _PRESSED and code in _TERMINALS and keyboard.is_held():
                    _log.info("another terminal is asked for", terminal=_TERMINALS[code])
                    with suppress(NoThread):  # the user presses the keys again
                        await run_in_thread(self._switch, _TERMINALS[code], abandon_on_cancel=True)
