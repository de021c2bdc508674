"""One connection to a compositor. Only this module and `frame_requests` use pywayland. They hide its pitfalls:

* The interpreter crashes at exit while a display is connected: call `aclose` in a `finally` block.
* pywayland prints an exception of an event handler and goes on. `on` keeps the first one, which ends the connection.
* Garbage collection destroys a proxy here, but not its object in the compositor. `drop` forgets the proxy; `destroy` destroys both.
* Each proxy is a reference cycle. The cycle is broken when the proxy goes, so that a flip leaves nothing for the garbage collector.
* pywayland gives a proxy that arrives with an event to an arbitrary display of the process: `adopt` corrects that.
* An event can name an object that displbe has destroyed, or an unknown one. Its handler then gets None.
* An event costs twenty calls even if it has no arguments. `ignoring_arguments` makes the handlers of such events.
* Older versions of libwayland end the connection when the socket is full: senders of many requests check `keeps_up` first.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final, Protocol

import trio
from pywayland import ffi, lib
from pywayland.client import Display
from pywayland.protocol import wayland
from pywayland.protocol_core import ArgumentType

from displbe.readiness import serve

from .protocol import (
    fractional_scale,
    idle_inhibit,
    ivi_application,
    linux_dmabuf,
    presentation_time,
    shortcuts_inhibit,
    viewporter,
    xdg_decoration,
    xdg_output,
    xdg_shell,
)

__all__ = [
    "CompositorLost",
    "Connection",
    "Expected",
    "Global",
    "ProtocolError",
    "Proxy",
    "connect",
    "ignoring_arguments",
    "words",
]

Proxy = Any
"""An object in the compositor; its methods are the protocol's requests."""

_VERSIONS: Final[dict[str, tuple[Any, int]]] = {
    "wl_compositor": (wayland.WlCompositor, 4),
    "wl_shm": (wayland.WlShm, 1),
    "wl_output": (wayland.WlOutput, 4),
    "wl_seat": (wayland.WlSeat, 8),
    "xdg_wm_base": (xdg_shell.XdgWmBase, 6),
    "ivi_application": (ivi_application.IviApplication, 1),
    "wp_viewporter": (viewporter.WpViewporter, 1),
    "wp_presentation": (presentation_time.WpPresentation, 1),
    "zxdg_output_manager_v1": (xdg_output.ZxdgOutputManagerV1, 3),
    "zwp_linux_dmabuf_v1": (linux_dmabuf.ZwpLinuxDmabufV1, 5),
    "wp_fractional_scale_manager_v1": (fractional_scale.WpFractionalScaleManagerV1, 1),
    "zxdg_decoration_manager_v1": (xdg_decoration.ZxdgDecorationManagerV1, 1),
    "zwp_idle_inhibit_manager_v1": (idle_inhibit.ZwpIdleInhibitManagerV1, 1),
    "zwp_keyboard_shortcuts_inhibit_manager_v1": (shortcuts_inhibit.ZwpKeyboardShortcutsInhibitManagerV1, 1),
}
"""Interface of a global that displbe uses -> the newest version that this package was written for."""
_RELEASE_SINCE: Final = {"wl_output": 3, "wl_seat": 5, "wl_pointer": 3, "wl_keyboard": 3, "wl_touch": 3}
"""Interfaces whose destructor is `release`, and the version that introduced it. Older objects end with the connection."""
_WORD: Final = Struct("=I")


class CompositorLost(Exception):
    """The connection is gone, and with it all objects that were made over it."""


class ProtocolError(CompositorLost):
    """The compositor has ended the connection because it found a request wrong."""


class Global:
    """A global object that the compositor offers: an output, a seat, …"""

    def __init__(self, number: int, interface: str, version: int) -> None:
        self.number = number
        self.interface = interface
        self.version = version


def _make_event_objects_nullable() -> None:
    """Let pywayland accept events whose objects are gone. By default it fails on them unless the protocol allows null."""
    # The events of the other protocols name no objects.
    for module in (wayland, ivi_application, linux_dmabuf, presentation_time, viewporter, xdg_output, xdg_shell):
        for interface in vars(module).values():
            for event in getattr(interface, "events", ()):
                event.arguments = tuple(
                    dataclasses.replace(argument, nullable=True)
                    if argument.argument_type == ArgumentType.Object
                    else argument
                    for argument in event.arguments
                )


_make_event_objects_nullable()


