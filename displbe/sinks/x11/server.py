"""One connection to an X server: what it offers, its requests, its events.

Frames go there by MIT-SHM, through a memory file whose descriptor is passed to the server; RENDER puts them into the window, scaled
and in whatever format, without further work of ours. xcffib passes no descriptors (its generator leaves them out of AttachFd, and
Present's requests altogether): libxcb is handed the descriptor just before the request.
"""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
import trio
import xcffib
import xcffib.render
import xcffib.shm
import xcffib.xproto as x
from cffi import FFI

from displbe.wire.formats import fourcc

__all__ = ["Event", "Lost", "PixelFormat", "Refused", "Server"]

Event = Any
"""An event as xcffib gives it."""

HANG: Final = 5.0
"""Seconds without the answer that is owed, after which the server counts as lost: nothing may pile up before it."""
_SET_PICTURE_FILTER: Final = 30
_DIRECT: Final = 1
_XKB: Final = xcffib.ExtensionKey("XKEYBOARD")
_REPEAT_AS_ONE: Final = (
    (0, struct.pack("=xx2xHH", 1, 0)),
    (21, struct.pack("=xx2xH2x5I", 0x100, 1, 1, 0, 0, 0)),
)
"""XKB's UseExtension 1.0, and PerClientFlags with DetectableAutoRepeat for the core keyboard. (Debian 13's xcffib has no XKB.)"""
_ATOMS: Final = (
    "UTF8_STRING",
    "WM_CHANGE_STATE",
    "WM_DELETE_WINDOW",
    "WM_PROTOCOLS",
    "_NET_WM_NAME",
    "_NET_WM_PING",
    "_NET_WM_STATE",
    "_NET_WM_STATE_FULLSCREEN",
)
_log = structlog.get_logger("displbe.x11")
_ffi: Final = FFI()
_ffi.cdef("void xcb_send_fd(void *connection, int fd);")
_xcb: Final[Any] = _ffi.dlopen("libxcb.so.1")


class _Answer(xcffib.Cookie):  # type: ignore[misc]
    reply_type = xcffib.Reply


class Refused(Exception):
    """There is no X server that we can use; the text says why."""


class Lost(Exception):
    """The X server is gone, or hangs."""


class _Layout(msgspec.Struct, frozen=True):
    """A pixel of so many bits; shift and width in bits of red, green, blue."""

    bits: int
    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]


_8888: Final = _Layout(32, (16, 8), (8, 8), (0, 8))
_565: Final = _Layout(16, (11, 5), (5, 6), (0, 5))
_1555: Final = _Layout(16, (10, 5), (5, 5), (0, 5))
_4444: Final = _Layout(16, (8, 4), (4, 4), (0, 4))
# There is nothing below a guest's screen: alpha is not looked at.
LAYOUTS: Final = {
    fourcc("XR24"): _8888,
    fourcc("AR24"): _8888,
    fourcc("RG16"): _565,
    fourcc("XR15"): _1555,
    fourcc("AR15"): _1555,
    fourcc("XR12"): _4444,
    fourcc("AR12"): _4444,
}
"""The formats that X servers may have."""


class PixelFormat(msgspec.Struct, frozen=True):
    """A guest's format as the server has it."""

    depth: int
    octets: int
    """Of a pixel."""
    picture: int
    """RENDER's id."""


