"""The cards of this machine and their outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import trio

from displbe.sinks.base import Output, OutputUnavailable, Sink
from displbe.xen.port import Unavailable

from .device import Card, Connector, DrmError, Plane
from .output import DrmOutput

__all__ = ["DrmSettings", "DrmSink", "NoCard"]

DEVICES: Final = Path("/dev/dri")
LATE_CHECK: Final = 0.25
_log = structlog.get_logger("displbe.drm")


class NoCard(Unavailable):
    """There is no card to show anything on."""


class DrmSettings(Protocol):
    """`[drm]` of the configuration."""

    @property
    def device(self) -> str:
        """A card's device or name (`/dev/dri/card0`, `card0`), or `auto`: every card that can be used."""

    @property
    def zero_copy(self) -> str:
        """`auto`, `require` or `off`."""


class DrmSink(Sink):
    """DRM master of one or more cards."""

    def __init__(self, settings: DrmSettings) -> None:
        self.settings = settings
        self.wants_dmabuf = settings.zero_copy != "off"
        self._cards: list[Card] = []
        self._connectors: dict[Card, list[Connector]] = {}
        self._outputs: dict[int, DrmOutput] = {}
        self._next_key = 1
        self._reprobe = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raises NoCard."""
        self._cards = await trio.to_thread.run_sync(self._open_cards)
        try:
            await self._probe()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for card in self._cards:
                    nursery.start_soon(self._read_events, card)
                nursery.start_soon(self._check_late)
                task_status.started()
                await self._probe_again()
        finally:
            for card in self._cards:
                card.close()

    def _open_cards(self) -> list[Card]:
        named = self.settings.device
        paths = sorted(DEVICES.glob("card*")) if named == "auto" else [DEVICES / named]
        cards, refusals = [], []
        for path in paths:
            try:
                cards.append(Card(str(path)))
            except DrmError as error:
                refusals.append(f"{path.name}: {error}")
            except OSError as error:
                refusals.append(f"{path.name}: {error.strerror}")
        if not cards:
            raise NoCard(f"no usable DRM device in {DEVICES} ({'; '.join(refusals) or 'there is none'})")
        for refusal in refusals:
            _log.warning("card not used", reason=refusal)
        return cards

    async def _probe(self) -> None:
        for card in self._cards:
            with suppress(DrmError):
                self._connectors[card] = await trio.to_thread.run_sync(card.probe)
            for connector in self._connectors.get(card, []):
                _log.debug(
                    "connector",
                    card=card.name,
                    connector=connector.name,
                    connected=connector.connected,
                    modes=len(connector.modes),
                )

    async def _probe_again(self) -> None:
        """Look at the connectors again when someone has asked for one that was not there."""
        while True:
            await self._reprobe.wait()
            self._reprobe = trio.Event()
            await self._probe()

    async def _read_events(self, card: Card) -> None:
        while True:
            await trio.lowlevel.wait_readable(card.fd)
            card.read_events(self._flipped)

    def _flipped(self, key: int) -> None:
        output = self._outputs.get(key)
        if output is not None:
            output.on_event()

    async def _check_late(self) -> None:
        while True:
            await trio.sleep(LATE_CHECK)
            now = trio.current_time()
            for output in list(self._outputs.values()):
                output.check_late(now)

    def start_soon(self, work: Callable[..., Any], *arguments: object) -> None:
        """Start a task that lives no longer than the sink."""
        assert self._nursery is not None
        self._nursery.start_soon(work, *arguments)

    def claim(self, name: str, width: int, height: int) -> Output:
        card, connector = self._find(name)
        if not any((mode.width, mode.height) == (width, height) for mode in connector.modes):
            known = ", ".join(dict.fromkeys(f"{mode.width}x{mode.height}" for mode in connector.modes))
            raise OutputUnavailable(f"{name} has no mode {width}x{height}; it has: {known}")
        crtc, plane = self._pipe(card, connector)
        key, self._next_key = self._next_key, self._next_key + 1
        output = self._outputs[key] = DrmOutput(self, card, connector, crtc, plane, key)
        return output

    def _find(self, name: str) -> tuple[Card, Connector]:
        """The connected connector of this name. Raises OutputUnavailable."""
        named = [(card, c) for card in self._cards for c in self._connectors.get(card, []) if c.name == name]
        if not named:
            known = ", ".join(sorted({c.name for cs in self._connectors.values() for c in cs}))
            raise OutputUnavailable(f"no connector {name}; there are: {known}")
        connected = [pair for pair in named if pair[1].connected]
        if not connected:
            self._reprobe.set()
            raise OutputUnavailable(f"nothing is connected to {name}")
        free = [
            pair
            for pair in connected
            if not any(o.connector.id == pair[1].id and o.card is pair[0] for o in self._outputs.values())
        ]
        if not free:
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        return free[0]

    def _pipe(self, card: Card, connector: Connector) -> tuple[int, Plane]:
        """A CRTC and a primary plane that nobody uses and that fit. Raises OutputUnavailable."""
        mine = [output for output in self._outputs.values() if output.card is card]
        for crtc in connector.crtcs:
            if any(output.crtc == crtc for output in mine):
                continue
            for plane in card.planes:
                if plane.primary and crtc in plane.crtcs and not any(output.plane.id == plane.id for output in mine):
                    return crtc, plane
        raise OutputUnavailable(f"{card.name} has no free CRTC for {connector.name}")

    def claimed(self, name: str) -> Output | None:
        return next((output for output in self._outputs.values() if output.name == name), None)

    def give_back(self, output: DrmOutput) -> None:
        """An output is free again."""
        del self._outputs[output.key]
