"""Runs in Dom0: finds out what a program without any right of its own can do with a gntdev file that it was given.

The arguments are a guest's domid and a reference. This process opens gntdev and reserves the map of that reference, as displbe does for a
compositor. A child that is `nobody` gets the file, and tries to map the guest's XenStore page (reference 1, GNTTAB_RESERVED_XENSTORE in
xen/include/public/grant_table.h), which nobody has handed to it. The output is JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys

MAP_GRANT_REF, GRANT_COPY = 0x00184700, 0x00104708
XENSTORE = 1
NOBODY = 65534


def reserve(fd: int, domid: int, ref: int) -> int:
    """MAP_GRANT_REF: return the offset at which the page can be mapped. Raises OSError."""
    ask = bytearray(struct.pack("=IIQII", 1, 0, 0, domid, ref))
    fcntl.ioctl(fd, MAP_GRANT_REF, ask)
    return int(struct.unpack_from("=Q", ask, 8)[0])


def attempt(name: str, work: object, found: dict[str, str]) -> None:
    """Take note of what a step says."""
    assert callable(work)
    try:
        found[name] = f"ok {work()}"
    except OSError as error:
        found[name] = f"{error.strerror}"


def map_store(fd: int, domid: int) -> str:
    """Map the guest's XenStore page writable, and return the indices of its rings (xs_wire.h: after twice 1024 bytes)."""
    offset = reserve(fd, domid, XENSTORE)
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset) as page:
        page[4095] = page[4095]
        return str(struct.unpack_from("=4I", page, 2048))


def copy_store(fd: int, domid: int) -> str:
    """Copy from the guest's XenStore page, without a map (struct gntdev_grant_copy_segment)."""
    to = ctypes.create_string_buffer(16)
    source, length, source_is_a_grant = struct.pack("=IHH", XENSTORE, 0, domid), len(to), 1
    segment = bytearray(source + struct.pack("=QHHhxx", ctypes.addressof(to), length, source_is_a_grant, 0))
    kept = (ctypes.c_char * len(segment)).from_buffer(segment)
    fcntl.ioctl(fd, GRANT_COPY, struct.pack("=IxxxxQ", 1, ctypes.addressof(kept)))
    return f"status {struct.unpack_from('=h', segment, 20)[0]}"


def child(fd: int, domid: int, writer: int) -> None:
    """Try everything, without a privilege."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    found: dict[str, str] = {}
    attempt("open gntdev", lambda: os.open("/dev/xen/gntdev", os.O_RDWR), found)
    attempt("map", lambda: map_store(fd, domid), found)
    attempt("copy", lambda: copy_store(fd, domid), found)
    os.write(writer, json.dumps(found).encode())


def main() -> None:
    """Print what the child found, for a file that is open for writing and for one that is not."""
    domid, ref = int(sys.argv[1]), int(sys.argv[2])
    said = {}
    for name, flags in (("writable", os.O_RDWR), ("readable", os.O_RDONLY)):
        fd = os.open("/dev/xen/gntdev", flags)
        reserve(fd, domid, ref)
        reader, writer = os.pipe()
        if not os.fork():
            child(fd, domid, writer)
            os._exit(0)
        os.close(writer)
        said[name] = json.loads(os.read(reader, 65536))
        os.wait()
        os.close(fd)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