class Server:
    """A connection. Making it waits for the server: that is for a worker thread; the rest is for the loop, and does not wait.

    Raises Refused. Requests raise Lost.
    """

    def __init__(self, display: str) -> None:
        self.on_event: dict[int, Callable[[Event], None]] = {}
        """Who hears the events of a window, by its id."""
        self.on_read: dict[int, Callable[[], None]] = {}
        """Who hears that the server has read a shared segment, by its id."""
        self._owed: dict[object, float] = {}
        self._waiting = trio.CancelScope()
        try:
            self.connection = xcffib.connect(display or None)
        except xcffib.XcffibException as error:
            raise Refused(
                f"no X server at {display or os.environ.get('DISPLAY') or '(DISPLAY is not set)'}: {error}"
            ) from error
        try:
            self._begin()
        except xcffib.XcffibException as error:
            self.connection.disconnect()
            raise Refused(f"the X server does not answer as it should: {error!r}") from error
        except BaseException:
            self.connection.disconnect()
            raise

    def _begin(self) -> None:
        self.fd = self.connection.get_file_descriptor()
        with socket.socket(fileno=os.dup(self.fd)) as connected:
            if connected.family != socket.AF_UNIX:
                raise Refused("the X server is on another machine: it cannot share memory with us")
        setup = self.connection.get_setup()
        if setup.image_byte_order != x.ImageOrder.LSBFirst:
            raise Refused("the X server's pixels are big-endian")
        self.screen = setup.roots[self.connection.pref_screen]
        # To ask for an extension that is not there ends the connection.
        there = {name.name.to_string() for name in self.core.ListExtensions().reply().names}
        missing = {"MIT-SHM", "RENDER"} - there
        if missing:
            raise Refused(f"the X server has no {' and no '.join(sorted(missing))}")
        self.shm = self.connection(xcffib.shm.key)
        version = self.shm.QueryVersion().reply()
        if (version.major_version, version.minor_version) < (1, 2):
            raise Refused("the X server's MIT-SHM takes no file descriptors (it is older than 1.2)")
        self.render = self.connection(xcffib.render.key)
        self.render.QueryVersion(0, 11).reply()
        self._find_formats({entry.depth: entry.bits_per_pixel for entry in setup.pixmap_formats})
        asked = [(name, self.core.InternAtom(False, len(name), name)) for name in _ATOMS]
        self.atoms: dict[str, int] = {name: cookie.reply().atom for name, cookie in asked}
        if "XKEYBOARD" in there:  # a held key shall not go up and down
            keyboard = xcffib.Extension(self.connection, _XKB)
            for opcode, request in _REPEAT_AS_ONE:
                keyboard.send_request(opcode, io.BytesIO(request), _Answer).reply()

    def _find_formats(self, bits_of_depth: dict[int, int]) -> None:
        there = self.render.QueryPictFormats().reply()
        self.formats: dict[int, PixelFormat] = {}
        for code, layout in LAYOUTS.items():
            for info in there.formats:
                found = info.direct
                colours = [
                    (found.red_shift, found.red_mask.bit_length()),
                    (found.green_shift, found.green_mask.bit_length()),
                    (found.blue_shift, found.blue_mask.bit_length()),
                ]
                if (
                    info.type == _DIRECT
                    and colours == [layout.red, layout.green, layout.blue]
                    and not found.alpha_mask
                    and bits_of_depth.get(info.depth) == layout.bits
                ):
                    self.formats[code] = PixelFormat(info.depth, layout.bits // 8, info.id)
        visuals = [visual for depth in there.screens[self.connection.pref_screen].depths for visual in depth.visuals]
        formats = [visual.format for visual in visuals if visual.visual == self.screen.root_visual]
        if not formats:
            raise Refused("the X server's screen is none that RENDER draws on")
        self.window_format: int = formats[0]

    @property
    def core(self) -> Any:
        """The core protocol's requests."""
        return self.connection.core

    def new_id(self) -> int:
        """For a new window, pixmap, …"""
        return int(self.connection.generate_id())

    def attach(self, fd: int) -> int:
        """Share a file's memory with the server, which only reads it: the segment."""
        segment = self.new_id()
        connection = _ffi.cast("void *", int(xcffib.ffi.cast("uintptr_t", self.connection._conn)))
        _xcb.xcb_send_fd(connection, os.dup(fd))  # libxcb closes it
        self.shm.AttachFd(segment, True)
        return segment

    def smooth(self, picture: int) -> None:
        """Scale this picture by interpolation. (xcffib pads this request wrongly.)"""
        request = struct.pack("=xx2xIH2x8s", picture, 8, b"bilinear")
        self.render.send_request(_SET_PICTURE_FILTER, io.BytesIO(request))

    def property(self, window: int, name: int, kind: int, value: bytes | list[int]) -> None:
        """Set a window's property: octets, or 32-bit words."""
        width = 8 if isinstance(value, bytes) else 32
        self.core.ChangeProperty(x.PropMode.Replace, window, name, kind, width, len(value), value)

    def message(self, window: int, kind: int, words: tuple[int, ...]) -> None:
        """Tell the window manager something about a window."""
        event = struct.pack("=BBHII5I", 33, 32, 0, window, kind, *words, *(0,) * (5 - len(words)))
        mask = x.EventMask.SubstructureRedirect | x.EventMask.SubstructureNotify
        self.core.SendEvent(False, self.screen.root, mask, event)

    def flush(self) -> None:
        """Send what has been asked for, soon: the serving task does it, since libxcb reads events when it writes."""
        self._waiting.cancel()

    def owe(self, what: object, since: float) -> None:
        """The server owes an answer since then."""
        self._owed.setdefault(what, since)

    def paid(self, what: object) -> None:
        """It has come, or is not wanted any more."""
        self._owed.pop(what, None)

    async def serve(self) -> None:
        """Hand out events, until Lost is raised."""
        while True:
            try:
                self._waiting = trio.CancelScope(deadline=trio.current_time() + HANG / 5)
                self.connection.flush()
                event = self._next()
                while event is not None:
                    self._hand_out(event)
                    self.flush()  # what has been asked for on account of it
                    event = self._next()
            except xcffib.XcffibException as error:
                raise Lost(str(error)) from error
            with self._waiting:
                await trio.lowlevel.wait_readable(self.fd)
            if trio.current_time() - min(self._owed.values(), default=float("inf")) > HANG:
                raise Lost("it does not answer")

    def _next(self) -> Event | None:
        """An event, or None. What is amiss with a request, or cannot be understood, is said and passed over."""
        while True:
            try:
                return self.connection.poll_for_event()
            except xcffib.ConnectionException:
                raise
            except xcffib.Error as error:
                _log.warning("the X server refuses a request", reason=repr(error))
            except (KeyError, IndexError, struct.error) as error:
                _log.debug("unknown event", reason=repr(error))

    def _hand_out(self, event: Event) -> None:
        if isinstance(event, x.KeymapNotifyEvent):  # names no window: it follows the event that it belongs to
            for hear in list(self.on_event.values()):
                hear(event)
            return
        if isinstance(event, xcffib.shm.CompletionEvent):
            if (read := self.on_read.get(event.shmseg)) is not None:
                read()
            return
        for name in ("event", "window"):
            hear_it = self.on_event.get(getattr(event, name, 0))
            if hear_it is not None:
                hear_it(event)
                return

    def close(self) -> None:
        """The server forgets our windows."""
        self.on_event.clear()
        self.on_read.clear()
        self.connection.disconnect()
