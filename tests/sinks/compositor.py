"""A Wayland compositor that works on the bytes of the wire. It follows the rules of the protocols, checks that its clients follow them, and
records all requests.

It takes opcodes and argument types from pywayland and hatch_build.py; tests/sinks/test_weston.py checks them against a real
compositor.
"""

from __future__ import annotations

import array
import contextlib
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import trio
from pywayland.protocol import wayland
from pywayland.protocol_core import ArgumentType

from displbe.sinks.wayland.conn import Connection
from displbe.sinks.wayland.protocol import (
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

__all__ = ["CORE", "DESKTOP", "Client", "FakeCompositor", "Surface"]

CORE = {
    "wl_compositor": 4,
    "wl_shm": 1,
    "wp_viewporter": 1,
    "wp_presentation": 1,
    "xdg_wm_base": 3,
}
"""The globals that a usual compositor offers, with their versions."""
DESKTOP = {
    **CORE,
    "wp_fractional_scale_manager_v1": 1,
    "zxdg_decoration_manager_v1": 1,
    "zwp_idle_inhibit_manager_v1": 1,
    "zwp_keyboard_shortcuts_inhibit_manager_v1": 1,
}
"""The globals that a desktop's compositor offers."""
MODULES = (
    wayland,
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
INTERFACES: dict[str, Any] = {
    interface.name: interface
    for module in MODULES
    for interface in vars(module).values()
    if isinstance(getattr(interface, "name", None), str) and hasattr(interface, "requests")
}
XRGB = 1


class Wrong(Exception):
    """The client broke a rule. The compositor sends a protocol error for this object, with this code."""

    def __init__(self, number: int, code: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.code = code


class Buffer:
    """A wl_buffer."""

    def __init__(self, pool: mmap.mmap | None, offset: int, size: tuple[int, int], stride: int, kind: int) -> None:
        self.pool = pool
        self.offset = offset
        self.size = size
        self.stride = stride
        self.kind = kind
        self.dmabuf: int | None = None
        self.held = False
        """Whether the buffer is shown, or attached and about to be shown."""

    @property
    def is_black(self) -> bool:
        """Whether this is a black frame of one pixel."""
        return self.size == (1, 1)

    def row(self, y: int) -> bytes:
        """Return a row of the buffer's pixels, as they are now."""
        assert self.pool is not None
        start = self.offset + y * self.stride
        return self.pool[start : start + self.size[0] * 4]


class Surface:
    """A wl_surface, with its pending and its committed state."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pending: Buffer | None = None
        self.newly = False
        self.damaged = False
        self.shown: Buffer | None = None
        self.shown_number = 0
        self.pending_number = 0
        self.callbacks: list[tuple[str, int]] = []
        self.waiting: list[tuple[str, int]] = []
        self.commits = 0
        self.frames: list[int] = []
        """The object numbers of the buffers that were committed."""
        self.source: tuple[float, ...] | None = None
        self.destination: tuple[int, int] | None = None
        self.role = ""
        self.xdg = self.toplevel = self.ivi_id = 0
        self.title = self.app_id = ""
        self.fullscreen: int | None = None
        self.configured = False
        self.acked: int | None = None
        self.sent: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        self.state: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        self.decoration = 0
        """The object number of its decoration."""
        self.decorated: int | None = None
        """The mode of its decoration that it was told; None: it was told none."""
        self.wanted_decoration = 0
        """The mode that the client asks for."""
        self.scaler = 0
        """The object number of its fractional scale."""

    @property
    def size(self) -> tuple[int, int]:
        """The surface's size on the screen."""
        if self.destination is not None:
            return self.destination
        if self.source is not None:
            return int(self.source[2]), int(self.source[3])
        assert self.shown is not None
        return self.shown.size


class Client:
    """One connection to the compositor."""

    def __init__(self, compositor: FakeCompositor, end: socket.socket) -> None:
        self.compositor = compositor
        self.end = end
        self.objects: dict[int, str] = {1: "wl_display"}
        self.made_by: dict[int, int] = {}
        self.surfaces: dict[int, Surface] = {}
        self.buffers: dict[int, Buffer] = {}
        self.pools: dict[int, mmap.mmap] = {}
        self.memories: list[mmap.mmap] = []
        """What is mapped: the memory of each pool, as long as the pool or one of its buffers exists."""
        self.asked: list[tuple[str, str, tuple[Any, ...]]] = []
        """The received requests: interface, name, arguments."""
        self.dmabufs: list[tuple[Any, ...]] = []
        self.shortcuts: dict[tuple[int, int], int] = {}
        """The surface and the seat -> the inhibitor of the compositor's shortcuts."""
        self.error: str | None = None
        self.stopped = False
        self.closed = False
        self._fds: list[int] = []
        self._imported: list[int] = []
        self._in = bytearray()
        self._next = 0xFF000000
        self._serial = 0

    # The wire

    async def run(self) -> None:
        try:
            while not self.closed:
                try:
                    await trio.lowlevel.wait_readable(self.end)
                except trio.ClosedResourceError:
                    break
                if self.stopped:
                    await trio.sleep(0.005)
                    continue
                try:
                    data, ancillary, _, _ = self.end.recvmsg(
                        65536, socket.CMSG_SPACE(28 * 4), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                    )
                except BlockingIOError:
                    continue
                except OSError:
                    break
                if not data:
                    break
                for _, _, payload in ancillary:
                    self._fds += array.array("i", payload)
                self._in += data
                self._requests()
        finally:
            self.close()

    def close(self) -> None:
        """End the connection."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self.end)
            self.end.close()
            held = [buffer.dmabuf for buffer in self.buffers.values() if buffer.dmabuf is not None]
            for fd in (*self._fds, *self._imported, *held):
                os.close(fd)
            self.buffers.clear()
            self.surfaces.clear()
            for memory in self.memories:
                memory.close()

    def _requests(self) -> None:
        while len(self._in) >= 8:
            number, opcode_size = struct.unpack_from("=II", self._in)
            size = opcode_size >> 16
            if len(self._in) < size:
                return
            body = bytes(self._in[8:size])
            del self._in[:size]
            try:
                self._request(number, opcode_size & 0xFFFF, body)
            except Wrong as wrong:
                self.error = str(wrong)
                self.event(1, "error", wrong.number, wrong.code, str(wrong))
                self.close()
                return

    def _request(self, number: int, opcode: int, body: bytes) -> None:
        name = self.objects[number]
        message = INTERFACES[name].requests[opcode]
        arguments: list[Any] = []
        at = 0
        for argument in message.arguments:
            kind = argument.argument_type
            if kind == ArgumentType.FileDescriptor:
                arguments.append(self._fds.pop(0))
                continue
            if kind == ArgumentType.String or (kind == ArgumentType.NewId and argument.interface is None):
                (length,) = struct.unpack_from("=I", body, at)
                text = body[at + 4 : at + 3 + length].decode()
                at += 4 + (length + 3 & ~3)
                arguments.append(text)
                if kind == ArgumentType.String:
                    continue
                version, new = struct.unpack_from("=II", body, at)
                at += 8
                self.objects[new] = text
                arguments += [version, new]
                continue
            (value,) = struct.unpack_from("=I" if kind != ArgumentType.Int else "=i", body, at)
            at += 4
            if kind == ArgumentType.Fixed:
                value = (value - (1 << 32) if value >> 31 else value) / 256
            if kind == ArgumentType.NewId:
                self.objects[value] = argument.interface.name
                self.made_by[value] = number
            arguments.append(value)
        self.asked.append((name, message.name, tuple(arguments)))
        getattr(self, f"_{name}_{message.name}", lambda *_: None)(number, *arguments)
        if message.name in ("destroy", "release") and number in self.objects:
            self.gone(number)

    def gone(self, number: int) -> None:
        """Delete an object, and tell the client."""
        del self.objects[number]
        if number < 0xFF000000:
            self.event(1, "delete_id", number)

    def event(self, number: int, name: str, *arguments: Any, fds: tuple[int, ...] = ()) -> None:
        """Send an event from an object."""
        interface = INTERFACES[self.objects[number]]
        opcode = next(n for n, message in enumerate(interface.events) if message.name == name)
        body, given = b"", iter(arguments)
        for argument in interface.events[opcode].arguments:
            kind = argument.argument_type
            if kind == ArgumentType.FileDescriptor:
                continue
            value = next(given)
            if kind == ArgumentType.String:
                text = (value if isinstance(value, bytes) else value.encode()) + b"\0"
                body += struct.pack("=I", len(text)) + text + bytes(-len(text) % 4)
            elif kind == ArgumentType.Array:
                body += struct.pack("=I", len(value)) + value + bytes(-len(value) % 4)
            elif kind == ArgumentType.Fixed:
                body += struct.pack("=i", round(value * 256))
            else:
                body += struct.pack("=I", value & 0xFFFFFFFF)
        data = struct.pack("=II", number, (8 + len(body)) << 16 | opcode) + body
        with_files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
            self.end.sendmsg([data], with_files)

    def serial(self) -> int:
        self._serial += 1
        return self._serial

    def of(self, interface: str) -> list[int]:
        """Return the object numbers of an interface."""
        return [number for number, name in self.objects.items() if name == interface]

    def requests(self, interface: str, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each request of this interface and name."""
        return [arguments for i, n, arguments in self.asked if (i, n) == (interface, name)]

    # wl_display, wl_registry

    def _wl_display_sync(self, _: int, callback: int) -> None:
        self.event(callback, "done", 0)
        self.gone(callback)

    def _wl_display_get_registry(self, _: int, registry: int) -> None:
        for place, offer in enumerate(self.compositor.offers):
            if offer is not None:
                self.event(registry, "global", place + 1, *offer)

    def _wl_registry_bind(self, registry: int, place: int, name: str, version: int, number: int) -> None:
        offered = self.compositor.offers[place - 1]
        if offered is None or name != offered[0] or version > offered[1]:
            raise Wrong(registry, 0, f"bind {name} {version}")
        if name == "wl_shm":
            for kind in self.compositor.formats:
                self.event(number, "format", kind)
        elif name == "zwp_linux_dmabuf_v1" and version < 4:
            for code in self.compositor.dmabuf_formats:
                self.event(number, "modifier", code, 0, 0)
        elif name == "wl_seat":
            self.event(number, "capabilities", 7)
        elif name == "wl_output":
            self.event(number, "mode", 1, 1024, 768, 60000)
            if version >= 4:
                self.event(number, "name", self.compositor.screen)
            if version >= 2:
                self.event(number, "done")

    def _zxdg_output_manager_v1_get_xdg_output(self, _: int, number: int, output: int) -> None:
        self.event(number, "name", self.compositor.screen)

    # wl_shm

    def _wl_shm_create_pool(self, number: int, pool: int, fd: int, size: int) -> None:
        try:
            if self.compositor.cannot_map and "displbe" not in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EINVAL, "no")
            self.pools[pool] = mmap.mmap(fd, size)
            self.memories.append(self.pools[pool])
        except (OSError, ValueError) as error:
            raise Wrong(number, 2, f"failed mmap fd: {error}") from error
        finally:
            os.close(fd)

    def _wl_shm_pool_create_buffer(
        self, pool: int, number: int, offset: int, width: int, height: int, stride: int, kind: int
    ) -> None:
        memory = self.pools[pool]
        if kind not in self.compositor.formats:
            raise Wrong(self.made_by[pool], 0, f"invalid format {kind}")
        if offset < 0 or width <= 0 or height <= 0 or stride < width or offset + stride * height > len(memory):
            raise Wrong(self.made_by[pool], 1, f"invalid size {width}x{height} stride {stride} at {offset}")
        assert stride % 4 == 0, "pixman would crash"
        assert offset % 4 == 0
        self.buffers[number] = Buffer(memory, offset, (width, height), stride, kind)

    def _wl_shm_pool_destroy(self, pool: int) -> None:
        del self.pools[pool]
        self._unmap()

    def _wl_buffer_destroy(self, number: int) -> None:
        for surface in self.surfaces.values():
            assert surface.shown is not self.buffers[number], "destroyed while it is shown"
        dmabuf = self.buffers.pop(number).dmabuf
        if dmabuf is not None:
            os.close(dmabuf)
        self._unmap()

    def _unmap(self) -> None:
        """Unmap memory that is no longer used."""
        used = [*self.pools.values(), *(buffer.pool for buffer in self.buffers.values())]
        for memory in self.memories[:]:
            if not any(memory is pool for pool in used):
                self.memories.remove(memory)
                memory.close()

    @property
    def mapped(self) -> int:
        """The number of pools that are mapped, without those of black frames of one pixel."""
        black = [buffer.pool for buffer in self.buffers.values() if buffer.is_black]
        return sum(not any(memory is pool for pool in black) for memory in self.memories)

    @property
    def frames(self) -> list[int]:
        """The object numbers of the wl_buffers, without black frames of one pixel."""
        return [number for number in self.of("wl_buffer") if not self.buffers[number].is_black]

    # linux-dmabuf

    def _zwp_linux_dmabuf_v1_get_default_feedback(self, _: int, feedback: int) -> None:
        entries = [struct.pack("=IxxxxQ", code, 0) for code in self.compositor.dmabuf_formats]
        table = os.memfd_create("formats")
        os.write(table, b"".join(entries))
        if self.compositor.table_bytes is not None:
            os.ftruncate(table, self.compositor.table_bytes)
        self.event(feedback, "format_table", 16 * len(entries), fds=(table,))
        os.close(table)
        device = struct.pack("=Q", self.compositor.main_device)
        self.event(feedback, "main_device", device * self.compositor.main_devices)
        self.event(feedback, "tranche_target_device", struct.pack("=Q", self.compositor.main_device))
        self.event(feedback, "tranche_flags", 0)
        self.event(feedback, "tranche_formats", struct.pack(f"={len(entries)}H", *range(len(entries))))
        self.event(feedback, "tranche_done")
        self.event(feedback, "done")

    def _zwp_linux_buffer_params_v1_add(
        self, _: int, fd: int, plane: int, offset: int, stride: int, high: int, low: int
    ) -> None:
        self.dmabufs.append((os.fstat(fd).st_ino, plane, offset, stride, high << 32 | low))
        self._imported.append(fd)

    def _zwp_linux_buffer_params_v1_create(self, params: int, width: int, height: int, code: int, flags: int) -> None:
        self.dmabufs[-1] += (width, height, code)
        if self.compositor.imports:
            number, self._next = self._next, self._next + 1
            self.objects[number] = "wl_buffer"
            self.buffers[number] = Buffer(None, 0, (width, height), 0, code)
            self.buffers[number].dmabuf = self._imported.pop()
            self.event(params, "created", number)
        else:
            os.close(self._imported.pop())
            self.event(params, "failed")

    def _zwp_linux_buffer_params_v1_create_immed(self, params: int, *_: Any) -> None:
        raise AssertionError("create_immed ends the connection where the import fails")

    # wl_surface, wp_viewport, wp_presentation

    def _wl_compositor_create_surface(self, _: int, number: int) -> None:
        self.surfaces[number] = Surface(number)

    def _wl_surface_attach(self, number: int, buffer: int, x: int, y: int) -> None:
        surface = self.surfaces[number]
        surface.pending, surface.pending_number, surface.newly = self.buffers.get(buffer), buffer, True

    def _wl_surface_damage_buffer(self, number: int, *_: int) -> None:
        self.surfaces[number].damaged = True

    def _wl_surface_frame(self, number: int, callback: int) -> None:
        self.surfaces[number].callbacks.append(("frame", callback))

    def _wp_presentation_feedback(self, _: int, surface: int, feedback: int) -> None:
        self.surfaces[surface].callbacks.append(("feedback", feedback))

    def _wp_viewporter_get_viewport(self, _: int, viewport: int, surface: int) -> None:
        self.made_by[viewport] = surface

    def _wp_viewport_set_source(self, viewport: int, *rectangle: float) -> None:
        surface = self.surfaces[self.made_by[viewport]]
        surface.source = None if rectangle[0] == -1 else rectangle

    def _wp_viewport_set_destination(self, viewport: int, width: int, height: int) -> None:
        surface = self.surfaces[self.made_by[viewport]]
        surface.destination = None if width == -1 else (width, height)

    def _wl_surface_commit(self, number: int) -> None:
        surface = self.surfaces[number]
        surface.commits += 1
        if surface.decoration and surface.decorated is None and surface.pending is not None:
            raise Wrong(surface.decoration, 0, "a buffer before the first configure of the decoration")
        if surface.role == "xdg" and not surface.configured:
            if surface.newly and surface.pending is not None:
                raise Wrong(surface.xdg, 3, "a buffer before the first configure")
            if surface.toplevel and not surface.sent:
                self.configure(surface, *self.compositor.first_size)
            return
        if surface.acked is not None:
            surface.state = surface.sent[surface.acked]
        if surface.newly:
            surface.newly = False
            old = surface.shown
            surface.shown, surface.shown_number = surface.pending, surface.pending_number
            surface.frames.append(surface.pending_number)
            if old is not None and old is not surface.shown:
                self._release(old)
            if surface.shown is not None:
                surface.shown.held = True
                assert surface.damaged
                if surface.shown.dmabuf is not None and self.compositor.dies_of_dmabufs:
                    self.compositor.crash()
                    self.compositor.there = True
                    return
        if surface.shown is not None:
            self._check_size(surface)
            if surface.role == "ivi" and not surface.configured:
                surface.configured = True
                width, height, _ = self.compositor.first_size
                if width:
                    self.event(self._ivi(surface), "configure", width, height)
        self.discard(surface)
        surface.waiting += surface.callbacks
        surface.callbacks = []
        if self.compositor.shows_at_once:
            self.compositor.refresh()

    def discard(self, surface: Surface) -> None:
        """Discard the frame that waits to be shown: a later one replaces it, or the surface is not visible."""
        for kind, number in surface.waiting:
            if kind == "feedback":
                self.event(number, "discarded")
                self.gone(number)
        surface.waiting = [entry for entry in surface.waiting if entry[0] == "frame"]

    def _release(self, buffer: Buffer) -> None:
        buffer.held = False
        if self.compositor.releases:
            for number, known in self.buffers.items():
                if known is buffer:
                    self.event(number, "release")

    def _check_size(self, surface: Surface) -> None:
        """Check Weston's rules for a toplevel's size, and wp_viewport's for the source rectangle."""
        assert surface.shown is not None
        if surface.source is not None:
            x, y, width, height = surface.source
            if x + width > surface.shown.size[0] or y + height > surface.shown.size[1]:
                raise Wrong(surface.number, 2, "source rectangle outside the buffer")
        width, height, states = surface.state
        if 2 in states and (surface.size[0] > width or surface.size[1] > height):
            raise Wrong(surface.xdg, 4, "larger than the full screen")
        if 1 in states and 2 not in states and surface.size != (width, height):
            raise Wrong(surface.xdg, 4, "not the maximised size")

    def _wl_surface_destroy(self, number: int) -> None:
        surface = self.surfaces.pop(number)
        assert not surface.role or not (surface.xdg in self.objects or self._ivi(surface) in self.objects)
        if surface.shown is not None:
            self._release(surface.shown)
        surface.waiting += surface.callbacks
        self.discard(surface)
        for _, callback in surface.waiting:  # frame callbacks end with their surface, without an event
            self.gone(callback)

    # xdg-shell, ivi-application

    def _xdg_wm_base_get_xdg_surface(self, _: int, number: int, surface: int) -> None:
        self.surfaces[surface].role, self.surfaces[surface].xdg = "xdg", number

    def _surface_of(self, xdg: int) -> Surface:
        return next(s for s in self.surfaces.values() if xdg in (s.xdg, s.toplevel))

    def _xdg_surface_get_toplevel(self, xdg: int, number: int) -> None:
        self._surface_of(xdg).toplevel = number

    def _xdg_surface_ack_configure(self, xdg: int, serial: int) -> None:
        surface = self._surface_of(xdg)
        if serial not in surface.sent:
            raise Wrong(xdg, 4, f"wrong serial {serial}")
        surface.acked, surface.configured = serial, True

    def _xdg_toplevel_set_title(self, toplevel: int, title: str) -> None:
        self._surface_of(toplevel).title = title

    def _xdg_toplevel_set_app_id(self, toplevel: int, app_id: str) -> None:
        self._surface_of(toplevel).app_id = app_id

    def _xdg_toplevel_set_fullscreen(self, toplevel: int, output: int) -> None:
        surface = self._surface_of(toplevel)
        surface.fullscreen = output
        if surface.configured:
            self.configure(surface, 1024, 768, (2,))

    def _xdg_toplevel_destroy(self, toplevel: int) -> None:
        if self._surface_of(toplevel).decoration:
            raise Wrong(self._surface_of(toplevel).decoration, 2, "the toplevel goes before its decoration")
        self._surface_of(toplevel).toplevel = 0

    def _xdg_surface_destroy(self, xdg: int) -> None:
        assert not self._surface_of(xdg).toplevel, "defunct role object"

    def configure(self, surface: Surface, width: int, height: int, states: tuple[int, ...] = ()) -> None:
        """Send a toplevel its size and states."""
        serial = self.serial()
        surface.sent[serial] = (width, height, states)
        if surface.decoration:
            surface.decorated = self.compositor.decorates or surface.wanted_decoration
            self.event(surface.decoration, "configure", surface.decorated)
        self.event(surface.toplevel, "configure", width, height, struct.pack(f"={len(states)}I", *states))
        self.event(surface.xdg, "configure", serial)

    def _ivi_application_surface_create(self, number: int, ivi_id: int, surface: int, ivi: int) -> None:
        used = [s.ivi_id for client in self.compositor.clients for s in client.surfaces.values() if s.role == "ivi"]
        if ivi_id in (*used, self.compositor.ivi_taken):
            raise Wrong(number, 1, f"ivi id {ivi_id} is in use")
        self.surfaces[surface].role, self.surfaces[surface].ivi_id = "ivi", ivi_id
        self.made_by[ivi] = surface

    def _ivi(self, surface: Surface) -> int:
        return next((n for n in self.of("ivi_surface") if self.made_by[n] == surface.number), 0)

    # xdg-decoration, fractional-scale

    def _zxdg_decoration_manager_v1_get_toplevel_decoration(self, _: int, number: int, toplevel: int) -> None:
        surface = self._surface_of(toplevel)
        if surface.shown is not None or surface.decoration:
            raise Wrong(number, 0, "the surface has a buffer, or a decoration")
        surface.decoration = number

    def _zxdg_toplevel_decoration_v1_set_mode(self, number: int, mode: int) -> None:
        next(s for s in self.surfaces.values() if s.decoration == number).wanted_decoration = mode

    def _zxdg_toplevel_decoration_v1_destroy(self, number: int) -> None:
        next(s for s in self.surfaces.values() if s.decoration == number).decoration = 0

    def _wp_fractional_scale_manager_v1_get_fractional_scale(self, manager: int, number: int, surface: int) -> None:
        if self.surfaces[surface].scaler:
            raise Wrong(manager, 0, "the surface has a fractional scale")
        self.surfaces[surface].scaler = number
        self.event(number, "preferred_scale", self.compositor.scale)

    # idle-inhibit, keyboard-shortcuts-inhibit

    def _zwp_idle_inhibit_manager_v1_create_inhibitor(self, _: int, number: int, surface: int) -> None:
        self.made_by[number] = surface

    def _zwp_keyboard_shortcuts_inhibit_manager_v1_inhibit_shortcuts(
        self, manager: int, number: int, surface: int, seat: int
    ) -> None:
        if (surface, seat) in self.shortcuts:
            raise Wrong(manager, 0, "already inhibited")
        self.shortcuts[surface, seat] = number
        if self.compositor.yields_shortcuts:
            self.event(number, "active")

    def _zwp_keyboard_shortcuts_inhibitor_v1_destroy(self, number: int) -> None:
        self.shortcuts = {key: other for key, other in self.shortcuts.items() if other != number}

    @property
    def awake(self) -> list[int]:
        """The numbers of the surfaces that keep the screens on."""
        return [self.made_by[number] for number in self.of("zwp_idle_inhibitor_v1")]

    # Seats

    def _wl_seat_get_keyboard(self, _: int, keyboard: int) -> None:
        keymap = os.memfd_create("keymap")
        os.write(keymap, b"xkb_keymap {}")
        self.event(keyboard, "keymap", 1, 13, fds=(keymap,))
        os.close(keymap)

    def device(self, kind: str) -> int:
        """Return the object number of the client's only object of an interface."""
        (number,) = self.of(kind)
        return number


class FakeCompositor:
    """A compositor without a socket: `opened` makes a connection, in place of conn.connect."""

    def __init__(self, offers: dict[str, int] | None = None) -> None:
        self.offers: list[tuple[str, int] | None] = list((CORE if offers is None else offers).items())
        """The compositor's globals, numbered from 1; None: removed."""
        self.formats = [0, XRGB]
        self.dmabuf_formats: list[int] = []
        self.table_bytes: int | None = None
        """The size to which it truncates the file of the dma-buf formats; None: the file is whole."""
        self.main_device = 0
        self.main_devices = 1
        """How often the device is in `main_device`; the protocol's value is once."""
        self.imports = True
        self.dies_of_dmabufs = False
        """Whether it crashes when it draws a dma-buf, and is started again at once."""
        self.cannot_map = False
        """Whether it fails to map guests' pages. It can always map displbe's own memory."""
        self.ivi_taken: int | None = None
        """An ivi id that another client uses."""
        self.releases = True
        """Whether it sends wl_buffer.release."""
        self.shows_at_once = True
        """Whether each commit is shown at once; if not, `refresh` shows it."""
        self.first_size: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        self.screen = "HDMI-A-1"
        self.scale = 120
        """The preferred scale of surfaces, in 120ths."""
        self.decorates = 0
        """The mode of decoration that it enforces; 0: the client's."""
        self.yields_shortcuts = True
        """Whether it lets clients inhibit its shortcuts."""
        self.room: int | None = None
        """The size of a client's socket buffer in bytes; None: the default."""
        self.there = True
        self.clients: list[Client] = []
        self.nursery: trio.Nursery | None = None
        self.on_client: Callable[[Client], None] = lambda client: None

    def opened(self, path: str) -> Connection:
        """Connect a client. Raises OSError."""
        if not self.there or self.nursery is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        ours, theirs = socket.socketpair()
        if self.room is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.room)
        client = Client(self, ours)
        self.clients.append(client)
        self.on_client(client)
        self.nursery.start_soon(client.run)
        return Connection(theirs.detach())

    @property
    def client(self) -> Client:
        """The only client that is connected."""
        (there,) = [client for client in self.clients if not client.closed]
        return there

    def add(self, name: str, version: int) -> int:
        """Announce another global, and return its number."""
        self.offers.append((name, version))
        for client in self.clients:
            if not client.closed:
                client.event(client.device("wl_registry"), "global", len(self.offers), name, version)
        return len(self.offers)

    def remove(self, place: int) -> None:
        """Remove a global."""
        self.offers[place - 1] = None
        for client in self.clients:
            if not client.closed:
                client.event(client.device("wl_registry"), "global_remove", place)

    def refresh(self) -> None:
        """Show what was committed, and send the reports that clients requested."""
        for client in self.clients:
            if client.stopped or client.closed:
                continue
            for surface in client.surfaces.values():
                for kind, number in surface.waiting:
                    if kind == "feedback":
                        client.event(number, "presented", 0, 0, 0, 16666667, 0, 0, 0)
                    else:
                        client.event(number, "done", 0)
                    client.gone(number)
                surface.waiting = []

    def rescale(self, scale: int) -> None:
        """Tell all surfaces a new preferred scale."""
        self.scale = scale
        for client in self.clients:
            for surface in () if client.closed else client.surfaces.values():
                if surface.scaler:
                    client.event(surface.scaler, "preferred_scale", scale)

    def crash(self) -> None:
        """End the compositor and all its connections."""
        self.there = False
        for client in self.clients:
            client.close()
