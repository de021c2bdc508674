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
from displbe.ops.log import SparseLog
from displbe.sinks.turn import Turn

from .capabilities import Snapshot
from .decoder import Decoder
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
    LOST = "lost"
    """It has gone, or reading it has failed. No more events come from it."""


class EvdevDevice(InputSource):
    """An open device. `claimed` has the roles for each claim that names it. The claim that has the focus gets its events.

    `turn` returns how the device is mounted, or the panel with which it is mounted.
    """

    _decoder: Decoder
    """Set by `start`."""

    def __init__(
        self, path: str, node: DeviceNode, claimed: RolesByClaim, turn: Callable[[], Turn] = lambda: Turn.NONE
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
        self._log = _log.bind(device=path, name=node.name)

    async def run(self, focus: InputFocus, *, grab: bool) -> None:
        """Read the device until it is lost; then release everything that is down on it."""
        try:
            if grab:
                await self._grab()
            self.start(DeviceState.GRABBED if grab else DeviceState.SHARED)
            self.follow(focus)
            self._log.info("input device opened", grabbed=grab)
            with self._reading:
                await self._read()
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
        """Pass events on from now on. `state` is GRABBED or SHARED. Raises OSError."""
        self._decoder = Decoder(self, self.node.capabilities, self._snapshot(), self._turn)
        self.state = state

    def follow(self, focus: InputFocus) -> None:
        """Pass the events to the guest that has the focus now.

        Buffered events were typed for the previous guest. It still gets them, and then the release of everything that is down.
        """
        if self._is_lost:
            return
        claim = focus.holder(lambda claim: claim.key in self.claimed)
        claimed = self.claimed[claim.key] if claim is not None else None
        if claim is None or claimed is None or claimed.assignment != claim.assignment:
            # This includes a claim with a new assignment, whose nodes have not been looked up yet.
            guest_input, roles = None, frozenset[Role]()
        else:
            guest_input, roles = claim.guest_input, claimed.roles
        if guest_input is not self.guest_input:
            try:
                self._pass_buffered()
            except OSError:
                pass  # the device has gone; `_read` notices that too
            except Exception as error:  # the caller looks after all devices
                self._fail(error)
            self.leave()
            self.guest_input = None if self._is_lost else guest_input
        self._roles = roles

    def leave(self) -> None:
        """Release everything that is down on this device, and discard its events from now on."""
        left, self.guest_input = self.guest_input, None
        if left is not None:
            try:
                left.leave(self)
                left.flush()
            except Exception as error:  # the caller looks after all devices
                self._fail(error)

    async def _read(self) -> None:
        """Read until the device has gone. Raises OSError."""
        before = -math.inf
        while True:
            await trio.lowlevel.wait_readable(self.node.fd)
            now = trio.current_time()
            is_busy, before = now - before < MIN_READ_INTERVAL, now
            self._pass_buffered()
            while is_busy:
                await trio.sleep(MIN_READ_INTERVAL)
                before = trio.current_time()
                is_busy = self._pass_buffered()

    def _pass_buffered(self) -> bool:
        """Pass on all buffered events. Return False when there were none. Raises OSError."""
        if self.state not in (DeviceState.GRABBED, DeviceState.SHARED):
            return False
        found = lost = False
        with suppress(BlockingIOError):
            for _ in range(MAX_READS):
                events = self.node.read()
                found = True
                lost = self._decoder.decode(events, self.guest_input, self._roles)
                if lost or len(events) < READ_EVENTS:
                    break
        if lost:
            self._log.warning("input events lost: the guest gets the device's present state instead")
            self._decoder.resync(self._snapshot(), self.guest_input, self._roles)
        return found

    def _snapshot(self) -> Snapshot:
        """Return the device's present state. Buffered events are older, so they are discarded first. Raises OSError."""
        with suppress(BlockingIOError):
            for _ in range(MAX_READS):
                if len(self.node.read()) < READ_EVENTS:
                    break
        return self.node.snapshot()
