"""One open evdev device: grabs it, reads its events, and passes them on to the guest that has the focus."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
import trio

from displbe.input.bindings import Role
from displbe.input.focus import InputFocus
from displbe.input.guest_input import GuestInput, InputSource
from displbe.input.shortcuts import ShortcutKeys
from displbe.ops.log import SparseLog
from displbe.sinks.turn import Turn

from .capabilities import Snapshot
from .decoder import Decoder
from .lamps import Lamps
from .lookup import RolesByClaim
from .nodes import READ_EVENTS, DeviceNode

__all__ = ["DeviceState", "EvdevDevice"]

KEYS_UP_TIMEOUT: Final = 2.0
"""Seconds to wait for keys that are down before the device is grabbed."""
MAX_READS: Final = 32
"""Maximum of consecutive reads. Together they take more events than the kernel buffers for any device."""
MIN_READ_INTERVAL: Final = 0.004
"""Minimum seconds between two reads of a busy device: each wake-up costs time, and a mouse may report 1000 motions a second."""

_log: Any = structlog.get_logger("displbe.evdev")
_say: Final = SparseLog(_log)


class DeviceState(enum.Enum):
    """The state of an open device. A device that is absent, or cannot be opened, has no EvdevDevice."""

    HELD_BACK = "held back"
    """Its events are not passed on yet. It is grabbed when no key is down, or after KEYS_UP_TIMEOUT, so that the program that had it before
    gets the releases."""
    GRABBED = "grabbed"
    """displbe alone reads it."""
    SHARED = "shared"
    """displbe reads it, and the host's programs do so too (`[input] grab = false`)."""
    RELEASED = "released"
    """The host has it. displbe reads it as well, for the key combination that gives it to the guests again."""
    LOST = "lost"
    """It has gone, or reading it has failed. No more events come from it."""


