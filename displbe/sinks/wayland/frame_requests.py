"""The requests and events of each frame, without pywayland's objects.

pywayland makes an object for each request's arguments, and a proxy with a dispatcher, a handle and three weak references for each report
that is requested: half of the cost of a flip. Here the arguments are prepared once, and a report's object is used again. Together with
`conn`, this is the only module that uses pywayland.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pywayland import ffi, lib
from pywayland.protocol import wayland

from .conn import Connection, Proxy, ignoring_arguments
from .protocol import presentation_time

__all__ = ["FrameRequests", "Report", "ReportKind"]

_WHOLE: Final = 2**31 - 1
"""A width and height that no buffer exceeds: the whole surface is damaged."""
_OBJECT: Final = ffi.typeof("struct wl_object *")
_ARGUMENTS: Final = ffi.typeof("union wl_argument[]")


def _opcode(interface: Any, request: str) -> int:
    return [message.name for message in interface.requests].index(request)


_ATTACH: Final = _opcode(wayland.WlSurface, "attach")
_DAMAGE: Final = _opcode(wayland.WlSurface, "damage_buffer")
_COMMIT: Final = _opcode(wayland.WlSurface, "commit")
_FRAME: Final = _opcode(wayland.WlSurface, "frame")
_FEEDBACK: Final = _opcode(presentation_time.WpPresentation, "feedback")


class FrameRequests:
    """The requests of a wl_surface for a frame."""

    def __init__(self, surface: Proxy) -> None:
        self._surface = surface
        self._attach = ffi.new(_ARGUMENTS, 3)
        self._damage = ffi.new(_ARGUMENTS, 4)
        self._damage[2].i = self._damage[3].i = _WHOLE
        self._none = ffi.new(_ARGUMENTS, 1)

    def commit(self, wl_buffer: Proxy) -> None:
        """Attach a buffer, all of which has changed, and commit. Raises TypeError when the surface or the buffer has been destroyed."""
        surface = self._surface._ptr
        self._attach[0].o = ffi.cast(_OBJECT, wl_buffer._ptr)
        lib.wl_proxy_marshal_array(surface, _ATTACH, self._attach)
        lib.wl_proxy_marshal_array(surface, _DAMAGE, self._damage)
        lib.wl_proxy_marshal_array(surface, _COMMIT, self._none)


class Report:
    """A report on one commit, which the compositor sends once. The object is used again for later commits."""

    def __init__(self, kind: ReportKind) -> None:
        self.serial = 0
        """The serial number of the commit's flip."""
        self.reported = False
        self.dispatcher = kind.handlers
        """Read by pywayland, which finds this object by the handle."""
        self._kind = kind
        self.handle: Any = ffi.new_handle(self)
        self.ptr: Any = None
        """The wl_proxy, while a report is expected."""

    def end(self) -> None:
        """Take note that the report has come, or never will. The object is kept for later commits, unless the surface is gone."""
        ptr, self.ptr = self.ptr, None
        if ptr is not None:
            self._kind.conn.expected.discard(self)
            lib.wl_proxy_destroy(ptr)
        if self._kind.spare is None:
            self.handle = None  # a reference cycle
        else:
            self._kind.spare.append(self)

    def close(self) -> None:
        """Forget the report for good: the connection or the surface is gone."""
        self._kind.spare = None
        self.end()


class ReportKind:
    """One kind of reports on a surface's commits: presentation feedback or frame callbacks.

    `handlers` are called by event, with the report. They must not raise: `Connection.fail` takes their exceptions.
    """

    def __init__(
        self,
        conn: Connection,
        factory: Proxy,
        opcode: int,
        arguments: Any,
        interface: Any,
        handlers: dict[str, Callable[[Report], None]],
    ) -> None:
        self.conn = conn
        self.handlers = ignoring_arguments(handlers.get(event.name) for event in interface.events)
        self._factory = factory
        self._opcode = opcode
        self._arguments = arguments
        self._interface = interface._ptr
        self.spare: list[Report] | None = []
        """Reports that are not expected; None: the surface is gone."""

    @classmethod
    def feedback(
        cls,
        conn: Connection,
        presentation: Proxy,
        surface: Proxy,
        presented: Callable[[Report], None],
        discarded: Callable[[Report], None],
    ) -> ReportKind:
        """wp_presentation.feedback"""
        arguments = ffi.new(_ARGUMENTS, 2)
        arguments[0].o = ffi.cast(_OBJECT, surface._ptr)
        interface = presentation_time.WpPresentationFeedback
        return cls(
            conn, presentation, _FEEDBACK, arguments, interface, {"presented": presented, "discarded": discarded}
        )

    @classmethod
    def frame(cls, conn: Connection, surface: Proxy, done: Callable[[Report], None]) -> ReportKind:
        """wl_surface.frame"""
        return cls(conn, surface, _FRAME, ffi.new(_ARGUMENTS, 1), wayland.WlCallback, {"done": done})

    def request(self, serial: int) -> Report:
        """Request a report on the next commit, which shows a frame of the flip with this serial number."""
        report = self.spare.pop() if self.spare else Report(self)
        ptr = lib.wl_proxy_marshal_array_constructor(self._factory._ptr, self._opcode, self._arguments, self._interface)
        if ptr == ffi.NULL:
            raise RuntimeError("libwayland has no memory for an object")
        lib.wl_proxy_add_dispatcher(ptr, lib.dispatcher_func, report.handle, ffi.NULL)
        report.serial, report.reported, report.ptr = serial, False, ptr
        self.conn.expected.add(report)
        return report

    def close(self) -> None:
        """Request no more reports: the surface is gone. Those that are expected may still come."""
        spare, self.spare = self.spare, None
        for report in spare or ():
            report.close()
