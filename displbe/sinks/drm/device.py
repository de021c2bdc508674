"""An open DRM device file and the card's objects: connectors, CRTCs, planes, framebuffers, blobs.

Each method makes one or a few ioctls. None waits unless its docstring says so. A failed ioctl raises a DrmError that
names the operation.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from displbe.sinks.base import Allocation
from displbe.xen.memory import Mapping

from . import uapi
from .bus_path import bus_path, sysfs_path_of
from .edid_name import edid_name
from .errors import CardGone, DrmError, Unfit, drm_error
from .libseat import PLAIN, FileOpener
from .properties import Property, linear_formats

__all__ = ["MASTER", "CardConnector", "Connection", "DmabufImport", "DrmDevice", "Mastership", "Mode", "Plane"]

MASTER: Final = "DRM master"
"""The first words of the status of a card whose master displbe is."""
BLEND_MODE: Final = "pixel blend mode"
OPAQUE_BLENDING: Final = ("None", "Pre-multiplied")
"""Blend modes in which nothing below a plane is seen while that is black: `None` ignores alpha, and `Pre-multiplied` adds the pixel's
colours to those below. The first one that the driver has is set (`neutral`).
"""
OPAQUE_DRIVERS: Final = {"zynqmp-dpsub"}
"""Drivers without that property whose primary planes ignore the pixels' alpha. zynqmp_kms.c has the blender use its global alpha."""

_OBJECT: Final = {
    "crtc": uapi.DRM_MODE_OBJECT_CRTC,
    "connector": uapi.DRM_MODE_OBJECT_CONNECTOR,
    "plane": uapi.DRM_MODE_OBJECT_PLANE,
}


class Mode(msgspec.Struct, frozen=True):
    """A mode of a connector: its size in pixels, refreshes per second, and the bytes of its `drm_mode_modeinfo`."""

    width: int
    height: int
    refresh: int
    preferred: bool
    raw: bytes
    interlaced: bool = False

    def __str__(self) -> str:
        return f"{self.width}x{self.height}{'i' if self.interlaced else ''}@{self.refresh}"


class Connection(enum.Enum):
    """What a connector says about its monitor (drm_connector_status)."""

    CONNECTED = "connected"
    """A monitor is connected."""
    DISCONNECTED = "disconnected"
    """No monitor is connected."""
    UNKNOWN = "unknown"
    """The connector cannot tell: the board has no line that detects the cable. The kernel lists fallback modes."""


class CardConnector(msgspec.Struct, frozen=True):
    """A connector of a card, as it was when it was last probed."""

    id: int
    name: str
    """The kernel's name. It may be another after the connector of a DisplayPort hub has come back."""
    connection: Connection
    modes: tuple[Mode, ...]
    crtcs: tuple[int, ...]
    """The ids of the CRTCs that can drive it."""
    crtc: int = 0
    """The id of the CRTC that drives it; 0: none does."""
    link_failed: bool = False
    """The kernel says that the link has failed (`link-status` is BAD): the mode has to be set again."""
    path_name: str = ""
    """`path:` and the PATH property, which names a connector of a DisplayPort hub; empty: it is no such connector."""
    edid_name: str = ""
    """`edid:`, and the maker, product and serial number of the monitor; empty: unknown."""
    orientation: str = ""
    """How the panel is mounted (`panel orientation`), as `Left Side Up`; empty: unknown."""

    @property
    def can_be_lit(self) -> bool:
        """Whether a monitor is connected, or may be."""
        return self.connection is Connection.CONNECTED or (self.connection is Connection.UNKNOWN and bool(self.modes))


class Plane(msgspec.Struct, frozen=True):
    """A plane: whether it is a primary plane, the CRTCs it can be on, and the formats (DRM fourccs) it can show in a linear layout."""

    id: int
    primary: bool
    crtcs: tuple[int, ...]
    formats: frozenset[int]
    ignores_alpha: bool = True
    """Whether pixels with alpha look as those without, on a plane with nothing but black below it. Otherwise they may be darker."""

    def can_replace(self, other: Plane, formats: Set[int]) -> bool:
        """Return whether this plane shows framebuffers of these formats as the other one does."""
        return formats <= self.formats and (self.ignores_alpha or not other.ignores_alpha)


