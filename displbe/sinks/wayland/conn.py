"""One connection to a compositor: the only module that knows pywayland, and keeps what is surprising about it to itself.

* The interpreter crashes at its end when a display is still connected: `aclose` in `finally`.
* A handler's exception is printed and forgotten: handlers are set by `on`, and the first exception ends the connection.
* An object's proxy that nobody holds is destroyed here, but not at the compositor: `drop` and `destroy` say which is meant.
* Each proxy is a reference cycle: it is broken when the proxy goes, so that a flip leaves nothing for the collector.
* A proxy that an event brings along is given to just any display of the process: `adopt` puts that right.
* An event may name an object that we have destroyed meanwhile, or never heard of: its handler gets None.
* A full socket makes an older libwayland give the connection up: who may send much waits until the compositor `keeps_up`.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import trio
from pywayland import ffi, lib
from pywayland.client import Display
from pywayland.protocol import wayland
from pywayland.protocol_core import ArgumentType

from .protocol import ivi_application, linux_dmabuf, presentation_time, viewporter, xdg_output, xdg_shell

__all__ = ["Connection", "Global", "Lost", "Proxy", "Refused", "connect"]

Proxy = Any
"""An object at the compositor; its methods are the protocol's requests."""

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
}
"""The globals that are of use, and the newest version of each that this package was written for."""
_RELEASED: Final = {"wl_output": 3, "wl_seat": 5, "wl_pointer": 3, "wl_keyboard": 3, "wl_touch": 3}
"""What is ended by `release`, since which version; before that it ends with the connection."""


class Lost(Exception):
    """The connection is gone; everything that was made over it, too."""


class Refused(Lost):
    """The compositor has ended it, for a request that it finds wrong."""


class Global:
    """Something that the compositor offers: one output, one seat, …"""

    def __init__(self, number: int, interface: str, version: int) -> None:
        self.number = number
        self.interface = interface
        self.version = version


def _objects_may_be_gone() -> None:
    """pywayland fails on an event whose object is no longer there, unless the protocol says that there may be none."""
    for module in (wayland, ivi_application, linux_dmabuf, presentation_time, viewporter, xdg_output, xdg_shell):
        for interface in vars(module).values():
            for event in getattr(interface, "events", ()):
                event.arguments = tuple(
                    dataclasses.replace(argument, nullable=True)
                    if argument.argument_type == ArgumentType.Object
                    else argument
                    for argument in event.arguments
                )


_objects_may_be_gone()


