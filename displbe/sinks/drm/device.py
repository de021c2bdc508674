"""A card: one open DRM device, its objects, and what they can be told.

Everything here is one ioctl or a few; none waits but those that say so. A failed one is a DrmError that names the operation.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import weakref
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from displbe.sinks.base import Allocation
from displbe.xen.memory import Mapping

from . import uapi
from .errors import CardGone, DrmError, Unfit, drm_error
from .seat import PLAIN, Files

__all__ = ["Card", "Connector", "Mode", "Plane", "place_of"]

_OBJECT: Final = {
    "crtc": uapi.DRM_MODE_OBJECT_CRTC,
    "connector": uapi.DRM_MODE_OBJECT_CONNECTOR,
    "plane": uapi.DRM_MODE_OBJECT_PLANE,
}


class Mode(msgspec.Struct, frozen=True):
    """A mode of a connector: pixels, refreshes per second, and the kernel's own octets."""

    width: int
    height: int
    refresh: int
    preferred: bool
    raw: bytes


class Connector(msgspec.Struct, frozen=True):
    """A connector as it was when it was last probed."""

    id: int
    name: str
    connected: bool
    modes: tuple[Mode, ...]
    crtcs: tuple[int, ...]
    """The ids of the CRTCs that can drive it."""
    crtc: int = 0
    """The one that does; 0: none."""
    link_failed: bool = False
    """What it showed could not be kept up: the mode is to be set again."""


class Plane(msgspec.Struct, frozen=True):
    """A plane, its kind and the formats it takes."""

    id: int
    primary: bool
    crtcs: tuple[int, ...]
    formats: frozenset[int]


def place_of(node: os.stat_result) -> str:
    """Where in the machine the device behind a node is."""
    return os.path.realpath(f"/sys/dev/char/{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}/device")