class Mastership(enum.Enum):
    """Whether a device file may change what the card's screens show."""

    MASTER = "master"
    """This file is DRM master."""
    OTHER_PROGRAM = "other program"
    """Another file is DRM master. This one may ask, and becomes master once the other has been closed."""
    CANNOT_ASK = "cannot ask"
    """Another file is DRM master, and this one may not ask. The card has to be opened anew once the other has been
    closed.
    """
    OTHER_SESSION = "other session"
    """The session manager has given the seat to another session. It tells displbe when displbe has the seat again."""
    RESTING = "resting"
    """No guest uses the card. displbe has no file of it open, so that other programs can use it."""

    @property
    def obstacle(self) -> str:
        """Why this file may not change the screens; empty: it may."""
        match self:
            case Mastership.MASTER:
                return ""
            case Mastership.OTHER_SESSION:
                return "another session has the seat"
            case Mastership.OTHER_PROGRAM | Mastership.CANNOT_ASK:
                return "another program is DRM master"
            case Mastership.RESTING:
                return "no guest uses this card"


class DmabufImport(enum.Enum):
    """Whether the card's driver imports dma-bufs. Since Linux 6.6, DRM_CAP_PRIME has the flag for every driver, so only a try can tell."""

    IMPOSSIBLE = "no dma-bufs can be imported: frames are copied"
    UNTRIED = "no dma-buf has been imported yet"
    REFUSED = "the driver has refused to import a dma-buf"
    """No import has succeeded."""
    WORKS = "dma-bufs can be imported"


_CONNECTIONS: Final = {
    uapi.DRM_MODE_CONNECTED: Connection.CONNECTED,
    uapi.DRM_MODE_DISCONNECTED: Connection.DISCONNECTED,
}