def connect(path: str) -> Connection:
    """Connect to a compositor's socket. Raises OSError: there is none, or it does not take anybody now."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.connect(path)  # a stopped compositor whose queue is full would keep a blocking socket waiting
        return Connection(end.detach())
    except BaseException:
        end.close()
        raise


class Connection:
    """A connection over a connected socket, which is its own from now on."""

    def __init__(self, fd: int) -> None:
        self._display: Any = Display(fd)
        try:
            self._display.connect()
        except ValueError as error:
            raise OSError(errno.ENOMEM, "libwayland cannot use the connection") from error
        self._error: BaseException | None = None
        self._blocked = trio.Event()
        self._kept: dict[int, Proxy] = {}
        self._asked: set[trio.Event] = set()
        self._appeared: Callable[[Global], None] = lambda there: None
        self._disappeared: Callable[[Global], None] = lambda there: None
        self._globals: dict[int, Global] = {}
        self._registry: Proxy = None
        self.lost = trio.Event()
        self.refused = False
        """The compositor found a request wrong."""

    # The loop

    async def run(
        self,
        appeared: Callable[[Global], None],
        disappeared: Callable[[Global], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Read and dispatch; `started` when the globals are known. Raises Lost, Refused, and what a handler raised."""
        self._appeared, self._disappeared = appeared, disappeared
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._flush_late)
                self._registry = self.keep(self._display.get_registry())
                self.on(self._registry, "global", self._on_global)
                self.on(self._registry, "global_remove", self._on_global_remove)
                await self.sync()
                task_status.started()
        finally:
            self.lost.set()

    async def _read(self) -> None:
        fd = self._display.get_fd()
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                self._display.read()
                self._display.dispatch(block=False)
            except RuntimeError as error:
                raise self._end() from error
            if self._error is not None:
                raise self._error
            self.flush()

    def _end(self) -> Lost:
        """Why the connection has ended. libwayland has written to stderr what the compositor said."""
        number = lib.wl_display_get_error(self._display._ptr)
        if number == errno.EPROTO:
            self.refused = True
            return Refused("the compositor has refused a request (see stderr)")
        return Lost(f"the compositor is gone ({os.strerror(number or errno.EPIPE)})")

    def flush(self) -> None:
        """Send what has been asked. What does not fit into the socket follows later."""
        if not self.lost.is_set() and self._display.flush() < 0 and ffi.errno == errno.EAGAIN:
            self._blocked.set()  # other errors are for the reader to find

    async def _flush_late(self) -> None:
        fd = self._display.get_fd()
        while True:
            await self._blocked.wait()
            await trio.lowlevel.wait_writable(fd)
            self._blocked = trio.Event()
            self.flush()

    async def sync(self) -> None:
        """Return when the compositor has dealt with everything asked so far. Raises Lost."""
        done = trio.Event()
        self.ask(done.set)
        await self.wait(done)

    async def wait(self, event: trio.Event) -> None:
        """Wait for something that the compositor will cause. Raises Lost."""
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

    def _gone(self) -> Lost:
        return Refused("the compositor has refused a request") if self.refused else Lost("the connection is gone")

    def ask(self, answered: Callable[[], None]) -> None:
        """Call this when the compositor has dealt with everything asked so far."""
        callback = self.keep(self._display.sync())

        def done(_: int) -> None:
            self.drop(callback)
            answered()

        self.on(callback, "done", done)
        self.flush()

    @property
    def keeps_up(self) -> bool:
        """The compositor has taken all that it was sent."""
        return not self._blocked.is_set()

    async def aclose(self) -> None:
        """Disconnect. Nothing may be asked of any object of this connection afterwards."""
        self.lost.set()
        kept, self._kept = self._kept, {}
        self._display.disconnect()
        for proxy in kept.values():
            _forget(proxy)
        self._registry = None
        _forget(self._display)
        await trio.lowlevel.checkpoint()

    # Globals

    def _on_global(self, number: int, interface: str, version: int) -> None:
        if interface in _VERSIONS:
            there = self._globals[number] = Global(number, interface, version)
            self._appeared(there)

    def _on_global_remove(self, number: int) -> None:
        there = self._globals.pop(number, None)
        if there is not None:
            self._disappeared(there)

    def bind(self, there: Global) -> Proxy:
        """Use a global, in the newest version that we and the compositor, and pywayland, know."""
        interface, newest = _VERSIONS[there.interface]
        version = min(newest, there.version, interface.version)
        proxy = self.keep(self._registry.bind(there.number, interface, version))
        proxy.user_data = version
        return proxy

    def made(self, by: Proxy, proxy: Proxy) -> Proxy:
        """Hold an object that another one has made; it speaks the other one's version of the protocol."""
        proxy.user_data = by.user_data
        return self.keep(proxy)

    @staticmethod
    def version(proxy: Proxy) -> int:
        """The version of an object that `bind` or `made` gave."""
        return int(proxy.user_data)

    # Objects

    def keep(self, proxy: Proxy) -> Proxy:
        """Hold an object until it is dropped or destroyed, or the connection ends."""
        self._kept[id(proxy)] = proxy
        return proxy

    def adopt(self, proxy: Proxy) -> Proxy:
        """An object that an event has brought: pywayland 0.4 takes it for the first display's that comes along."""
        other = proxy._display
        if other is not self._display:
            other._children.discard(proxy)
            self._display._children.add(proxy)
            proxy._display = self._display
        return self.keep(proxy)

    def on(self, proxy: Proxy, event: str, handler: Callable[..., None]) -> None:
        """Call a handler with an event's arguments, without the object that they came from."""

        def handle(_: Proxy, *arguments: Any) -> None:
            try:
                handler(*arguments)
            except BaseException as error:
                self._error = self._error or error

        proxy.dispatcher[event] = handle

    def drop(self, proxy: Proxy) -> None:
        """An object that the compositor has ended already (callbacks, feedback)."""
        self._kept.pop(id(proxy), None)
        if not self.lost.is_set() and not proxy.destroyed:
            proxy._destroy()
            _forget(proxy)

    def destroy(self, *proxies: Proxy) -> None:
        """End objects by their own destructors, in this order; None and what has ended are passed over."""
        for proxy in proxies:
            if proxy is not None and self._kept.pop(id(proxy), None) is not None and not self.lost.is_set():
                since = _RELEASED.get(proxy.interface.name)
                if since is None:
                    proxy.destroy()
                elif proxy.user_data >= since:
                    proxy.release()
                else:
                    proxy._destroy()
                _forget(proxy)

    @property
    def objects(self) -> int:
        """How many objects are held."""
        return len(self._kept)


def _forget(proxy: Proxy) -> None:
    """Break a proxy's cycles."""
    proxy._handle = None
    proxy.dispatcher = None
