"""The page flip that a guest waits for, and every rule by which it ends.

An output has at most one flip under way. Each flip ends exactly once, by one of three rules:

* shown: the screen reports that the frame is visible (`on_shown`), or will be at the next refresh (`on_ready`). An output also ends a
  flip at once when nothing is left to wait for, as when the guest switches the screen off (`end`).
* timer: no screen reports anything, because the screen is dark or hidden. The flip ends when the next refresh would be
  (`end_at_refresh`), so that the guest draws at its usual rate.
* late: the screen should have reported and did not. The clock ends the flip after a limit well below the 3.1 s that Linux's frontend
  waits for the event.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

import structlog
import trio

from displbe.readiness import Alarm

__all__ = ["LATE_CHECK", "Flip", "FlipClock", "FlipState"]

LATE_CHECK: Final = 0.25
"""Seconds between two searches for late flips."""
_log = structlog.get_logger("displbe.flip")


class FlipState(enum.Enum):
    """The state of a flip, which says what ends it."""

    NONE = "none"
    """No flip is under way."""
    WAITING = "waiting"
    """The screen ends it; if the screen does not, the flip becomes late."""
    TIMED = "timed"
    """The clock ends it at the next refresh."""


# Every flip uses these. Each is looked up once, because in Python 3.11 the lookup of an enum's member costs more than a call.
_NONE: Final = FlipState.NONE
_WAITING: Final = FlipState.WAITING
_TIMED: Final = FlipState.TIMED


def _nothing() -> None:
    """Do nothing."""


class Flip:
    """The flip of one output. `ended` is called with the token of each flip that ends; `on_late` before it when the flip is late.

    `late` is the limit in seconds. Serial numbers count up from `first_serial`; they distinguish reports about this flip from reports
    about earlier ones.
    """

    def __init__(
        self,
        clock: FlipClock,
        ended: Callable[[int], None],
        *,
        late: float,
        on_late: Callable[[], None] = _nothing,
        first_serial: int = 0,
    ) -> None:
        self.state = _NONE
        self.serial = first_serial
        """The serial number of the newest flip."""
        self.period = 1 / 60
        """Seconds between two refreshes of the screen; the timer keeps this rate."""
        self.began = -math.inf
        """When the newest flip began, in seconds of trio's clock."""
        self.shown = 0
        """Flips whose frames the screen has shown."""
        self.late = 0
        """Flips that ended because the screen reported nothing in time."""
        self.ends_by = math.inf
        """When the clock ends the flip under way, in seconds of trio's clock."""
        self.on_rest: Callable[[], None] = _nothing
        """Called when no flip has begun for LATE_CHECK, and none is under way. The owner may set this."""
        self._clock = clock
        self._ended = ended
        self.limit = late
        """Seconds until a flip is late."""
        self._on_late = on_late
        self.token = 0
        """What `ended` is called with: the newest flip's."""

    def begin(self, token: int) -> int:
        """Begin a flip and return its serial number. The caller has waited for the end of the previous flip."""
        self.token = token
        self.state = _WAITING
        self.began = now = self._clock.now()
        self.ends_by = now + self.limit
        self.serial += 1
        clock = self._clock
        clock.active.add(self)
        if clock.is_parked:
            clock.start(now)
        return self.serial

    def renew(self) -> int:
        """Return a new serial number: reports about earlier commits no longer end the flip under way, if there is one."""
        self.serial += 1
        if self.state is not _NONE:
            self.state = _WAITING
            self.ends_by = self.began + self.limit
        return self.serial

    def hand_over(self) -> None:
        """Leave the flip under way, if there is one, to the pump. `take_back` follows."""
        self.state = _NONE

    def take_back(self, serial: int, shown: int, token: int | None, age: float) -> None:
        """Serve flips again: `serial` is that of the newest flip, which began `age` seconds ago, `shown` the number of flips that the
        screen has shown meanwhile; `token` is that of the flip under way, None: there is none.
        """
        self.serial = serial
        self.shown += shown
        self.began = self._clock.now() - age
        if token is not None:
            self.token = token
            self.state = _WAITING
            self.ends_by = self.began + self.limit
            self._clock.active.add(self)
            if self._clock.is_parked:
                self._clock.start(self.began)

    def on_shown(self, serial: int) -> None:
        """End this flip: the screen shows its frame. A report about an earlier flip changes nothing."""
        if serial == self.serial:
            self.shown += 1
            self.end()

    def on_ready(self, serial: int) -> None:
        """End this flip at the next refresh: the screen shows its frame then, but does not report that."""
        if serial == self.serial:
            self.shown += 1
            self.end_at_refresh()

    def end(self) -> None:
        """End the flip under way, if there is one."""
        if self.state is not _NONE:
            self.state = _NONE
            self._ended(self.token)

    def end_at_refresh(self) -> None:
        """Let the clock end the flip under way, if there is one, when the next refresh would be."""
        if self.state is _WAITING:
            self.state = _TIMED
            self.ends_by = (self._clock.now() // self.period + 1) * self.period
            self._clock.look_at(self.ends_by)

    def check(self, now: float) -> None:
        """End the flip under way, if there is one and its time has come. For the clock."""
        if now < self.ends_by or self.state is _NONE:
            return
        try:
            if self.state is _WAITING:
                self.late += 1
                self._on_late()
        finally:
            self.end()


class FlipClock:
    """The clock of a sink's flips. It ends those that no screen ends.

    A flip that its screen ends costs the clock no wake-up: it looks for late flips four times a second, and only while there are flips.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = trio.current_time
        """Returns the time, in seconds of trio's clock."""
        self.active: set[Flip] = set()
        """The flips that are under way, or have begun in the last LATE_CHECK seconds, and some that have rested since the last look."""
        self.is_parked = True
        """Whether no flip has begun since the last look: none is looked for. The next one starts the clock."""
        self._alarm = Alarm()
        """Rings at the next look at the flips."""

    def start(self, now: float) -> None:
        """Look for late flips from now on."""
        self.is_parked = False
        self._alarm.set(now + LATE_CHECK)

    def look_at(self, when: float) -> None:
        """Look at the flips at this time, or earlier."""
        if when < self._alarm.rings_at:
            self._alarm.set(when)

    async def run(self) -> None:
        """End flips whose time has come, until cancelled."""
        self.now = trio.lowlevel.current_clock().current_time  # two calls less than trio.current_time
        await self._alarm.run(self._check)

    def _check(self) -> float:
        """End flips whose time has come. Return the time of the next look."""
        now = self.now()
        for flip in list(self.active):
            try:
                flip.check(now)
                if flip.state is _NONE and now - flip.began >= LATE_CHECK:
                    self.active.discard(flip)
                    flip.on_rest()
            except Exception:  # an error in one output must not stop the clock of all
                _log.exception("cannot end a flip")
        return self._next_look()

    def _next_look(self) -> float:
        """Return the time of the next look, in seconds of trio's clock."""
        if not self.active:
            self.is_parked = True
            return math.inf
        timed = [flip.ends_by for flip in self.active if flip.state is _TIMED]
        return min(self.now() + LATE_CHECK, *timed, math.inf)
