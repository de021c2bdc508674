"""The cards of this machine and their outputs."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.xen.port import Unavailable

from . import hotplug
from .atomic import Pipe
from .device import Card, Connector, place_of
from .errors import DrmError, Unfit
from .keeper import Keeper
from .output import DrmOutput
from .seat import PLAIN, Files, Seat, find_seat
from .settings import DrmSettings

__all__ = ["DrmSink", "NoCard"]

DEVICES: Final = Path("/dev/dri")
LATE_CHECK: Final = 0.25
LEAVING: Final = 2.0
"""Seconds that a session manager may take to hear that we end."""
SEARCH: Final = 1.0
"""Seconds between searches for the card of an output that has none."""
_log = structlog.get_logger("displbe.drm")


class NoCard(Unavailable):
    """There is no card to show anything on."""


class DrmSink(Sink):
    """DRM master of one or more cards. `open_card`, `devices` and `seat` are others in tests."""

    def __init__(
        self,
        settings: DrmSettings,
        open_card: Callable[[str, Files], Card] = Card,
        devices: Path = DEVICES,
        seat: Callable[[], Seat | None] = find_seat,
    ) -> None:
        self.settings = settings
        self._seat = seat() if settings.seat == "auto" else None
        self.files: Files = self._seat or PLAIN
        self.wants_dmabuf = settings.zero_copy != "off"
        self.outputs: dict[int, DrmOutput] = {}
        self._open_card = open_card
        self._devices = devices
        self._keepers: dict[str, Keeper] = {}
        self._places: dict[str, tuple[str, int]] = {}
        """Where each connector was seen, by name, with its card's and without: a card's place in the machine, and the connector's index
        there.
        """
        self._place = ""
        """The place of the one card that is to be used, once it was there."""
        self._unfit: dict[str, tuple[int, int]] = {}
        """Device nodes that are no cards for us: not to be tried again."""
        self._failed: dict[str, str] = {}
        """Cards that could not be opened or looked at, and why: tried again."""
        self._search_now = trio.Event()
        self._next_key = 1
        self._nursery: trio.Nursery | None = None

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
        refusals: list[str] = []
        found = await trio.to_thread.run_sync(self._open_new, refusals)
        if not found:
            raise NoCard(f"no usable DRM device in {self._devices} ({'; '.join(refusals) or 'there is none'})")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for keeper in found:
                    self._start(keeper)
                nursery.start_soon(hotplug.watch, self._changed)
                nursery.start_soon(self._search)
                nursery.start_soon(self._check_late)
                if self._seat is not None:
                    nursery.start_soon(self._seat.run, self._look_all)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # Cards

    def _open_new(self, refusals: list[str]) -> list[Keeper]:
        """In a worker thread: the cards that we have not got yet."""
        found = []
        before, self._failed = self._failed, {}
        for path in self._wanted():
            name = str(path)
            if name in self._keepers:
                continue
            try:
                node = os.stat(path)
                if self._unfit.get(name) == (node.st_ino, node.st_rdev):
                    continue
                found.append(self._open(name))
            except (DrmError, OSError) as error:
                reason = str(error) if isinstance(error, DrmError) else str(error.strerror)
                refusals.append(f"{path.name}: {reason}")
                if isinstance(error, Unfit):
                    self._unfit[name] = node.st_ino, node.st_rdev
                elif not isinstance(error, FileNotFoundError):
                    self._failed[name] = reason
                else:
                    continue
                if before.get(name) != reason:
                    _log.warning("card not used", card=path.name, reason=reason)
        return found

    def _wanted(self) -> list[Path]:
        """The device nodes of the cards that are to be used. One that is named is so for its place: it may come back as another number."""
        there, named = sorted(self._devices.glob("card*")), self.settings.device
        if named == "auto":
            return there
        return [path for path in there if self._place and _place(path) == self._place] or [self._devices / named]

    def _open(self, path: str) -> Keeper:
        card = self._open_card(path, self.files)
        try:
            keeper = Keeper(self, card)
            keeper.first_look()
        except BaseException:
            card.close()
            raise
        return keeper

    def _start(self, keeper: Keeper) -> None:
        if self._nursery is None:  # it was opened while we end
            keeper.card.close()
            return
        self._keepers[keeper.card.path] = keeper
        if self.settings.device != "auto":
            self._place = keeper.card.place
        for index, connector in enumerate(keeper.connectors):
            for name in (connector.name, f"{keeper.card.name}/{connector.name}"):
                self._places.setdefault(name, (keeper.card.place, index))
            _log.debug(
                "connector",
                card=keeper.card.name,
                connector=connector.name,
                connected=connector.connected,
                modes=len(connector.modes),
            )
        keeper.look()
        self.start_soon(self._keep, keeper)

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            del self._keepers[keeper.card.path]
            if keeper.successor is not None:
                self._start(keeper.successor)
            self._search_now.set()

    def succeed(self, path: str) -> Keeper | None:
        """In a worker thread: the card through another file, if that one is master."""
        try:
            card = self._open_card(path, self.files)
        except (DrmError, OSError):
            return None
        try:
            if card.become_master():
                keeper = Keeper(self, card)
                keeper.first_look()
                return keeper
        except DrmError as error:
            _log.debug("card not opened anew", card=card.name, reason=str(error))
        card.close()
        return None

    def has_no_master(self, path: str) -> bool:
        """In a worker thread: whether who opens the card now becomes its master."""
        try:
            card = self._open_card(path, PLAIN)
        except (DrmError, OSError):
            return False
        try:
            return card.become_master()
        finally:
            card.close()

    async def _search(self) -> None:
        """Open cards that come, or come back."""
        while True:
            missing = any(output.pipe is None for output in self.outputs.values()) or not self._keepers or self._failed
            with trio.move_on_after(SEARCH if missing else float("inf")):
                await self._search_now.wait()
            self._search_now = trio.Event()
            for keeper in await trio.to_thread.run_sync(self._open_new, []):
                _log.info("card found", card=keeper.card.name)
                self._start(keeper)

    def _changed(self) -> None:
        """A monitor or a card may have come or gone."""
        self._search_now.set()
        for keeper in self._keepers.values():
            keeper.look(probe=True)

    def look(self, card: Card) -> None:
        """Something is amiss with a card, or can be done again."""
        keeper = self._keepers.get(card.path)
        if keeper is not None:
            keeper.look()

    def _look_all(self) -> None:
        """The right to the cards may have changed."""
        for keeper in self._keepers.values():
            keeper.look()

    def why_not_master(self, card: Card) -> str:
        """Why the screens of a card are not ours to change; empty: they are."""
        keeper = self._keepers.get(card.path)
        return "the card is gone" if keeper is None else keeper.why_not_master()

    def outputs_of(self, card: Card) -> list[DrmOutput]:
        """The claimed outputs that are on this card."""
        return [output for output in self.outputs.values() if output.pipe is not None and output.pipe.card is card]

    def start_soon(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task that lives no longer than the sink, and whose failure is nobody else's."""
        if self._nursery is not None:
            self._nursery.start_soon(_alone, work, arguments)

    async def _check_late(self) -> None:
        while True:
            await trio.sleep(LATE_CHECK)
            now = trio.current_time()
            for output in list(self.outputs.values()):
                output.check_late(now)

    def abilities(self) -> Mapping[str, str]:
        return {keeper.card.name: _describe(keeper) for keeper in self._keepers.values()}

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if any(output.name == name for output in self.outputs.values()):
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        named = self._find(name)
        if named is None and name not in self._places:
            known = ", ".join(sorted(name for name in self._places if "/" not in name))
            raise OutputUnavailable(f"no connector {name}; there are: {known}")
        key, self._next_key = self._next_key, self._next_key + 1
        output = DrmOutput(self, name, key)
        if named is not None:
            output.moor(self._pipe(*named), named[1])
        self.outputs[key] = output
        self._search_now.set()
        return output

    def _find(self, name: str) -> tuple[Card, Connector] | None:
        """The connector of this name (`HDMI-A-1`, `card1/HDMI-A-1`), or the one that is where it was."""
        there = [keeper for keeper in self._keepers.values() if not keeper.ending]
        everywhere = [(keeper.card, c) for keeper in there for c in keeper.connectors]
        named = [(card, c) for card, c in everywhere if name in (c.name, f"{card.name}/{c.name}")]
        if not named and name in self._places:
            place, index = self._places[name]
            named = [(k.card, c) for k in there for c in k.connectors[index : index + 1] if k.card.place == place]
        return next((pair for pair in named if pair[1].connected), named[0] if named else None)

    def moor_to(self, keeper: Keeper) -> None:
        """Outputs whose card was away, and is this one."""
        for output in self.outputs.values():
            if output.pipe is not None:
                continue
            found = self._find(output.name)
            if found is not None and found[0] is keeper.card:
                try:
                    output.moor(self._pipe(*found), found[1])
                except OutputUnavailable as error:
                    _log.warning("connector not used", connector=output.name, reason=str(error))

    def _pipe(self, card: Card, connector: Connector) -> Pipe:
        """A CRTC and a primary plane that nobody uses and that fit. Raises OutputUnavailable."""
        pipes = [output.pipe for output in self.outputs_of(card) if output.pipe is not None]
        if any(pipe.connector == connector.id for pipe in pipes):
            raise OutputUnavailable(f"connector {connector.name} is taken by another guest")
        taken = {pipe.crtc for pipe in pipes}, {pipe.plane.id for pipe in pipes}
        # What fewest others can use first: each connector shall find one.
        others = [crtc for other in self._keepers[card.path].connectors for crtc in other.crtcs]
        for crtc in sorted(connector.crtcs, key=lambda crtc: (crtc != connector.crtc, others.count(crtc))):
            if crtc in taken[0]:
                continue
            for plane in card.planes:
                if plane.primary and crtc in plane.crtcs and plane.id not in taken[1]:
                    return Pipe(card, connector.id, connector.name, crtc, plane)
        raise OutputUnavailable(f"{card.name} has no free CRTC for {connector.name}")

    def claimed(self, name: str) -> Output | None:
        return next((output for output in self.outputs.values() if output.name == name), None)

    def give_back(self, output: DrmOutput) -> None:
        """An output is free again."""
        del self.outputs[output.key]


def _place(path: Path) -> str:
    """The place of the device behind a node; empty: there is none."""
    try:
        return place_of(os.stat(path))
    except OSError:
        return ""


def _describe(keeper: Keeper) -> str:
    """A card in words."""
    words = [
        keeper.why_not_master() or "DRM master",
        "dma-bufs can be imported" if keeper.card.imports else "no dma-bufs can be imported: frames are copied",
    ]
    for connector in keeper.connectors:
        modes = f"connected, {len(connector.modes)} modes" if connector.connected else "no monitor"
        words.append(f"{connector.name} {modes}")
    return "; ".join(words)


async def _alone(work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
    try:
        await work(*arguments)
    except Exception:
        _log.exception("a task of the DRM sink failed")