def words(array: bytes) -> tuple[int, ...]:
    """Return the elements of a wl_array of u32. A remainder of less than 4 bytes is ignored."""
    data = bytes(array)
    return tuple(word for (word,) in _WORD.iter_unpack(data[: len(data) // _WORD.size * _WORD.size]))


class _Unread:
    """Takes the place of pywayland's Message, and converts no argument."""

    @staticmethod
    def c_to_arguments(_: object) -> tuple[()]:
        return ()


class _Handlers(list[Callable[..., None] | None]):
    """Takes the place of pywayland's Dispatcher: the handlers by opcode. `messages` is what it asks for the arguments."""

    messages: Final = (_Unread,) * 8


def ignoring_arguments(handlers: Iterable[Callable[[Any], None] | None]) -> Any:
    """Return a dispatcher whose handlers, by opcode, are called with their object only; None: the event is ignored.

    Handlers must not raise: `Connection.fail` takes their exceptions.
    """
    return _Handlers(handlers)


class Expected(Protocol):
    """A report that the compositor has been asked for, whose object is none of pywayland's."""

    def close(self) -> None:
        """Forget the object: the connection ends."""


def connect(path: str) -> Connection:
    """Connect to a compositor's socket. Raises OSError when there is none, or when it accepts no connection now."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.connect(path)  # non-blocking: a stopped compositor whose queue is full would block us here
        return Connection(end.detach())
    except BaseException:
        end.close()
        raise


class Connection:
    """A connection over a connected socket, which it owns from now on. Raises OSError."""

    def __init__(self, fd: int) -> None:
        self._display: Any = Display(fd)
        try:
            self._display.connect()
        except ValueError as error:
            raise OSError(errno.ENOMEM, "libwayland cannot use the connection") from error
        self._ptr = self._display._ptr
        """libwayland's wl_display; None: it is gone."""
        self._error: BaseException | None = None
        """The first exception of an event handler."""
        self._blocked = trio.Event()
        """Set while requests wait because the socket is full."""
        self._kept: dict[int, Proxy] = {}
        self.expected: set[Expected] = set()
        """Reports of frames that have not come."""
        self._on_appeared: Callable[[Global], None] = _ignore
        self._on_removed: Callable[[Global], None] = _ignore
        self._globals: dict[int, Global] = {}
        self._registry: Proxy = None
        self.lost = trio.Event()
        """Set when the connection is gone."""
        self.protocol_error = False
        """Whether the compositor has ended the connection because it found a request wrong."""

    # The loop

    async def run(
        self,
        appeared: Callable[[Global], None],
        removed: Callable[[Global], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Read and dispatch events. Report `started` when the globals are known.

        `appeared` and `removed` are called with each global that displbe uses. Raises CompositorLost, ProtocolError, and the first
        exception of an event handler.
        """
        self._on_appeared, self._on_removed = appeared, removed
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, self._display.get_fd(), self._on_readable)
                nursery.start_soon(self._flush_when_writable)
                self._registry = self.keep(self._display.get_registry())
                self.on(self._registry, "global", self._on_global)
                self.on(self._registry, "global_remove", self._on_global_remove)
                await self.sync()
                task_status.started()
        finally:
            self.lost.set()

    def _on_readable(self) -> bool:
        """Read and dispatch what has arrived. Nothing is left over. Raises CompositorLost, and an event handler's exception."""
        ptr = self._ptr
        while lib.wl_display_prepare_read(ptr) != 0:  # there are events to dispatch
            if lib.wl_display_dispatch_pending(ptr) < 0:
                raise self._cause()
        if lib.wl_display_read_events(ptr) < 0 or lib.wl_display_dispatch_pending(ptr) < 0:
            raise self._cause()
        if self._error is not None:
            raise self._error
        if lib.wl_display_flush(ptr) < 0 and ffi.errno == errno.EAGAIN:
            self._blocked.set()
        return False

    def _cause(self) -> CompositorLost:
        """Return why the connection has ended. libwayland has written the compositor's message to stderr."""
        number = lib.wl_display_get_error(self._display._ptr)
        if number == errno.EPROTO:
            self.protocol_error = True
            return ProtocolError("the compositor reported a protocol error (see stderr)")
        return CompositorLost(f"the compositor is gone ({os.strerror(number or errno.EPIPE)})")

    def flush(self) -> None:
        """Send the requests made so far. Those that do not fit into the socket are sent later."""
        if self._ptr is not None and lib.wl_display_flush(self._ptr) < 0 and ffi.errno == errno.EAGAIN:
            self._blocked.set()  # the reader finds other errors

    async def _flush_when_writable(self) -> None:
        fd = self._display.get_fd()
        while True:
            await self._blocked.wait()
            await trio.lowlevel.wait_writable(fd)
            self._blocked = trio.Event()
            self.flush()

    async def sync(self) -> None:
        """Wait until the compositor has processed all requests made so far. Raises CompositorLost."""
        done = trio.Event()
        self.call_after_sync(done.set)
        await self.wait(done)

    async def wait(self, event: trio.Event) -> None:
        """Wait for an event that the compositor causes. Raises CompositorLost when the connection ends first."""
        if self.lost.is_set():
            raise self._gone()
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self.lost.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await event.wait()
            nursery.cancel_scope.cancel()
        if not event.is_set():
            raise self._gone()

    def _gone(self) -> CompositorLost:
        if self.protocol_error:
            return ProtocolError("the compositor reported a protocol error")
        return CompositorLost("the connection is gone")

    def call_after_sync(self, processed: Callable[[], None]) -> None:
        """Call `processed` when the compositor has processed all requests made so far (wl_display.sync)."""
        callback = self.keep(self._display.sync())

        def done(_: int) -> None:
            self.drop(callback)
            processed()

        self.on(callback, "done", done)
        self.flush()

    @property
    def keeps_up(self) -> bool:
        """Whether the socket has taken everything that was sent."""
        return not self._blocked.is_set()

    @staticmethod
    def check_sendable(fd: int) -> None:
        """Check that a file can be sent. Raises OSError EMFILE if not: libwayland, which duplicates it, would end the process or the
        connection (wl_closure_marshal in connection.c, wl_proxy_marshal in wayland-client.c).
        """
        os.close(os.dup(fd))

    async def aclose(self) -> None:
        """Disconnect. No object of this connection may be used afterwards."""
        self.lost.set()
        while self.expected:
            self.expected.pop().close()
        kept, self._kept = self._kept, {}
        self._ptr = None
        self._display.disconnect()
        for proxy in kept.values():
            _break_cycle(proxy)
        self._registry = None
        _break_cycle(self._display)
        await trio.lowlevel.checkpoint()

    # Globals

    def _on_global(self, number: int, interface: str, version: int) -> None:
        if interface in _VERSIONS:
            announced = self._globals[number] = Global(number, interface, version)
            self._on_appeared(announced)

    def _on_global_remove(self, number: int) -> None:
        removed = self._globals.pop(number, None)
        if removed is not None:
            self._on_removed(removed)

    def bind(self, announced: Global) -> Proxy:
        """Bind a global, in the newest version that displbe, the compositor and pywayland all support."""
        interface, newest = _VERSIONS[announced.interface]
        version = min(newest, announced.version, interface.version)
        proxy = self.keep(self._registry.bind(announced.number, interface, version))
        proxy.user_data = version
        return proxy

    def keep_child(self, parent: Proxy, proxy: Proxy) -> Proxy:
        """Hold an object that a request of another object has made. It has the version of its parent."""
        proxy.user_data = parent.user_data
        return self.keep(proxy)

    @staticmethod
    def version(proxy: Proxy) -> int:
        """Return the version of an object that `bind` or `keep_child` returned."""
        return int(proxy.user_data)

    # Objects

    def keep(self, proxy: Proxy) -> Proxy:
        """Hold an object until it is dropped or destroyed, or the connection ends."""
        self._kept[id(proxy)] = proxy
        return proxy

    def adopt(self, proxy: Proxy) -> Proxy:
        """Hold an object that arrived with an event. pywayland 0.4 assigns it to the first display that it finds in the process."""
        other = proxy._display
        if other is not self._display:
            other._children.discard(proxy)
            self._display._children.add(proxy)
            proxy._display = self._display
        return self.keep(proxy)

    def on(self, proxy: Proxy, event: str, handler: Callable[..., None]) -> None:
        """Call a handler with an event's arguments, without the object that sent it."""
        events = proxy.interface.events
        opcode = [message.name for message in events].index(event)
        if not (isinstance(proxy.dispatcher, _Handlers) or any(message.arguments for message in events)):
            proxy.dispatcher = ignoring_arguments([None] * len(events))  # wl_buffer.release comes with each frame

        def handle(_: Proxy, *arguments: Any) -> None:
            try:
                handler(*arguments)
            except BaseException as error:
                self.fail(error)

        proxy.dispatcher[opcode] = handle

    def fail(self, error: BaseException) -> None:
        """End the connection with an exception of an event handler, if it is the first."""
        self._error = self._error or error

    def drop(self, proxy: Proxy) -> None:
        """Forget an object that the compositor has destroyed already (callbacks, presentation feedback)."""
        self._kept.pop(id(proxy), None)
        if not self.lost.is_set() and not proxy.destroyed:
            proxy._destroy()
            _break_cycle(proxy)

    def destroy(self, *proxies: Proxy) -> None:
        """Destroy objects by their own destructor requests, in this order. None and destroyed objects are skipped."""
        for proxy in proxies:
            if proxy is not None and self._kept.pop(id(proxy), None) is not None and not self.lost.is_set():
                since = _RELEASE_SINCE.get(proxy.interface.name)
                if since is None:
                    proxy.destroy()
                elif proxy.user_data >= since:
                    proxy.release()
                else:
                    proxy._destroy()
                _break_cycle(proxy)

    @property
    def objects(self) -> int:
        """The number of objects held."""
        return len(self._kept) + len(self.expected)


def _break_cycle(proxy: Proxy) -> None:
    """Break a proxy's reference cycles."""
    proxy._handle = None
    proxy.dispatcher = None


def _ignore(announced: Global) -> None:
    """The handler of globals before `run`."""
