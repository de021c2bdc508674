"""A held key is repeated only while it is known to be down, and no repetition is made up for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import trio
from scenario.devices import SimDevice, SimNode
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.guest_page import GuestPage

from displbe.input.bindings import Role
from displbe.input.evdev.capabilities import Capabilities
from displbe.input.evdev.device import DeviceState, EvdevDevice
from displbe.input.evdev.lookup import ClaimedRoles
from displbe.input.event_codes import EV_KEY
from displbe.input.features import Features
from displbe.input.focus import Assignment
from displbe.input.guest_input import InputSource
from displbe.input.key_repeater import STALL, AutoRepeat
from displbe.wire import kbdif

KEY_A, KEY_B = 30, 48
REPEAT = AutoRepeat(0.5, 0.04)


class Page(GuestPage):
    """A guest's page, and the input that is written into it."""

    def __init__(self) -> None:
        super().__init__(Features(), REPEAT)

    def take(self) -> list[tuple[int, bool]]:
        """Consume the events in the page: codes, and whether they are presses."""
        return [(event.keycode, bool(event.pressed)) for event in self.take_events() if isinstance(event, kbdif.Key)]


class Window(InputSource):
    """A window's keyboard. `answers` is replaced while the compositor stands still."""

    def __init__(self) -> None:
        super().__init__("window", repeats=False)
        self.answers = trio.Event()
        self.answers.set()
        self.is_lost = False
        self.asked = 0

    async def settle(self) -> bool:
        self.asked += 1
        await self.answers.wait()
        return not self.is_lost


@contextlib.asynccontextmanager
async def repeating() -> AsyncIterator[tuple[Page, Window]]:
    async with trio.open_nursery() as nursery:
        page = Page()
        nursery.start_soon(page.guest_input.repeat)
        await wait_all_tasks_blocked()
        yield page, Window()
        nursery.cancel_scope.cancel()


def tell(page: Page, source: InputSource, code: int, value: int) -> None:
    page.guest_input.key(source, code, value)
    page.guest_input.flush()


async def test_a_held_key(autojump_clock: MockClock) -> None:
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        events = page.take()
        for _ in range(100):
            await trio.sleep(0.01)
            events += page.take()
        assert events[0] == (KEY_A, True)
        assert len(events) in (13, 14), "0.5 s and then each 0.04 s"


async def test_a_compositor_that_stood_still_while_the_key_was_released(autojump_clock: MockClock) -> None:
    """The answer to the question comes before the release, as from a compositor that looks at its clients before its devices."""
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        window.answers = trio.Event()
        await trio.sleep(1.5)
        window.answers.set()
        await trio.sleep(0.001)
        tell(page, window, KEY_A, 0)
        await trio.sleep(1)
        assert page.take() == [(KEY_A, True), (KEY_A, False)]
        assert window.asked == 1


async def test_a_held_key_goes_on_after_the_compositor_does(autojump_clock: MockClock) -> None:
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        window.answers = trio.Event()
        await trio.sleep(10)
        window.answers.set()
        page.take()
        await trio.sleep(0.039)
        assert page.take() == []
        await trio.sleep(0.002)
        assert page.take() == [(KEY_A, True)]


async def test_a_slow_answer_is_no_reason_to_stop(autojump_clock: MockClock) -> None:
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        page.take()
        window.answers = trio.Event()
        await trio.sleep(0.5 + STALL - 0.001)
        window.answers.set()
        await trio.sleep(0.0005)
        assert page.take() == [(KEY_A, True)]


async def test_a_lost_compositor_knows_nothing(autojump_clock: MockClock) -> None:
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        window.is_lost = True
        await trio.sleep(1)
        assert page.take() == [(KEY_A, True)]


