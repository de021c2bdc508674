"""The sink that is DRM master: the machine's cards, and which claimed output is on which card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.flip import FlipClock
from displbe.sinks.tasks import Tasks
from displbe.sinks.turn import Turn
from displbe.xen.port import Unavailable

from . import hotplug
from .card import Card, CardState
from .device import CardConnector, DrmDevice
from .finder import CardFinder
from .libseat import PLAIN, FileOpener, Libseat, find_libseat
from .output import DrmOutput
from .settings import DrmSettings

__all__ = ["DrmSink", "NoCard"]

DEVICES: Final = Path("/dev/dri")
LEAVING: Final = 2.0
"""Seconds that giving the seat back to the session manager may take."""
SEARCH: Final = 1.0
"""Seconds between two searches for cards while an output has none, or a card could not be opened."""
_log = structlog.get_logger("displbe.drm")


class NoCard(Unavailable):
    """There is no card that can show anything."""


class DrmSink(Sink):
    """DRM master of one or more cards. Tests hand in other `open_device`, `devices` and `seat`."""

    def __init__(
        self,
        settings: DrmSettings,
        open_device: Callable[[str, FileOpener], DrmDevice] = DrmDevice,
        devices: Path = DEVICES,
        seat: Callable[[], Libseat | None] = find_libseat,
    ) -> None:
        self.wants_dmabuf = settings.zero_copy != "off"
        self.outputs: dict[int, DrmOutput] = {}
        """All claimed outputs by key, with and without a card."""
        self._settings = settings
        self._seat = seat() if settings.seat == "auto" else None
        self._directory = devices
        opener = self._seat or PLAIN
        self._finder = CardFinder(
            devices,
            settings.device,
            lambda path: Card.open(path, opener, settings, open_device, self._attach_waiting),
        )
        self._cards: dict[str, Card] = {}
        """By path."""
        self._locations: dict[str, tuple[str, int]] = {}
        """Connector's name, with the card's name (`card1/HDMI-A-1`) and without it -> the card's sysfs path, and the
        connector's index on the card.
        """
        self._search_now = trio.Event()
        self._next_key = 1
        self._clock = FlipClock()
        self._tasks = Tasks(_log)
        self._warn = SparseLog(_log)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raises NoCard."""
        if self._seat is None:
            await self._run(task_status)
            return
        await trio.to_thread.run_sync(self._seat.connect, abandon_on_cancel=True)
        try:
            await self._run(task_status)
        finally:
            with trio.move_on_after(LEAVING, shield=True):
                await trio.to_thread.run_sync(self._seat.leave, abandon_on_cancel=True)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        found, refusals = await trio.to_thread.run_sync(self._finder.open_new, ())
        if not found:
            raise NoCard(f"no usable DRM device in {self._directory} ({'; '.join(refusals) or 'there is none'})")
        for card in found:
            self._start(card)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tasks.run)
            nursery.start_soon(hotplug.watch, self._on_hotplug)
            nursery.start_soon(self._search)
            nursery.start_soon(self._clock.run)
            if self._seat is not None:
                nursery.start_soon(self._seat.run, self._on_seat)
            task_status.started()
            await trio.sleep_forever()

    # Cards

    def _start(self, card: Card) -> None:
        """Use a card that has been opened."""
        device = card.device
        if self._tasks.ended:  # the card was opened while the sink ended
            device.close()
            return
        self._cards[device.path] = card
        self._finder.opened(card)
        for index, connector in enumerate(card.connectors):
            for name in _names(card, connector):
                self._locations.setdefault(name, (device.sysfs_path, index))
            _log.debug(
                "connector",
                card=device.name,
                connector=connector.name,
                connected=connector.connected,
                modes=len(connector.modes),
            )
        card.look()
        self._tasks.start_soon(self._serve, card)

    async def _serve(self, card: Card) -> None:
        """Serve a card until it is closed, then use its successor, or search for the card again."""
        try:
            await card.run()
        finally:
            del self._cards[card.device.path]
            if card.successor is not None:
                self._start(card.successor)
            self._search_now.set()

    async def _search(self) -> None:
        """Open cards that are plugged in or come back, until cancelled."""
        while True:
            missing = any(output.pipe is None for output in self.outputs.values())
            urgent = missing or not self._cards or self._finder.failed
            with trio.move_on_after(SEARCH if urgent else float("inf")):
                await self._search_now.wait()
            self._search_now = trio.Event()
            try:
                found, _ = await trio.to_thread.run_sync(self._finder.open_new, tuple(self._cards))
                for card in found:
                    _log.info("card found", card=card.device.name)
                    self._start(card)
            except Exception as error:  # for example, no thread can be started
                self._warn("search for cards failed; tried again", type(error).__name__, level="exception")
                await trio.sleep(SEARCH)
                self._search_now.set()

    def _on_hotplug(self) -> None:
        """Search for cards and probe all connectors: a monitor or a card may have come or gone."""
        self._search_now.set()
        for card in self._cards.values():
            card.look(probe=True)

    def _on_seat(self) -> None:
        """Look at all cards: displbe has got the seat, or lost it to another session."""
        for card in self._cards.values():
            card.look()

    def abilities(self) -> Mapping[str, str]:
        return {card.device.name: card.describe() for card in self._cards.values()}

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if any(output.name == name for output in self.outputs.values()):
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        found = self._find(name)
        if found is None and name not in self._locations:
            known = ", ".join(sorted(name for name in self._locations if "/" not in name))
            raise OutputUnavailable(f"no connector {name}; there are: {known}")
        key, self._next_key = self._next_key, self._next_key + 1
        released = partial(self._give_back, key)
        output = DrmOutput(name, key, self._settings, self._clock, self._tasks, released)
        if found is not None:
            card, connector = found
            card.attach(output, connector)
        self.outputs[key] = output
        self._search_now.set()
        return output

    def _find(self, name: str) -> tuple[Card, CardConnector] | None:
        """Return the connector of this name (`HDMI-A-1`, `card1/HDMI-A-1`).

        If no connector has the name now, return the one at the location where this name was first seen. None: there is none.
        """
        cards = [card for card in self._cards.values() if card.state is CardState.OPEN]
        named = [(card, c) for card in cards for c in card.connectors if name in _names(card, c)]
        if not named and name in self._locations:
            path, index = self._locations[name]
            there = [card for card in cards if card.device.sysfs_path == path]
            named = [(card, c) for card in there for c in card.connectors[index : index + 1]]
        return next((pair for pair in named if pair[1].connected), named[0] if named else None)

    def _attach_waiting(self, card: Card) -> None:
        """Attach the outputs that were waiting for this card."""
        for output in self.outputs.values():
            found = self._find(output.name) if output.pipe is None else None
            if found is not None and found[0] is card:
                try:
                    card.attach(output, found[1])
                except OutputUnavailable as error:
                    self._warn("connector not used", str(error), connector=output.name)

    def claimed(self, name: str) -> Output | None:
        return next((output for output in self.outputs.values() if output.name == name), None)

    def turn_of(self, name: str) -> Turn:
        for output in self.outputs.values():
            pipe = output.pipe
            if pipe is not None and name in (output.name, pipe.name, f"{pipe.device.name}/{pipe.name}"):
                return output.turn
        return Turn.NONE

    def _give_back(self, key: int) -> None:
        """Forget an output that its guest has given back."""
        del self.outputs[key]
        for card in self._cards.values():
            card.outputs.pop(key, None)


def _names(card: Card, connector: CardConnector) -> tuple[str, str]:
    """Return the names by which a connector can be claimed."""
    return connector.name, f"{card.device.name}/{connector.name}"
