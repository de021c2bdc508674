"""A card: one open DRM device, its objects, and what they can be told.

Everything here is one ioctl or a few; none waits but those that say so. A failed one is a DrmError that names the operation.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from displbe.sinks.base import Allocation
from displbe.xen.memory import Mapping as MemoryMapping

from . import uapi

__all__ = ["Atomic", "Card", "Connector", "DrmError", "Dumb", "DumbAllocation", "Mode", "Plane"]

_OBJECT: Final = {
    "crtc": uapi.DRM_MODE_OBJECT_CRTC,
    "connector": uapi.DRM_MODE_OBJECT_CONNECTOR,
    "plane": uapi.DRM_MODE_OBJECT_PLANE,
}
_U64: Final = (1 << 64) - 1


class DrmError(Exception):
    """An ioctl failed: `number` is the host's errno."""

    def __init__(self, operation: str, number: int) -> None:
        super().__init__(f"{operation}: {os.strerror(number)}")
        self.operation = operation
        self.number = number


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


class Plane(msgspec.Struct, frozen=True):
    """A plane, its kind and the formats it takes."""

    id: int
    primary: bool
    crtcs: tuple[int, ...]
    formats: frozenset[int]


class Dumb:
    """A dumb buffer with a framebuffer on it, mapped for writing."""

    def __init__(self, card: Card, width: int, height: int, bits: int, fourcc: int) -> None:
        self._card = card
        ask = uapi.drm_mode_create_dumb(height=height, width=width, bpp=bits)
        card.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, ask)
        self.pitch = int(ask.pitch)
        try:
            place = uapi.drm_mode_map_dumb(handle=ask.handle)
            card.ioctl("map dumb buffer", uapi.DRM_IOCTL_MODE_MAP_DUMB, place)
            self.fb = card.add_framebuffer(ask.handle, width, height, fourcc, self.pitch, 0)
            try:
                self.memory = MemoryMapping(card.fd, [(place.offset, ask.size)], writable=True)
            except OSError as error:
                card.remove_framebuffer(self.fb)
                raise DrmError("map dumb buffer", error.errno or errno.EIO) from error
        finally:
            card.close_handle(ask.handle)  # framebuffer and mapping keep it

    def close(self) -> None:
        """Take it off the screen if it is there, and free it."""
        self.memory.close()
        self._card.remove_framebuffer(self.fb)


class DumbAllocation(Allocation):
    """Pages of a card's dumb memory as a dma-buf. Raises DrmError.

    A dumb buffer of one page per row: its size is then exactly that of its pages, whatever alignment the driver keeps for
    pictures. Framebuffers lay their own pitch over it.
    """

    def __init__(self, card: Card, pages: int) -> None:
        ask = uapi.drm_mode_create_dumb(height=pages, width=1024, bpp=32)
        card.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, ask)
        try:
            if (ask.pitch, ask.size) != (4096, 4096 * pages):
                raise DrmError("create dumb buffer of whole pages", errno.EOPNOTSUPP)
            place = uapi.drm_mode_map_dumb(handle=ask.handle)
            card.ioctl("map dumb buffer", uapi.DRM_IOCTL_MODE_MAP_DUMB, place)
            prime = uapi.drm_prime_handle(handle=ask.handle, flags=os.O_CLOEXEC | os.O_RDWR)
            card.ioctl("export dumb buffer", uapi.DRM_IOCTL_PRIME_HANDLE_TO_FD, prime)
            self.fd = int(prime.fd)
            try:
                self._memory = MemoryMapping(card.fd, [(place.offset, ask.size)], writable=False)
            except OSError as error:
                os.close(self.fd)
                raise DrmError("map dumb buffer", error.errno or errno.EIO) from error
        finally:
            card.close_handle(ask.handle)  # the dma-buf keeps it

    def view(self) -> memoryview:
        return self._memory.view

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


