"""/dev/xen/gntdev and /dev/xen/evtchn on the simulated Xen, so that `xen.host` runs without Xen, and with faults that a test chooses.

Each system call that displbe makes through `displbe/xen` for the daemon's domain is counted by its place: the lines of displbe on the
stack. A test can let one place fail once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from types import FrameType, ModuleType
from typing import Any, Final

import msgspec
import pytest
from memory_watch import heavy

import displbe
from displbe.sim.hypervisor import Domain, Grant, Xen
from displbe.xen import evtchn, gntdev, host, memory, store
from displbe.xen._libc import ffi
from displbe.xen.host import Host
from displbe.xen.port import StoreError

__all__ = ["ERRORS", "Fault", "Kernel", "Places", "is_heavy"]

_PORTS: Final = Struct("=I")
_PAIR: Final = Struct("=II")
_MAP: Final = Struct("=IIQ")
_IMPORT: Final = Struct("=IIII")
_EXPORT: Final = Struct("=IIII")
PAGE: Final = memory.PAGE_SIZE
NO_FILE: Final = 0xFFFFFFFF
"""The file that `gntdev.probe` names."""

ERRORS: Final = {
    "open": errno.EMFILE,
    "read": errno.EIO,
    "write": errno.EIO,
    "close": errno.EIO,
    "connect": errno.ECONNREFUSED,
    "ioctl": errno.ENOMEM,
    "mmap": errno.ENOMEM,
    "store": errno.EIO,
    "lost": errno.ECONNRESET,
}
"""The error of each call that fails."""


OURS: Final = f"{Path(displbe.__file__).parent}/"


class Fault(msgspec.Struct, frozen=True):
    """A place that makes a system call: the call's name, and the lines that lead to it, innermost first."""

    call: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.call} at {' < '.join(self.lines[:4])}"


def is_heavy(number: int, argument: bytearray) -> bool:
    """Return whether gntdev's ioctl maps, grants or gives back a whole buffer, or waits for that."""
    match number:
        case gntdev.MAP_GRANT_REF:
            return int(_PORTS.unpack_from(argument)[0]) > 1
        case gntdev.UNMAP_GRANT_REF:
            return int(_PORTS.unpack_from(argument, 8)[0]) > 1
        case gntdev.DMABUF_IMP_RELEASE:
            return int(_PORTS.unpack_from(argument)[0]) != NO_FILE
    return number in (gntdev.DMABUF_EXP_FROM_REFS, gntdev.DMABUF_EXP_WAIT_RELEASED, gntdev.DMABUF_IMP_TO_REFS)


class Places:
    """Counts calls by their places while `armed`. `wanted` is the place that fails once; `places` are those where calls were made."""

    def __init__(self, wanted: Fault | None) -> None:
        self.wanted = wanted
        self.failed = False
        self.armed = False
        self.places: dict[Fault, int] = {}

    @staticmethod
    def _lines() -> list[str]:
        """Return the lines of displbe on the stack, innermost first."""
        lines = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(OURS):
                lines.append(f"{name.removeprefix(OURS)}:{frame.f_lineno}")
            frame = frame.f_back
        return lines

    def _fails(self, place: Fault) -> bool:
        """Count a call. Return whether it must fail."""
        self.places[place] = self.places.get(place, 0) + 1
        if place != self.wanted or self.failed:
            return False
        self.failed = True
        return True


