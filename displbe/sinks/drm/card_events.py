"""Reads a card's events while the card is awake, by the pump or here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from displbe.pump.native import Pump, PumpError
from displbe.readiness import serve

from .device import DrmDevice

__all__ = ["CardEvents"]


class CardEvents:
    """The events of a card's open file.

    `shown` is called with the user data of each flip that has ended, `failed` when the events cannot be read any more.
    """

    def __init__(
        self, device: DrmDevice, pump: Pump | None, shown: Callable[[int], None], failed: Callable[[], None], log: Any
    ) -> None:
        self._device = device
        self._pump = pump
        self._shown = shown
        self._failed = failed
        self._log = log
        self._awake = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def begin(self) -> None:
        """Read the events of the file that has been opened."""
        self._awake.set()

    async def end(self) -> None:
        """Read no more: the file is about to be closed."""
        if not self._awake.is_set():  # they could not be read
            return
        ended = self._ended
        self._scope.cancel()
        await ended.wait()

    async def run(self) -> None:
        """Read events whenever the card is awake, until cancelled."""
        while True:
            await self._awake.wait()
            with self._scope:
                await self._read()
            self._awake, self._scope = trio.Event(), trio.CancelScope()
            ended, self._ended = self._ended, trio.Event()
            ended.set()

    async def _read(self) -> None:
        try:
            if self._pump is not None and self._watch(self._pump):
                try:
                    await trio.sleep_forever()
                finally:
                    self._pump.unwatch(self._device.fd)
            await serve(self._device.fd, self._on_readable)
        except OSError as error:
            self._cannot_read(error)
        except Exception:
            self._log.exception("reading the card's events failed: it is closed and opened again")
            self._failed()

    def _on_readable(self) -> bool:
        self._device.read_events(self._shown)
        return False

    def _watch(self, pump: Pump) -> bool:
        """Let the pump read the card's events. Return False if it cannot: then they are read here, and end the pump's flips, too."""
        try:
            pump.watch_card(self._device.fd, self._shown, self._cannot_read)
        except PumpError as error:
            self._log.warning("the card's events are read without the pump", reason=error.strerror)
            return False
        return True

    def _cannot_read(self, error: OSError) -> None:
        self._log.warning("cannot read the card's events: it is closed", reason=error.strerror)
        self._failed()
