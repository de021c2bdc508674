"""A model of the kernel's mode setting, to run the DRM sink without a card, with failures in any order.

It enforces the kernel's rules: no commit without DRM master or on a busy CRTC, no framebuffer that does not exist, an
event only for a frame that was committed. The lab tests pixels on real drivers.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from ctypes import c_uint32, c_uint64
from typing import Any, Final

import msgspec
from memory_watch import heavy
from PIL import Image

from displbe.pump.library import ffi
from displbe.sinks.base import Geometry
from displbe.sinks.drm import uapi
from displbe.sinks.drm.device import DrmDevice
from displbe.sinks.drm.libseat import FileOpener
from displbe.wire.formats import FORMATS, fourcc
from displbe.xen.memory import Mapping, Memory, PrivateMemory

XR24 = fourcc("XR24")
PROPERTIES = [
    "type",
    "CRTC_ID",
    "FB_ID",
    *("SRC_X", "SRC_Y", "SRC_W", "SRC_H"),
    *("CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H"),
]
PROPERTIES += ["ACTIVE", "MODE_ID", "EDID", "link-status", "GAMMA_LUT", "rotation", "PATH"]
PROPERTIES += [
    "IN_FORMATS",
    "panel orientation",
    "DEGAMMA_LUT",
    "CTM",
    "VRR_ENABLED",
    "SHARPNESS_STRENGTH",
    "BACKGROUND_COLOR",
]
PROPERTIES += ["HDR_OUTPUT_METADATA", "Colorspace", "underscan", "underscan hborder", "underscan vborder", "max bpc"]
PROPERTIES += ["Broadcast RGB", "content type", "SCALING_FILTER", "alpha", "pixel blend mode", "zpos"]
PROPERTIES += ["COLOR_ENCODING", "COLOR_RANGE"]
CONNECTOR, CRTC, PLANE = 10, 20, 30
"""The first id of each kind."""


CONNECTOR_PROPERTIES = {"CRTC_ID": 0, "EDID": 0, "link-status": 0}


class Described(msgspec.Struct):
    """What GETPROPERTY says of a property, and the value that the last program left in it."""

    value: int = 0
    names: tuple[str, ...] = ()
    """An enumeration, or the bits of a bitmask; empty: neither. The values are the indices."""
    limits: tuple[int, int] | None = None
    immutable: bool = False
    bitmask: bool = False
    refused: bool = False
    """Whether the driver refuses any other value than `value`."""


class DumbMemory:
    """The card's memory of a dumb buffer, in a file. The file is closed when no handle and no framebuffer refers to it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)

    @classmethod
    def make(cls, size: int) -> DumbMemory:
        """Return new memory."""
        made = cls(os.memfd_create("dumb"))
        os.ftruncate(made.fd, size)
        return made

    def read(self) -> bytes:
        """Return its content."""
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)


class Framebuffer(msgspec.Struct):
    """A framebuffer made by ADDFB2."""

    width: int
    height: int
    pitch: int
    pages: int
    """The inode of its dma-buf; 0: the card's own memory."""
    code: int = XR24
    """The DRM format."""
    offset: int = 0
    """Where its pixels begin in the memory, in bytes."""
    dumb: DumbMemory | None = None


class Monitor(msgspec.Struct):
    """A monitor on a connector."""

    modes: Sequence[tuple[int, ...]]
    """Width, height, refresh rate (100 if left out), and flags (0 if left out) of each; the first is preferred."""
    edid: bytes = b""
    """The EDID as the monitor sent it; it need not be whole blocks."""
    connection: int = uapi.DRM_MODE_CONNECTED
    """What the connector says about it."""