class _Module:
    """A module with some of its functions replaced."""

    def __init__(self, module: ModuleType, **functions: Any) -> None:
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Kernel(Places):
    """The kernel of the daemon in domain 0."""

    def __init__(self, xen: Xen, wanted: Fault | None = None) -> None:
        super().__init__(wanted)
        self._xen = xen
        self._domain: Domain = xen.domains[0]
        self._reserved: dict[int, dict[int, list[Grant]]] = {}
        self._evtchns: set[int] = set()
        self._mapped: dict[int, list[Grant]] = {}
        self._shared: dict[tuple[int, int], list[int]] = {}
        self._exported: dict[int, list[Grant]] = {}

    def host(self, patch: pytest.MonkeyPatch) -> Host:
        """Return the real hypervisor adaptor, on this kernel."""
        self._path = str(self._xen.server.socket_of(0))
        self._host = Host(self._path)
        request = self._host.store._request

        async def counted(op: int, *parts: bytes, transaction: Any = None) -> bytes:
            try:
                self._count("store")
            except OSError as error:
                raise StoreError("EIO") from error
            try:
                self._count("lost")
            except OSError:
                self._xen.server.disconnect(0)
            return await request(op, *parts, transaction=transaction)

        patch.setattr(self._host.store, "_request", counted)
        return self._host

    @contextlib.contextmanager
    def under(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Let displbe's modules use this kernel while the block lasts."""
        calls = {"open": self._open, "read": self._read, "write": self._write, "close": self._close}
        connect = store.connect
        with patch.context() as patched:
            for module in (gntdev, evtchn, host, store):
                patched.setattr(module, "os", _Module(os, **calls))
            for module in (gntdev, evtchn):
                patched.setattr(module, "fcntl", _Module(module.fcntl, ioctl=self._ioctl))
            libc = memory._libc
            self._libc = libc
            played = _Module(libc, mmap=self._mmap, munmap=self._munmap, memcpy=libc.memcpy)
            patched.setattr(memory, "_libc", played)

            def counted(path: str) -> int:
                if path == self._path:
                    self._count("connect")
                return connect(path)

            patched.setattr(store, "connect", counted)
            yield

    def _count(self, call: str) -> None:
        """Count a call. Raises OSError when it is the wanted one."""
        if not self.armed:
            return
        lines = [line for line in self._lines() if not line.startswith("sim/")]
        if self._fails(Fault(call, tuple(lines))):
            raise OSError(ERRORS[call], os.strerror(ERRORS[call]))

    # Files

    def _ours(self, fd: int) -> bool:
        """Return whether this is a file of the daemon's, not of a guest's XenStore connection."""
        return fd in self._reserved or fd in self._evtchns or fd in self._exported or fd == self._host.store._fd

    def _open(self, path: str, flags: int) -> int:
        self._count("open")
        if path == "/dev/xen/gntdev":
            fd = os.memfd_create("gntdev", os.MFD_CLOEXEC)
            self._reserved[fd] = {}
        elif path == "/dev/xen/evtchn":
            fd = os.dup(self._domain.upcall)
            self._evtchns.add(fd)
        else:
            raise FileNotFoundError(errno.ENOENT, path)
        return fd

    def _close(self, fd: int) -> None:
        ours = self._ours(fd)
        self._reserved.pop(fd, None)
        self._evtchns.discard(fd)
        for grant in self._exported.pop(fd, []):
            grant.mapped -= 1
        os.close(fd)
        if ours:
            self._count("close")  # the file is closed even then, as in Linux

    def _read(self, fd: int, size: int) -> bytes:
        if self._ours(fd):
            self._count("read")
        if fd in self._evtchns:
            ports = self._domain.take_fired()
            if not ports:
                raise BlockingIOError(errno.EAGAIN, "nothing fired")
            return b"".join(_PORTS.pack(port) for port in ports)
        return os.read(fd, size)

    def _write(self, fd: int, data: bytes) -> int:
        if self._ours(fd):
            self._count("write")
        if fd in self._evtchns:
            for (port,) in _PORTS.iter_unpack(data):
                self._domain.unmask(port)
            return len(data)
        return os.write(fd, data)

    # ioctls

    def _ioctl(self, fd: int, number: int, argument: bytearray) -> int:
        if number == gntdev.UNMAP_GRANT_REF or number == gntdev.DMABUF_IMP_RELEASE or number == evtchn.UNBIND:
            # The call has its effect although it fails, like close().
            result = self._do(fd, number, argument)
            self._count("ioctl")
            return result
        self._count("ioctl")
        return self._do(fd, number, argument)

    def _do(self, fd: int, number: int, argument: bytearray) -> int:
        if is_heavy(number, argument):
            heavy(f"gntdev's ioctl {number:#x}")
        handler = {
            gntdev.MAP_GRANT_REF: self._reserve,
            gntdev.UNMAP_GRANT_REF: self._unreserve,
            gntdev.DMABUF_IMP_TO_REFS: self._share,
            gntdev.DMABUF_IMP_RELEASE: self._unshare,
            gntdev.DMABUF_EXP_FROM_REFS: self._export,
            gntdev.DMABUF_EXP_WAIT_RELEASED: self._released,
            evtchn.BIND_INTERDOMAIN: self._bind,
            evtchn.UNBIND: self._unbind,
            evtchn.NOTIFY: self._notify,
        }.get(number)
        if handler is None:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return handler(fd, argument)

    def _reserve(self, fd: int, argument: bytearray) -> int:
        count = _MAP.unpack_from(argument)[0]
        pairs = [_PAIR.unpack_from(argument, 16 + 8 * n) for n in range(count)]
        owners = [self._xen.domains.get(domid) for domid, _ in pairs]
        found = [owner.grants.get(ref) if owner else None for owner, (_, ref) in zip(owners, pairs, strict=True)]
        grants = [grant for grant in found if grant is not None and grant.domid == 0]
        index = PAGE * (1 + sum(map(len, self._reserved[fd].values())) + 1000 * len(self._reserved[fd]))
        # An invalid reference is not noticed until it is mapped.
        self._reserved[fd][index] = grants if len(grants) == count else []
        argument[8:16] = index.to_bytes(8, "little")
        return 0

    def _unreserve(self, fd: int, argument: bytearray) -> int:
        self._reserved[fd].pop(int.from_bytes(argument[:8], "little"))
        return 0

    def _share(self, fd: int, argument: bytearray) -> int:
        buffer, count, domid, _ = _IMPORT.unpack_from(argument)
        copy = os.dup(buffer)
        refs = [self._domain.grant(page, domid, memfd=copy) for page in range(count)]
        argument[16:] = b"".join(ref.to_bytes(4, "little") for ref in refs)
        self._shared[fd, buffer] = [copy, *refs]
        return 0

    def _unshare(self, fd: int, argument: bytearray) -> int:
        found = self._shared.pop((fd, _PAIR.unpack(argument)[0]), None)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        copy, *refs = found
        os.close(copy)
        for ref in refs:
            self._domain.grants.pop(ref, None)
        return 0

    def _export(self, fd: int, argument: bytearray) -> int:
        _, count, _, domid = _EXPORT.unpack_from(argument)
        owner = self._xen.domains.get(domid)
        refs = [_PORTS.unpack_from(argument, 16 + 4 * n)[0] for n in range(count)]
        grants = [grant for ref in refs if owner and (grant := owner.grants.get(ref)) and grant.domid == 0]
        if len(grants) != count:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        for grant in grants:
            grant.mapped += 1
        made = os.memfd_create("dma-buf", os.MFD_CLOEXEC)
        self._exported[made] = grants
        argument[8:12] = made.to_bytes(4, "little")
        return 0

    def _released(self, fd: int, argument: bytearray) -> int:
        number = _PAIR.unpack(argument)[0]
        raise OSError(*((errno.ETIMEDOUT, "in use") if number in self._exported else (errno.ENOENT, "gone")))

    def _bind(self, fd: int, argument: bytearray) -> int:
        domid, remote_port = _PAIR.unpack(argument)
        remote = self._xen.domains.get(domid)
        if remote is None or remote.offers.get(remote_port) != 0 or remote.peers.get(remote_port):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        port = self._domain.offer(domid)
        del self._domain.offers[port]
        self._domain.peers[port] = (remote, remote_port)
        remote.peers[remote_port] = (self._domain, port)
        self._domain.raise_port(port)
        return port

    def _unbind(self, fd: int, argument: bytearray) -> int:
        peer = self._domain.peers.pop(_PORTS.unpack(argument)[0], None)
        if peer is not None:
            peer[0].peers[peer[1]] = None
        return 0

    def _notify(self, fd: int, argument: bytearray) -> int:
        peer = self._domain.peers.get(_PORTS.unpack(argument)[0])
        if peer is not None:
            peer[0].raise_port(peer[1])
        return 0

    # Memory

    def _mmap(self, address: Any, size: int, protection: int, flags: int, fd: int, offset: int) -> Any:
        try:
            self._count("mmap")
        except OSError as error:
            ffi.errno = error.errno or 0
            return memory._FAILED
        if fd not in self._reserved:
            return self._libc.mmap(address, size, protection, flags, fd, offset)
        grants = self._reserved[fd].get(offset, [])
        if len(grants) * PAGE != size or not all(grant.writable or not protection & 2 for grant in grants):
            ffi.errno = errno.EINVAL
            return memory._FAILED
        base = self._libc.mmap(ffi.NULL, size, 0, 0x22, -1, 0)
        for number, grant in enumerate(grants):
            at = ffi.cast("char *", base) + number * PAGE
            self._libc.mmap(at, PAGE, protection, 0x11, grant.memfd, grant.page * PAGE)
            grant.mapped += 1
        self._mapped[int(ffi.cast("uintptr_t", base))] = grants
        return base

    def _munmap(self, address: Any, size: int) -> int:
        for grant in self._mapped.pop(int(ffi.cast("uintptr_t", address)), []):
            grant.mapped -= 1
        return int(self._libc.munmap(address, size))
