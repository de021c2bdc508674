"""A connected vkbd device: the guest's page, and the input that is written into it."""

from __future__ import annotations

import enum
from typing import Any, Final

import trio

from displbe.backend.spurious_events import SpuriousEvents
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import BackKbdPage
from displbe.xen.port import EventChannel

from .features import Features
from .guest_input import GuestInput
from .key_repeater import AutoRepeat
from .published import Published

__all__ = ["ConnectedInput", "InputState"]

RESCUE: Final = 0.1
RESCUE_LAST: Final = 1.0
"""Seconds between two looks at events that the guest does not take: the first time, and at most."""


class InputState(enum.Enum):
    """The state of a connected input device."""

    SERVED = "served"
    """The guest gets its input, and its notifications are served."""
    BROKEN = "broken"
    """The frontend broke the protocol; the device is about to end."""
    ENDED = "ended"
    """The page is about to be unmapped and must not be used any more."""


class ConnectedInput:
    """A connected input device: the guest's page, and the input that is written into it."""

    _channel: EventChannel

    def __init__(
        self, published: Published, page: BackKbdPage, features: Features, repeats: AutoRepeat, log: Any
    ) -> None:
        self.published = published
        self.state = InputState.SERVED
        self.guest_input = GuestInput(page, features, repeats, self._notify, self._break)
        self._page = page
        self._log = log
        self._spurious = SpuriousEvents()
        self._masked_for = 0.0
        """Seconds that the port stays masked after a spurious event."""
        self._masked = trio.Event()
        self._seen = page.taken()
        """The guest's consumer index when it notified last."""
        self._guest_notified = trio.Event()
        self._failed = trio.Event()
        self._reason = FrontendBroken("")
        self._answers = 0
        """Notifications after which the guest had taken events."""

    def start(self, channel: EventChannel) -> None:
        """Set the device's event channel."""
        self._channel = channel

    def _notify(self) -> None:
        self._channel.notify()
        self._guest_notified.set()

    def _break(self, reason: FrontendBroken) -> None:
        """End this device, and no other: the frontend broke the protocol."""
        if self.state is InputState.SERVED:
            self.state = InputState.BROKEN
        self._reason = reason
        self._failed.set()

    def notified(self) -> bool:
        """Serve a notification of the guest, which has most likely taken events. Return False: there is never work left."""
        if self.state is not InputState.SERVED:
            return False
        try:
            self._page.drain()
            self._page.room()
            self.guest_input.flush()
            taken = self._page.taken()
            moved = 0 < (taken - self._seen) & 0xFFFFFFFF < 0x80000000
            if moved:
                self._seen = taken
                self._answers += 1
            # Events of the guest on its own ring, which has no use, do not count as work.
            self._rearm(spurious=not moved)
        except FrontendBroken as broken:
            self._break(broken)
        except Exception as error:  # an error in displbe ends this device, never the task that serves all devices
            self._log.exception("input failed")
            self._break(FrontendBroken(f"internal error: {type(error).__name__}"))
        return False

    def _rearm(self, *, spurious: bool) -> None:
        """Rearm the port: at once, or later after spurious events."""
        if not spurious:
            self._spurious.reset()
        elif pause := self._spurious.add():
            self._masked_for = pause
            self._masked.set()
            return
        self._channel.rearm()

    async def _rearm_later(self) -> None:
        while True:
            await self._masked.wait()
            self._masked = trio.Event()
            await trio.sleep(self._masked_for)
            self._channel.rearm()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises FrontendBroken."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.guest_input.repeat)
            nursery.start_soon(self._rearm_later)
            nursery.start_soon(self._rescue)
            task_status.started()
            await self._failed.wait()
            raise self._reason

    async def _rescue(self) -> None:
        """Notify the guest again while it takes no events: its frontend may not notify back, or the notification was lost."""
        while True:
            await self._guest_notified.wait()
            self._guest_notified = trio.Event()
            before, pause = None, RESCUE
            while self._page.is_waiting() or self.guest_input.queue.waiting:
                self.guest_input.flush()
                if (now := self._page.taken()) == before:
                    self._channel.notify()
                    pause = min(2 * pause, RESCUE_LAST)
                before = now
                await trio.sleep(pause)

    async def end(self) -> None:
        """Release every key, button and contact, and wait until the releases are written. The caller limits the time."""
        try:
            if self.state is InputState.SERVED:
                self.guest_input.leave_all()
            while self.guest_input.queue.waiting and self.state is InputState.SERVED:
                await trio.sleep(0.01)
                self.guest_input.flush()
        finally:
            self.state = InputState.ENDED
            queue = self.guest_input.queue
            self._log.info(
                "input over",
                events=queue.written,
                dropped=queue.dropped,
                notifications=queue.notified,
                answers=self._answers,
            )
