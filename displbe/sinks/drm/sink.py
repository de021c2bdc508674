"""The sink that is DRM master: the machine's cards, and which claimed output is on which card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import brief, severity, shortage
from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.flip import FlipClock
from displbe.sinks.tasks import Tasks
from displbe.sinks.turn import Turn
from displbe.threads import NoThread, run_in_thread
from displbe.xen.port import Unavailable

from . import hotplug
from .binding import Binding, Match, card_names, describe
from .card import Card, CardState
from .device import CardConnector, Connection, DrmDevice
from .finder import CardFinder
from .libseat import PLAIN, FileOpener, Libseat, find_libseat
from .names import canonical
from .output import CARD_GONE, DrmOutput, ScreenState
from .settings import DrmSettings
from .switch_keys import SwitchKeys

__all__ = ["DrmSink", "NoCard"]

DEVICES: Final = Path("/dev/dri")
LEAVING: Final = 2.0
"""Seconds that giving the seat back to the session manager may take."""
SEARCH: Final = 1.0
"""Seconds between two searches for cards while an output has none, or a card could not be opened."""
POLLS: Final = 10
"""Where nobody tells of monitors, cards that rest are looked at each tenth time."""
PROBE: Final = 15.0
"""Seconds between two probes of the connectors while a screen is dark: not every board reports each monitor."""
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
        self._switch_keys = SwitchKeys(self._seat.switch) if self._seat is not None else None
        self._directory = devices
        opener = self._seat or PLAIN
        self._finder = CardFinder(
            devices,
            settings.device,
            lambda path: Card.open(
                path, opener, settings, open_device, self._attach_waiting, self._why_leave, self.pump
            ),
        )
        self._cards: dict[str, Card] = {}
        """By path."""
        self._locations: dict[str, tuple[str, int | None]] = {}
        """Connector's name in the form of `canonical`, with the card's name or place in the machine (`card1/HDMI-A-1`) and
        without it -> the card's sysfs path, and the connector's index among those that no dock has (None: a dock has it).
        """
        self._bindings: dict[str, Binding] = {}
        """The names that have been claimed. A guest that comes again finds its connector under the connector's new name, too."""
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
        try:
            await self._run(task_status)
        finally:
            with trio.move_on_after(LEAVING, shield=True):
                with suppress(NoThread):  # the session manager sees the end of the process
                    await run_in_thread(self._seat.give_back, abandon_on_cancel=True)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            found, refusals = await run_in_thread(self._finder.open_new, ())
        except OSError as error:
            raise NoCard(f"the cards in {self._directory} cannot be opened: {shortage(error)}") from error
        if not found:
            raise NoCard(f"no usable DRM device in {self._directory} ({'; '.join(refusals) or 'there is none'})")
        for card in found:
            self._start(card)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tasks.run)
            nursery.start_soon(hotplug.watch, self._on_hotplug, self._poll)
            nursery.start_soon(self._search)
            nursery.start_soon(self._probe_while_dark)
            nursery.start_soon(self._clock.run)
            if self._switch_keys is not None:
                nursery.start_soon(self._switch_keys.run)
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
        fixed = _fixed(card)
        for connector in card.connectors:
            index = fixed.index(connector) if connector in fixed else None
            for name in _names(card, connector):
                self._locations.setdefault(name, (device.sysfs_path, index))
            _log.debug(
                "connector",
                card=device.name,
                connector=connector.name,
                connected=connector.connection is Connection.CONNECTED,
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
                found, _ = await run_in_thread(self._finder.open_new, tuple(self._cards))
                for card in found:
                    _log.info("card found", card=card.device.name)
                    self._start(card)
                self._tell_waiting()
                if self._seat is not None:
                    self._seat.keep(self._cards)
            except Exception as error:  # for example, no thread can be started
                self._warn("search for cards failed; tried again", brief(error), level=severity(error))
                await trio.sleep(SEARCH)
                self._search_now.set()

    async def _probe_while_dark(self) -> None:
        """Probe all connectors now and then while a screen that a guest uses is dark, until cancelled."""
        while True:
            await trio.sleep(PROBE)
            if any(output.state is ScreenState.DARK for output in self.outputs.values()):
                self._probe(self._cards.values())

    def _on_hotplug(self) -> None:
        """Search for cards and probe all connectors: a monitor or a card may have come or gone."""
        self._search_now.set()
        self._probe(self._cards.values())

    def _poll(self) -> None:
        """Do the same where nobody tells of monitors.

        Cards that rest would be opened each time: they are probed less often, unless an output needs it.
        """
        self._search_now.set()
        rest_too = self._is_monitor_missed() or int(trio.current_time() / hotplug.POLL) % POLLS == 0
        self._probe(card for card in self._cards.values() if rest_too or not card.is_resting)

    def _is_monitor_missed(self) -> bool:
        """Return whether an output waits for a monitor."""
        return any(output.state is ScreenState.DARK or output.pipe is None for output in self.outputs.values())

    def _probe(self, cards: Iterable[Card]) -> None:
        is_missed = self._is_monitor_missed()
        for card in cards:
            if is_missed and card.is_resting:
                card.look_for()
            else:
                card.look(probe=True)

    def _on_seat(self) -> None:
        """Look at all cards: displbe has got the seat, or lost it to another session, or there is none."""
        if self._switch_keys is not None and self._seat is not None:
            self._switch_keys.seat_changed(is_ours=self._seat.active)
        for card in self._cards.values():
            card.look()

    def abilities(self) -> Mapping[str, str]:
        return {card.device.name: card.describe() for card in self._cards.values()}

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if any(output.name == name for output in self.outputs.values()):
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        key, self._next_key = self._next_key, self._next_key + 1
        released = partial(self._give_back, key)
        binding = self._bindings.get(name) or Binding(name)
        output = DrmOutput(binding, key, self._settings, self._clock, self._tasks, released, self.pump)
        found = self._choose(output)
        if found is None and not self._may_come(binding):
            there = [describe(connector) for card in self._open_cards() for connector in card.connectors]
            known = ", ".join(sorted(there or (name for name in self._locations if "/" not in name)))
            raise OutputUnavailable(f"no connector {name}; there are: {known}")
        if found is not None and found[0].is_resting:
            self._check_not_awaited(*found)
            output.wait_for_card()
            found[0].wake_soon()
        elif found is not None:
            card, connector = found
            other = card.output_on(connector)
            if other is None or other.binding.match(card.device, connector) is not Match.FOLLOWS:
                card.attach(output, connector)
            else:  # it leaves at the card's next look
                card.look()
        else:
            output.wait_for_connector(self._why_missing(binding))
            for one in self._cards.values():
                one.look_for()
        self.outputs[key] = output
        self._bindings[name] = binding
        self._search_now.set()
        return output

    def _check_not_awaited(self, card: Card, connector: CardConnector) -> None:
        """Raises OutputUnavailable if another output waits for this connector of a card that is being opened."""
        for other in self.outputs.values():
            if other.pipe is None and (found := self._choose(other)) and found[0] is card and found[1] is connector:
                raise OutputUnavailable(f"connector {connector.name} is taken by another guest")

    def _tell_waiting(self) -> None:
        """Tell the outputs for which there is no connector why: the card has gone that they have waited for."""
        for output in self.outputs.values():
            if output.pipe is None and self._choose(output) is None:
                output.wait_for_connector(self._why_missing(output.binding))

    def _open_cards(self) -> list[Card]:
        return [card for card in self._cards.values() if card.state is CardState.OPEN]

    def _may_come(self, binding: Binding) -> bool:
        """Whether a connector that is not there may come: the name has been seen, or names a monitor, a dock or a place."""
        name = _location_name(binding)
        return name in self._locations or binding.was_on or not binding.is_by_kernel_name or binding.names_a_place

    def _choose(self, output: DrmOutput) -> tuple[Card, CardConnector] | None:
        """Return the connector that an output belongs on now; None: there is none.

        A connector with a monitor is better than one without; then, one that has the name is better than one that the
        output would follow to. A connector that another output has is chosen only if the other one merely follows. No
        output follows to a connector that an output without one names.
        If no connector has the name, it is the connector at the location where this name was first seen.
        """
        binding = output.binding
        best: tuple[tuple[bool, int, Match], Card, CardConnector] | None = None
        for card in self._open_cards():
            for connector in card.connectors:
                match = binding.match(card.device, connector)
                if match is Match.NONE or (match is Match.FOLLOWS and self._is_wanted_by_name(card, connector)):
                    continue
                other = card.output_on(connector)
                taken = other not in (None, output) and match <= other.binding.match(card.device, connector)
                rank = not taken, _monitor_rank(connector), match
                if best is None or rank > best[0]:
                    best = rank, card, connector
        if best is not None:
            return best[1], best[2]
        path, index = self._locations.get(_location_name(binding), ("", None))
        for card in self._open_cards():
            fixed = _fixed(card)
            if card.device.sysfs_path == path and index is not None and index < len(fixed):
                return card, fixed[index]
        return None

    def _why_missing(self, binding: Binding) -> str:
        """Return why an output is on no connector."""
        cards = self._open_cards()
        if binding.card and not any(binding.card in card_names(card.device) for card in cards):
            return f"there is no card {binding.card} now" if cards else CARD_GONE
        path, _ = self._locations.get(_location_name(binding), ("", None))
        if not cards or (path and not any(card.device.sysfs_path == path for card in cards)):
            return CARD_GONE
        if binding.is_by_kernel_name:
            return f"there is no connector {binding.connector} now: is the dock plugged in?"
        return f"no connector has {binding.connector}: displbectl check lists the names that there are"

    def _attach_waiting(self, card: Card) -> None:
        """Attach the outputs that wait for this card, and have another card look if they wait for that one."""
        for output in self.outputs.values():
            if output.pipe is not None:
                continue
            found = self._choose(output)
            if found is None:
                output.wait_for_connector(self._why_missing(output.binding))
            elif found[0].is_resting:
                found[0].wake_soon()
            elif found[0] is not card:
                found[0].look()
            else:
                try:
                    card.attach(output, found[1])
                except OutputUnavailable as error:
                    output.wait_for_connector(str(error))
                    self._warn("connector not used", str(error), connector=output.name)

    def _why_leave(self, card: Card, output: DrmOutput, connector: CardConnector | None) -> str:
        """Return why an output may not stay on this connector of a card; empty: it may stay. None: the connector is gone."""
        if connector is None:
            return "the connector is gone: is the dock plugged in?"
        binding = output.binding
        match = binding.match(card.device, connector)
        if not binding.is_by_kernel_name and connector.edid_name and match is Match.NONE:
            return f"{connector.name} has another monitor: {connector.edid_name}"
        if match is Match.FOLLOWS and self._is_wanted_by_name(card, connector):
            return f"{connector.name} belongs to a guest that names it"
        is_lit = output.can_be_lit(connector)
        if is_lit and match is not Match.FOLLOWS:
            return ""
        found = self._choose(output)
        if found is None or not found[1].can_be_lit or (found[0] is card and found[1].id == connector.id):
            return ""
        place = f"{found[0].device.name}/{found[1].name}"
        if not is_lit:
            return f"the monitor is on {place} now"
        # A lit output does not change between connectors that it would only follow to.
        return f"{place} has a monitor again" if binding.match(found[0].device, found[1]) is Match.NAMED else ""

    def _is_wanted_by_name(self, card: Card, connector: CardConnector) -> bool:
        """Whether an output without a connector names this one."""
        waiting = (output for output in self.outputs.values() if output.pipe is None)
        return any(output.binding.match(card.device, connector) is Match.NAMED for output in waiting)

    def claimed(self, name: str) -> Output | None:
        return next((output for output in self.outputs.values() if output.name == name), None)

    def turn_of(self, name: str) -> Turn:
        for output in self.outputs.values():
            pipe = output.pipe
            if pipe is not None and canonical(name) in map(canonical, output.names_on(pipe.device.name, pipe.name)):
                return output.turn
        return Turn.NONE

    def _give_back(self, key: int) -> None:
        """Forget an output that its guest has given back. Another one may wait for its connector or its CRTC."""
        del self.outputs[key]
        for card in self._cards.values():
            if card.outputs.pop(key, None) is not None:
                card.look()


def _names(card: Card, connector: CardConnector) -> set[str]:
    """Return the names by which a connector can be claimed while its card is away, in the form of `canonical`."""
    name = canonical(connector.name)
    return {name, *(f"{card_name}/{name}" for card_name in card_names(card.device))}


def _location_name(binding: Binding) -> str:
    """Return the name under which the location of a name's connector is known."""
    return f"{binding.card}/{binding.connector}" if binding.card else binding.connector


def _fixed(card: Card) -> list[CardConnector]:
    """Return a card's connectors without those of docks."""
    return [connector for connector in card.connectors if not connector.path_name]


def _monitor_rank(connector: CardConnector) -> int:
    """Return how sure it is that a connector has a monitor; more is better."""
    return 2 if connector.connection is Connection.CONNECTED else int(connector.can_be_lit)