async def test_a_compositor_that_stands_still_does_not_keep_another_source_from_repeating(
    autojump_clock: MockClock,
) -> None:
    async with repeating() as (page, window):
        window.answers = trio.Event()
        tell(page, window, KEY_A, 1)
        await trio.sleep(1)
        tell(page, InputSource("keyboard", repeats=False), KEY_B, 1)
        await trio.sleep(0.51)
        assert page.take() == [(KEY_A, True), (KEY_B, True)]
        await trio.sleep(0.04)
        assert page.take() == [(KEY_B, True)]


async def test_a_daemon_that_stood_still_makes_up_for_nothing(mock_clock: MockClock) -> None:
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        await wait_all_tasks_blocked()
        page.take()
        mock_clock.jump(1.5)
        await wait_all_tasks_blocked()
        assert page.take() == [(KEY_A, True)]


async def test_a_guest_that_stood_still_gets_no_repetitions(autojump_clock: MockClock) -> None:
    """The page has room for 51 events, which the guest would get when the key is up."""
    async with repeating() as (page, window):
        tell(page, window, KEY_A, 1)
        await trio.sleep(1.5)
        tell(page, window, KEY_A, 0)
        assert page.take() == [(KEY_A, True), (KEY_A, False)]


ASSIGNMENT = Assignment(())


def opened(device: SimDevice) -> EvdevDevice:
    node = SimNode(device)
    reader = EvdevDevice(device.name, node, {("guest", 0): ClaimedRoles(ASSIGNMENT, frozenset(Role))})
    reader.start(DeviceState.GRABBED)
    return reader


async def test_a_blocked_loop_reads_the_release_before_it_repeats() -> None:
    """The loop is blocked for 0.7 s, and the release of a key of an evdev device that does not repeat keys waits in the kernel."""
    device = SimDevice("buttons", Capabilities(keys=frozenset((KEY_A,))), repeats=False)
    reader = opened(device)
    async with repeating() as (page, _):
        reader.guest_input, reader._roles = page.guest_input, frozenset(Role)
        device.emit((EV_KEY, KEY_A, 1))
        reader._pass_buffered()
        await trio.sleep(0.01)
        time.sleep(0.7)  # noqa: ASYNC251  # the loop is to be blocked
        device.emit((EV_KEY, KEY_A, 0))
        await trio.sleep(0.1)
        assert page.take() == [(KEY_A, True), (KEY_A, False)]
    reader.node.close()


async def test_repetitions_of_the_device_that_waited_in_the_kernel() -> None:
    device = SimDevice("keyboard", Capabilities(keys=frozenset((KEY_A, KEY_B))))
    reader, page = opened(device), Page()
    reader.guest_input, reader._roles = page.guest_input, frozenset(Role)

    def read(*values: int, code: int = KEY_A) -> list[tuple[int, bool]]:
        for value in values:
            device.emit((EV_KEY, code, value))
        reader._pass_buffered()
        return page.take()

    assert read(1, *[2] * 20) == [(KEY_A, True)], "the guest has not taken the press yet"
    assert read(2, 2, 2) == [(KEY_A, True)], "one repetition, however many waited"
    assert read(2, 2, 0) == [(KEY_A, False)], "no repetition of a key that is up"
    read(1)
    device.emit((EV_KEY, KEY_A, 2))
    assert read(1, code=KEY_B) == [(KEY_B, True)], "the device repeats the last key only"
    reader.node.close()


async def test_repetitions_after_lost_events() -> None:
    device = SimDevice("keyboard", Capabilities(keys=frozenset((KEY_A,))))
    reader, page = opened(device), Page()
    reader.guest_input, reader._roles = page.guest_input, frozenset(Role)
    device.emit((EV_KEY, KEY_A, 1))
    reader._pass_buffered()
    page.take()
    for _ in range(40):
        device.emit((EV_KEY, KEY_A, 2))
    device.emit((EV_KEY, KEY_A, 0))
    reader._pass_buffered()
    assert page.take() == [(KEY_A, False)]
    reader.node.close()
