"""The kernel's mode-setting interface (include/uapi/drm/drm.h, drm_mode.h): structures, ioctl numbers, constants.

It has only what this sink uses. tests/unit/test_drm_uapi.py compares every size, offset and number with the C headers.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from struct import Struct
from typing import Final


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | ord("d") << 8 | number


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | ord("d") << 8 | number


class drm_get_cap(ctypes.Structure):
    _fields_ = (("capability", c_uint64), ("value", c_uint64))


class drm_version(ctypes.Structure):
    _fields_ = (
        ("version_major", c_int32),
        ("version_minor", c_int32),
        ("version_patchlevel", c_int32),
        ("name_len", c_size_t),
        ("name", c_void_p),
        ("date_len", c_size_t),
        ("date", c_void_p),
        ("desc_len", c_size_t),
        ("desc", c_void_p),
    )


class drm_set_client_cap(ctypes.Structure):
    _fields_ = (("capability", c_uint64), ("value", c_uint64))


class drm_gem_close(ctypes.Structure):
    _fields_ = (("handle", c_uint32), ("pad", c_uint32))


class drm_prime_handle(ctypes.Structure):
    _fields_ = (("handle", c_uint32), ("flags", c_uint32), ("fd", c_int32))


class drm_mode_card_res(ctypes.Structure):
    _fields_ = (
        ("fb_id_ptr", c_uint64),
        ("crtc_id_ptr", c_uint64),
        ("connector_id_ptr", c_uint64),
        ("encoder_id_ptr", c_uint64),
        ("count_fbs", c_uint32),
        ("count_crtcs", c_uint32),
        ("count_connectors", c_uint32),
        ("count_encoders", c_uint32),
        ("min_width", c_uint32),
        ("max_width", c_uint32),
        ("min_height", c_uint32),
        ("max_height", c_uint32),
    )


class drm_mode_modeinfo(ctypes.Structure):
    _fields_ = (
        ("clock", c_uint32),
        ("hdisplay", c_uint16),
        ("hsync_start", c_uint16),
        ("hsync_end", c_uint16),
        ("htotal", c_uint16),
        ("hskew", c_uint16),
        ("vdisplay", c_uint16),
        ("vsync_start", c_uint16),
        ("vsync_end", c_uint16),
        ("vtotal", c_uint16),
        ("vscan", c_uint16),
        ("vrefresh", c_uint32),
        ("flags", c_uint32),
        ("type", c_uint32),
        ("name", c_char * 32),
    )


class drm_mode_get_connector(ctypes.Structure):
    _fields_ = (
        ("encoders_ptr", c_uint64),
        ("modes_ptr", c_uint64),
        ("props_ptr", c_uint64),
        ("prop_values_ptr", c_uint64),
        ("count_modes", c_uint32),
        ("count_props", c_uint32),
        ("count_encoders", c_uint32),
        ("encoder_id", c_uint32),
        ("connector_id", c_uint32),
        ("connector_type", c_uint32),
        ("connector_type_id", c_uint32),
        ("connection", c_uint32),
        ("mm_width", c_uint32),
        ("mm_height", c_uint32),
        ("subpixel", c_uint32),
        ("pad", c_uint32),
    )


class drm_mode_get_encoder(ctypes.Structure):
    _fields_ = (
        ("encoder_id", c_uint32),
        ("encoder_type", c_uint32),
        ("crtc_id", c_uint32),
        ("possible_crtcs", c_uint32),
        ("possible_clones", c_uint32),
    )


class drm_mode_get_plane_res(ctypes.Structure):
    _fields_ = (("plane_id_ptr", c_uint64), ("count_planes", c_uint32))


class drm_mode_get_plane(ctypes.Structure):
    _fields_ = (
        ("plane_id", c_uint32),
        ("crtc_id", c_uint32),
        ("fb_id", c_uint32),
        ("possible_crtcs", c_uint32),
        ("gamma_size", c_uint32),
        ("count_format_types", c_uint32),
        ("format_type_ptr", c_uint64),
    )


class drm_mode_obj_get_properties(ctypes.Structure):
    _fields_ = (
        ("props_ptr", c_uint64),
        ("prop_values_ptr", c_uint64),
        ("count_props", c_uint32),
        ("obj_id", c_uint32),
        ("obj_type", c_uint32),
    )


class drm_mode_get_property(ctypes.Structure):
    _fields_ = (
        ("values_ptr", c_uint64),
        ("enum_blob_ptr", c_uint64),
        ("prop_id", c_uint32),
        ("flags", c_uint32),
        ("name", c_char * 32),
        ("count_values", c_uint32),
        ("count_enum_blobs", c_uint32),
    )


class drm_mode_property_enum(ctypes.Structure):
    _fields_ = (("value", c_uint64), ("name", c_char * 32))


class drm_mode_fb_cmd2(ctypes.Structure):
    _fields_ = (
        ("fb_id", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("pixel_format", c_uint32),
        ("flags", c_uint32),
        ("handles", c_uint32 * 4),
        ("pitches", c_uint32 * 4),
        ("offsets", c_uint32 * 4),
        ("modifier", c_uint64 * 4),
    )


class drm_mode_fb_dirty_cmd(ctypes.Structure):
    _fields_ = (
        ("fb_id", c_uint32),
        ("flags", c_uint32),
        ("color", c_uint32),
        ("num_clips", c_uint32),
        ("clips_ptr", c_uint64),
    )


class drm_mode_create_dumb(ctypes.Structure):
    _fields_ = (
        ("height", c_uint32),
        ("width", c_uint32),
        ("bpp", c_uint32),
        ("flags", c_uint32),
        ("handle", c_uint32),
        ("pitch", c_uint32),
        ("size", c_uint64),
    )


class drm_mode_map_dumb(ctypes.Structure):
    _fields_ = (("handle", c_uint32), ("pad", c_uint32), ("offset", c_uint64))


class drm_mode_atomic(ctypes.Structure):
    _fields_ = (
        ("flags", c_uint32),
        ("count_objs", c_uint32),
        ("objs_ptr", c_uint64),
        ("count_props_ptr", c_uint64),
        ("props_ptr", c_uint64),
        ("prop_values_ptr", c_uint64),
        ("reserved", c_uint64),
        ("user_data", c_uint64),
    )


class drm_mode_create_blob(ctypes.Structure):
    _fields_ = (("data", c_uint64), ("length", c_uint32), ("blob_id", c_uint32))


class drm_mode_get_blob(ctypes.Structure):
    _fields_ = (("blob_id", c_uint32), ("length", c_uint32), ("data", c_uint64))


class drm_mode_closefb(ctypes.Structure):
    _fields_ = (("fb_id", c_uint32), ("pad", c_uint32))


class drm_mode_destroy_blob(ctypes.Structure):
    _fields_ = (("blob_id", c_uint32),)


drm_event: Final = Struct("=II")
"""type, length: the beginning of every event; `length` is in bytes and includes it"""
drm_event_vblank: Final = Struct("=IIQIIII")
"""type, length, user_data, tv_sec, tv_usec, sequence, crtc_id"""

DRM_IOCTL_VERSION: Final = _iowr(0x00, ctypes.sizeof(drm_version))
DRM_IOCTL_GEM_CLOSE: Final = _iow(0x09, ctypes.sizeof(drm_gem_close))
DRM_IOCTL_GET_CAP: Final = _iowr(0x0C, ctypes.sizeof(drm_get_cap))
DRM_IOCTL_SET_CLIENT_CAP: Final = _iow(0x0D, ctypes.sizeof(drm_set_client_cap))
DRM_IOCTL_SET_MASTER: Final = 0x641E
DRM_IOCTL_DROP_MASTER: Final = 0x641F
DRM_IOCTL_PRIME_HANDLE_TO_FD: Final = _iowr(0x2D, ctypes.sizeof(drm_prime_handle))
DRM_IOCTL_PRIME_FD_TO_HANDLE: Final = _iowr(0x2E, ctypes.sizeof(drm_prime_handle))
DRM_IOCTL_MODE_GETRESOURCES: Final = _iowr(0xA0, ctypes.sizeof(drm_mode_card_res))
DRM_IOCTL_MODE_GETENCODER: Final = _iowr(0xA6, ctypes.sizeof(drm_mode_get_encoder))
DRM_IOCTL_MODE_GETCONNECTOR: Final = _iowr(0xA7, ctypes.sizeof(drm_mode_get_connector))
DRM_IOCTL_MODE_GETPROPERTY: Final = _iowr(0xAA, ctypes.sizeof(drm_mode_get_property))
DRM_IOCTL_MODE_GETPROPBLOB: Final = _iowr(0xAC, ctypes.sizeof(drm_mode_get_blob))
DRM_IOCTL_MODE_RMFB: Final = _iowr(0xAF, ctypes.sizeof(c_uint32))
DRM_IOCTL_MODE_DIRTYFB: Final = _iowr(0xB1, ctypes.sizeof(drm_mode_fb_dirty_cmd))
DRM_IOCTL_MODE_CREATE_DUMB: Final = _iowr(0xB2, ctypes.sizeof(drm_mode_create_dumb))
DRM_IOCTL_MODE_MAP_DUMB: Final = _iowr(0xB3, ctypes.sizeof(drm_mode_map_dumb))
DRM_IOCTL_MODE_GETPLANERESOURCES: Final = _iowr(0xB5, ctypes.sizeof(drm_mode_get_plane_res))
DRM_IOCTL_MODE_GETPLANE: Final = _iowr(0xB6, ctypes.sizeof(drm_mode_get_plane))
DRM_IOCTL_MODE_ADDFB2: Final = _iowr(0xB8, ctypes.sizeof(drm_mode_fb_cmd2))
DRM_IOCTL_MODE_OBJ_GETPROPERTIES: Final = _iowr(0xB9, ctypes.sizeof(drm_mode_obj_get_properties))
DRM_IOCTL_MODE_ATOMIC: Final = _iowr(0xBC, ctypes.sizeof(drm_mode_atomic))
DRM_IOCTL_MODE_CREATEPROPBLOB: Final = _iowr(0xBD, ctypes.sizeof(drm_mode_create_blob))
DRM_IOCTL_MODE_DESTROYPROPBLOB: Final = _iowr(0xBE, ctypes.sizeof(drm_mode_destroy_blob))
DRM_IOCTL_MODE_CLOSEFB: Final = _iowr(0xD0, ctypes.sizeof(drm_mode_closefb))

DRM_CAP_DUMB_BUFFER: Final = 0x1
DRM_CAP_PRIME: Final = 0x5
DRM_CAP_ADDFB2_MODIFIERS: Final = 0x10
DRM_PRIME_CAP_IMPORT: Final = 0x1
DRM_CLIENT_CAP_UNIVERSAL_PLANES: Final = 2
DRM_CLIENT_CAP_ATOMIC: Final = 3
DRM_MODE_OBJECT_CRTC: Final = 0xCCCCCCCC
DRM_MODE_OBJECT_CONNECTOR: Final = 0xC0C0C0C0
DRM_MODE_OBJECT_PLANE: Final = 0xEEEEEEEE
DRM_PLANE_TYPE_PRIMARY: Final = 1
DRM_FORMAT_MOD_LINEAR: Final = 0
FORMAT_BLOB_CURRENT: Final = 1
DRM_MODE_PROP_RANGE: Final = 1 << 1
DRM_MODE_PROP_IMMUTABLE: Final = 1 << 2
DRM_MODE_PROP_BITMASK: Final = 1 << 5
DRM_MODE_FB_MODIFIERS: Final = 1 << 1
DRM_MODE_CONNECTED: Final = 1
DRM_MODE_DISCONNECTED: Final = 2
DRM_MODE_TYPE_PREFERRED: Final = 1 << 3
DRM_MODE_TYPE_DRIVER: Final = 1 << 6
DRM_MODE_FLAG_PHSYNC: Final = 1 << 0
DRM_MODE_FLAG_NHSYNC: Final = 1 << 1
DRM_MODE_FLAG_PVSYNC: Final = 1 << 2
DRM_MODE_FLAG_NVSYNC: Final = 1 << 3
DRM_MODE_FLAG_INTERLACE: Final = 1 << 4
DRM_MODE_LINK_STATUS_BAD: Final = 1
DRM_MODE_PAGE_FLIP_EVENT: Final = 0x01
DRM_MODE_ATOMIC_TEST_ONLY: Final = 0x0100
DRM_MODE_ATOMIC_NONBLOCK: Final = 0x0200
DRM_MODE_ATOMIC_ALLOW_MODESET: Final = 0x0400
DRM_EVENT_FLIP_COMPLETE: Final = 0x02

CONNECTOR_TYPES: Final = (
    # drm_connector_enum_list in drivers/gpu/drm/drm_connector.c, by DRM_MODE_CONNECTOR_*
    *("Unknown", "VGA", "DVI-I", "DVI-D", "DVI-A", "Composite", "SVIDEO", "LVDS", "Component", "DIN", "DP"),
    *("HDMI-A", "HDMI-B", "TV", "eDP", "Virtual", "DSI", "DPI", "Writeback", "SPI", "USB"),
)
