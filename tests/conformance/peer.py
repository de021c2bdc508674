"""The other domain: it grants pages, offers ports and notifies, as a frontend does.

`SimPeer` is a second domain of the simulated Xen. `HostPeer` is in the same domain as the tests (a Dom0 may be its own remote domain) and
uses /dev/xen/gntalloc and /dev/xen/evtchn without displbe's code, so that both halves cannot have the same defect.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Final, Protocol

import trio

from displbe.sim.hypervisor import PORTS, SimHypervisor, Xen

__all__ = ["PAGE_SIZE", "STRANGER", "HostPeer", "Peer", "Port", "SimPeer"]

PAGE_SIZE: Final = 4096
STRANGER: Final = int(os.environ.get("DISPLBE_STRANGER", "77"))
"""A domain that is neither the peer nor ours; on a real Xen it must exist."""


class Port(Protocol):
    """A port that the peer offers."""

    number: int

    def notify(self) -> None:
        """Notify the other end."""

    async def notified(self) -> None:
        """Wait for one more notification from the other end."""

    def close(self) -> None:
        """Close the port."""


class Peer(Protocol):
    """The other domain."""

    domid: int

    def grant(self, pages: int, *, writable: bool = True, to: int | None = None) -> list[int]:
        """Grant this number of new, zeroed pages to us (or to another domain); return their references."""

    def read(self, ref: int, size: int = PAGE_SIZE) -> bytes:
        """Return the beginning of a granted page, as the peer sees it."""

    def write(self, ref: int, data: bytes) -> None:
        """Write the beginning of a granted page."""

    async def take_back(self, refs: Sequence[int]) -> bool:
        """End all grants that one call of `grant` made. False: the other end still maps one of the pages."""

    def offer(self, *, to: int | None = None) -> Port:
        """Return a new unbound port."""

    async def give(self, path: str, domid: int) -> None:
        """Make a domain the owner of a node, as the toolstack does."""


class SimPort:
    """A port of the simulated peer."""

    def __init__(self, hypervisor: SimHypervisor, number: int) -> None:
        self.number = number
        self._fired = trio.Event()
        self._channel = hypervisor.channels.adopt(number, self._on_event)

    def _on_event(self) -> bool:
        self._fired.set()
        self._channel.rearm()
        return False

    def notify(self) -> None:
        self._channel.notify()

    async def notified(self) -> None:
        await self._fired.wait()
        self._fired = trio.Event()

    def close(self) -> None:
        self._channel.close()


class SimPeer:
    """A second domain of a simulated Xen whose hypervisor is running."""

    def __init__(self, xen: Xen, hypervisor: SimHypervisor, us: int) -> None:
        self.domid = hypervisor.domain.domid
        self._xen = xen
        self._hypervisor = hypervisor
        self._domain = hypervisor.domain
        self._us = us

    def grant(self, pages: int, *, writable: bool = True, to: int | None = None) -> list[int]:
        first = self._domain.allocate(pages)
        whom = self._us if to is None else to
        return [self._domain.grant(first + n, whom, writable=writable) for n in range(pages)]

    def read(self, ref: int, size: int = PAGE_SIZE) -> bytes:
        return bytes(self._domain.pages(self._domain.grants[ref].page, 1)[:size])

    def write(self, ref: int, data: bytes) -> None:
        self._domain.pages(self._domain.grants[ref].page, 1)[: len(data)] = data

    async def take_back(self, refs: Sequence[int]) -> bool:
        await trio.lowlevel.checkpoint()
        ended = [self._domain.end_grant(ref) for ref in refs]
        return all(ended)

    def offer(self, *, to: int | None = None) -> SimPort:
        number = self._domain.offer(self._us if to is None else to)
        assert number < PORTS
        return SimPort(self._hypervisor, number)

    async def give(self, path: str, domid: int) -> None:
        await trio.lowlevel.checkpoint()
        self._xen.server.tree.set_perms(0, path, [("n", domid), ("r", self._us)])


# include/uapi/xen/gntalloc.h: _IOC(_IOC_NONE, 'G', 5, 24) and (…, 6, 16); evtchn.h: _IOC(_IOC_NONE, 'E', 2, 4) and so on.
ALLOC_GREF: Final = 0x00184705
DEALLOC_GREF: Final = 0x00104706
BIND_UNBOUND_PORT: Final = 0x00044502
NOTIFY: Final = 0x00044504
_ALLOC: Final = Struct("=HHIQ")
_DEALLOC: Final = Struct("=QII")
_U32: Final = Struct("=I")
_LIMIT: Final = Path("/sys/module/xen_gntalloc/parameters/limit")
_MANY: Final = 16384
_PATIENCE: Final = 2.0
"""Seconds that the kernel may take to release pages that the other end has unmapped."""


class HostPort:
    """A port of a /dev/xen/evtchn file of its own."""

    def __init__(self, domid: int) -> None:
        self._fd = os.open("/dev/xen/evtchn", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.number: int = fcntl.ioctl(self._fd, BIND_UNBOUND_PORT, bytearray(_U32.pack(domid)))

    def notify(self) -> None:
        fcntl.ioctl(self._fd, NOTIFY, bytearray(_U32.pack(self.number)))

    async def notified(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            with contextlib.suppress(BlockingIOError):
                os.write(self._fd, os.read(self._fd, 4))  # a port that has been read is masked until it is written back
                return

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Block:
    """Pages that were granted together."""

    def __init__(self, index: int, memory: mmap.mmap, refs: Sequence[int]) -> None:
        self.index = index
        self.memory = memory
        self.refs = list(refs)
        self._page = {ref: page for page, ref in enumerate(refs)}

    def start(self, ref: int) -> int:
        """Return the offset of a page in the memory."""
        return self._page[ref] * PAGE_SIZE


def _mapped_grants() -> set[int]:
    """Return Dom0's grants that are mapped, from Xen's debug key g: lines of `[0x…] domid mfn pin …` below `remote d0`."""
    subprocess.run(["xl", "dmesg", "-c"], check=True, capture_output=True)
    subprocess.run(["xl", "debug-keys", "g"], check=True)
    said = subprocess.run(["xl", "dmesg"], check=True, capture_output=True, text=True).stdout
    tables = re.split(r"remote d(\d+)", said)
    ours = "".join(text for domid, text in zip(tables[1::2], tables[2::2], strict=True) if domid == "0")
    return {int(ref, 16) for ref in re.findall(r"\[0x([0-9a-f]+)\]", ours)}


class HostPeer:
    """This domain as its own peer. The pages count towards gntalloc's limit, which is for the whole system."""

    def __init__(self, domid: int = 0) -> None:
        self.domid = domid
        self._fd = os.open("/dev/xen/gntalloc", os.O_RDWR | os.O_CLOEXEC)
        self._blocks: dict[int, _Block] = {}
        self._ports: list[HostPort] = []
        self._usual_limit = _LIMIT.read_text()
        self._set_limit(_MANY)

    def close(self) -> None:
        """Release everything."""
        for port in self._ports:
            port.close()
        for block in set(self._blocks.values()):
            block.memory.close()
        os.close(self._fd)
        _LIMIT.write_text(self._usual_limit)

    def _set_limit(self, pages: int) -> None:
        _LIMIT.write_text(str(pages))

    def grant(self, pages: int, *, writable: bool = True, to: int | None = None) -> list[int]:
        whom = self.domid if to is None else to
        ask = bytearray(_ALLOC.pack(whom, int(writable), pages, 0)) + bytearray(4 * pages + 4)
        fcntl.ioctl(self._fd, ALLOC_GREF, ask)
        index = _ALLOC.unpack_from(ask)[3]
        refs = [ref for (ref,) in _U32.iter_unpack(ask[_ALLOC.size : _ALLOC.size + 4 * pages])]
        block = _Block(index, mmap.mmap(self._fd, pages * PAGE_SIZE, offset=index), refs)
        self._blocks.update(dict.fromkeys(refs, block))
        return refs

    def read(self, ref: int, size: int = PAGE_SIZE) -> bytes:
        start = self._blocks[ref].start(ref)
        return self._blocks[ref].memory[start : start + size]

    def write(self, ref: int, data: bytes) -> None:
        start = self._blocks[ref].start(ref)
        self._blocks[ref].memory[start : start + len(data)] = data

    def _give_up(self, refs: Sequence[int]) -> None:
        block = self._blocks[refs[0]]
        assert block.refs == list(refs)
        block.memory.close()
        for ref in refs:
            del self._blocks[ref]
        fcntl.ioctl(self._fd, DEALLOC_GREF, bytearray(_DEALLOC.pack(block.index, len(refs), 0)))

    async def take_back(self, refs: Sequence[int]) -> bool:
        """The kernel keeps pages that the other end maps without telling; but Xen lists the grants in use."""
        until = trio.current_time() + _PATIENCE
        while mapped := _mapped_grants() & set(refs):
            if trio.current_time() > until:
                print(f"still mapped: {sorted(mapped)}")
                return False
            await trio.sleep(0.05)
        self._give_up(refs)
        return True

    def offer(self, *, to: int | None = None) -> HostPort:
        port = HostPort(self.domid if to is None else to)
        self._ports.append(port)
        return port

    async def give(self, path: str, domid: int) -> None:
        await trio.run_process(["xenstore-chmod", path, f"n{domid}", f"r{self.domid}"])