class Atomic:
    """A set of properties to be committed together, packed once; values can be changed between commits."""

    def __init__(self, card: Card, changes: Mapping[tuple[str, int], Mapping[str, int]]) -> None:
        self._card = card
        objects = sorted(changes, key=lambda key: key[1])
        pairs = [(object_, name) for object_ in objects for name in changes[object_]]
        self._slots = {pair: index for index, pair in enumerate(pairs)}
        self._objects = array("I", [identity for _, identity in objects])
        self._counts = array("I", [len(changes[object_]) for object_ in objects])
        self._names = array("I", [card.property(*object_, name) for object_, name in pairs])
        self._values = array("Q", [changes[object_][name] & _U64 for object_, name in pairs])
        self._ask = uapi.drm_mode_atomic(
            count_objs=len(objects),
            objs_ptr=self._objects.buffer_info()[0],
            count_props_ptr=self._counts.buffer_info()[0],
            props_ptr=self._names.buffer_info()[0],
            prop_values_ptr=self._values.buffer_info()[0],
        )

    def slot(self, kind: str, identity: int, name: str) -> int:
        """The place of a value, for `set`."""
        return self._slots[(kind, identity), name]

    def set(self, slot: int, value: int) -> None:
        """Change a value."""
        self._values[slot] = value

    def commit(self, operation: str, flags: int, user_data: int = 0) -> None:
        """Commit. Raises DrmError. Waits for the hardware unless NONBLOCK or TEST_ONLY is among the flags."""
        self._ask.flags = flags
        self._ask.user_data = user_data
        self._card.ioctl(operation, uapi.DRM_IOCTL_MODE_ATOMIC, self._ask)


