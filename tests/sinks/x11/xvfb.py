"""An X server on this machine (Xvfb), and a client of it that takes pictures of the screen and makes input events."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from typing import Any, Self

import trio
import xcffib
import xcffib.xproto as x
import xcffib.xtest
from PIL import Image

__all__ = ["SIZE", "Manager", "User", "Xvfb"]

SIZE = (640, 480)
KEY_PRESS, KEY_RELEASE, BUTTON_PRESS, BUTTON_RELEASE, MOTION_NOTIFY = range(2, 7)
"""Event codes of the X protocol."""


class Xvfb:
    """A server. `number` is its display number; None lets the server choose."""

    def __init__(self, number: int | None = None, depth: int = 24) -> None:
        read, write = os.pipe()
        screen = ["-screen", "0", f"{SIZE[0]}x{SIZE[1]}x{depth}"]
        display = [] if number is None else [f":{number}"]
        command = ["Xvfb", *display, "-displayfd", str(write), *screen, "-nolisten", "tcp", "-noreset", "-ac"]
        self.process = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
        os.close(write)
        with open(read) as said:
            told = said.readline()
        if not told.strip():
            self.process.wait()
            raise RuntimeError(f"Xvfb ended with {self.process.returncode}")
        self.number = int(told)

    @property
    def display(self) -> str:
        """The name of the display, as in DISPLAY."""
        return f":{self.number}"

    def hang(self) -> None:
        """Stop the server: it answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the server go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server. Its socket and its lock file stay behind, as after a crash."""
        self.process.kill()
        self.process.wait()

    @classmethod
    @contextlib.contextmanager
    def running(cls, number: int | None = None, depth: int = 24) -> Iterator[Xvfb]:
        """Run a server while the block lasts."""
        server = cls(number, depth)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGCONT)
            server.process.terminate()
            server.process.wait()


class User:
    """The user of the screen: an X client that observes it and makes input events by XTEST."""

    def __init__(self, server: Xvfb) -> None:
        self.connection = xcffib.connect(server.display)
        self.screen = self.connection.get_setup().roots[self.connection.pref_screen]
        self.root = self.screen.root
        self.test = self.connection(xcffib.xtest.key)

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: Xvfb) -> Iterator[Self]:
        """Connect a user while the block lasts."""
        user = cls(server)
        try:
            yield user
        finally:
            user.connection.disconnect()

    @property
    def core(self) -> Any:
        """The requests of the core protocol."""
        return self.connection.core

    def windows(self) -> list[int]:
        """Return the windows that are mapped."""
        found = []
        for window in self.core.QueryTree(self.root).reply().children:
            with contextlib.suppress(x.WindowError):  # it may have been destroyed meanwhile
                if self.core.GetWindowAttributes(window).reply().map_state == x.MapState.Viewable:
                    found.append(window)
        return found

    def picture(self) -> Image.Image:
        """Return a picture of the whole screen."""
        image = self.core.GetImage(x.ImageFormat.ZPixmap, self.root, 0, 0, *SIZE, 0xFFFFFFFF).reply()
        return Image.frombytes("RGB", SIZE, bytes(image.data.buf()), "raw", "BGRX")

    def resize(self, window: int, width: int, height: int) -> None:
        """Resize a window, as a window manager does."""
        self.core.ConfigureWindow(window, x.ConfigWindow.Width | x.ConfigWindow.Height, [width, height])
        self.done()

    def atom(self, name: str) -> int:
        """Return the atom of this name."""
        return int(self.core.InternAtom(False, len(name), name).reply().atom)

    def property(self, window: int, name: str) -> bytes:
        """Return a window's property."""
        got = self.core.GetProperty(False, window, self.atom(name), 0, 0, 1000).reply()
        return bytes(got.value.buf())

    def message(self, window: int, protocol: str, *words: int) -> None:
        """Send a WM_PROTOCOLS message to a window, as a window manager does."""
        data = (self.atom(protocol), *words, *(0,) * (4 - len(words)))
        event = struct.pack("=BBHII5I", 33, 32, 0, window, self.atom("WM_PROTOCOLS"), *data)
        self.core.SendEvent(False, window, 0, event)
        self.done()

    def manage(self) -> None:
        """Receive the client messages that are for the window manager."""
        mask = x.EventMask.SubstructureNotify
        self.core.ChangeWindowAttributes(self.root, x.CW.EventMask, [mask])
        self.done()

    def heard(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return the client messages to the root window since the last call: type and words."""
        self.done()
        messages = []
        while (event := self.connection.poll_for_event()) is not None:
            if isinstance(event, x.ClientMessageEvent):
                messages.append((int(event.type), tuple(int(word) for word in event.data.data32)))
        return messages

    def focus(self, window: int) -> None:
        """Give a window the keyboard."""
        self.core.SetInputFocus(x.InputFocus.PointerRoot, window, 0)
        self.done()

    def key(self, code: int, down: bool) -> None:
        """Press or release a key, by Linux's key code."""
        self._fake(KEY_PRESS if down else KEY_RELEASE, code + 8)

    def button(self, number: int, down: bool) -> None:
        """Press or release a button, by X's number."""
        self._fake(BUTTON_PRESS if down else BUTTON_RELEASE, number)

    def point(self, to_x: int, to_y: int) -> None:
        """Move the pointer there."""
        self._fake(MOTION_NOTIFY, 0, to_x, to_y)

    def _fake(self, kind: int, detail: int, to_x: int = 0, to_y: int = 0) -> None:
        self.test.FakeInput(kind, detail, 0, self.root, to_x, to_y, 0)
        self.done()

    def done(self) -> None:
        """Wait until the server has handled all requests so far."""
        self.core.GetInputFocus().reply()


class Manager(User):
    """A window manager that follows ICCCM and EWMH for windows that are mapped, full-screen, iconified and withdrawn."""

    def __init__(self, server: Xvfb) -> None:
        super().__init__(server)
        self.icons: set[int] = set()
        self.withdrawn: set[int] = set()
        mask = x.EventMask.SubstructureRedirect | x.EventMask.SubstructureNotify
        self.core.ChangeWindowAttributes(self.root, x.CW.EventMask, [mask])
        self.done()

    async def run(self) -> None:
        """Manage windows until cancelled."""
        while True:
            with contextlib.suppress(x.WindowError):  # the window is destroyed already
                while (event := self.connection.poll_for_event()) is not None:
                    self._obey(event)
                self.connection.flush()
                await trio.lowlevel.wait_readable(self.connection.get_file_descriptor())

    def _obey(self, event: Any) -> None:
        both = x.ConfigWindow.Width | x.ConfigWindow.Height
        match event:
            case x.MapRequestEvent():
                state = self.property(event.window, "_NET_WM_STATE")
                if self.atom("_NET_WM_STATE_FULLSCREEN").to_bytes(4, "little") in state:
                    self.core.ConfigureWindow(event.window, both, list(SIZE))
                self.icons.discard(event.window)
                self.withdrawn.discard(event.window)
                self.core.MapWindow(event.window)
            case x.ConfigureRequestEvent():
                self.core.ConfigureWindow(event.window, both, [event.width, event.height])
            case x.ClientMessageEvent() if event.type == self.atom("WM_CHANGE_STATE") and event.data.data32[0] == 3:
                self.icons.add(event.window)
                self.core.UnmapWindow(event.window)
            case x.UnmapNotifyEvent() if event.window not in self.icons:
                self.withdrawn.add(event.window)
                self.core.DeleteProperty(event.window, self.atom("_NET_WM_STATE"))
