"""The buffers of one guest at the compositor: offers them one at a time, and takes them back."""

from __future__ import annotations

import trio

from displbe.sinks.base import SinkError

from .buffers import BufferState, ImportHistory, WaylandBuffer, import_buffer
from .conn import CompositorLost
from .link import Link
from .settings import WaylandSettings

__all__ = ["BufferImports"]


class BufferImports:
    """All buffers of one guest, and the link over which they are offered to the compositor; None while there is no compositor."""

    def __init__(self, settings: WaylandSettings, history: ImportHistory) -> None:
        self.link: Link | None = None
        self.buffers: set[WaylandBuffer] = set()
        self.history = history
        self._settings = settings
        self._added = trio.Event()
        """Set when there are buffers that have not been offered."""
        self._one_at_a_time = trio.Lock()
        """Held while a buffer is offered or taken back, so that a protocol error has only one possible cause."""
        self._unresponsive: Link | None = None
        """The link whose compositor did not respond when a buffer was last taken back."""

    def add(self, buffer: WaylandBuffer) -> None:
        """Offer a buffer soon: now, or when there is a compositor."""
        self.buffers.add(buffer)
        self._added.set()

    def lost(self) -> None:
        """Take note that the link is gone, and with it all wl_buffers."""
        self.link = None
        for buffer in self.buffers:
            if self._settings.dmabuf == "auto":
                self.history.on_lost(buffer)
            buffer.reset()

    async def offer_added(self) -> None:
        """Wait until there are buffers that have not been offered, and offer them. Raises CompositorLost."""
        await self._added.wait()
        await self.offer_all()

    async def offer_all(self) -> None:
        """Offer the compositor each buffer that has not been offered. Raises CompositorLost."""
        self._added = trio.Event()
        link = self.link
        assert link is not None
        for buffer in list(self.buffers):
            if buffer.state is BufferState.NEW:
                await self._offer(link, buffer)

    async def _offer(self, link: Link, buffer: WaylandBuffer) -> None:
        async with self._one_at_a_time:
            if buffer.is_closed:
                return
            try:
                await import_buffer(link, buffer, self._settings, self.history)
            except SinkError as error:
                buffer.fail(error)
            if buffer.is_closed:  # the guest has taken the buffer back meanwhile; `take_back` waits for the lock
                await self._destroy(buffer)
                return
        if buffer.wl is not None:
            link.conn.on(buffer.wl, "release", buffer.on_release)
        buffer.decide()

    async def take_back(self, buffer: WaylandBuffer, patience: float) -> bool:
        """Take a buffer back from the compositor. Return False if the compositor does not confirm that within `patience` seconds.

        This does not wait for a compositor that did not respond the last time, until it responds again.
        """
        link = self.link
        with trio.move_on_after(0.0 if link is not None and link is self._unresponsive else patience):
            async with self._one_at_a_time:
                await self._destroy(buffer)
            self._unresponsive = None
            return True
        self._request_destroy(buffer)
        if link is not None and link is self.link and self._unresponsive is not link:
            self._unresponsive = link
            link.conn.call_after_sync(self._on_response)
        return False

    def _on_response(self) -> None:
        """Take note that the compositor responds again."""
        self._unresponsive = None

    async def _destroy(self, buffer: WaylandBuffer) -> None:
        """Destroy the wl_buffer, and wait until the compositor has destroyed it."""
        if self._request_destroy(buffer) and self.link is not None:
            try:
                await self.link.conn.sync()
            except CompositorLost:
                pass

    def _request_destroy(self, buffer: WaylandBuffer) -> bool:
        """Destroy the wl_buffer. Return False if there is none."""
        wl = buffer.wl
        buffer.reset()
        if self.link is None or wl is None:
            return False
        self.link.conn.destroy(wl)
        self.link.conn.flush()
        return True
