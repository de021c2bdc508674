"""A card and its outputs: opening it, DRM mastership, probing its connectors, its events, and closing it.

A card *looks* once a second, and whenever it is told that something may have changed: it checks that its file is the
right one, probes the connectors if necessary, and makes each output show what its guest wants. Once all of them do, it
asks less often whether they still do.

A card *rests* while no guest uses it: displbe has no file of it open then, so that other programs can be its DRM master, and the kernel's
text console comes back when they end. It wakes up when an output belongs on it.
"""

from __future__ import annotations

import enum
import errno
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.pump.native import Pump
from displbe.shortage import brief, severity
from displbe.sinks.base import OutputUnavailable
from displbe.threads import NoThread, run_in_thread, run_in_thread_or_here
from displbe.whole_seconds import next_multiple

from .atomic import Pipe
from .binding import describe
from .card_events import CardEvents
from .device import MASTER, CardConnector, Connection, DrmDevice, Mastership
from .errors import DrmError, NoResources
from .libseat import PLAIN, FileOpener
from .output import SERIALS, CardLink, DrmOutput
from .saved_state import SavedState
from .scanout import ScanoutPipe
from .settings import DrmSettings
from .worker import in_worker

__all__ = ["Card", "CardState", "Probing"]

PERIOD: Final = 1.0
"""Maximum seconds between two looks."""
THOROUGH: Final = 10
"""While displbe is DRM master and all outputs show what their guests want, the card is asked at each tenth look only whether they still do.
Only a program that is DRM master between two looks, and not at any, can have changed that, or the kernel's console, when a program sets its
terminal to text. A card on which no guest shows anything, or the pump serves all flips, is looked at in each tenth period only.
"""
PAUSE: Final = 0.1
"""Minimum seconds between two looks: events come in bursts, and each of a series of failing flips asks for a look."""
KEPT: Final = 10.0
"""Seconds for which a card that no guest uses any more is kept, for a guest that reboots. A window is kept as long."""
TAKEN_AWAY: Final = 2.0
"""Seconds within which a session manager reports that it has taken a card away."""
CLOSE_TIMEOUT: Final = 5.0
"""Maximum seconds to wait for a card to be closed."""


_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_SAID: Final = {
    Connection.CONNECTED: "monitor connected",
    Connection.DISCONNECTED: "monitor disconnected",
    Connection.UNKNOWN: "monitor perhaps connected",
}
"""The events that are logged when a connector's state has changed."""


class CardState(enum.Enum):
    """Whether a card can be used; the value of a state other than OPEN is the reason that its outputs give."""

    OPEN = "open"
    """The card is open and serves its outputs."""
    GONE = "the card is gone"
    """The card has been removed, or its events cannot be read, or displbe ends. The card is closed."""
    OPENED_BY_SEAT = "the card is opened through the seat"
    """A session manager can open the card now, or is to be asked for it. This file is closed, and the card is found again."""
    OPENED_ANEW = "the card is opened anew"
    """This file can never be DRM master, but a new file is, or would be. This file is closed."""


class Probing(enum.Enum):
    """Whether it is known which monitors are connected."""

    NEEDED = "needed"
    """A monitor may have come or gone. The next look probes the connectors."""
    DONE = "done"
    """The connectors are known."""
    FAILED = "failed"
    """The last probe failed. The next look tries again; a second failure is not logged."""