class DrmDevice:
    """An open device file of a card.

    Raises DrmError or OSError when it cannot be opened, or lacks what this sink needs.
    """

    def __init__(self, path: str, opener: FileOpener = PLAIN) -> None:
        self.path = path
        self.name = Path(path).name
        self.opener = opener
        self.allocations: weakref.WeakSet[Allocation] = weakref.WeakSet()
        """The card's own memory that guests have (be-alloc)."""
        self._importing = threading.Lock()
        self.dmabuf_import = DmabufImport.UNTRIED
        self.sysfs_path = ""
        self.fd = -1
        self.wake()

    def wake(self) -> None:
        """Open the device file: the card has not been opened yet, or rests. Raises DrmError, OSError."""
        self.fd = self._open()
        try:
            before, self.sysfs_path = self.sysfs_path, self._read_sysfs_path()
            if before not in ("", self.sysfs_path):
                raise CardGone("open", errno.ENODEV)
            self.bus_path = self._read_bus_path()
            for capability in (uapi.DRM_CLIENT_CAP_UNIVERSAL_PLANES, uapi.DRM_CLIENT_CAP_ATOMIC):
                argument = uapi.drm_set_client_cap(capability=capability, value=1)
                failed = self.try_ioctl(uapi.DRM_IOCTL_SET_CLIENT_CAP, argument)
                if failed in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                    raise Unfit("atomic mode setting", failed)
                if failed:
                    raise drm_error("atomic mode setting", failed)
            imports = self._capability(uapi.DRM_CAP_PRIME) & uapi.DRM_PRIME_CAP_IMPORT
            if not imports:
                self.dmabuf_import = DmabufImport.IMPOSSIBLE
            self._modifiers = bool(self._capability(uapi.DRM_CAP_ADDFB2_MODIFIERS))
            self._ids: dict[tuple[str, int], dict[str, int]] = {}
            self._properties: dict[int, Property] = {}
            """Their descriptions, by id."""
            self.crtcs, self.connector_ids = self._read_resources()
            self.planes = self._read_planes()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        return self.opener.open(self.path)

    def _read_sysfs_path(self) -> str:
        """Return where in the machine the card is.

        A card that comes back has the same path, but perhaps another number.
        """
        return sysfs_path_of(os.fstat(self.fd))

    def _read_bus_path(self) -> str:
        """Return where in the machine the card is, as in /dev/dri/by-path; empty: unknown."""
        return bus_path(Path(self.path), self.sysfs_path)

    def close(self) -> None:
        """Close the file. The kernel frees the objects made through it, and mastership ends. Later ioctls fail with CardGone.

        The card rests until `wake`. May wait.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.opener.close(fd)

    def try_ioctl(self, number: int, argument: Any) -> int:
        """Make one ioctl. Return 0 or the errno."""
        while True:
            try:
                fcntl.ioctl(self.fd, number, argument)
            except InterruptedError:
                continue
            except OSError as error:
                return error.errno or errno.EIO
            except ValueError:  # the file is closed
                return errno.ENODEV
            return 0

    def ioctl(self, operation: str, number: int, argument: Any) -> None:
        """Make one ioctl. Raises DrmError."""
        failed = self.try_ioctl(number, argument)
        if failed:
            raise drm_error(operation, failed)

    def gone(self) -> bool:
        """Return whether the card has been removed, or this file revoked.

        Some drivers refuse an import with the errno of a removed card; this check tells the two apart.
        """
        argument = uapi.drm_get_cap(capability=uapi.DRM_CAP_DUMB_BUFFER)
        return self.try_ioctl(uapi.DRM_IOCTL_GET_CAP, argument) in (errno.ENODEV, errno.ENXIO, errno.EBADF)

    def ask_for_master(self) -> Mastership:
        """Ask to be DRM master, and return this file's mastership. A file that is master stays master.

        drm_master_check_perm() in the kernel: without CAP_SYS_ADMIN, only the process that opened the file may ask, and
        only if the file has been master before. The first file opened on a card is its master. A session manager's file
        can be master although it may not ask.
        """
        if self.is_managed:
            if not self.opener.active:
                return Mastership.OTHER_SESSION
            return Mastership.MASTER if self._is_master() else Mastership.CANNOT_ASK
        failed = self.try_ioctl(uapi.DRM_IOCTL_SET_MASTER, 0)
        if failed == errno.EACCES:
            return Mastership.MASTER if self._is_master() else Mastership.CANNOT_ASK
        return Mastership.OTHER_PROGRAM if failed else Mastership.MASTER

    def drop_master(self) -> None:
        """Be DRM master no more. A file that is not stays as it is."""
        self.try_ioctl(uapi.DRM_IOCTL_DROP_MASTER, 0)

    @property
    def is_managed(self) -> bool:
        """Whether a session manager decides if this file is master."""
        return self.opener.manages(self.fd)

    @property
    def is_outdated(self) -> bool:
        """Whether to open the card anew: a session manager can open it now, and did not open this file."""
        return self.opener.is_outdated(self.path, self.fd)

    def _is_master(self) -> bool:
        """Try an empty commit: the kernel refuses it with EACCES only if this file is not master."""
        argument = uapi.drm_mode_atomic(flags=uapi.DRM_MODE_ATOMIC_TEST_ONLY)
        return self.try_ioctl(uapi.DRM_IOCTL_MODE_ATOMIC, argument) not in (errno.EACCES, errno.ENODEV)

    def _capability(self, capability: int) -> int:
        argument = uapi.drm_get_cap(capability=capability)
        try:
            self.ioctl("get capability", uapi.DRM_IOCTL_GET_CAP, argument)
        except DrmError:
            return 0
        return int(argument.value)

    def _read_resources(self) -> tuple[list[int], list[int]]:
        count = uapi.drm_mode_card_res()
        self.ioctl("get resources", uapi.DRM_IOCTL_MODE_GETRESOURCES, count)
        crtcs, connectors = _ids(count.count_crtcs), _ids(count.count_connectors)
        argument = uapi.drm_mode_card_res(
            crtc_id_ptr=crtcs.buffer_info()[0],
            connector_id_ptr=connectors.buffer_info()[0],
            count_crtcs=count.count_crtcs,
            count_connectors=count.count_connectors,
        )
        self.ioctl("get resources", uapi.DRM_IOCTL_MODE_GETRESOURCES, argument)
        return list(crtcs)[: argument.count_crtcs], list(connectors)[: argument.count_connectors]

    def _read_planes(self) -> list[Plane]:
        count = uapi.drm_mode_get_plane_res()
        self.ioctl("get planes", uapi.DRM_IOCTL_MODE_GETPLANERESOURCES, count)
        ids = _ids(count.count_planes)
        argument = uapi.drm_mode_get_plane_res(plane_id_ptr=ids.buffer_info()[0], count_planes=count.count_planes)
        self.ioctl("get planes", uapi.DRM_IOCTL_MODE_GETPLANERESOURCES, argument)
        return [self._read_plane(identity) for identity in list(ids)[: argument.count_planes]]

    def _read_plane(self, identity: int) -> Plane:
        count = uapi.drm_mode_get_plane(plane_id=identity)
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, count)
        formats = _ids(count.count_format_types)
        argument = uapi.drm_mode_get_plane(
            plane_id=identity, count_format_types=count.count_format_types, format_type_ptr=formats.buffer_info()[0]
        )
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, argument)
        values = self.values("plane", identity)
        return Plane(
            identity,
            values["type"] == uapi.DRM_PLANE_TYPE_PRIMARY,
            self._from_mask(argument.possible_crtcs),
            linear_formats(
                self.read_blob(values.get("IN_FORMATS", 0)), frozenset(list(formats)[: argument.count_format_types])
            ),
            self._ignores_alpha(identity),
        )

    def _ignores_alpha(self, plane: int) -> bool:
        # drm_blend.c: "Not all devices support pre-multiplied blend mode". A driver without the property does not say what it does.
        if BLEND_MODE in self._ids["plane", plane]:
            return not self.describe("plane", plane, BLEND_MODE).names.keys().isdisjoint(OPAQUE_BLENDING)
        return self._read_driver() in OPAQUE_DRIVERS

    def _read_driver(self) -> str:
        """Return the name of the card's driver (DRM_IOCTL_VERSION); empty: unknown."""
        name = ctypes.create_string_buffer(64)
        argument = uapi.drm_version(name_len=ctypes.sizeof(name), name=ctypes.addressof(name))
        if self.try_ioctl(uapi.DRM_IOCTL_VERSION, argument):
            return ""
        return name.raw[: argument.name_len].rstrip(b"\0").decode("ascii", "replace")

    def _from_mask(self, mask: int) -> tuple[int, ...]:
        return tuple(crtc for index, crtc in enumerate(self.crtcs) if mask >> index & 1)

    def values(self, kind: str, identity: int) -> dict[str, int]:
        """Return an object's properties as they are now, by name. Raises DrmError."""
        count = uapi.drm_mode_obj_get_properties(obj_id=identity, obj_type=_OBJECT[kind])
        self.ioctl("get properties", uapi.DRM_IOCTL_MODE_OBJ_GETPROPERTIES, count)
        ids, values = _ids(count.count_props), array("Q", bytes(8 * max(1, count.count_props)))
        argument = uapi.drm_mode_obj_get_properties(
            props_ptr=ids.buffer_info()[0],
            prop_values_ptr=values.buffer_info()[0],
            count_props=count.count_props,
            obj_id=identity,
            obj_type=_OBJECT[kind],
        )
        self.ioctl("get properties", uapi.DRM_IOCTL_MODE_OBJ_GETPROPERTIES, argument)
        there = list(ids)[: argument.count_props]
        self._ids[kind, identity] = {self._describe(prop).name: prop for prop in there}
        return {self._describe(prop).name: value for prop, value in zip(there, values, strict=False)}

    def describe(self, kind: str, identity: int, name: str) -> Property:
        """Return a property's description. Raises DrmError; ENOENT: the object has no such property."""
        return self._describe(self.property(kind, identity, name))

    def _describe(self, prop: int) -> Property:
        if prop not in self._properties:
            count = uapi.drm_mode_get_property(prop_id=prop)
            self.ioctl("get property", uapi.DRM_IOCTL_MODE_GETPROPERTY, count)
            values = array("Q", bytes(8 * max(1, count.count_values)))
            names = (uapi.drm_mode_property_enum * max(1, count.count_enum_blobs))()
            argument = uapi.drm_mode_get_property(
                prop_id=prop,
                values_ptr=values.buffer_info()[0],
                enum_blob_ptr=ctypes.addressof(names),
                count_values=count.count_values,
                count_enum_blobs=count.count_enum_blobs,
            )
            self.ioctl("get property", uapi.DRM_IOCTL_MODE_GETPROPERTY, argument)
            self._properties[prop] = Property.of(
                argument.name.decode("ascii", "replace"),
                argument.flags,
                list(values)[: argument.count_values],
                [(n.name.decode("ascii", "replace"), n.value) for n in list(names)[: argument.count_enum_blobs]],
            )
        return self._properties[prop]

    def property(self, kind: str, identity: int, name: str) -> int:
        """Return a property's id. Raises DrmError; ENOENT: the object has no such property."""
        if (kind, identity) not in self._ids:
            self.values(kind, identity)
        try:
            return self._ids[kind, identity][name]
        except KeyError:
            raise drm_error(f"{kind} property {name}", errno.ENOENT) from None

    def shown_framebuffer(self, plane: int) -> int:
        """Return the id of the framebuffer that a plane shows; 0: none. Raises DrmError.

        Waits for a commit that is under way.
        """
        argument = uapi.drm_mode_get_plane(plane_id=plane)
        self.ioctl("get plane", uapi.DRM_IOCTL_MODE_GETPLANE, argument)
        return int(argument.fb_id)

    def probe(self) -> list[CardConnector]:
        """Probe all connectors and return them. Raises DrmError.

        May take long: the kernel reads the monitors' EDIDs.
        """
        _, there = self._read_resources()
        found = []
        for identity in there:
            try:
                found.append(self._probe(identity))
            except DrmError as error:
                if error.number != errno.ENOENT:  # a DisplayPort hub's connectors go with the hub, perhaps just now
                    raise
        self.connector_ids = [connector.id for connector in found]
        return found

    def _probe(self, identity: int) -> CardConnector:
        while True:
            count = uapi.drm_mode_get_connector(connector_id=identity)
            self.ioctl("probe connector", uapi.DRM_IOCTL_MODE_GETCONNECTOR, count)
            modes = (uapi.drm_mode_modeinfo * max(1, count.count_modes))()
            encoders = _ids(count.count_encoders)
            argument = uapi.drm_mode_get_connector(
                connector_id=identity,
                modes_ptr=ctypes.addressof(modes),
                count_modes=max(1, count.count_modes),
                encoders_ptr=encoders.buffer_info()[0],
                count_encoders=count.count_encoders,
            )
            self.ioctl("read connector", uapi.DRM_IOCTL_MODE_GETCONNECTOR, argument)
            if argument.count_modes <= max(1, count.count_modes) and argument.count_encoders <= count.count_encoders:
                break
        kind = (
            uapi.CONNECTOR_TYPES[argument.connector_type]
            if argument.connector_type < len(uapi.CONNECTOR_TYPES)
            else "Unknown"
        )
        crtcs = {crtc for encoder in list(encoders)[: argument.count_encoders] for crtc in self._encoder_crtcs(encoder)}
        values = self.values("connector", identity)
        path = self._property_bytes(values.get("PATH", 0)).rstrip(b"\0").decode("utf-8", "replace")
        return CardConnector(
            identity,
            f"{kind}-{argument.connector_type_id}",
            _CONNECTIONS.get(argument.connection, Connection.UNKNOWN),
            tuple(
                Mode(
                    m.hdisplay,
                    m.vdisplay,
                    m.vrefresh,
                    bool(m.type & uapi.DRM_MODE_TYPE_PREFERRED),
                    bytes(m),
                    bool(m.flags & uapi.DRM_MODE_FLAG_INTERLACE),
                )
                for m in list(modes)[: argument.count_modes]
            ),
            tuple(crtc for crtc in self.crtcs if crtc in crtcs),
            values.get("CRTC_ID", 0),
            values.get("link-status", 0) == uapi.DRM_MODE_LINK_STATUS_BAD,
            f"path:{path}" if path else "",
            edid_name(self._property_bytes(values.get("EDID", 0))),
            self._orientation(identity, values),
        )

    def _property_bytes(self, blob: int) -> bytes:
        """Return a property's blob; empty if there is none, or it has just been replaced."""
        try:
            return self.read_blob(blob)
        except DrmError:
            return b""

    def _orientation(self, connector: int, values: dict[str, int]) -> str:
        """Return how the panel is mounted; empty: unknown."""
        if "panel orientation" not in values:
            return ""
        names = self.describe("connector", connector, "panel orientation").names
        return next((name for name, value in names.items() if value == values["panel orientation"]), "")

    def _encoder_crtcs(self, identity: int) -> tuple[int, ...]:
        argument = uapi.drm_mode_get_encoder(encoder_id=identity)
        self.ioctl("get encoder", uapi.DRM_IOCTL_MODE_GETENCODER, argument)
        return self._from_mask(argument.possible_crtcs)

    def add_framebuffer(self, handle: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """Make a framebuffer of one plane of pixels (ADDFB2) and return its id. `pitch` and `offset` are in bytes.

        Raises DrmError.

        Where the driver knows modifiers, the layout is given as linear: without one, the driver may assume the layout
        it prefers.
        """
        for flags in (uapi.DRM_MODE_FB_MODIFIERS, 0) if self._modifiers else (0,):
            argument = uapi.drm_mode_fb_cmd2(width=width, height=height, pixel_format=fourcc, flags=flags)
            argument.handles[0], argument.pitches[0], argument.offsets[0] = handle, pitch, offset
            argument.modifier[0] = uapi.DRM_FORMAT_MOD_LINEAR
            failed = self.try_ioctl(uapi.DRM_IOCTL_MODE_ADDFB2, argument)
            if not failed:
                return int(argument.fb_id)
        raise drm_error("add framebuffer", failed)

    def remove_framebuffer(self, fb: int) -> None:
        """Remove a framebuffer (RMFB). Raises DrmError. Takes it off the screen first if it is there, and waits for that."""
        self.ioctl("remove framebuffer", uapi.DRM_IOCTL_MODE_RMFB, ctypes.c_uint32(fb))

    def leave_framebuffer(self, fb: int) -> None:
        """Give a framebuffer up, but leave it on the screen if it is there (CLOSEFB). Raises DrmError."""
        self.ioctl("leave framebuffer", uapi.DRM_IOCTL_MODE_CLOSEFB, uapi.drm_mode_closefb(fb_id=fb))

    def mark_dirty(self, fb: int) -> bool:
        """Tell the driver that the framebuffer on the screen has changed (DIRTYFB).

        Return False if this driver does not need that. May wait for a refresh.
        """
        return self.try_ioctl(uapi.DRM_IOCTL_MODE_DIRTYFB, uapi.drm_mode_fb_dirty_cmd(fb_id=fb)) == 0

    def import_framebuffer(self, dmabuf: int, width: int, height: int, fourcc: int, pitch: int, offset: int) -> int:
        """Make a framebuffer over a dma-buf's pixels and return its id. Raises DrmError.

        The framebuffer keeps a reference to the dma-buf.

        One import runs at a time: the kernel has one handle for each dma-buf and file, and does not count how often it
        was given out. Two imports of the same dma-buf would share a handle; the first close would free its number,
        which could then belong to another dma-buf.
        """
        with self._importing:
            prime = uapi.drm_prime_handle(fd=dmabuf)
            if failed := self.try_ioctl(uapi.DRM_IOCTL_PRIME_FD_TO_HANDLE, prime):
                if self.dmabuf_import is DmabufImport.UNTRIED:
                    self.dmabuf_import = DmabufImport.REFUSED
                raise drm_error("import dma-buf", failed)
            self.dmabuf_import = DmabufImport.WORKS
            try:
                fb = self.add_framebuffer(prime.handle, width, height, fourcc, pitch, offset)
            except DrmError:
                self.close_handle(prime.handle)
                raise
            try:
                self.close_handle(prime.handle)
            except DrmError:
                self.remove_framebuffer(fb)  # otherwise it would hold the guest's pages until the file is closed
                raise
            return fb

    def close_handle(self, handle: int) -> None:
        """Close a GEM handle. Raises DrmError. The handles of a card that is gone are closed already."""
        with suppress(CardGone):
            self.ioctl("close handle", uapi.DRM_IOCTL_GEM_CLOSE, uapi.drm_gem_close(handle=handle))

    def map_dumb(self, handle: int, size: int, *, writable: bool) -> Mapping:
        """Map a dumb buffer of `size` bytes. Raises DrmError."""
        place = uapi.drm_mode_map_dumb(handle=handle)
        self.ioctl("map dumb buffer", uapi.DRM_IOCTL_MODE_MAP_DUMB, place)
        return self._map(place.offset, size, writable)

    def _map(self, offset: int, size: int, writable: bool) -> Mapping:
        try:
            return Mapping(self.fd, [(offset, size)], writable=writable)
        except OSError as error:
            raise drm_error("map dumb buffer", error.errno) from error

    def read_edid(self, connector: int) -> bytes | None:
        """Return the EDID in the connector's property, in whole blocks of 128 bytes; None: there is none."""
        try:
            data = self.read_blob(self.values("connector", connector).get("EDID", 0))
        except DrmError:
            return None  # another monitor was plugged in meanwhile, or the card is gone
        return data[: len(data) // 128 * 128] or None

    def read_blob(self, blob: int) -> bytes:
        """Return a blob's bytes; empty for blob 0. Raises DrmError."""
        if blob == 0:
            return b""
        count = uapi.drm_mode_get_blob(blob_id=blob)
        self.ioctl("read blob", uapi.DRM_IOCTL_MODE_GETPROPBLOB, count)
        data = ctypes.create_string_buffer(max(1, count.length))
        argument = uapi.drm_mode_get_blob(blob_id=blob, length=count.length, data=ctypes.addressof(data))
        self.ioctl("read blob", uapi.DRM_IOCTL_MODE_GETPROPBLOB, argument)
        return data.raw[: argument.length]

    def create_blob(self, data: bytes) -> int:
        """Make a property blob, as for MODE_ID, and return its id. Raises DrmError."""
        room = ctypes.create_string_buffer(data, len(data))
        argument = uapi.drm_mode_create_blob(data=ctypes.addressof(room), length=len(data))
        self.ioctl("create mode blob", uapi.DRM_IOCTL_MODE_CREATEPROPBLOB, argument)
        return int(argument.blob_id)

    def destroy_blob(self, blob: int) -> None:
        """Destroy a property blob. Raises DrmError."""
        self.ioctl("destroy blob", uapi.DRM_IOCTL_MODE_DESTROYPROPBLOB, uapi.drm_mode_destroy_blob(blob_id=blob))

    def read_events(self, flipped: Callable[[int], None]) -> None:
        """Read the card's events and call `flipped` with the user data of each completed flip. Raises OSError."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        if not data:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        offset = 0
        while offset + uapi.drm_event.size <= len(data):
            kind, length = uapi.drm_event.unpack_from(data, offset)
            if length < uapi.drm_event.size:
                raise OSError(errno.EIO, f"an event of {length} bytes")
            if kind == uapi.DRM_EVENT_FLIP_COMPLETE and offset + uapi.drm_event_vblank.size <= len(data):
                _, _, user_data, *_ = uapi.drm_event_vblank.unpack_from(data, offset)
                flipped(user_data)
            offset += length


def _ids(count: int) -> array[int]:
    """Return an array of this many u32, at least one: some drivers do not take a null pointer for an empty list."""
    return array("I", bytes(4 * max(1, count)))