class Card:
    """An open card. Raises DrmError or OSError when it cannot be opened, or cannot do what this sink needs."""

    def __init__(self, path: str, files: Files = PLAIN) -> None:
        self.path = path
        self.name = Path(path).name
        self._files = files
        self.barred = False
        """The kernel does not let us ask to be master with this file."""
        self.allocations: weakref.WeakSet[Allocation] = weakref.WeakSet()
        """The card's own memory that guests have (be-alloc)."""
        self._importing = threading.Lock()
        self.fd = self._open()
        try:
            self.place = self._place()
            for capability in (uapi.DRM_CLIENT_CAP_UNIVERSAL_PLANES, uapi.DRM_CLIENT_CAP_ATOMIC):
                ask = uapi.drm_set_client_cap(capability=capability, value=1)
                failed = self.try_ioctl(uapi.DRM_IOCTL_SET_CLIENT_CAP, ask)
                if failed in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                    raise Unfit("atomic mode setting", failed)
                if failed:
                    raise drm_error("atomic mode setting", failed)
            self.imports = bool(self._capability(uapi.DRM_CAP_PRIME) & uapi.DRM_PRIME_CAP_IMPORT)
            self._modifiers = bool(self._capability(uapi.DRM_CAP_ADDFB2_MODIFIERS))
            self._ids: dict[tuple[str, int], dict[str, int]] = {}
            self._names: dict[int, str] = {}
            self.crtcs, self.connector_ids = self._resources()
            self.planes = self._read_planes()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        return self._files.open(self.path)

    def _place(self) -> str:
        """Where in the machine the card is: the same for the card that comes back, under whatever number."""
        return place_of(os.fstat(self.fd))

    def close(self) -> None:
        """Close the device: what is left of ours goes with it, master too. What is asked of the card later fails with CardGone."""
        fd, self.fd = self.fd, -1
        self._files.close(fd)

    def try_ioctl(self, number: int, argument: Any) -> int:
        """One ioctl: 0, or the errno."""
        while True:
            try:
                fcntl.ioctl(self.fd, number, argument)
            except InterruptedError:
                continue
            except OSError as error:
                return error.errno or errno.EIO
            except ValueError:  # closed
                return errno.ENODEV
            return 0

    def ioctl(self, operation: str, number: int, argument: Any) -> None:
        """One ioctl. Raises DrmError."""
        failed = self.try_ioctl(number, argument)
        if failed:
            raise drm_error(operation, failed)

    def gone(self) -> bool:
        """Whether the device behind our fd has been removed, or our fd revoked. A refused import may look like that, this not."""
        ask = uapi.drm_get_cap(capability=uapi.DRM_CAP_DUMB_BUFFER)
        return self.try_ioctl(uapi.DRM_IOCTL_GET_CAP, ask) in (errno.ENODEV, errno.ENXIO, errno.EBADF)

    @property
    def managed(self) -> bool:
        """A session manager decides whether this file is master."""
        return self._files.manages(self.fd)

    def become_master(self) -> bool:
        """Ask for the right to change what is shown; True when we have it, or had it already.

        drm_master_check_perm() in the kernel: without CAP_SYS_ADMIN only that process may ask which has opened the file, and
        only when the file has been master before, as the first one that is opened is. A file of a session manager's can be
        master and yet not ask.
        """
        if self.managed:
            self.barred = self._files.active
            return self._files.active and self._is_master()
        failed = self.try_ioctl(uapi.DRM_IOCTL_SET_MASTER, 0)
        self.barred = failed == errno.EACCES
        return not failed or (self.barred and self._is_master())

    def _is_master(self) -> bool:
        """Only masters may try commits, here an empty one: whatever else is said of it."""
        ask = uapi.drm_mode_atomic(flags=uapi.DRM_MODE_ATOMIC_TEST_ONLY)
        return self.try_ioctl(uapi.DRM_IOCTL_MODE_ATOMIC, ask) not in (errno.EACCES, errno.ENODEV)

    def _capability(self, capability: int) -> int:
        ask = uapi.drm_get_cap(capability=capability)
        try:
            self.ioctl("get capability", uapi.DRM_IOCTL_GET_CAP, ask)
        except DrmError:
            return 0
        return int(ask.value)

    def _resources(self) -> tuple[list[int], list[int]]:
        count = uapi.drm_mode_card_res()
        self.ioctl("get resources", uapi.DRM_IOCTL_MODE_GETRESOURCES, count)
        crtcs, connectors = _ids(count.count_crtcs), _ids(count.count_connectors)
        ask = uapi.drm_mode_card_res(
            crtc_id_ptr=crtcs.buffer_info()[0],
            connector_id_ptr=connectors.buffer_info()[0],
            count_crtcs=count.count_crtcs,
            count_connectors=count.count_connectors,
        )
        self.ioctl("get resources", uapi.DRM_IOCTL_MODE_GETRESOURCES, ask)
        return list(crtcs)[: ask.count_crtcs], list(connectors)[: ask.count_connectors]

    def _read_planes(self) -> list[Plane]:
        count = uapi.drm_mode_get_plane_res()
        self.ioctl("get planes", uapi.DRM_IOCTL_MODE_GETPLANERESOURCES, count)
        ids = _ids(count.count_planes)
        ask = uapi.drm_mode_get_plane_res(plane_id_ptr=ids.buffer_info()[0], count_planes=count.count_planes)
        self.ioctl("get planes", uapi.DRM_IOCTL_MODE_GETPLANERESOURCES, ask)
        return [self._read_plane(identity) for identity in list(ids)[: ask.count_planes]]

    def _read_plane(self, identity: int) -> Plane:
        count = uapi.drm_mode_get_plane(plane_id=identity)
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, count)
        formats = _ids(count.count_format_types)
        ask = uapi.drm_mode_get_plane(
            plane_id=identity, count_format_types=count.count_format_types, format_type_ptr=formats.buffer_info()[0]
        )
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, ask)
        kind = self.values("plane", identity)["type"]
        return Plane(
            identity,
            kind == uapi.DRM_PLANE_TYPE_PRIMARY,
            self._from_mask(ask.possible_crtcs),
            frozenset(list(formats)[: ask.count_format_types]),
        )

    def _from_mask(self, mask: int) -> tuple[int, ...]:
        return tuple(crtc for index, crtc in enumerate(self.crtcs) if mask >> index & 1)

    def values(self, kind: str, identity: int) -> dict[str, int]:
        """An object's properties as they are now, by name. Raises DrmError."""
        count = uapi.drm_mode_obj_get_properties(obj_id=identity, obj_type=_OBJECT[kind])
        self.ioctl("get properties", uapi.DRM_IOCTL_MODE_OBJ_GETPROPERTIES, count)
        ids, values = _ids(count.count_props), array("Q", bytes(8 * max(1, count.count_props)))
        ask = uapi.drm_mode_obj_get_properties(
            props_ptr=ids.buffer_info()[0],
            prop_values_ptr=values.buffer_info()[0],
            count_props=count.count_props,
            obj_id=identity,
            obj_type=_OBJECT[kind],
        )
        self.ioctl("get properties", uapi.DRM_IOCTL_MODE_OBJ_GETPROPERTIES, ask)
        there = list(ids)[: ask.count_props]
        self._ids[kind, identity] = {self._name(prop): prop for prop in there}
        return {self._name(prop): value for prop, value in zip(there, values, strict=False)}

    def _name(self, prop: int) -> str:
        if prop not in self._names:
            what = uapi.drm_mode_get_property(prop_id=prop)
            self.ioctl("get property", uapi.DRM_IOCTL_MODE_GETPROPERTY, what)
            self._names[prop] = what.name.decode("ascii", "replace")
        return self._names[prop]

    def property(self, kind: str, identity: int, name: str) -> int:
        """A property's id. Raises DrmError ENOENT."""
        if (kind, identity) not in self._ids:
            self.values(kind, identity)
        try:
            return self._ids[kind, identity][name]
        except KeyError:
            raise drm_error(f"{kind} property {name}", errno.ENOENT) from None

    def shown_framebuffer(self, plane: int) -> int:
        """The framebuffer that a plane shows; 0: none. Raises DrmError. Waits for a commit under way."""
        ask = uapi.drm_mode_get_plane(plane_id=plane)
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, ask)
        return int(ask.fb_id)

    def probe(self) -> list[Connector]:
        """All connectors as they are now. Raises DrmError. May take long: monitors are asked for their EDID."""
        _, there = self._resources()
        found = []
        for identity in there:
            try:
                found.append(self._probe(identity))
            except DrmError as error:
                if error.number != errno.ENOENT:  # those of DisplayPort hubs go with the hub, also this moment
                    raise
        self.connector_ids = [connector.id for connector in found]
        return found

    def _probe(self, identity: int) -> Connector:
        while True:
            count = uapi.drm_mode_get_connector(connector_id=identity)
            self.ioctl("probe connector", uapi.DRM_IOCTL_MODE_GETCONNECTOR, count)
            modes = (uapi.drm_mode_modeinfo * max(1, count.count_modes))()
            encoders = _ids(count.count_encoders)
            ask = uapi.drm_mode_get_connector(
                connector_id=identity,
                modes_ptr=ctypes.addressof(modes),
                count_modes=max(1, count.count_modes),
                encoders_ptr=encoders.buffer_info()[0],
                count_encoders=count.count_encoders,
            )
            self.ioctl("read connector", uapi.DRM_IOCTL_MODE_GETCONNECTOR, ask)
            if ask.count_modes <= max(1, count.count_modes) and ask.count_encoders <= count.count_encoders:
                break
        kind = uapi.CONNECTOR_TYPES[ask.connector_type] if ask.connector_type < len(uapi.CONNECTOR_TYPES) else "Unknown"
        crtcs = {crtc for encoder in list(encoders)[: ask.count_encoders] for crtc in self._encoder_crtcs(encoder)}
        connected = ask.connection == uapi.DRM_MODE_CONNECTED
        values = self.values("connector", identity)
        return Connector(
            identity,
            f"{kind}-{ask.connector_type_id}",
            connected,
            tuple(
                Mode(m.hdisplay, m.vdisplay, m.vrefresh, bool(m.type & uapi.DRM_MODE_TYPE_PREFERRED), bytes(m))
                for m in list(modes)[: ask.count_modes if connected else 0]
            ),
            tuple(crtc for crtc in self.crtcs if crtc in crtcs),
            values.get("CRTC_ID", 0),
            values.get("link-status", 0) == uapi.DRM_MODE_LINK_STATUS_BAD,
        )

    def _encoder_crtcs(self, identity: int) -> tuple[int, ...]:
        ask = uapi.drm_mode_get_encoder(encoder_id=identity)
        self.ioctl("get encoder", uapi.DRM_IOCTL_MODE_GETENCODER, ask)
        return self._from_mask(ask.possible_crtcs)

    def add_framebuffer(self, handle: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """AddFB2 of one plane of pixels: the framebuffer's id. Raises DrmError.

        The layout is said to be linear where the driver knows modifiers: it may else take it for the one that it likes best.
        """
        for flags in (uapi.DRM_MODE_FB_MODIFIERS, 0) if self._modifiers else (0,):
            ask = uapi.drm_mode_fb_cmd2(width=width, height=height, pixel_format=fourcc, flags=flags)
            ask.handles[0], ask.pitches[0], ask.offsets[0] = handle, pitch, offset
            ask.modifier[0] = uapi.DRM_FORMAT_MOD_LINEAR
            failed = self.try_ioctl(uapi.DRM_IOCTL_MODE_ADDFB2, ask)
            if not failed:
                return int(ask.fb_id)
        raise drm_error("add framebuffer", failed)

    def remove_framebuffer(self, fb: int) -> None:
        """RmFB: off the screen, if it is there; waits for that."""
        self.ioctl("remove framebuffer", uapi.DRM_IOCTL_MODE_RMFB, ctypes.c_uint32(fb))

    def leave_framebuffer(self, fb: int) -> None:
        """CLOSEFB: like RmFB, but what is on the screen stays there. Raises DrmError."""
        self.ioctl("leave framebuffer", uapi.DRM_IOCTL_MODE_CLOSEFB, uapi.drm_mode_closefb(fb_id=fb))

    def mark_dirty(self, fb: int) -> bool:
        """DIRTYFB: the framebuffer on the screen has changed. False: this driver need not be told. May wait for a refresh."""
        return self.try_ioctl(uapi.DRM_IOCTL_MODE_DIRTYFB, uapi.drm_mode_fb_dirty_cmd(fb_id=fb)) == 0

    def import_framebuffer(self, dmabuf: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """A framebuffer over a dma-buf's pixels. Raises DrmError. The framebuffer keeps the dma-buf, not a handle of ours.

        One import at a time: the kernel has one handle for a dma-buf and a file, and does not count who was given it. Another import's
        close would take it away, and the next one get its number for another dma-buf.
        """
        with self._importing:
            prime = uapi.drm_prime_handle(fd=dmabuf)
            self.ioctl("import dma-buf", uapi.DRM_IOCTL_PRIME_FD_TO_HANDLE, prime)
            try:
                fb = self.add_framebuffer(prime.handle, width, height, fourcc, pitch, offset)
            except DrmError:
                self.close_handle(prime.handle)
                raise
            try:
                self.close_handle(prime.handle)
            except DrmError:
                self.remove_framebuffer(fb)  # else nobody knew of it, and it kept the guest's pages
                raise
            return fb

    def close_handle(self, handle: int) -> None:
        """Close a GEM handle; a card that is gone has closed it."""
        with suppress(CardGone):
            self.ioctl("close handle", uapi.DRM_IOCTL_GEM_CLOSE, uapi.drm_gem_close(handle=handle))

    def map_dumb(self, handle: int, size: int, *, writable: bool) -> Mapping:
        """A dumb buffer as memory. Raises DrmError."""
        place = uapi.drm_mode_map_dumb(handle=handle)
        self.ioctl("map dumb buffer", uapi.DRM_IOCTL_MODE_MAP_DUMB, place)
        return self._map(place.offset, size, writable)

    def _map(self, offset: int, size: int, writable: bool) -> Mapping:
        try:
            return Mapping(self.fd, [(offset, size)], writable=writable)
        except OSError as error:
            raise drm_error("map dumb buffer", error.errno) from error

    def read_edid(self, connector: int) -> bytes | None:
        """The monitor's EDID, from the connector's property, in whole blocks; None when there is none."""
        try:
            data = self.read_blob(self.values("connector", connector).get("EDID", 0))
        except DrmError:
            return None  # another monitor has come meanwhile, or the card has gone
        return data[: len(data) // 128 * 128] or None

    def read_blob(self, blob: int) -> bytes:
        """A blob's octets; none for blob 0. Raises DrmError."""
        if blob == 0:
            return b""
        count = uapi.drm_mode_get_blob(blob_id=blob)
        self.ioctl("read blob", uapi.DRM_IOCTL_MODE_GETPROPBLOB, count)
        data = ctypes.create_string_buffer(max(1, count.length))
        ask = uapi.drm_mode_get_blob(blob_id=blob, length=count.length, data=ctypes.addressof(data))
        self.ioctl("read blob", uapi.DRM_IOCTL_MODE_GETPROPBLOB, ask)
        return data.raw[: ask.length]

    def create_blob(self, data: bytes) -> int:
        """A property blob, for MODE_ID. Raises DrmError."""
        octets = ctypes.create_string_buffer(data, len(data))
        ask = uapi.drm_mode_create_blob(data=ctypes.addressof(octets), length=len(data))
        self.ioctl("create mode blob", uapi.DRM_IOCTL_MODE_CREATEPROPBLOB, ask)
        return int(ask.blob_id)

    def destroy_blob(self, blob: int) -> None:
        """Give a blob up."""
        self.ioctl("destroy blob", uapi.DRM_IOCTL_MODE_DESTROYPROPBLOB, uapi.drm_mode_destroy_blob(blob_id=blob))

    def read_events(self, flipped: Callable[[int], None]) -> None:
        """Take the card's events; `flipped` is called with the user data of each completed flip. Raises OSError."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            kind, length, user_data, *_ = uapi.drm_event_vblank.unpack_from(data, offset)
            if kind == uapi.DRM_EVENT_FLIP_COMPLETE:
                flipped(user_data)
            offset += length


def _ids(count: int) -> array[int]:
    """Room for so many u32, and one when there are none: a null pointer is not an empty list to every driver."""
    return array("I", bytes(4 * max(1, count)))
