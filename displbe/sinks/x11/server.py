"""One connection to an X server: its pixel formats, requests and events.

Frames reach the server by MIT-SHM, in a memfd whose descriptor is passed to the server. RENDER draws them into the window; the server
scales them and converts their pixel format. xcffib cannot pass descriptors: its generator leaves them out of AttachFd, and leaves out
Present's requests. Therefore `attach` gives the descriptor to libxcb just before the request.
"""

from __future__ import annotations

import io
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
import trio
import xcffib
import xcffib.randr
import xcffib.render
import xcffib.shm
import xcffib.xproto as x
from cffi import FFI

from displbe.ops.log import SparseLog
from displbe.readiness import serve
from displbe.wire.formats import fourcc

from .monitors import Monitor, read_monitors
from .screen_saver import ScreenSaver

__all__ = ["Event", "PixelFormat", "PreparedRequest", "Server", "ServerLost", "ServerUnreachable"]

Event = Any
"""An event of xcffib."""

HANG: Final = 5.0
"""Seconds without an expected answer after which the server counts as lost, so that requests do not pile up in front of it."""
_SET_PICTURE_FILTER: Final = 30
_DIRECT: Final = 1
_XKB: Final = xcffib.ExtensionKey("XKEYBOARD")
_REPEAT_AS_ONE: Final = (
    (0, struct.pack("=xx2xHH", 1, 0)),
    (21, struct.pack("=xx2xH2x5I", 0x100, 1, 1, 0, 0, 0)),
)
"""XKB requests, opcode and body: UseExtension 1.0; PerClientFlags with DetectableAutoRepeat for the core keyboard. Debian 13's xcffib
has no XKB.
"""
_ATOMS: Final = (
    "UTF8_STRING",
    "WM_CHANGE_STATE",
    "WM_DELETE_WINDOW",
    "WM_PROTOCOLS",
    "_NET_WM_FULLSCREEN_MONITORS",
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


class ServerUnreachable(Exception):
    """There is no usable X server; the text says why."""


class ServerLost(Exception):
    """The connection to the X server is lost, or the server has not answered for `HANG` seconds."""


class _Layout(msgspec.Struct, frozen=True):
    """The bits of a pixel, and the shift and width in bits of its red, green and blue."""

    bits: int
    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]


_8888: Final = _Layout(32, (16, 8), (8, 8), (0, 8))
_565: Final = _Layout(16, (11, 5), (5, 6), (0, 5))
_1555: Final = _Layout(16, (10, 5), (5, 5), (0, 5))
_4444: Final = _Layout(16, (8, 4), (4, 4), (0, 4))
# Nothing lies below a guest's screen: alpha is ignored.
LAYOUTS: Final = {
    fourcc("XR24"): _8888,
    fourcc("AR24"): _8888,
    fourcc("RG16"): _565,
    fourcc("XR15"): _1555,
    fourcc("AR15"): _1555,
    fourcc("XR12"): _4444,
    fourcc("AR12"): _4444,
}
"""The DRM formats that an X server may support."""


class PixelFormat(msgspec.Struct, frozen=True):
    """A guest's pixel format on this server."""

    depth: int
    pixel_size: int
    """Bytes per pixel."""
    render_id: int
    """The id of RENDER's PictFormat."""


class PreparedRequest:
    """A request without an answer that is sent again and again. xcffib packs a request anew each time, in forty calls."""

    def __init__(self, extension: Any, opcode: int, body: bytes) -> None:
        self._send = extension.conn.send_request
        assert len(body) % 4 == 0
        self._size = len(body)
        self._body = xcffib.ffi.new("char[]", body)
        # libxcb uses the two elements before those that it is handed, and may change those that it sends.
        self._parts = xcffib.ffi.new("struct iovec[3]")
        self._vector = self._parts + 2
        self._request = xcffib.ffi.new("xcb_protocol_request_t *")
        self._request.count, self._request.ext = 1, extension.c_key
        self._request.opcode, self._request.isvoid = opcode, True

    def send(self) -> None:
        """Queue the request. Raises xcffib.XcffibException when the connection is lost."""
        self._vector.iov_base = self._body
        self._vector.iov_len = self._size
        self._send(0, self._vector, self._request)