class Card:
    """A card, its connectors as last probed, and the claimed outputs that are on it. It is open while an output belongs on it.

    `open_device` opens the card again. `attach_waiting` attaches the claimed outputs that have no card and belong to
    this one. `why_leave` returns why an output may not stay on its connector (None: the connector is gone); empty: it
    may stay.

    It has twenty-one attributes: six of them are what it was handed.
    """

    def __init__(
        self,
        device: DrmDevice,
        settings: DrmSettings,
        open_device: Callable[[str, FileOpener], DrmDevice],
        attach_waiting: Callable[[Card], None],
        why_leave: Callable[[Card, DrmOutput, CardConnector | None], str],
        pump: Pump | None = None,
    ) -> None:
        self.device = device
        self.connectors: list[CardConnector] = []
        self.outputs: dict[int, DrmOutput] = {}
        """By key."""
        self.mastership = Mastership.RESTING
        self.state = CardState.OPEN
        self.successor: Card | None = None
        """The same card through another file, which is DRM master."""
        self._settings = settings
        self._open_device = open_device
        self._attach_waiting = attach_waiting
        self._why_leave = why_leave
        self._pump = pump
        self._log: Any = structlog.get_logger("displbe.drm").bind(card=device.name)
        self._say = SparseLog(self._log)
        self._look_wanted = trio.Event()
        self._probing = Probing.NEEDED
        self._mastership_changed = 0.0
        """When mastership was last gained or lost, in seconds of trio's clock."""
        self._is_wanted = False
        """Whether an output waits for the card to wake up."""
        self._is_awaited = False
        """Whether an output waits for a monitor that may be on this card."""
        self._unused_since = math.inf
        """When the last output left the card, in seconds of trio's clock; infinite: there are outputs, or the card rests."""
        self._events = CardEvents(device, pump, self._on_shown, self._on_unreadable, self._log)
        self._saved: SavedState | None = None
        """What was shown when displbe became DRM master."""

    @classmethod
    def open(
        cls,
        path: str,
        opener: FileOpener,
        settings: DrmSettings,
        open_device: Callable[[str, FileOpener], DrmDevice],
        attach_waiting: Callable[[Card], None],
        why_leave: Callable[[Card, DrmOutput, CardConnector | None], str],
        pump: Pump | None = None,
    ) -> Self:
        """Look at a card, which rests then, in a worker thread. Raises DrmError, OSError."""
        device = open_device(path, opener)
        try:
            card = cls(device, settings, open_device, attach_waiting, why_leave, pump)
            device.drop_master()  # the first file that is open is DRM master
            card.connectors = device.probe()
        finally:
            device.close()
        card._probing = Probing.DONE
        return card

    @property
    def is_resting(self) -> bool:
        """Whether no guest uses the card, and no file of it is open."""
        return self.mastership is Mastership.RESTING

    def look_for(self) -> None:
        """Look for a monitor that an output waits for, as DRM master if the card rests: the kernel reads EDIDs for the master only."""
        self._is_awaited = True
        self.look(probe=True)

    def wake_soon(self) -> None:
        """Wake up if the card rests: an output belongs on it."""
        self._is_wanted = True
        self.look()

    async def _wake(self) -> None:
        """Open the card and become its DRM master, or wait until that is possible. Raises DrmError, OSError."""
        self.mastership = await run_in_thread(self._open)
        self._is_wanted, self._probing = False, Probing.DONE
        self._mastership_changed = trio.current_time()
        self.device.opener.used()
        if self.mastership is Mastership.MASTER:
            self._log.info("the card is used")
        else:
            self._log.warning(f"{self.mastership.obstacle}: waiting for it to end")
        self._unused_since = trio.current_time()
        self._events.begin()

    def _open(self) -> Mastership:
        """In a worker thread: open the device, through the session manager if no other program uses the card, and read everything before
        anything is changed. Return this file's mastership. Raises DrmError, OSError.
        """
        opener, path = self.device.opener, self.device.path
        self.device.wake()
        try:
            found = self.device.ask_for_master()
            if found is Mastership.MASTER and opener.use(path):
                self.device.close()
                self.device.wake()
                found = self.device.ask_for_master()
            self.connectors = self.device.probe()
            if found is Mastership.MASTER:
                self._saved = SavedState(self.device)
        except BaseException:
            self.device.close()
            raise
        return found

    async def _rest(self) -> None:
        """Show what was shown before, and close the device: no guest has used the card for a while."""
        await self._restore()
        if self.outputs:  # one has come meanwhile
            return
        self.mastership, self._saved = Mastership.RESTING, None
        self._unused_since = math.inf
        await self._events.end()
        if not await self._close_device():
            self.state = CardState.GONE
        self.device.opener.leave(self.device.path)
        self._log.info("the card is left to others")

    async def _restore(self) -> None:
        """Show what was shown before, if the settings say so."""
        if self._settings.on_exit == "restore" and self._saved is not None:
            with suppress(DrmError):  # the program that showed the saved picture has ended
                await run_in_thread_or_here(self._saved.restore)

    async def _close_device(self) -> bool:
        """Close the device. Return False if its driver hangs: then it stays open.

        The close may never return: virtio-gpu waits for ever for a removed device if it had imported dma-bufs from others. The event loop
        must not wait with it.
        """
        if self.device.fd < 0:
            return True
        trio.lowlevel.notify_closing(self.device.fd)
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            while True:
                try:
                    await run_in_thread(self.device.close, abandon_on_cancel=True)
                    return True
                except NoThread:
                    await trio.sleep(PAUSE)
        self._log.error("the card stays open: its driver hangs, or no thread can be started to close it")
        return False

    def look(self, *, probe: bool = False) -> None:
        """Look soon; with `probe`, also probe the connectors."""
        if probe and self._probing is Probing.DONE:
            self._probing = Probing.NEEDED
        self._look_wanted.set()

    def why_not_master(self) -> str:
        """Return why displbe may not change the card's screens; empty: it may."""
        return self.mastership.obstacle

    def describe(self) -> str:
        """Return a description of the card's abilities and connectors, for the operator."""
        words = [
            "no guest uses it" if self.is_resting else self.why_not_master() or MASTER,
            self.device.dmabuf_import.value,
        ]
        for connector in self.connectors:
            name = describe(connector)
            match connector.connection:
                case Connection.CONNECTED:
                    words.append(f"{name} connected, {len(connector.modes)} modes")
                case Connection.UNKNOWN:
                    words.append(f"{name} cannot tell if a monitor is connected, {len(connector.modes)} modes")
                case Connection.DISCONNECTED:
                    words.append(f"{name} no monitor")
            if connector.orientation not in ("", "Normal"):
                words[-1] += f", its panel is mounted {connector.orientation}"
        return "; ".join(words)

    # Outputs

    def attach(self, output: DrmOutput, connector: CardConnector) -> None:
        """Put an output on one of the card's connectors. Raises OutputUnavailable."""
        if self.output_on(connector) is not None:
            raise OutputUnavailable(f"connector {connector.name} is taken by another guest")
        pipe = next(self._free_pipes(connector), None)
        if pipe is None:
            raise OutputUnavailable(f"{self.device.name} has no free CRTC for {connector.name}")
        screen = self._settings.screen(*output.names_on(self.device.name, connector.name))
        turn = screen.turn(connector.orientation)
        other_pipes = partial(self._free_pipes, connector)
        output.attach_card(
            CardLink(
                ScanoutPipe(pipe, turn, lambda: output.copies), connector, self.look, self.why_not_master, other_pipes
            )
        )
        self.outputs[output.key] = output
        self.look()  # while there were no outputs, it was not looked at often

    def output_on(self, connector: CardConnector) -> DrmOutput | None:
        """Return the output that is on a connector."""
        pipes = ((output, output.pipe) for output in self.outputs.values())
        return next((output for output, pipe in pipes if pipe is not None and pipe.connector == connector.id), None)

    def _free_pipes(self, connector: CardConnector) -> Iterator[Pipe]:
        """Yield the free CRTCs that the connector can use, each with a free primary plane. The best comes first.

        It may not be the right one: a CRTC may be too slow for a mode that another can drive.
        """
        pipes = [output.pipe for output in self.outputs.values() if output.pipe is not None]
        taken = {pipe.crtc for pipe in pipes}, {pipe.plane.id for pipe in pipes}
        # CRTCs that the fewest connectors can use are tried first, so that each connector finds one.
        usable = [crtc for other in self.connectors for crtc in other.crtcs]
        for crtc in sorted(connector.crtcs, key=lambda crtc: (crtc != connector.crtc, usable.count(crtc))):
            if crtc in taken[0]:
                continue
            for plane in self.device.planes:
                if plane.primary and crtc in plane.crtcs and plane.id not in taken[1]:
                    yield Pipe(self.device, connector.id, connector.name, crtc, plane)
                    break

    async def _reconcile(self) -> None:
        """Reconcile all outputs at the same time. An output that waits for its hardware delays only the others' next turn."""
        await self._let_go()
        self._attach_waiting(self)
        async with trio.open_nursery() as nursery:
            for output in list(self.outputs.values()):
                nursery.start_soon(self._reconcile_output, output)

    def _connector_of(self, output: DrmOutput) -> CardConnector | None:
        """Return the connector that an output is on, as last probed; None: the connector is gone."""
        pipe = output.pipe
        return next((one for one in self.connectors if pipe is not None and one.id == pipe.connector), None)

    async def _let_go(self) -> None:
        """Take those outputs off the card that belong on another connector, here or on another card, or on none now."""
        for output in list(self.outputs.values()):
            reason = self._why_leave(self, output, self._connector_of(output))
            if not reason:
                continue
            self._log.info("output leaves its connector", connector=output.name, reason=reason)
            try:
                await output.leave_connector(reason)
            except Exception as error:
                self._say(
                    "an output cannot leave its connector",
                    type(error).__name__,
                    level="exception",
                    connector=output.name,
                )
            self.outputs.pop(output.key, None)

    async def _reconcile_output(self, output: DrmOutput) -> None:
        connector = self._connector_of(output)
        if connector is None:
            return
        try:
            await output.reconcile(connector)
        except Exception as error:
            reason = f"{output.name}: {brief(error)}"
            self._say(
                "cannot make an output show what its guest wants",
                reason,
                level=severity(error),
                connector=output.name,
            )

    # Looking after the card

    async def run(self) -> None:
        """Serve until the card is gone or cancelled, then close it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._events.run)
                await self._keep_looking()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._close()

    def _on_unreadable(self) -> None:
        self.state = CardState.GONE
        self.look()

    def _on_shown(self, serial: int) -> None:
        output = self.outputs.get(serial // SERIALS)
        if output is None:
            return
        try:
            output.on_shown(serial)
        except Exception as error:  # it costs this flip; the other outputs' events follow in the same read
            reason = f"{output.name}: {type(error).__name__}"
            self._say("cannot end a flip", reason, level="exception", connector=output.name)

    async def _keep_looking(self) -> None:
        """Look after the card until it is to be closed."""
        looked, quiet_looks = -PAUSE, 0
        while True:
            with trio.move_on_at(next_multiple(PERIOD * THOROUGH if self._is_unneeded() else PERIOD)) as waiting:
                await self._look_wanted.wait()
            if waiting.cancelled_caught and self._is_steady():
                continue
            if trio.current_time() < looked + PAUSE:
                await trio.sleep_until(looked + PAUSE)
            looked = trio.current_time()
            self._look_wanted = trio.Event()
            if self.state is CardState.GONE or not await self._is_there():
                self.state = CardState.GONE
                self._log.warning("card gone")
                return
            if self.is_resting:
                self._attach_waiting(self)
                continue
            if self._is_unused():
                await self._rest()
                continue
            await self._update_mastership()
            better = await self._find_better_file()
            if better is not None:
                self.state = better
                self._log.info(better.value)
                return
            quiet_looks = quiet_looks + 1 if waiting.cancelled_caught and self._is_settled() else 0
            if quiet_looks % THOROUGH:
                continue
            if self._probing is not Probing.DONE:
                await self._probe()
            await self._reconcile()

    async def _is_there(self) -> bool:
        """Return whether the card is there. Wake it up, or look at its connectors, if that is wanted."""
        if not self.is_resting:
            return not self.device.gone()
        try:
            if self._is_wanted:
                await self._wake()
            elif self._probing is not Probing.DONE:
                await run_in_thread(self._look_while_resting)
        except (DrmError, OSError) as error:
            self._say("the card cannot be opened", brief(error), level=severity(error))
            # displbe may lack a thread or a file: then the next look tries again.
            return isinstance(error, NoResources | NoThread) or getattr(error, "errno", 0) in _SHORTAGES
        return True

    def _look_while_resting(self) -> None:
        """In a worker thread: read the connectors again. Raises DrmError, OSError."""
        is_awaited, self._is_awaited, self._probing = self._is_awaited, False, Probing.DONE
        self.device.wake()
        try:
            if not is_awaited:
                self.device.drop_master()
            self.connectors = self.device.probe()
        finally:
            self.device.close()

    def _is_unused(self) -> bool:
        """Return whether no output has been on the card for a while."""
        if self.outputs:
            self._unused_since = math.inf
        elif self._unused_since == math.inf:
            self._unused_since = trio.current_time()
        return trio.current_time() >= self._unused_since + KEPT

    def _is_settled(self) -> bool:
        """Return whether nothing is left to be done, as far as the last look has seen."""
        is_known = self.mastership is Mastership.MASTER and self._probing is Probing.DONE
        return is_known and all(
            output.is_settled and not self._why_leave(self, output, self._connector_of(output))
            for output in self.outputs.values()
        )

    def _is_unneeded(self) -> bool:
        """Return whether the next look can wait: no output is on the card, or the pump serves them all. Claims and errors ask for one."""
        if not self.outputs:
            return self.is_resting and self._probing is Probing.DONE
        return all(output.is_settled for output in self.outputs.values()) and self._is_steady()

    def _is_steady(self) -> bool:
        """Return whether the pump has served a flip on each output in the last second.

        Each of these commits has shown that the card is there, that displbe is its master, and that the picture is displbe's.
        """
        steady = (
            (connector := self._connector_of(output)) is not None and output.is_pumped_well(connector)
            for output in self.outputs.values()
        )
        return bool(self.outputs) and self._probing is Probing.DONE and all(steady)

    async def _update_mastership(self) -> None:
        before, now = self.mastership, self.device.ask_for_master()
        if now is Mastership.MASTER and self._saved is None:
            with suppress(DrmError):  # the next look tries again
                self._saved = await in_worker(SavedState, self.device)
        self.mastership = now
        is_master = now is Mastership.MASTER
        if is_master == (before is Mastership.MASTER):
            return
        self._mastership_changed = trio.current_time()
        if is_master:
            self._log.info("DRM master again")
            self._probing = Probing.NEEDED  # without mastership, displbe did not notice monitors that came and went
        else:
            self._log.warning(f"{self.mastership.obstacle} now: waiting for it to end")

    async def _find_better_file(self) -> CardState | None:
        """Return the card's new state if another file is better than this one; None: this file is kept.

        Another file is better if a session manager opens it, or if it can be DRM master and this one cannot.
        """
        if self.device.is_outdated:
            return CardState.OPENED_BY_SEAT
        could_ask = self.device.opener.could_ask(self.device.path)
        if self.mastership is Mastership.MASTER and could_ask:  # the other program has ended
            return CardState.OPENED_BY_SEAT
        if self.mastership is not Mastership.CANNOT_ASK:
            return None
        # While a card has no master, the next file that opens it becomes master.
        if not self.device.is_managed:
            with suppress(NoResources):  # the next look tries again
                self.successor = await in_worker(self._open_successor)
            return CardState.OPENED_ANEW if self.successor is not None else None
        # A session manager takes the card away a moment before it reports that.
        if trio.current_time() - self._mastership_changed < TAKEN_AWAY:
            return None
        # While this file is open, the session manager would return the same file again, so close this one first.
        try:
            return CardState.OPENED_ANEW if await in_worker(self._has_no_master) else None
        except NoResources:  # the next look tries again
            return None

    def _open_successor(self) -> Card | None:
        """In a worker thread: open the card by another file, and return it if that file is DRM master."""
        try:
            device = self._open_device(self.device.path, self.device.opener)
        except (DrmError, OSError):
            return None
        try:
            if device.ask_for_master() is Mastership.MASTER:
                card = Card(
                    device, self._settings, self._open_device, self._attach_waiting, self._why_leave, self._pump
                )
                card.connectors, card._probing = device.probe(), Probing.DONE
                card._saved = SavedState(device)
                card.mastership = Mastership.MASTER
                card._events.begin()
                return card
        except DrmError as error:
            self._log.debug("card not opened anew", reason=str(error))
        except BaseException:
            device.close()
            raise
        device.close()
        return None

    def _has_no_master(self) -> bool:
        """In a worker thread: return whether a file that opens the card now becomes its DRM master."""
        try:
            device = self._open_device(self.device.path, PLAIN)
        except (DrmError, OSError):
            return False
        try:
            return device.ask_for_master() is Mastership.MASTER
        finally:
            device.close()

    async def _probe(self) -> None:
        """Probe the connectors. A failed probe is tried again by the next look."""
        before, self._probing = self._probing, Probing.DONE
        try:
            found = await in_worker(self.device.probe)
        except DrmError as error:
            self._probing = Probing.FAILED
            if before is not Probing.FAILED:
                self._log.warning("cannot look at the connectors", reason=str(error))
            return
        known = {connector.id: connector for connector in self.connectors}
        self.connectors = found
        for connector in found:
            old = known.pop(connector.id, None)
            if old is None or (old.connection, old.edid_name) != (connector.connection, connector.edid_name):
                self._log.info(
                    _SAID[connector.connection],
                    connector=connector.name,
                    modes=len(connector.modes),
                    path=connector.path_name or None,
                    monitor=connector.edid_name or None,
                )
        for gone in known.values():
            self._log.info("connector gone", connector=gone.name, path=gone.path_name or None)

    # The end

    async def _close(self) -> None:
        """Take the outputs off the card and close it.

        Its path and its connectors' names are then free for its successor.
        """
        if self.state is CardState.OPEN:
            self.state = CardState.GONE
        for output in list(self.outputs.values()):
            try:
                await output.detach_card(self.state.value)
            except Exception:  # the other outputs must leave the card too, and the card must be closed
                self._log.exception("an output cannot leave the card", connector=output.name)
            self.outputs.pop(output.key, None)
        await self._restore()
        await self._close_device()
        if self.state is CardState.GONE:  # else the card is opened again at once
            self.device.opener.leave(self.device.path)