class Card:
    """An open card. Raises DrmError or OSError when it cannot be opened, or cannot do what this sink needs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = Path(path).name
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for capability in (uapi.DRM_CLIENT_CAP_UNIVERSAL_PLANES, uapi.DRM_CLIENT_CAP_ATOMIC):
                ask = uapi.drm_set_client_cap(capability=capability, value=1)
                self.ioctl("atomic mode setting", uapi.DRM_IOCTL_SET_CLIENT_CAP, ask)
            self.imports = bool(self._capability(uapi.DRM_CAP_PRIME) & uapi.DRM_PRIME_CAP_IMPORT)
            self.has_dumb = bool(self._capability(uapi.DRM_CAP_DUMB_BUFFER))
            self._properties: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
            self.crtcs, self._connector_ids = self._resources()
            self.planes = self._read_planes()
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the device: what is left of ours goes with it, master too."""
        os.close(self.fd)

    def ioctl(self, operation: str, number: int, argument: Any) -> None:
        """One ioctl. Raises DrmError."""
        while True:
            try:
                fcntl.ioctl(self.fd, number, argument)
            except InterruptedError:
                continue
            except OSError as error:
                raise DrmError(operation, error.errno or errno.EIO) from error
            return

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
        kind = self._properties_of("plane", identity)["type"][1]
        return Plane(
            identity,
            kind == uapi.DRM_PLANE_TYPE_PRIMARY,
            self._from_mask(ask.possible_crtcs),
            frozenset(list(formats)[: ask.count_format_types]),
        )

    def _from_mask(self, mask: int) -> tuple[int, ...]:
        return tuple(crtc for index, crtc in enumerate(self.crtcs) if mask >> index & 1)

    def _properties_of(self, kind: str, identity: int) -> dict[str, tuple[int, int]]:
        """An object's properties: name -> (id, value when first read)."""
        key = (kind, identity)
        if key not in self._properties:
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
            found = {}
            for prop, value in zip(list(ids)[: ask.count_props], values, strict=False):
                what = uapi.drm_mode_get_property(prop_id=prop)
                self.ioctl("get property", uapi.DRM_IOCTL_MODE_GETPROPERTY, what)
                found[what.name.decode("ascii", "replace")] = (int(prop), int(value))
            self._properties[key] = found
        return self._properties[key]

    def property(self, kind: str, identity: int, name: str) -> int:
        """A property's id. Raises DrmError ENOENT."""
        try:
            return self._properties_of(kind, identity)[name][0]
        except KeyError:
            raise DrmError(f"{kind} property {name}", errno.ENOENT) from None

    def probe(self) -> list[Connector]:
        """All connectors as they are now. May take long: monitors are asked for their EDID."""
        _, self._connector_ids = self._resources()
        return [self._probe(identity) for identity in self._connector_ids]

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
        return Connector(
            identity,
            f"{kind}-{ask.connector_type_id}",
            ask.connection == uapi.DRM_MODE_CONNECTED,
            tuple(
                Mode(m.hdisplay, m.vdisplay, m.vrefresh, bool(m.type & uapi.DRM_MODE_TYPE_PREFERRED), bytes(m))
                for m in list(modes)[: ask.count_modes]
            ),
            tuple(crtc for crtc in self.crtcs if crtc in crtcs),
        )

    def _encoder_crtcs(self, identity: int) -> tuple[int, ...]:
        ask = uapi.drm_mode_get_encoder(encoder_id=identity)
        self.ioctl("get encoder", uapi.DRM_IOCTL_MODE_GETENCODER, ask)
        return self._from_mask(ask.possible_crtcs)

    def add_framebuffer(self, handle: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """AddFB2 of one plane of pixels: the framebuffer's id. Raises DrmError."""
        ask = uapi.drm_mode_fb_cmd2(width=width, height=height, pixel_format=fourcc)
        ask.handles[0], ask.pitches[0], ask.offsets[0] = handle, pitch, offset
        self.ioctl("add framebuffer", uapi.DRM_IOCTL_MODE_ADDFB2, ask)
        return int(ask.fb_id)

    def remove_framebuffer(self, fb: int) -> None:
        """RmFB: off the screen, if it is there; waits for that."""
        self.ioctl("remove framebuffer", uapi.DRM_IOCTL_MODE_RMFB, ctypes.c_uint32(fb))

    def import_framebuffer(self, dmabuf: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """A framebuffer over a dma-buf's pixels. Raises DrmError. The framebuffer keeps the dma-buf, not a handle of ours:
        a dma-buf imported twice has one handle, and closing it for one would close it for both.
        """
        prime = uapi.drm_prime_handle(fd=dmabuf)
        self.ioctl("import dma-buf", uapi.DRM_IOCTL_PRIME_FD_TO_HANDLE, prime)
        try:
            return self.add_framebuffer(prime.handle, width, height, fourcc, pitch, offset)
        finally:
            self.close_handle(prime.handle)

    def close_handle(self, handle: int) -> None:
        """Close a GEM handle."""
        self.ioctl("close handle", uapi.DRM_IOCTL_GEM_CLOSE, uapi.drm_gem_close(handle=handle))

    def read_edid(self, connector: int) -> bytes | None:
        """The monitor's EDID, from the connector's property; None when there is none."""
        del self._properties[("connector", connector)]
        blob = self._properties_of("connector", connector).get("EDID", (0, 0))[1]
        if blob == 0:
            return None
        count = uapi.drm_mode_get_blob(blob_id=blob)
        try:
            self.ioctl("read EDID", uapi.DRM_IOCTL_MODE_GETPROPBLOB, count)
            data = ctypes.create_string_buffer(max(1, count.length))
            ask = uapi.drm_mode_get_blob(blob_id=blob, length=count.length, data=ctypes.addressof(data))
            self.ioctl("read EDID", uapi.DRM_IOCTL_MODE_GETPROPBLOB, ask)
        except DrmError:
            return None  # another monitor has come meanwhile
        whole = data.raw[: ask.length // 128 * 128]
        return whole or None

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
        """Take the card's events; `flipped` is called with the user data of each completed flip."""
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
