"""port.Hypervisor over /dev/xen/* and XenStore."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from displbe.pump.native import Pump
from displbe.threads import run_in_thread_or_here

from . import gntdev, paths, store
from .evtchn import Channel, EventChannels
from .gntdev import GrantedPages, GuestPage
from .port import Abilities, Ledger, NotOffered, Unavailable

__all__ = ["Host", "NoXen"]


class NoXen(Unavailable):
    """This machine lacks a part of Xen that displbe needs; the text names it in one sentence."""


class Host:
    """Xen from this domain. Raises NoXen when XenStore, gntdev or evtchn is missing."""

    def __init__(self, store_path: str | None = None) -> None:
        path = store_path or paths.find_store()
        if path is None:
            raise NoXen(
                "there is no XenStore here (neither its socket nor /dev/xen/xenbus); displbe runs in a Xen domain"
            )
        if not paths.may_be_store(path):
            raise NoXen(f"store in [xen]: {path} is neither xenstored's socket nor a xenbus device; leave it empty")
        self.ledger = Ledger()
        self.store = store.XenStore(path)
        try:
            self._gntdev = gntdev.open_gntdev()
            self._channels = EventChannels(self.ledger)
        except OSError as error:
            raise NoXen(
                f"{error.filename}: {error.strerror}; displbe needs the kernel's xen_gntdev and xen_evtchn"
            ) from error
        self.abilities = _probe(self._gntdev)

    def system_calls(self) -> None:
        """port.Hypervisor.system_calls"""

    def use_pump(self, pump: Pump | None) -> None:
        """port.Hypervisor.use_pump"""
        self._channels.pump = pump

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """port.Hypervisor.run. Raises NoXen when XenStore cannot be reached."""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(self.store.run)
                except OSError as error:
                    raise NoXen(f"XenStore cannot be reached: {error}") from error
                nursery.start_soon(self._channels.run)
                task_status.started()
        finally:
            self._channels.close()
            with trio.CancelScope(shield=True):
                await run_in_thread_or_here(os.close, self._gntdev)

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> Channel:
        """port.Hypervisor.bind"""
        return self._channels.bind(domid, remote_port, fired)

    def map_page(self, domid: int, ref: int, *, writable: bool) -> GuestPage:
        """port.Hypervisor.map_page"""
        return gntdev.map_page(self._gntdev, domid, ref, self.ledger, writable=writable)

    async def map_buffer(
        self,
        domid: int,
        refs: Sequence[int],
        *,
        dmabuf: bool,
        shared: bool = False,
        threads: trio.CapacityLimiter | None = None,
    ) -> GrantedPages:
        """port.Hypervisor.map_buffer"""
        no_export = "" if self.abilities.dmabuf_export else self.abilities.reason
        return await GrantedPages.open(
            domid, refs, self.ledger, dmabuf=dmabuf, shared=shared, threads=threads, no_export=no_export
        )

    def share_dmabuf(
        self, domid: int, fd: int, pages: int, threads: trio.CapacityLimiter | None = None
    ) -> AbstractAsyncContextManager[list[int]]:
        """port.Hypervisor.share_dmabuf"""
        if not self.abilities.dmabuf_import:
            raise NotOffered(errno.EOPNOTSUPP, f"no be-alloc: {self.abilities.reason}")
        return gntdev.share_dmabuf(domid, fd, pages, threads)


def _probe(fd: int) -> Abilities:
    """Return this host's abilities. They depend on a kernel option and on the type of our domain: a PV domain cannot export dma-bufs."""
    if not gntdev.probe(fd):
        return Abilities(False, False, "this kernel is built without CONFIG_XEN_GNTDEV_DMABUF")
    try:
        kind = Path("/sys/hypervisor/guest_type").read_text().strip()
    except OSError:
        kind = ""
    if kind == "PV":
        return Abilities(False, True, "gntdev cannot export dma-bufs in a PV domain")
    return Abilities(True, True)
