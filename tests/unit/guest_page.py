"""A guest's end of the page that input events are written into."""

from __future__ import annotations

from displbe.input.features import Features
from displbe.input.guest_input import GuestInput
from displbe.input.key_repeater import AutoRepeat
from displbe.wire import kbdif
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import BackKbdPage, FrontKbdPage
from displbe.xen.barriers import SharedMemory

__all__ = ["GuestPage"]


class GuestPage:
    """A page, and the input that displbe writes into it. `used`: the number of events that have gone over the page before."""

    def __init__(self, features: Features, repeat: AutoRepeat, used: int = 0) -> None:
        memory = SharedMemory(memoryview(bytearray(4096)))
        self._front = FrontKbdPage(memory)
        memory.store(0, used)
        memory.store(4, used)
        self.guest_input = GuestInput(BackKbdPage(memory), features, repeat, lambda: None, self._broken)

    @staticmethod
    def _broken(reason: FrontendBroken) -> None:
        raise AssertionError(reason)

    def take_events(self) -> list[kbdif.InEvent]:
        """Consume the events in the page."""
        return [kbdif.decode_event(slot) for slot in self._front.take()]