class EvdevDevice(InputSource):
    """An open device. `claimed` has the roles for each claim that names it. The claim that has the focus gets its events.

    `turn` returns how the device is mounted, or the panel with which it is mounted.

    It has more than fifteen attributes: half of them are set once, and are what it reads from, turns by, looks for and lights.
    """

    _decoder: Decoder
    """Set by `start`."""

    def __init__(
        self,
        path: str,
        node: DeviceNode,
        claimed: RolesByClaim,
        turn: Callable[[], Turn] = lambda: Turn.NONE,
        shortcuts: ShortcutKeys | None = None,
    ) -> None:
        super().__init__(path, repeats=node.repeats)
        self.path = path
        self.node = node
        self.claimed = claimed
        self.state = DeviceState.HELD_BACK
        self.scope = trio.CancelScope()
        """Cancelled to close the device."""
        self.guest_input: GuestInput | None = None
        """Gets the events; None: they are discarded."""
        self._turn = turn
        self._reading = trio.CancelScope()
        """Cancelled to stop reading after an error."""
        self._roles: frozenset[Role] = frozenset()
        self._shortcuts = shortcuts or ShortcutKeys()
        self._grabs = True
        """Whether the device is grabbed while guests have it."""
        self._is_passing = False
        """Whether events are being passed on. One of them may move the focus, and the events behind it are for another guest."""
        self._lamps = Lamps(path, node.capabilities.leds, node.set_lamps)
        self._log = _log.bind(device=path, name=node.name)

    async def run(self, focus: InputFocus, *, grab: bool) -> None:
        """Read the device until it is lost; then release everything that is down on it."""
        try:
            self._grabs = grab
            if grab and focus.is_with_host:
                self.start(DeviceState.RELEASED)
            else:
                if grab:
                    await self._grab()
                self.start(DeviceState.GRABBED if grab else DeviceState.SHARED)
            self.follow(focus)
            self._log.info("input device opened", grabbed=grab)
            with self._reading:
                await self._read(focus)
        except OSError as error:
            self._log.warning(
                "input device lost: the keys and contacts that it held down are released", reason=error.strerror
            )
        except Exception as error:
            self._fail(error)
        self.state = DeviceState.LOST
        self.leave()

    def _fail(self, error: Exception) -> None:
        """Stop using the device because of an error in displbe. It is opened again. Called while the exception is handled."""
        self.state = DeviceState.LOST
        self._reading.cancel()
        _say(
            "input device failed: the keys and contacts that it held down are released; it is opened again",
            f"{self.path}: {type(error).__name__}",
            level="exception",
            device=self.path,
            name=self.node.name,
        )

    @property
    def _is_lost(self) -> bool:
        return self.state is DeviceState.LOST

    async def _grab(self) -> None:
        """Grab the device as soon as no key is down. Raises OSError, for example when another program has grabbed it."""
        with trio.move_on_after(KEYS_UP_TIMEOUT):
            while self.node.snapshot().keys:
                await trio.lowlevel.wait_readable(self.node.fd)
                with suppress(BlockingIOError):
                    self.node.read()
        self.node.grab()

    def start(self, state: DeviceState) -> None:
        """Pass events on from now on. `state` is GRABBED, SHARED or RELEASED. Raises OSError."""
        self._decoder = Decoder(self, self.node.capabilities, self._snapshot(), self._turn)
        self.state = state

    def follow(self, focus: InputFocus) -> None:
        """Pass the events to the guest that has the focus now.

        Buffered events were typed for the previous guest. It still gets them, and then the release of everything that is down.
        """
        if self._is_lost:
            return
        if self._holder(focus)[0] is not self.guest_input:
            try:
                self._pass_buffered()
            except OSError:
                pass  # the device has gone; `_read` notices that too
            except Exception as error:  # the caller looks after all devices
                self._fail(error)
        # Not before: a key combination among the buffered events may have moved the focus.
        guest_input, roles = self._holder(focus)
        if guest_input is not self.guest_input:
            self.leave()
            self.guest_input = None if self._is_lost else guest_input
        self._roles = roles
        try:
            self._follow_host(focus)
        except OSError as error:
            self._lose(error)
        shown = self.guest_input if self.state is DeviceState.GRABBED and Role.KEYBOARD in roles else None
        self._lamps.follow(shown.queue.locks if shown is not None else None)

    def _holder(self, focus: InputFocus) -> tuple[GuestInput | None, frozenset[Role]]:
        """Return the guest that gets the events now, and the roles in which it gets them."""
        claim = focus.holder(lambda claim: claim.key in self.claimed)
        claimed = self.claimed[claim.key] if claim is not None else None
        if claim is None or claimed is None or claimed.assignment != claim.assignment:
            # This includes a claim with a new assignment, whose nodes have not been looked up yet.
            return None, frozenset()
        if self.state is DeviceState.RELEASED:
            return None, claimed.roles  # the host still gets the events, up to the release of the keys that are down
        return claim.guest_input, claimed.roles

    def _follow_host(self, focus: InputFocus) -> None:
        """Release the device if the host has the focus, or take it back. Raises OSError.

        The device changes hands when no key is down on it: the side that got the presses gets the releases as well.
        """
        if self._shortcuts.is_any_down or focus.is_with_host == (self.state is DeviceState.RELEASED):
            return
        match self.state:
            case DeviceState.GRABBED | DeviceState.SHARED:
                if self.state is DeviceState.GRABBED:
                    self.node.ungrab()
                self.state = DeviceState.RELEASED
            case DeviceState.RELEASED:
                if self._grabs:
                    self.node.grab()
                self.state = DeviceState.GRABBED if self._grabs else DeviceState.SHARED
                self.guest_input, self._roles = self._holder(focus)

    def _lose(self, error: OSError) -> None:
        """Stop reading, because the device cannot be grabbed or released. It is opened again."""
        _say(
            "input device lost: the keys and contacts that it held down are released; it is opened again",
            str(error.strerror),
            device=self.path,
        )
        self.state = DeviceState.LOST
        self._reading.cancel()
        self.leave()

    def leave(self) -> None:
        """Release everything that is down on this device, and discard its events from now on."""
        left, self.guest_input = self.guest_input, None
        self._lamps.follow(None)
        if left is not None:
            try:
                left.leave(self)
                left.flush()
            except Exception as error:  # the caller looks after all devices
                self._fail(error)

    async def _read(self, focus: InputFocus) -> None:
        """Read until the device has gone. Raises OSError."""
        before = -math.inf
        while True:
            await trio.lowlevel.wait_readable(self.node.fd)
            now = trio.current_time()
            is_busy, before = now - before < MIN_READ_INTERVAL, now
            self._pass_buffered()
            if focus.is_with_host != (self.state is DeviceState.RELEASED):
                self.follow(focus)
            while is_busy:
                await trio.sleep(MIN_READ_INTERVAL)
                before = trio.current_time()
                is_busy = self._pass_buffered()

    def _pass_buffered(self) -> bool:
        """Pass on all buffered events. Return False when there were none. Raises OSError."""
        if self.state in (DeviceState.HELD_BACK, DeviceState.LOST) or self._is_passing:
            return False
        self._is_passing = True
        try:
            return self._pass_all()
        finally:
            self._is_passing = False

    def _pass_all(self) -> bool:
        found = lost = False
        with suppress(BlockingIOError):
            for _ in range(MAX_READS):
                events = self.node.read()
                found = True
                for part in self._shortcuts.split(events):
                    lost = lost or self._decoder.decode(part, self.guest_input, self._roles)
                if lost or len(events) < READ_EVENTS:
                    break
        if lost:
            self._log.warning("input events lost: the guest gets the device's present state instead")
            self._decoder.resync(self._snapshot(), self.guest_input, self._roles)
        self._decoder.repeat(self.guest_input, self._roles)
        return found

    async def settle(self) -> bool:
        """Pass on the events that the kernel has buffered. Return False when that is impossible."""
        await trio.lowlevel.checkpoint()
        try:
            self._pass_buffered()
        except OSError:
            return False  # the device has gone; `_read` notices that too
        except Exception as error:  # the caller serves a guest, which may have other devices
            self._fail(error)
        return not self._is_lost

    def _snapshot(self) -> Snapshot:
        """Return the device's present state. Buffered events are older, so they are discarded first. Raises OSError."""
        with suppress(BlockingIOError):
            for _ in range(MAX_READS):
                if len(self.node.read()) < READ_EVENTS:
                    break
        snapshot = self.node.snapshot()
        snapshot.keys = self._shortcuts.begin(snapshot.keys)
        return snapshot
