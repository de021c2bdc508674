"""Connectors that exclude each other: the one that came first has the window, and guests cannot change that. A guest that reboots itself
keeps its window.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from displbe.sinks.base import Claimant, DeviceConnector, OutputUnavailable
from displbe.sinks.window_queue import KEPT, WindowQueue


def connector(domid: int, name: str, device: int = 0, guest: str = "") -> DeviceConnector:
    return DeviceConnector(Claimant(domid, guest), device, 0, name, 64, 48)


CONNECTORS = [connector(domid, name, device) for domid in (1, 2) for device in (0, 1) for name in ("A", "B")]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(CONNECTORS)), max_size=40))
def test_the_first_of_each_name_is_open(steps: list[tuple[bool, DeviceConnector]]) -> None:
    opened: list[DeviceConnector] = []
    queue = WindowQueue(lambda each, before: opened.append(each), opened.remove)
    there: list[DeviceConnector] = []
    for add, each in steps:
        if add and each not in there:
            queue.add(each)
            there.append(each)
        elif not add:
            queue.remove(each)
            there = [other for other in there if other != each]
        first = [next((other for other in there if other.name == name), None) for name in ("A", "B")]
        assert set(opened) == {each for each in first if each is not None}
        for name, holder in zip(("A", "B"), first, strict=True):
            for domid in (1, 2):
                if holder is not None and holder.claimant.domid == domid:
                    assert queue.find(name, domid) is holder
                    queue.check_open(holder)
                else:
                    with pytest.raises(OutputUnavailable):
                        queue.find(name, domid)


def test_reasons() -> None:
    queue = WindowQueue(lambda each, before: None, lambda each: None)
    with pytest.raises(OutputUnavailable, match="no device of this guest has a connector A"):
        queue.find("A", 1)
    queue.add(connector(1, "A"))
    queue.add(connector(2, "A"))
    with pytest.raises(OutputUnavailable, match="taken by another guest"):
        queue.find("A", 2)
    with pytest.raises(OutputUnavailable, match="taken by another guest"):
        queue.check_open(connector(2, "A"))


# Guests that reboot


class Windows:
    """The windows of a queue. Each is opened once, moved any number of times, and closed once."""

    def __init__(self) -> None:
        self.queue = WindowQueue(self.open, self.close)
        self.there: dict[DeviceConnector, int] = {}
        """The connectors whose windows there are -> the number of the window."""
        self.count = 0
        """The number of windows opened so far."""

    def open(self, each: DeviceConnector, before: DeviceConnector | None) -> None:
        if before is None:
            self.count += 1
        number = self.count if before is None else self.there.pop(before)
        assert each not in self.there  # `before` is equal to it when the same device is created again
        self.there[each] = number
        names = [each.name for each in self.there]
        assert len(names) == len(set(names))

    def close(self, each: DeviceConnector) -> None:
        del self.there[each]


Play = Callable[[Windows], Awaitable[None]]


def play(scene: Play) -> Windows:
    """Play a scene with a queue that runs, in mock time. Return the windows that are left at the end."""

    async def run() -> Windows:
        windows = Windows()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(windows.queue.run)
            await wait_all_tasks_blocked()
            await scene(windows)
            nursery.cancel_scope.cancel()
        return windows

    return trio.run(run, clock=MockClock(autojump_threshold=0))


def test_a_guest_that_reboots_keeps_its_window() -> None:
    async def scene(windows: Windows) -> None:
        before, after = connector(1, "A", guest="one"), connector(2, "A", guest="one")
        windows.queue.add(before)
        for _ in range(5):
            windows.queue.remove(before)
            assert windows.queue.is_kept(before)
            with pytest.raises(OutputUnavailable, match="no device"):
                windows.queue.find("A", before.claimant.domid)
            await trio.sleep(KEPT - 0.1)
            windows.queue.add(after)
            assert windows.there == {after: 1}
            assert windows.queue.find("A", after.claimant.domid) is after
            before, after = after, connector(after.claimant.domid + 1, "A", guest="one")
        await trio.sleep(2 * KEPT)
        assert windows.there == {before: 1}
        windows.queue.remove(before)

    assert play(scene).there == {}


def test_a_device_that_is_removed_and_created_again() -> None:
    """`xl vdispl-detach` and `xl vdispl-attach`: the domain and its connector are the same."""

    async def scene(windows: Windows) -> None:
        for _ in range(3):
            windows.queue.add(connector(1, "A", guest="one"))
            assert windows.there == {connector(1, "A", guest="one"): 1}
            windows.queue.remove(connector(1, "A", guest="one"))

    assert play(scene).there == {}


def test_a_guest_that_does_not_come_back() -> None:
    """Its window is closed when the time has passed. A guest that comes later has a new one."""

    async def scene(windows: Windows) -> None:
        windows.queue.add(connector(1, "A", guest="one"))
        windows.queue.remove(connector(1, "A", guest="one"))
        await trio.sleep(KEPT - 0.1)
        assert windows.there != {}
        await trio.sleep(0.2)
        assert windows.there == {}
        windows.queue.add(connector(2, "A", guest="one"))
        assert windows.count == 2
        windows.queue.remove(connector(2, "A", guest="one"))
        assert windows.there != {}

    assert play(scene).there == {}


@pytest.mark.parametrize(
    "other",
    [connector(2, "A", guest="two"), connector(2, "A"), connector(2, "B", guest="one")],
    ids=["another guest", "a guest without a name", "another connector"],
)
def test_a_window_is_kept_for_nothing_else(other: DeviceConnector) -> None:
    async def scene(windows: Windows) -> None:
        windows.queue.add(connector(1, "A", guest="one"))
        windows.queue.remove(connector(1, "A", guest="one"))
        windows.queue.add(other)
        assert windows.there[other] == 2
        assert len(windows.there) == (2 if other.name == "B" else 1)
        windows.queue.remove(other)

    assert play(scene).there == {}


def test_a_window_of_a_guest_without_a_name_is_not_kept() -> None:
    async def scene(windows: Windows) -> None:
        windows.queue.add(connector(1, "A"))
        windows.queue.remove(connector(1, "A"))
        assert windows.there == {}

    play(scene)


def test_a_connector_that_waits_gets_the_place_at_once() -> None:
    async def scene(windows: Windows) -> None:
        windows.queue.add(connector(1, "A", guest="one"))
        windows.queue.add(connector(2, "A", guest="two"))
        windows.queue.remove(connector(1, "A", guest="one"))
        assert windows.there == {connector(2, "A", guest="two"): 2}
        windows.queue.remove(connector(2, "A", guest="two"))

    play(scene)


def test_a_new_domain_waits_until_the_old_one_has_left_all_its_windows() -> None:
    """The windows of a guest share a connection to the compositor, and two domains never do."""

    async def scene(windows: Windows) -> None:
        old = [connector(1, name, guest="one") for name in ("A", "B")]
        new = [connector(2, name, guest="one") for name in ("A", "B")]
        for each in old:
            windows.queue.add(each)
        windows.queue.remove(old[0])
        for each in new:
            windows.queue.add(each)
            assert windows.there == {old[0]: 1, old[1]: 2}
        with pytest.raises(OutputUnavailable, match="former domain 1 still has the connector B"):
            windows.queue.find("A", 2)
        windows.queue.remove(old[1])
        assert windows.there == {new[0]: 1, new[1]: 2}
        for each in new:
            windows.queue.remove(each)

    play(scene)


def test_a_domain_that_stays_keeps_another_of_its_name_waiting_no_longer_than_a_window_is_kept() -> None:
    """As after `on_crash = "rename-restart"`: the crashed domain stays."""

    async def scene(windows: Windows) -> None:
        windows.queue.add(connector(1, "A", guest="one"))
        windows.queue.add(connector(1, "B", guest="one"))
        windows.queue.remove(connector(1, "A", guest="one"))
        windows.queue.add(connector(2, "A", guest="one"))
        await trio.sleep(KEPT + 0.1)
        assert windows.there == {connector(1, "B", guest="one"): 2, connector(2, "A", guest="one"): 3}

    play(scene)


NAMED = [
    connector(domid, name, device, guest)
    for domid, guest in ((1, "one"), (2, "one"), (3, "two"), (4, ""))
    for device in (0, 1)
    for name in ("A", "B")
]
STEPS = st.one_of(
    st.tuples(st.sampled_from(["add", "remove"]), st.sampled_from(NAMED)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.4 * KEPT, 1.1 * KEPT])),
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_any_reboots(steps: list[tuple[str, DeviceConnector | float]]) -> None:
    """Each connector that could have a window has one. A window goes only to the same guest's connector of the same name, or is closed; at
    most one window of each name is there, and none beyond its time.
    """

    async def scene(windows: Windows) -> None:
        there: list[DeviceConnector] = []
        removed: dict[DeviceConnector, float] = {}
        for step, value in steps:
            former = dict(windows.there)
            match step, value:
                case "wait", float():
                    await trio.sleep(value)
                    await wait_all_tasks_blocked()
                case "add", DeviceConnector() if value not in there:
                    there.append(value)
                    removed.pop(value, None)
                    windows.queue.add(value)
                case "remove", DeviceConnector() if value in there:
                    there.remove(value)
                    removed[value] = trio.current_time()
                    windows.queue.remove(value)
            check(windows, there, removed)
            owners = {number: each for each, number in former.items()}
            for each, number in windows.there.items():
                before = owners.get(number, each)
                assert (each.name, each.claimant.name) == (before.name, before.claimant.name)
                assert each == before or each.claimant.name

    def check(windows: Windows, there: list[DeviceConnector], removed: dict[DeviceConnector, float]) -> None:
        kept = [each for each in windows.there if each not in there]
        for each in kept:
            assert windows.queue.is_kept(each)
            assert each.claimant.name
            assert trio.current_time() <= removed[each] + KEPT
        for each in there:
            same = [other for other in windows.there if other.name == each.name]
            assert same, "each name has a window while a connector has it"
            assert same == [each] or same[0] in there or waits(windows, each, same[0])

    def waits(windows: Windows, each: DeviceConnector, kept: DeviceConnector) -> bool:
        """Return whether a connector has to wait for the window that is kept for it."""
        return kept.claimant.name == each.claimant.name and any(
            other.claimant.name == each.claimant.name and other.claimant.domid != each.claimant.domid
            for other in windows.there
            if not windows.queue.is_kept(other)
        )

    windows = play(scene)
    for each in windows.there:  # when displbe ends, devices are removed before
        windows.queue.check_open(each)
