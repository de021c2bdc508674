"""The evdev devices that guests use. A device is open while a guest names it, and is opened again when it is plugged in again."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio

from displbe.input.focus import Claim, InputFocus
from displbe.input.guest_input import GuestInput
from displbe.input.settings import DEGREES, InputSettings
from displbe.input.shortcuts import Action, ShortcutKeys
from displbe.ops.log import SparseLog
from displbe.shortage import brief, severity
from displbe.sinks.turn import Turn

from .device import EvdevDevice
from .lookup import DeviceLookup, RolesByClaim
from .nodes import DeviceNodes

__all__ = ["EvdevDevices"]

RESCAN_INTERVAL: Final = 0.5
"""Seconds between two looks for devices that are named and missing."""

_log = structlog.get_logger("displbe.evdev")
_say: Final = SparseLog(_log)


class EvdevDevices:
    """All devices that guests name."""

    def __init__(
        self,
        settings: InputSettings,
        focus: InputFocus,
        nodes: DeviceNodes,
        turn_of: Callable[[str], Turn] = lambda name: Turn.NONE,
    ) -> None:
        """`turn_of` returns how pictures lie on the screen of an output."""
        self.devices: dict[str, EvdevDevice] = {}
        """The open devices, by path."""
        self._settings = settings
        self._focus = focus
        self._lookup = DeviceLookup(settings, nodes)
        self._turn_of = turn_of
        self._changed = trio.Event()
        self._open_errors: dict[str, str] = {}
        """The last error of opening a device, by path. The same error is logged once."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, read and close devices, until cancelled."""
        self._focus.listeners.append(self._focus_changed)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    self._changed = trio.Event()
                    try:
                        missing = await self._reconcile(nursery)
                    except Exception as error:  # an odd device, or no thread can be started: it must not end the daemon
                        _say("looking for input devices failed; tried again", brief(error), level=severity(error))
                        missing = True
                    pause = min(RESCAN_INTERVAL if missing else math.inf, self._focus.seconds_to_expiry())
                    with trio.move_on_after(pause):
                        await self._changed.wait()
        finally:
            self._focus.listeners.remove(self._focus_changed)

    def _focus_changed(self) -> None:
        """Make all devices follow the focus at once, because events for one guest must not reach another."""
        for device in self.devices.values():
            device.follow(self._focus)
        self._changed.set()

    def passed_to(self, guest_input: GuestInput) -> tuple[str, ...]:
        """Return the paths of the devices whose events a guest gets now."""
        return tuple(sorted(path for path, device in self.devices.items() if device.guest_input is guest_input))

    async def has_absolute_pointer(self, claim: Claim) -> bool:
        """Return whether one of the pointers that a claim names reports positions."""
        return await self._lookup.has_absolute_pointer(claim)

    async def _reconcile(self, nursery: trio.Nursery) -> bool:
        """Open the present devices that claims name; close those that no claim names. Return True when a named device is missing."""
        self._focus.expire()  # else the next look would be due at once, again and again
        claimed, missing = await self._lookup.claimed_nodes(self._focus.claims)
        # The reservation of a guest that has gone keeps a device from others, but does not open it.
        present = {claim.key for claim in self._focus.claims if claim.gone_since is None}
        wanted = {path: roles for path, roles in claimed.items() if present & roles.keys()}
        for path, device in list(self.devices.items()):
            if path not in wanted:
                device.scope.cancel()
            else:
                device.claimed = wanted[path]
                device.follow(self._focus)
        for path, roles in wanted.items():
            if path not in self.devices:
                missing |= not await self._open(nursery, path, roles)
        return missing

    async def _open(self, nursery: trio.Nursery, path: str, claimed: RolesByClaim) -> bool:
        try:
            node = await self._lookup.open(path)
            rotate = await self._lookup.rotate(path)
        except Exception as error:  # not only OSError: python-evdev may be missing, or fail on a device's name
            if self._open_errors.get(path) != str(error):
                self._open_errors[path] = str(error)
                _log.warning(
                    "cannot open input device",
                    device=path,
                    reason=str(error),
                    exc_info=not isinstance(error, OSError),
                )
            return False
        self._open_errors.pop(path, None)
        turn = (
            partial(DEGREES.__getitem__, rotate or "0") if rotate in ("", *DEGREES) else partial(self._turn_of, rotate)
        )
        shortcuts = ShortcutKeys(self._settings.shortcuts(), partial(self._on_shortcut, path))
        device = self.devices[path] = EvdevDevice(path, node, claimed, turn, shortcuts)
        if rotate:
            _log.info("input device is turned", device=path, rotate=rotate)
        nursery.start_soon(self._serve, device)
        return True

    def _on_shortcut(self, path: str, action: Action) -> None:
        """Move the focus: a key combination was pressed on a device."""
        match action:
            case Action.NEXT_GUEST:
                claimed = self.devices[path].claimed
                self._focus.give_next(lambda claim: claim.key in claimed)
            case Action.RELEASE:
                self._focus.give_to_host(not self._focus.is_with_host)

    async def _serve(self, device: EvdevDevice) -> None:
        """Serve one device until it is lost or no claim names it."""
        try:
            with device.scope:
                await device.run(self._focus, grab=self._settings.grab)
                await trio.sleep(RESCAN_INTERVAL)  # the node of a device that has gone may exist for a moment longer
        finally:
            device.leave()
            del self.devices[device.path]
            with suppress(OSError):  # the file is closed nevertheless (close(2))
                device.node.close()
            self._changed.set()