class Board:
    """The hardware, which stays when a card is unbound and bound again, and the failures to come."""

    def __init__(self, connectors: int = 1, modes: list[tuple[int, int]] | None = None) -> None:
        self.monitors: list[Monitor | None] = [Monitor(modes or [(64, 48)]) for _ in range(connectors)]
        self.known: dict[int, Monitor | None] = {}
        """The monitors as the kernel last asked them, by connector."""
        self.planes = connectors
        """The number of planes. There is one primary plane for each connector; the others are overlays."""
        self.reach = [(1 << connectors) - 1] * connectors
        """For each connector, the CRTCs that can drive it, as a mask."""
        self.formats = [XR24]
        """The formats of the planes."""
        self.in_formats = b""
        self.driver = ""
        self.rotations: tuple[int, ...] = (0, 180)
        """Degrees that the planes can turn pictures by."""
        self.described: dict[str, dict[str, Described]] = {"connector": {}, "crtc": {}, "plane": {}}
        """Further properties of each kind of object."""
        self.object_ids = [CONNECTOR + index for index in range(connectors)]
        """The connectors' ids; 0: the connector is gone, with its dock."""
        self.numbers = [index + 1 for index in range(connectors)]
        """The numbers in the connectors' names."""
        self.paths = [b""] * connectors
        """The connectors' PATH properties; empty: the connector has none."""
        self.refuses: Callable[[int, uapi.drm_mode_modeinfo], int] = lambda crtc, mode: 0
        """Returns the errno with which a CRTC, by its index, refuses a mode; 0: it can drive it."""
        self.sysfs_path, self.bus_path = "/sys/devices/model", ""
        self.can_import = True
        self.can_scale = False
        self.can_leave_free = False
        self.must_be_told = False
        self.other_master = False
        self.privileged = True
        """Whether displbe has CAP_SYS_ADMIN."""
        self.faults: dict[str, list[int]] = {}
        """Operation -> errnos with which its next calls fail. The operations are `import`, `close` (of a handle), `dumb`
        (buffer), `probe`, `atomic` (capability), `flip`, `modeset`, `test` and `rmfb`.
        """
        self.cards: list[ModelDevice] = []
        self.opened: Callable[[int, FileOpener], None] = lambda fd, opener: None
        """Called with each new file and its opener."""
        self.present = True
        self.began: Callable[[ModelDevice], None] = lambda card: None
        """Called with each new device, to set the state in which displbe finds it."""
        self.vanished: set[int] = set()
        """Indices of connectors that are still listed, but do not exist any more."""
        self.pumped = 0
        """Commits that the pump has made."""
        self.flips = 0
        """Commits that ask for an event."""
        self.contents: dict[int, Callable[[], bytes]] = {}
        """The inode of a guest's dma-buf -> returns what it contains, for `ModelDevice.picture`."""
        self.slow = 0.0
        """Seconds of sleep after each step of an import, so that other threads run in between."""

    def open(self, path: str, opener: FileOpener) -> DrmDevice:
        """Open a card, for DrmSink's `open_device`. Raises OSError."""
        if not self.present:
            raise OSError(errno.ENOENT, "no such device")
        card = ModelDevice(self, path, opener)
        self.cards.append(card)
        return card

    @property
    def card(self) -> ModelDevice | None:
        """The device that was opened last and is still open; if none is open, the one that was opened last."""
        return next((card for card in reversed(self.cards) if card.fd >= 0), self.cards[-1] if self.cards else None)

    def unbind(self) -> None:
        """Remove the card while it is open."""
        self.present = False
        for card in self.cards:
            card.unplugged = True

    def replug(self, index: int, *, number: int, monitor: Monitor | None) -> None:
        """Plug a dock's connector in again: it is a new object, with another name."""
        self.object_ids[index] = max(CONNECTOR + len(self.monitors), *self.object_ids) + 1
        self.numbers[index], self.monitors[index] = number, monitor
        for card in self.cards:
            card.objects[self.object_ids[index]] = {**CONNECTOR_PROPERTIES}
            if self.paths[index]:
                card.add_path(index)

    def unplug(self, index: int) -> None:
        """Unplug a dock: its connector is gone."""
        for card in self.cards:
            card.objects.pop(self.object_ids[index], None)
        self.object_ids[index], self.monitors[index] = 0, None

    def vblank(self) -> None:
        """Refresh the screens of all cards that are open."""
        for card in list(self.cards):
            card.vblank()

    def commit(self, fd: int, argument: Any) -> int:
        """Make an atomic commit for the pump (`pump_calls.commit`)."""
        card = next((card for card in self.cards if card.fd == fd), None)
        if card is None:
            return -errno.EBADF
        ask = uapi.drm_mode_atomic.from_address(int(ffi.cast("uintptr_t", argument)))
        failed = card.try_ioctl(uapi.DRM_IOCTL_MODE_ATOMIC, ask)
        self.pumped += not failed
        return -failed

    def fault(self, kind: str) -> int:
        """Return the errno with which an operation fails now; 0: it does not."""
        return self.faults[kind].pop(0) if self.faults.get(kind) else 0