class Server:
    """A connection to the X server `display`, written as in DISPLAY; empty: the one that DISPLAY names.

    The constructor blocks until the server has answered: call it in a worker thread. All methods are called in the event loop and do
    not block. The constructor raises ServerUnreachable; requests raise xcffib.XcffibException when the connection is lost.

    It has more than fifteen attributes: half of them are what the server said when it was connected.
    """

    def __init__(self, display: str) -> None:
        self.on_event: dict[int, Callable[[Event], None]] = {}
        """Window id -> handler of the window's events."""
        self.on_read: dict[int, Callable[[], None]] = {}
        """Id of a shared memory segment -> called when the server has read the segment."""
        self._unanswered: dict[object, float] = {}
        """Key of an expected answer -> the time since which it is expected, in seconds of trio's clock."""
        self._asking = 0
        """The window that our questions of `round_trip` are sent to; 0: there is none yet."""
        self._questions: deque[trio.Event] = deque()
        """Questions without an answer, the oldest first."""
        self.monitors: tuple[Monitor, ...] = ()
        """The monitors that are on; none if the server has no RandR 1.5."""
        self.monitors_changed = trio.Event()
        """Set when there may be other monitors. X11Sink reads them again."""
        self.screen_saver = ScreenSaver(None)
        self._waiting = trio.CancelScope()
        self._checks_answers = False
        """Whether `serve` looks after a while whether the expected answers have come."""
        self._say = SparseLog(_log)
        try:
            self.connection = xcffib.connect(display or None)
        except (xcffib.XcffibException, ValueError) as error:  # ValueError: xcffib cannot encode the name
            raise ServerUnreachable(
                f"no X server at {display or os.environ.get('DISPLAY') or '(DISPLAY is not set)'}: {error}"
            ) from error
        try:
            self._begin()
        except xcffib.XcffibException as error:
            self.connection.disconnect()
            raise ServerUnreachable(f"the X server gave an unexpected answer: {error!r}") from error
        except ServerUnreachable:
            self.connection.disconnect()
            raise
        except Exception as error:  # an answer that xcffib cannot parse, or no file descriptor is left
            self.connection.disconnect()
            raise ServerUnreachable(f"the X server cannot be used: {error!r}") from error
        except BaseException:
            self.connection.disconnect()
            raise

    def _begin(self) -> None:
        self.fd = self.connection.get_file_descriptor()
        with socket.socket(fileno=os.dup(self.fd)) as connected:
            if connected.family != socket.AF_UNIX:
                raise ServerUnreachable("the X server is not on this machine and cannot share memory")
        setup = self.connection.get_setup()
        if setup.image_byte_order != x.ImageOrder.LSBFirst:
            raise ServerUnreachable("the X server uses big-endian pixels")
        self.screen = setup.roots[self.connection.pref_screen]
        # A request of an extension that the server does not have ends the connection.
        extensions = {name.name.to_string() for name in self.core.ListExtensions().reply().names}
        missing = {"MIT-SHM", "RENDER"} - extensions
        if missing:
            raise ServerUnreachable(f"the X server has no {' and no '.join(sorted(missing))}")
        self.shm = self.connection(xcffib.shm.key)
        version = self.shm.QueryVersion().reply()
        if (version.major_version, version.minor_version) < (1, 2):
            raise ServerUnreachable("the X server's MIT-SHM is older than 1.2 and takes no file descriptors")
        self.render = self.connection(xcffib.render.key)
        self.render.QueryVersion(0, 11).reply()
        self._find_formats({entry.depth: entry.bits_per_pixel for entry in setup.pixmap_formats})
        cookies = [(name, self.core.InternAtom(False, len(name), name)) for name in _ATOMS]
        self.atoms: dict[str, int] = {name: cookie.reply().atom for name, cookie in cookies}
        if "RANDR" in extensions:
            self.monitors = read_monitors(self.connection, self.screen.root, follow=True)
        if "MIT-SCREEN-SAVER" in extensions:
            self.screen_saver = ScreenSaver.find(self.connection)
        if "XKEYBOARD" in extensions:  # without it, the server repeats a held key as releases and presses
            keyboard = xcffib.Extension(self.connection, _XKB)
            for opcode, request in _REPEAT_AS_ONE:
                keyboard.send_request(opcode, io.BytesIO(request), _Answer).reply()

    def _find_formats(self, bits_of_depth: dict[int, int]) -> None:
        """Find RENDER's format for each layout and for windows. `bits_of_depth`: depth -> bits per pixel."""
        offered = self.render.QueryPictFormats().reply()
        self.formats: dict[int, PixelFormat] = {}
        for code, layout in LAYOUTS.items():
            for info in offered.formats:
                direct = info.direct
                colours = [
                    (direct.red_shift, direct.red_mask.bit_length()),
                    (direct.green_shift, direct.green_mask.bit_length()),
                    (direct.blue_shift, direct.blue_mask.bit_length()),
                ]
                if (
                    info.type == _DIRECT
                    and colours == [layout.red, layout.green, layout.blue]
                    and not direct.alpha_mask
                    and bits_of_depth.get(info.depth) == layout.bits
                ):
                    self.formats[code] = PixelFormat(info.depth, layout.bits // 8, info.id)
        visuals = [visual for depth in offered.screens[self.connection.pref_screen].depths for visual in depth.visuals]
        formats = [visual.format for visual in visuals if visual.visual == self.screen.root_visual]
        if not formats:
            raise ServerUnreachable("RENDER cannot draw on the X server's screen")
        self.window_format: int = formats[0]

    @property
    def core(self) -> Any:
        """The requests of the core protocol."""
        return self.connection.core

    def new_id(self) -> int:
        """Return an id for a new window, pixmap or other resource."""
        return int(self.connection.generate_id())

    def attach(self, fd: int) -> int:
        """Share a memfd with the server, which only reads it. Return the segment's id."""
        segment = self.new_id()
        connection = _ffi.cast("void *", int(xcffib.ffi.cast("uintptr_t", self.connection._conn)))
        _xcb.xcb_send_fd(connection, os.dup(fd))  # libxcb closes it
        self.shm.AttachFd(segment, True)
        return segment

    def set_bilinear(self, picture: int) -> None:
        """Scale this picture with bilinear interpolation. (xcffib pads SetPictureFilter wrongly.)"""
        request = struct.pack("=xx2xIH2x8s", picture, 8, b"bilinear")
        self.render.send_request(_SET_PICTURE_FILTER, io.BytesIO(request))

    def set_property(self, window: int, name: int, kind: int, value: bytes | list[int]) -> None:
        """Set a window's property to bytes or to 32-bit words."""
        width = 8 if isinstance(value, bytes) else 32
        self.core.ChangeProperty(x.PropMode.Replace, window, name, kind, width, len(value), value)

    def send_message(self, window: int, kind: int, words: tuple[int, ...]) -> None:
        """Send a client message about a window to the window manager."""
        mask = x.EventMask.SubstructureRedirect | x.EventMask.SubstructureNotify
        self.core.SendEvent(False, self.screen.root, mask, _client_message(window, kind, words))

    def flush(self) -> None:
        """Let `serve` send the queued requests soon, and dispatch the events that libxcb may read while it writes."""
        self._waiting.cancel()

    def send(self) -> None:
        """Send the queued requests now, and dispatch the events that have arrived. For callers that no event has called.

        Raises xcffib.XcffibException when the connection is lost.
        """
        while True:
            self.connection.flush()
            event = self._next_event()
            if event is None:
                return
            self._dispatch(event)

    async def round_trip(self) -> None:
        """Wait until the server has processed our requests, and its events up to then have been dispatched.

        When the connection is lost, this waits until it is cancelled.
        """
        # A ClientMessage sent with an empty event mask goes to the client that created the window, in order with its other events.
        if not self._asking:
            self._asking = self.new_id()
            self.core.CreateWindow(0, self._asking, self.screen.root, 0, 0, 1, 1, 0, x.WindowClass.InputOnly, 0, 0, [])
            self.on_event[self._asking] = self._on_question
        answered = trio.Event()
        self._questions.append(answered)
        self.core.SendEvent(False, self._asking, 0, _client_message(self._asking, self.atoms["WM_PROTOCOLS"]))
        self.flush()
        await answered.wait()

    def _on_question(self, event: Event) -> None:
        if isinstance(event, x.ClientMessageEvent) and self._questions:
            self._questions.popleft().set()

    def expect_answer(self, to: object) -> None:
        """Count the server as lost if `answered` is not called for this within `HANG` seconds."""
        now = trio.current_time()
        self._unanswered.setdefault(to, now)
        if not self._checks_answers:
            self._checks_answers = True
            self._waiting.deadline = now + HANG

    def answered(self, to: object) -> None:
        """Stop expecting this answer: it has come, or is no longer needed."""
        self._unanswered.pop(to, None)

    async def serve(self) -> None:
        """Send requests and dispatch events until the connection is lost. Raises ServerLost."""
        while True:
            with trio.CancelScope(deadline=self._check_answers()) as self._waiting:
                self._on_readable()
                await serve(self.fd, self._on_readable)

    def _on_readable(self) -> bool:
        """Dispatch what has arrived. Nothing is left over. Raises ServerLost."""
        try:
            self.send()
        except xcffib.XcffibException as error:
            raise ServerLost(str(error)) from error
        return False

    def _check_answers(self) -> float:
        """Return when to look again whether the server answers, in seconds of trio's clock. Raises ServerLost if it does not."""
        oldest = min(self._unanswered.values(), default=float("inf"))
        if trio.current_time() - oldest > HANG:
            raise ServerLost("the server does not answer")
        self._checks_answers = bool(self._unanswered)
        return oldest + HANG

    def _next_event(self) -> Event | None:
        """Return the next event that has arrived, or None. Errors of requests and unknown events are logged and skipped."""
        while True:
            try:
                return self.connection.poll_for_event()
            except xcffib.Error as error:
                _log.warning("X request failed", reason=repr(error))
            except xcffib.XcffibException:
                raise
            except (KeyError, IndexError, struct.error) as error:
                _log.debug("unknown X event ignored", reason=repr(error))
            except Exception as error:  # libxcb has removed the event from its queue before xcffib failed to parse it
                self._say("X event ignored: it cannot be parsed", type(error).__name__, level="exception")

    def _dispatch(self, event: Event) -> None:
        """Call the event's handlers. Raises xcffib.XcffibException when the connection is lost."""
        if isinstance(event, x.KeymapNotifyEvent):
            # KeymapNotify names no window: it follows the EnterNotify or FocusIn that it belongs to.
            for handler in list(self.on_event.values()):
                self._call(event, handler, event)
            return
        if isinstance(event, xcffib.shm.CompletionEvent):
            if (on_read := self.on_read.get(event.shmseg)) is not None:
                self._call(event, on_read)
            return
        if isinstance(event, xcffib.randr.ScreenChangeNotifyEvent | xcffib.randr.NotifyEvent):
            self.monitors_changed.set()
            return
        for field in ("event", "window"):
            window_handler = self.on_event.get(getattr(event, field, 0))
            if window_handler is not None:
                self._call(event, window_handler, event)
                return

    def _call(self, event: Event, handler: Callable[..., None], *arguments: Event) -> None:
        """Call one handler. Any X client can send any event (SendEvent), so a handler that fails costs its window this event only.

        Raises xcffib.XcffibException when the connection is lost.
        """
        try:
            handler(*arguments)
        except xcffib.XcffibException:
            raise
        except Exception as error:
            kind = type(event).__name__
            self._say("X event ignored: its handler failed", f"{kind}, {type(error).__name__}", level="exception")

    def close(self) -> None:
        """Disconnect. The server destroys our windows."""
        self.on_event.clear()
        self.on_read.clear()
        self.connection.disconnect()


def _client_message(window: int, kind: int, words: tuple[int, ...] = ()) -> bytes:
    """Return a ClientMessage event about a window, with up to five words."""
    return struct.pack("=BBHII5I", 33, 32, 0, window, kind, *words, *(0,) * (5 - len(words)))
