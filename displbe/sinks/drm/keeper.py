"""Looks after one card from its opening until it is gone: its events, the right to it, its connectors, what its outputs show.

It looks at everything once a second and whenever it is told that something may have changed, and makes right what is not.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from .device import Card, Connector
from .errors import DrmError
from .flip import SERIALS
from .leaving import Found
from .output import DrmOutput

if TYPE_CHECKING:
    from .sink import DrmSink

__all__ = ["Keeper"]

PERIOD: Final = 1.0
PAUSE: Final = 0.1
"""Seconds at least between two looks: events come in bursts, and a flip that fails each time asks for one each time."""

TAKEN_AWAY: Final = 2.0
"""Seconds after which a session manager that has taken a card away has said so."""

PATIENCE: Final = 5.0
"""Seconds that closing a card may take."""


class Keeper:
    """One open card and its connectors as they were last seen."""

    def __init__(self, sink: DrmSink, card: Card) -> None:
        self.card = card
        self.master = False
        self.connectors: list[Connector] = []
        self._sink = sink
        self._log: Any = structlog.get_logger("displbe.drm").bind(card=card.name)
        self._wanted = trio.Event()
        self._stale = True
        self._unreadable = False
        self._blind = False
        """Its connectors could not be probed the last time."""
        self._since = 0.0
        """When it became master, or ceased to be."""
        self._found: Found | None = None
        self._ends = "the card is gone"
        self.ending = False
        """It is being closed: no output is to be on it any more."""
        self.successor: Keeper | None = None
        """Of the same card, through another file, which is master."""

    def look(self, *, probe: bool = False) -> None:
        """Look after the card soon; with `probe`, at what is connected too."""
        self._stale = self._stale or probe
        self._wanted.set()

    def first_look(self) -> None:
        """In a worker thread: what there is, before anything is changed. Raises DrmError."""
        self.master = self.card.become_master()
        self.connectors = self.card.probe()
        self._found = Found(self.card)
        self._stale = False
        if not self.master:
            self._log.warning(f"{self.why_not_master()}: waiting for it to end")

    def why_not_master(self) -> str:
        """Who has the right to the screens; empty: we."""
        if self.master:
            return ""
        if self.card.managed and not self._sink.files.active:
            return "another session has the seat"
        return "another program is DRM master"

    async def run(self) -> None:
        """Serve until the card is gone, or cancelled; then it is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_events)
                await self._keep()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._close()

    async def _close(self) -> None:
        """Nothing uses the card any more, then it is closed: its number and its connectors' names are free for its successor."""
        self.ending = True
        for output in self._sink.outputs_of(self.card):
            await output.unmoor(self._ends)
        if self._sink.settings.on_exit == "restore" and self._found is not None:
            with suppress(DrmError):  # the program is gone whose picture it was
                await trio.to_thread.run_sync(self._found.restore)
        trio.lowlevel.notify_closing(self.card.fd)
        # virtio-gpu, for one, waits for ever for the device it has lost when it imported from others: not our loop.
        with trio.move_on_after(PATIENCE) as waiting:
            await trio.to_thread.run_sync(self.card.close, abandon_on_cancel=True)
        if waiting.cancelled_caught:
            self._log.error("the card's driver hangs: it does not let its file be closed")

    async def _read_events(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self.card.fd)
                self.card.read_events(self._flipped)
        except OSError as error:
            self._log.warning("cannot read the card's events", reason=error.strerror)
            self._unreadable = True
            self.look()

    def _flipped(self, serial: int) -> None:
        output = self._sink.outputs.get(serial // SERIALS)
        if output is not None:
            output.on_event(serial)

    async def _keep(self) -> None:
        while True:
            with trio.move_on_after(PERIOD):
                await self._wanted.wait()
            self._wanted = trio.Event()
            if self._unreadable or self.card.gone():
                self._log.warning("card gone")
                return
            self._look_at_master()
            if await self._better_file():
                return
            if self._stale:
                await self._probe()
            await self._settle()
            await trio.sleep(PAUSE)

    def _look_at_master(self) -> None:
        master = self.card.become_master()
        if master == self.master:
            return
        self.master = master
        self._since = trio.current_time()
        if master:
            self._log.info("DRM master again")
            self._stale = True  # who is not master does not see monitors come and go
        else:
            self._log.warning(f"{self.why_not_master()} now: waiting for it to end")

    async def _better_file(self) -> bool:
        """Whether the card is to be opened anew: through the seat, or because a new file is master and ours never will be."""
        if self._sink.files.outdated(self.card.path, self.card.fd):
            self._ends = "the card is opened through the seat"
        elif not self.master and self.card.barred:
            # The first to open a card that has no master becomes it.
            if self.card.managed:  # the session manager would give us the same file again while we have it
                # It takes the card away a moment before it says so.
                if trio.current_time() - self._since < TAKEN_AWAY:
                    return False
                if not await trio.to_thread.run_sync(self._sink.has_no_master, self.card.path):
                    return False
            else:
                self.successor = await trio.to_thread.run_sync(self._sink.succeed, self.card.path)
                if self.successor is None:
                    return False
            self._ends = "the card is opened anew"
        else:
            return False
        self._log.info(self._ends)
        return True

    async def _probe(self) -> None:
        self._stale = False
        try:
            found = await trio.to_thread.run_sync(self.card.probe)
        except DrmError as error:
            self._stale = True  # the next look tries again
            if not self._blind:
                self._log.warning("cannot look at the connectors", reason=str(error))
            self._blind = True
            return
        self._blind = False
        before = {connector.id: connector.connected for connector in self.connectors}
        self.connectors = found
        for connector in found:
            if before.get(connector.id) != connector.connected:
                state = "connected" if connector.connected else "disconnected"
                self._log.info(f"monitor {state}", connector=connector.name, modes=len(connector.modes))

    async def _settle(self) -> None:
        """Each output by itself: one that must wait for its hardware keeps no other waiting for longer than this look."""
        self._sink.moor_to(self)
        async with trio.open_nursery() as nursery:
            for output in self._sink.outputs_of(self.card):
                nursery.start_soon(self._settle_one, output)

    async def _settle_one(self, output: DrmOutput) -> None:
        pipe = output.pipe
        connector = next((c for c in self.connectors if pipe is not None and c.id == pipe.connector), None)
        if connector is None:
            return
        try:
            await output.settle(connector)
        except Exception:
            self._log.exception("output not settled", connector=output.name)