class ModelDevice(DrmDevice):
    """An open card of the model, with the kernel's side of it."""

    def __init__(self, board: Board, path: str, opener: FileOpener) -> None:
        self.board = board
        self.unplugged = False
        self.master = self.was_master = False
        self.fbs: dict[int, Framebuffer] = {}
        self.blobs: dict[int, bytes] = {}
        self.kept_blobs: dict[int, bytes] = {}
        """Blobs that have been destroyed while an object had them: they last as long as the object has them."""
        self.objects: dict[int, dict[str, int]] = {}
        for index in range(len(board.monitors)):
            if board.object_ids[index]:
                self.objects[board.object_ids[index]] = {**CONNECTOR_PROPERTIES}
            self.objects[CRTC + index] = {"ACTIVE": 0, "MODE_ID": 0, "GAMMA_LUT": 0}
        for index in range(board.planes):
            plane = dict.fromkeys(("FB_ID", "CRTC_ID", *PROPERTIES[3:11]), 0)
            primary = uapi.DRM_PLANE_TYPE_PRIMARY if index < len(board.monitors) else 0
            self.objects[PLANE + index] = {"type": primary, **plane, "rotation": 1}
        self.rotation = Described(1, tuple(f"rotate-{90 * bit}" for bit in range(4)), bitmask=True)
        for identity, values in self.objects.items():
            values |= {name: known.value for name, known in board.described[kind_of(identity)].items()}
        self.pending: dict[int, int] = {}
        """CRTC -> user data of a flip that is not on the screen yet."""
        self.handles: dict[int, int] = {}
        """GEM handle -> its dma-buf's inode; 0: the card's own memory."""
        self.commits = 0
        self.modesets = 0
        """Commits that may change a mode."""
        self.removed_shown = 0
        """Framebuffers that were removed while they were on a plane, or before the flip that replaced them had ended."""
        self.drawn_on_screen = 0
        """Flips to a copy that was on the screen already, so that the screen has shown how it was drawn."""
        self.reports = True
        """Whether the card reports flips."""
        self.leaving: dict[int, int] = {}
        """CRTC -> framebuffer that leaves the screen at the end of the pending flip."""
        self._next = 100
        self._dumb: dict[int, DumbMemory] = {}
        """By handle."""
        self._maps: weakref.WeakValueDictionary[int, DumbMemory] = weakref.WeakValueDictionary()
        """By the offset for mmap."""
        self._end: Any = None
        self._lock = threading.RLock()
        self._handlers: dict[int, Callable[[Any], int]] = {
            getattr(uapi, name): getattr(self, "_" + name.removeprefix("DRM_IOCTL_").lower())
            for name in vars(uapi)
            if name.startswith("DRM_IOCTL_") and hasattr(self, "_" + name.removeprefix("DRM_IOCTL_").lower())
        }
        if board.in_formats:
            for index in range(board.planes):
                self.objects[PLANE + index]["IN_FORMATS"] = blob = self._new()
                self.blobs[blob] = board.in_formats
        for index in range(len(board.monitors)):
            if board.paths[index] and board.object_ids[index]:
                self.add_path(index)
        board.began(self)
        super().__init__(path, opener)

    def _open(self) -> int:
        """Open a new file. The first one that is open is DRM master."""
        if not self.board.present or self.unplugged:
            raise OSError(errno.ENOENT, "no such device")
        self._end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.master = not self.board.other_master and not any(card.master for card in self.board.cards)
        self.was_master = self.master
        fd = ours.detach()
        self.board.opened(fd, self.opener)
        return fd

    @property
    def event_end(self) -> int:
        """The file that events of the card are written to, while it is open."""
        return int(self._end.fileno())

    def add_path(self, index: int) -> None:
        """Give a connector its PATH property."""
        blob = self._new()
        self.blobs[blob] = self.board.paths[index] + b"\0"
        self.objects[self.board.object_ids[index]]["PATH"] = blob

    def _read_sysfs_path(self) -> str:
        return self.board.sysfs_path

    def _read_bus_path(self) -> str:
        return self.board.bus_path

    def close(self) -> None:
        with self._lock:
            super().close()
            self.master = False
            self._end.close()
            self._dumb.clear()
            for framebuffer in self.fbs.values():
                framebuffer.dumb = None

    def try_ioctl(self, number: int, argument: Any) -> int:
        if self.fd < 0 or self.unplugged:
            return errno.ENODEV
        handler = self._handlers.get(number)
        if number in HEAVY:
            heavy(f"the card's ioctl {number:#x}")
        with self._lock:
            failed = handler(argument) if handler is not None else errno.ENOTTY
        if self.board.slow and number in (uapi.DRM_IOCTL_PRIME_FD_TO_HANDLE, uapi.DRM_IOCTL_MODE_ADDFB2):
            time.sleep(self.board.slow)
        return failed

    def _map(self, offset: int, size: int, writable: bool) -> Mapping:
        return Mapping(self._maps[offset].fd, [(0, size)], writable=writable)

    # For tests

    def vblank(self) -> None:
        """Refresh the screens: the frames of pending flips are shown. Runs in any thread."""
        with self._lock:
            if self.fd >= 0:
                self._show_pending()

    def _show_pending(self) -> None:
        for crtc, user_data in list(self.pending.items()):
            del self.pending[crtc]
            self.leaving.pop(crtc, None)
            event = uapi.drm_event_vblank.pack(uapi.DRM_EVENT_FLIP_COMPLETE, 32, user_data, 0, 0, 0, crtc)
            if user_data and self.fd >= 0 and self.reports:
                self._end.send(event)

    def take_master(self) -> None:
        """Make another program DRM master, as on a VT switch."""
        self.master, self.board.other_master = False, True

    def light(self, index: int, fb: int, *connectors: int) -> None:
        """Put another program's picture on a CRTC that drives these connectors."""
        crtc, blob = CRTC + index, self._new()
        self.fbs[fb] = Framebuffer(64, 48, 256, 0)
        self.blobs[blob] = mode_of(64, 48)
        self.objects[crtc].update(ACTIVE=1, MODE_ID=blob)
        self.objects[PLANE + index].update(FB_ID=fb, CRTC_ID=crtc, SRC_W=64 << 16, SRC_H=48 << 16, CRTC_W=64, CRTC_H=48)
        for connector in connectors:
            self.objects[self.board.object_ids[connector]]["CRTC_ID"] = crtc

    def shown(self, index: int = 0) -> dict[str, int]:
        """Return a primary plane's state; it is empty while its CRTC is off."""
        return self.objects[PLANE + index] if self.objects[CRTC + index]["ACTIVE"] else {}

    def picture(self, crtc: int = CRTC) -> Image.Image | None:
        """Return what a CRTC's screen shows; None: it is off."""
        with self._lock:
            plane = self.shown(crtc - CRTC)
            if not plane or plane["FB_ID"] not in self.fbs:
                return None
            fb = self.fbs[plane["FB_ID"]]
            data = fb.dumb.read() if fb.dumb is not None else self.board.contents[fb.pages]()
        assert (fb.code, plane["rotation"]) == (XR24, 1)
        whole = Image.frombytes("RGB", (fb.width, fb.height), data[fb.offset :], "raw", "BGRX", fb.pitch)
        x, y, width, height = (plane[f"SRC_{name}"] >> 16 for name in "XYWH")
        return whole.crop((x, y, x + width, y + height))

    # The kernel's side

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _set_client_cap(self, ask: Any) -> int:
        return self.board.fault("atomic") if ask.capability == uapi.DRM_CLIENT_CAP_ATOMIC else 0

    def _get_cap(self, ask: Any) -> int:
        ask.value = 3 if ask.capability == uapi.DRM_CAP_PRIME else int(ask.capability == uapi.DRM_CAP_DUMB_BUFFER)
        return 0

    def _set_master(self, _: Any) -> int:
        if not (self.board.privileged or self.was_master):
            return errno.EACCES
        if self.board.other_master or any(card.master for card in self.board.cards if card is not self):
            return errno.EBUSY
        self.master = self.was_master = True
        return 0

    def _drop_master(self, _: Any) -> int:
        if not (self.board.privileged or self.was_master):
            return errno.EACCES
        if not self.master:
            return errno.EINVAL
        self.master = False
        return 0

    def _mode_getresources(self, ask: Any) -> int:
        count = len(self.board.monitors)
        _fill(ask.crtc_id_ptr, ask.count_crtcs, range(CRTC, CRTC + count))
        connectors = list(filter(None, self.board.object_ids))
        _fill(ask.connector_id_ptr, ask.count_connectors, connectors)
        ask.count_crtcs, ask.count_connectors = count, len(connectors)
        return 0

    def _mode_getplaneresources(self, ask: Any) -> int:
        count = self.board.planes
        _fill(ask.plane_id_ptr, ask.count_planes, range(PLANE, PLANE + count))
        ask.count_planes = count
        return 0

    def _mode_getplane(self, ask: Any) -> int:
        ask.possible_crtcs = (1 << len(self.board.monitors)) - 1
        ask.fb_id = self.objects[ask.plane_id]["FB_ID"]
        _fill(ask.format_type_ptr, ask.count_format_types, self.board.formats)
        ask.count_format_types = len(self.board.formats)
        return 0

    def _mode_getencoder(self, ask: Any) -> int:
        ask.possible_crtcs = self.board.reach[ask.encoder_id - 1]
        return 0

    def _mode_getconnector(self, ask: Any) -> int:
        if ask.connector_id not in self.board.object_ids:
            return errno.ENOENT
        index = self.board.object_ids.index(ask.connector_id)
        failed = errno.ENOENT if index in self.board.vanished else self.board.fault("probe")
        if failed:
            return failed
        monitor = self.board.monitors[index]
        connection = monitor.connection if monitor is not None else uapi.DRM_MODE_DISCONNECTED
        # drm_mode_getconnector(): only the DRM master has the monitor asked; others are told what it has said last.
        if self.master:
            self.board.known[index] = monitor
        known = self.board.known.get(index)
        modes = known.modes if known is not None and connection != uapi.DRM_MODE_DISCONNECTED else []
        room, ask.count_modes = ask.count_modes, len(modes)
        if ask.modes_ptr and room >= len(modes):
            for number, shape in enumerate(modes):
                at = ask.modes_ptr + number * ctypes.sizeof(uapi.drm_mode_modeinfo)
                mode = uapi.drm_mode_modeinfo.from_address(at)
                mode.hdisplay, mode.vdisplay, mode.vrefresh, mode.flags = (*shape, *(100, 0)[len(shape) - 2 :])
                mode.type = uapi.DRM_MODE_TYPE_PREFERRED if number == 0 else 0
        _fill(ask.encoders_ptr, ask.count_encoders, [1 + index])
        ask.count_encoders = 1
        ask.connector_type, ask.connector_type_id = 15, self.board.numbers[index]
        ask.connection = connection
        # drm_connector_update_edid_property(): the blob is replaced when the connector is probed.
        old = self.objects[ask.connector_id]["EDID"]
        edid = known.edid if known is not None else b""
        if self.blobs.get(old, b"") != edid:
            self.blobs.pop(old, None)
            self.objects[ask.connector_id]["EDID"] = new = self._new() if edid else 0
            if edid:
                self.blobs[new] = edid
        return 0

    def _mode_obj_getproperties(self, ask: Any) -> int:
        if ask.obj_id not in self.objects:
            return errno.ENOENT
        values = self.objects[ask.obj_id]
        _fill(ask.props_ptr, ask.count_props, [PROPERTIES.index(name) + 1 for name in values])
        _fill(ask.prop_values_ptr, ask.count_props, list(values.values()), c_uint64)
        ask.count_props = len(values)
        return 0

    def _mode_getproperty(self, ask: Any) -> int:
        name = PROPERTIES[ask.prop_id - 1]
        ask.name = name.encode()
        of_kinds = [
            self.board.described[kind][name] for kind in self.board.described if name in self.board.described[kind]
        ]
        known = self.rotation if name == "rotation" else of_kinds[0] if of_kinds else Described()
        bits = [bit for bit in range(4) if 90 * bit in self.board.rotations]
        numbers = bits if name == "rotation" else range(len(known.names))
        ask.flags = (
            4 * known.immutable | (32 if known.bitmask else 8 * bool(known.names)) | 2 * (known.limits is not None)
        )
        if ask.enum_blob_ptr and ask.count_enum_blobs >= len(numbers):
            names = (uapi.drm_mode_property_enum * len(numbers)).from_address(ask.enum_blob_ptr)
            for entry, number in zip(names, numbers, strict=True):
                entry.value, entry.name = number, known.names[number].encode()
        ask.count_enum_blobs = len(numbers)
        _fill(ask.values_ptr, ask.count_values, known.limits or (), c_uint64)
        ask.count_values = len(known.limits or ())
        return 0

    def _version(self, ask: Any) -> int:
        name = self.board.driver.encode()
        ctypes.memmove(ask.name, name, min(len(name), ask.name_len))
        ask.name_len = len(name)
        return 0

    def _mode_createpropblob(self, ask: Any) -> int:
        ask.blob_id = self._new()
        self.blobs[ask.blob_id] = ctypes.string_at(ask.data, ask.length)
        return 0

    def _mode_getpropblob(self, ask: Any) -> int:
        data = self.blob(ask.blob_id)
        if data is None:
            return errno.ENOENT
        if ask.data and ask.length >= len(data):
            ctypes.memmove(ask.data, data, len(data))
        ask.length = len(data)
        return 0

    def _mode_destroypropblob(self, ask: Any) -> int:
        data = self.blobs.pop(ask.blob_id, None)
        if data is None:
            return errno.ENOENT
        self.kept_blobs[ask.blob_id] = data
        return 0

    def blob(self, identity: int) -> bytes | None:
        """Return a blob's bytes; None: there is no such blob."""
        if any(identity in values.values() for values in self.objects.values()):
            return self.blobs.get(identity, self.kept_blobs.get(identity))
        return self.blobs.get(identity)

    def _prime_fd_to_handle(self, ask: Any) -> int:
        failed = self.board.fault("import")
        if failed or not self.board.can_import:
            return failed or errno.ENODEV
        # drm_gem_prime_fd_to_handle(): one handle for each dma-buf, however often it is asked for.
        # idr_alloc(): the lowest free number.
        pages = os.fstat(ask.fd).st_ino
        ask.handle = next((handle for handle, of in self.handles.items() if of == pages), 0) or self._new_handle(pages)
        if (
            os.fstat(ask.fd).st_size and ask.handle not in self._dumb
        ):  # the dma-buf of a dumb buffer: a guest's is empty
            self._dumb[ask.handle] = DumbMemory(os.dup(ask.fd))
        return 0

    def _new_handle(self, pages: int) -> int:
        handle = next(number for number in itertools.count(1) if number not in self.handles)
        self.handles[handle] = pages
        return handle

    def _prime_handle_to_fd(self, ask: Any) -> int:
        ask.fd = os.dup(self._dumb[ask.handle].fd)
        return 0

    def _gem_close(self, ask: Any) -> int:
        self._dumb.pop(ask.handle, None)
        return self.board.fault("close") or (0 if self.handles.pop(ask.handle, None) is not None else errno.EINVAL)

    def _mode_create_dumb(self, ask: Any) -> int:
        failed = self.board.fault("dumb")
        if failed:
            return failed
        ask.handle = self._new_handle(0)
        ask.pitch = ask.width * ask.bpp // 8
        ask.size = -(-ask.pitch * ask.height // 4096) * 4096
        self._dumb[ask.handle] = DumbMemory.make(ask.size)
        return 0

    def _mode_map_dumb(self, ask: Any) -> int:
        ask.offset = self._new() << 32
        self._maps[ask.offset] = self._dumb[ask.handle]
        return 0

    def _mode_addfb2(self, ask: Any) -> int:
        if ask.handles[0] not in self.handles:
            return errno.ENOENT
        ask.fb_id = self._new()
        self.fbs[ask.fb_id] = Framebuffer(
            ask.width,
            ask.height,
            ask.pitches[0],
            self.handles[ask.handles[0]],
            ask.pixel_format,
            ask.offsets[0],
            self._dumb.get(ask.handles[0]),
        )
        return 0

    def _mode_rmfb(self, ask: Any) -> int:
        if self.fbs.pop(ask.value, None) is None:
            return errno.ENOENT
        shown = any(values.get("FB_ID") == ask.value for values in self.objects.values())
        self.removed_shown += shown or ask.value in self.leaving.values()
        for values in self.objects.values():
            if values.get("FB_ID") == ask.value:
                values["FB_ID"] = values["CRTC_ID"] = 0
        return self.board.fault("rmfb")  # the framebuffer is removed even if the driver fails to take it off the screen

    def _mode_dirtyfb(self, ask: Any) -> int:
        return 0 if self.board.must_be_told else errno.ENOSYS

    def _mode_closefb(self, ask: Any) -> int:
        return 0

    def _mode_atomic(self, ask: Any) -> int:
        if not self.master:
            return errno.EACCES
        test, event = ask.flags & uapi.DRM_MODE_ATOMIC_TEST_ONLY, ask.flags & uapi.DRM_MODE_PAGE_FLIP_EVENT
        failed = self.board.fault("test" if test else "flip" if event else "modeset")
        if failed:
            return failed
        after = {identity: dict(values) for identity, values in self.objects.items()}
        try:
            touched = self._apply(ask, after)
        except KeyError:  # an object that is gone
            return errno.ENOENT
        failed = self._check(after, touched, ask)
        if failed or test:
            return failed
        self.commits += 1
        self.board.flips += bool(event)
        self.modesets += bool(ask.flags & uapi.DRM_MODE_ATOMIC_ALLOW_MODESET)
        for identity, values in self.objects.items() if event else ():
            if identity >= PLANE and values["FB_ID"] not in (0, after[identity]["FB_ID"]):
                self.leaving[values["CRTC_ID"]] = values["FB_ID"]
            elif identity >= PLANE and values["CRTC_ID"] in touched and not self.fbs[values["FB_ID"]].pages:
                self.drawn_on_screen += 1
        self.objects = after
        for crtc in touched if event else ():
            self.pending[crtc] = ask.user_data
        if not ask.flags & uapi.DRM_MODE_ATOMIC_NONBLOCK:
            self.vblank()
        return 0

    def _apply(self, ask: Any, after: dict[int, dict[str, int]]) -> set[int]:
        """Apply a commit to `after` and return the CRTCs that it touches."""
        objects = (c_uint32 * ask.count_objs).from_address(ask.objs_ptr)
        counts = (c_uint32 * ask.count_objs).from_address(ask.count_props_ptr)
        names = (c_uint32 * sum(counts)).from_address(ask.props_ptr)
        values = (c_uint64 * sum(counts)).from_address(ask.prop_values_ptr)
        pairs = iter(zip(names, values, strict=True))
        touched = set()
        for identity, count in zip(objects, counts, strict=True):
            for _ in range(count):
                name, value = next(pairs)
                after[identity][PROPERTIES[name - 1]] = value
            for state in (self.objects, after):
                touched.add(identity if CRTC <= identity < PLANE else state[identity].get("CRTC_ID", 0))
        return touched - {0}

    def _check(self, after: dict[int, dict[str, int]], touched: set[int], ask: Any) -> int:
        event = ask.flags & uapi.DRM_MODE_PAGE_FLIP_EVENT
        for crtc in touched:
            state = after[crtc]
            if ask.flags & uapi.DRM_MODE_ATOMIC_ALLOW_MODESET and (data := self.blob(state["MODE_ID"])):
                mode = uapi.drm_mode_modeinfo.from_buffer_copy(data)
                if refused := self.board.refuses(crtc - CRTC, mode):
                    return refused
            if crtc in self.pending and ask.flags & uapi.DRM_MODE_ATOMIC_NONBLOCK:
                return errno.EBUSY
            if event and not state["ACTIVE"]:
                return errno.EINVAL
            if state["MODE_ID"] != self.objects[crtc]["MODE_ID"] and not ask.flags & uapi.DRM_MODE_ATOMIC_ALLOW_MODESET:
                return errno.EINVAL
            if state["GAMMA_LUT"] and self.blob(state["GAMMA_LUT"]) is None:
                return errno.EINVAL
            driven = any(values.get("CRTC_ID") == crtc for identity, values in after.items() if identity < CRTC)
            if bool(state["MODE_ID"]) != driven:
                return errno.EINVAL
        for identity, values in after.items():
            for name, known in self.board.described[kind_of(identity)].items():
                if known.immutable and values[name] != self.objects[identity][name]:
                    return errno.EINVAL
                if known.refused and values[name] != known.value:
                    return errno.EINVAL
        return next(filter(None, (self._check_plane(after, values) for i, values in after.items() if i >= PLANE)), 0)

    def _check_plane(self, after: dict[int, dict[str, int]], plane: dict[str, int]) -> int:
        if not plane["FB_ID"]:
            return errno.EINVAL if plane["CRTC_ID"] else 0
        fb, blob = self.fbs.get(plane["FB_ID"]), self.blob(after[plane["CRTC_ID"]]["MODE_ID"])
        if fb is None:
            return errno.ENOENT
        if blob is None:
            return errno.EINVAL
        mode = uapi.drm_mode_modeinfo.from_buffer_copy(blob)
        source, target = (plane["SRC_W"] >> 16, plane["SRC_H"] >> 16), (plane["CRTC_W"], plane["CRTC_H"])
        if source[0] > fb.width or source[1] > fb.height:
            return errno.ENOSPC
        if fb.code not in self.board.formats or 90 * (plane["rotation"].bit_length() - 1) not in self.board.rotations:
            return errno.EINVAL
        if plane["rotation"] & 0b1010:  # drm_atomic_helper_check_plane_state(): 90 and 270 degrees
            source = source[::-1]
        if source != target and not self.board.can_scale:
            return errno.ERANGE
        whole = (plane["CRTC_X"], plane["CRTC_Y"], *target) == (0, 0, mode.hdisplay, mode.vdisplay)
        return 0 if whole or self.board.can_leave_free else errno.EINVAL


def no_monitor() -> Any:
    """Raise OSError in place of `hotplug._monitor`, so that connectors are polled: the kernel sends no events for the model's cards."""
    raise OSError("no events of a model")


def kind_of(identity: int) -> str:
    """Return the kind of the object with this id."""
    return "connector" if identity < CRTC else "crtc" if identity < PLANE else "plane"


def mode_of(width: int, height: int) -> bytes:
    """Return the bytes of a mode."""
    return bytes(uapi.drm_mode_modeinfo(hdisplay=width, vdisplay=height, vrefresh=100))


def _fill(address: int, room: int, values: Any, kind: Any = c_uint32) -> None:
    """Write numbers into the caller's array, if it has room for them."""
    numbers = list(values)
    if address and room >= len(numbers):
        (kind * len(numbers)).from_address(address)[:] = numbers


HEAVY: Final = (
    uapi.DRM_IOCTL_MODE_RMFB,
    uapi.DRM_IOCTL_MODE_CLOSEFB,
    uapi.DRM_IOCTL_GEM_CLOSE,
    uapi.DRM_IOCTL_MODE_CREATE_DUMB,
    uapi.DRM_IOCTL_MODE_ADDFB2,
    uapi.DRM_IOCTL_PRIME_FD_TO_HANDLE,
    uapi.DRM_IOCTL_PRIME_HANDLE_TO_FD,
)
"""Calls that allocate, import or free a whole buffer, or wait for a refresh."""


class Pages:
    """A guest's pages (xen.port.GuestBuffer)."""

    domid = 1

    def __init__(self, width: int = 64, height: int = 48, code: int = XR24) -> None:
        stride = width * FORMATS[code].bits // 8
        self.geometry = Geometry(width, height, code, stride, 0)
        self.size = stride * height
        self._fd = os.memfd_create("guest")
        self._mapping = PrivateMemory(self.size)
        self._borrowed = self._mapping.borrow()
        self.memory = self._borrowed.__enter__()
        """The memory as the guest sees it."""

    async def map(self) -> Memory:
        return self._mapping

    async def shm_fd(self) -> tuple[int, int]:
        raise NotImplementedError

    async def dmabuf(self) -> int:
        return self._fd

    @property
    def inode(self) -> int:
        """The inode of the dma-buf."""
        return os.fstat(self._fd).st_ino

    async def aclose(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._borrowed.__exit__()
        assert self._mapping.close(), "still borrowed"
