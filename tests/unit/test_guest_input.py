"""From evdev's events to a guest's input core, against models of both ends: the same keys and contacts are down at both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scenario.devices import BUFFER, SimDevice, SimNode
from unit.guest_page import GuestPage

from displbe.input.bindings import Binding, Role, parse_unique_id
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent, Slot, Snapshot
from displbe.input.evdev.decoder import Decoder
from displbe.input.evdev.device import DeviceState, EvdevDevice
from displbe.input.evdev.lookup import ClaimedRoles
from displbe.input.evdev.nodes import READ_EVENTS
from displbe.input.evdev.pointer import PointerDecoder, PointerKind
from displbe.input.event_codes import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TOUCH_MINOR,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_TOUCH,
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SYN,
    KEY_CAPSLOCK,
    REL_WHEEL,
    REL_WHEEL_HI_RES,
    REL_X,
    REL_Y,
    SYN_MT_REPORT,
    SYN_REPORT,
)
from displbe.input.event_queue import CAPACITY, EventQueue
from displbe.input.features import Features
from displbe.input.focus import Assignment, Claim, InputFocus
from displbe.input.guest_input import GuestInput, InputSource
from displbe.input.key_repeater import AutoRepeat
from displbe.sim.input import InputCore
from displbe.wire import kbdif

ALL: Final = frozenset(Role)
LEFT: Final = 0x110
END: Final = (EV_SYN, SYN_REPORT, 0)


class Guest(GuestPage):
    """A guest that consumes its events when the test says so."""

    def __init__(self, features: Features, used: int = 0) -> None:
        super().__init__(features, AutoRepeat(), used)
        self.core = InputCore()
        self.core.has_keyboard, self.core.has_pointer = features.keyboard, features.pointer
        self.core.absolute, self.core.contacts = features.absolute, features.contacts
        self.core.size = features.width - 1, features.height - 1

    def take(self) -> None:
        """Consume the events in the page, which makes room for waiting ones."""
        for event in self.take_events():
            self.core.handle(event)
        assert self.core.oops is None
        assert self.core.warnings == []
        self.guest_input.flush()

    def take_all(self) -> None:
        """Consume all events, the waiting ones too."""
        self.guest_input.flush()
        count = -1
        while count != len(self.core.events):
            count = len(self.core.events)
            self.take()


ASSIGNMENT: Final = Assignment(())


class Given:
    """A focus that always has the same holder (input.focus.InputFocus)."""

    is_with_host = False

    def __init__(self, guest_input: GuestInput | None) -> None:
        self._claim = Claim("guest", 1, 0, ASSIGNMENT)
        self._claim.guest_input = guest_input

    def holder(self, names: Callable[[Claim], bool]) -> Claim | None:
        """InputFocus.holder"""
        return self._claim


class Hand:
    """A simulated device, and displbe's EvdevDevice for it."""

    def __init__(self, name: str, description: Capabilities, buffer: int = BUFFER) -> None:
        self.device = SimDevice(name, description, buffer=buffer)
        self._open()

    def _open(self) -> None:
        self._node = SimNode(self.device)
        self.reader = EvdevDevice(self.device.name, self._node, {("guest", 0): ClaimedRoles(ASSIGNMENT, ALL)})
        self.reader.start(DeviceState.GRABBED)

    def give(self, guest_input: GuestInput) -> None:
        """Give the device to another guest."""
        self.reader.follow(cast("InputFocus", Given(guest_input)))

    def read(self, guest_input: GuestInput) -> bool:
        """Pass buffered events to the guest that has the device. True: events were lost."""
        self.reader.guest_input, self.reader._roles = guest_input, ALL
        lost = self._node.has_lost
        self.reader._pass_buffered()
        return lost

    def replug(self) -> None:
        """Unplug the device, and plug it in again."""
        self._node.close()
        self.reader.leave()
        self.device.keys.clear()
        self._open()

    def close(self) -> None:
        self._node.close()


class Typing(RuleBasedStateMachine):
    """Two keyboards and two guests, one of which has both keyboards. Events are lost or not consumed, keyboards are unplugged.

    The model: for each keyboard, the keys that went down since its present guest got it, and are still down.
    """

    KEYS: Final = (30, 48, LEFT, 200, 0x160, 0x12C, 250)
    """Keys that Linux's frontend has, and keys that it lacks."""

    @initialize()
    def begin(self) -> None:
        self.guests = [Guest(Features()), Guest(Features())]
        self.hands = [Hand(name, Capabilities(keys=frozenset(self.KEYS))) for name in "ab"]
        self.holder = 0
        self.mine: list[set[int]] = [set(), set()]
        self.unread = [0, 0]
        self.up: list[set[int]] = [set(), set()]
        """Keys that went up since the last read."""
        self.before: list[set[int]] = [set(), set()]
        """Keys that went down for another guest, and whose release has not been read."""

    @property
    def guest_input(self) -> GuestInput:
        return self.guests[self.holder].guest_input

    @rule(hand=st.integers(0, 1), key=st.sampled_from(KEYS))
    def press_or_let_go(self, hand: int, key: int) -> None:
        device = self.hands[hand].device
        down = key not in device.keys
        device.emit((EV_KEY, key, int(down)))
        self.unread[hand] += 1
        if down:
            self.mine[hand].add(key)
        else:
            self.mine[hand].discard(key)
            self.up[hand].add(key)

    @rule(hand=st.integers(0, 1), key=st.sampled_from(KEYS), times=st.sampled_from([1, 17, 40]))
    def type_fast(self, hand: int, key: int, times: int) -> None:
        """Mostly more events than the kernel buffers, together with those that were not read before."""
        for _ in range(times):
            self.press_or_let_go(hand, key)
            self.press_or_let_go(hand, key)

    @rule(hand=st.integers(0, 1))
    def read(self, hand: int) -> None:
        lost = self.hands[hand].read(self.guest_input)
        self.unread[hand] = 0
        if lost:
            # Such a key was released and pressed again, or never released: then its press was for the other guest.
            # The two look the same, so this guest need not be told.
            self.mine[hand] -= {key for key in self.before[hand] if key not in self.guest_input.queue.pressed}
        else:
            self.before[hand] -= self.up[hand]
        self.up[hand].clear()

    @rule(guest=st.integers(0, 1))
    def take(self, guest: int) -> None:
        self.guests[guest].take()

    @rule()
    def switch(self) -> None:
        """Give the keyboards to the other guest. Events not read yet were typed for the guest that had them."""
        for hand in range(2):
            self.hands[hand].give(self.guests[1 - self.holder].guest_input)
            self.unread[hand] = 0
            self.up[hand].clear()
            self.mine[hand].clear()
            self.before[hand] = set(self.hands[hand].device.keys)
        self.holder = 1 - self.holder

    @rule(hand=st.integers(0, 1))
    def replug(self, hand: int) -> None:
        self.hands[hand].replug()
        self.mine[hand].clear()
        self.before[hand].clear()
        self.up[hand].clear()
        self.unread[hand] = 0

    @rule(count=st.sampled_from([60, CAPACITY, CAPACITY + 60, 3 * CAPACITY]), first=st.sampled_from([0, 2]))
    def stall(self, count: int, first: int) -> None:
        """Much is typed while the guest consumes nothing."""
        for number in range(count):
            self.press_or_let_go(0, self.KEYS[first + number % 2])
            self.read(0)

    @precondition(lambda self: not any(self.unread))
    @invariant()
    def what_is_down_is_down(self) -> None:
        has = Features().codes()
        expected = {key for mine in self.mine for key in mine if key in has}
        assert self.guest_input.queue.pressed == expected
        assert not self.guests[1 - self.holder].guest_input.queue.pressed

    def teardown(self) -> None:
        if not hasattr(self, "guests"):
            return
        for hand in range(2):
            self.read(hand)
        for guest in self.guests:
            guest.take_all()
            assert guest.core.pressed == guest.guest_input.queue.pressed
        self.what_is_down_is_down()
        self.guest_input.leave_all()
        self.guests[self.holder].take_all()
        assert not self.guests[self.holder].core.pressed
        for closed in self.hands:
            closed.close()


TestTyping = Typing.TestCase
TestTyping.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class Touching(RuleBasedStateMachine):
    """A touch screen with four slots, for a guest with three contacts. The guest's contacts are where the fingers are that got a number."""

    @initialize(buffer=st.sampled_from([BUFFER, 16 * BUFFER]))
    def begin(self, buffer: int) -> None:
        axes = {ABS_MT_SLOT: AbsAxis(0, 3), ABS_MT_TRACKING_ID: AbsAxis(0, 65535)}
        axes |= dict.fromkeys((ABS_MT_POSITION_X, ABS_MT_POSITION_Y), AbsAxis(0, 99))
        self.features = Features(contacts=3, touch_width=100, touch_height=100)
        self.guest = Guest(self.features)
        self.hand = Hand("touch", Capabilities(keys=frozenset((BTN_TOUCH,)), abs_axes=axes), buffer)
        self.tracking = 0
        self.fingers: dict[int, tuple[int, int]] = {}
        self.lost = False

    def emit(self, slot: int, *events: tuple[int, int]) -> None:
        self.hand.device.emit((EV_ABS, ABS_MT_SLOT, slot), *((EV_ABS, *event) for event in events))

    @rule(slot=st.integers(0, 3), x=st.integers(0, 99), y=st.integers(0, 99))
    def down_or_move(self, slot: int, x: int, y: int) -> None:
        where = (ABS_MT_POSITION_X, x), (ABS_MT_POSITION_Y, y)
        if slot not in self.fingers:
            self.tracking += 1
            self.emit(slot, (ABS_MT_TRACKING_ID, self.tracking), *where)
        else:
            self.emit(slot, *where)
        self.fingers[slot] = x, y

    @precondition(lambda self: self.fingers)
    @rule(data=st.data())
    def up(self, data: st.DataObject) -> None:
        self.up_by(data.draw(st.sampled_from(sorted(self.fingers))))

    def up_by(self, slot: int) -> None:
        self.emit(slot, (ABS_MT_TRACKING_ID, -1))
        del self.fingers[slot]

    @precondition(lambda self: self.fingers)
    @rule(data=st.data(), x=st.integers(0, 99))
    def up_and_down_at_once(self, data: st.DataObject, x: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.fingers)))
        self.tracking += 1
        self.emit(slot, (ABS_MT_TRACKING_ID, -1), (ABS_MT_TRACKING_ID, self.tracking), (ABS_MT_POSITION_X, x))
        self.fingers[slot] = x, self.fingers[slot][1]

    @rule()
    def read(self) -> None:
        self.hand.read(self.guest.guest_input)

    @rule()
    def take(self) -> None:
        self.guest.take()

    @rule(times=st.sampled_from([10, 100, 2 * CAPACITY]))
    def wriggle(self, times: int) -> None:
        """Move much while the guest consumes nothing."""
        for number in range(times):
            self.down_or_move(number % 2, number % 100, number % 90)
            self.read()

    @rule(times=st.sampled_from([10, 100, 2 * CAPACITY]))
    def drum(self, times: int) -> None:
        """Tap often while the guest consumes nothing."""
        for number in range(times):
            self.down_or_move(2, number % 100, 50)
            self.read()
            self.up_by(2)
            self.read()

    @rule(slot=st.integers(0, 3), times=st.sampled_from([100, 300, 500]))
    def lose(self, slot: int, times: int) -> None:
        """More events than the kernel buffers: those not read are lost."""
        for number in range(times):
            self.down_or_move(slot, number % 100, number % 100)

    def teardown(self) -> None:
        if not hasattr(self, "guest"):
            return
        self.read()
        self.guest.take_all()
        known = self.guest.guest_input._contacts
        assert {number: self.guest.core.fingers[number] for number in known.values()} == {
            number: self.fingers[finger] for (_, finger), number in known.items()
        }
        assert set(self.guest.core.fingers) == set(known.values())
        assert len(known) <= 3
        for slot in list(self.fingers):
            self.emit(slot, (ABS_MT_TRACKING_ID, -1))
        self.read()
        self.guest.take_all()
        assert self.guest.core.fingers == {}
        self.hand.close()


TestTouching = Touching.TestCase
TestTouching.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_what_is_queued_behind_lost_events_is_older_than_the_answer() -> None:
    """More events than one read returns are buffered. The device's snapshot is newer, so they must not be passed on after it."""
    axes = {ABS_MT_SLOT: AbsAxis(0, 3), ABS_MT_TRACKING_ID: AbsAxis(0, 65535)}
    axes |= dict.fromkeys((ABS_MT_POSITION_X, ABS_MT_POSITION_Y), AbsAxis(0, 999))
    guest = Guest(Features(contacts=4, touch_width=1000, touch_height=1000))
    hand = Hand("touch", Capabilities(abs_axes=axes), buffer=4 * READ_EVENTS)

    def emit(slot: int, *events: tuple[int, int]) -> None:
        hand.device.emit((EV_ABS, ABS_MT_SLOT, slot), *((EV_ABS, *event) for event in events))

    for slot in (0, 1):
        emit(slot, (ABS_MT_TRACKING_ID, slot), (ABS_MT_POSITION_X, 500))
    hand.read(guest.guest_input)
    guest.take_all()
    for number in range(
        3 * READ_EVENTS
    ):  # two events each, with SYN_REPORT: events are lost, and more than one read is buffered after that
        emit(0, (ABS_MT_POSITION_X, number % 99))
    emit(0, (ABS_MT_TRACKING_ID, -1))
    for number in range(READ_EVENTS // 4):
        emit(1, (ABS_MT_POSITION_X, 600 + number))
    told = len(guest.core.events)
    hand.read(guest.guest_input)
    guest.take_all()
    assert guest.core.fingers == {1: (599 + READ_EVENTS // 4, 0)}
    fresh = [event for event in guest.core.events[told:] if not isinstance(event, kbdif.TouchSyn)]
    assert fresh == [kbdif.TouchUp(0), kbdif.TouchMotion(1, 599 + READ_EVENTS // 4, 0)], "only what the device answers"
    emit(1, (ABS_MT_POSITION_X, 10))
    hand.read(guest.guest_input)
    guest.take_all()
    assert guest.core.fingers == {1: (10, 0)}
    hand.close()


def test_what_was_typed_before_the_switch_is_not_for_the_next() -> None:
    guests, hand = [Guest(Features()), Guest(Features())], Hand("keyboard", Capabilities(keys=frozenset((30, 48))))
    hand.read(guests[0].guest_input)
    for lost in (False, True):
        hand.device.emit((EV_KEY, 30, 1))
        for number in range(2 * BUFFER * lost):
            hand.device.emit((EV_KEY, 48, 1 - number % 2))
        hand.give(guests[1].guest_input)
        hand.device.emit((EV_KEY, 30, 0))
        hand.read(guests[1].guest_input)
        for guest in guests:
            guest.take_all()
        assert kbdif.Key(1, 30) in guests[0].core.events
        assert guests[0].core.pressed == set()
        assert guests[1].core.events == []
        hand.give(guests[0].guest_input)
        guests[0].core.events.clear()
    hand.close()


def test_a_release_that_was_lost() -> None:
    guest, hand = Guest(Features()), Hand("keyboard", Capabilities(keys=frozenset((30, 48))))
    hand.device.emit((EV_KEY, 30, 1))
    hand.read(guest.guest_input)
    hand.device.emit((EV_KEY, 30, 0))
    for number in range(100):
        hand.device.emit((EV_KEY, 48, 1 - number % 2))
    hand.read(guest.guest_input)
    guest.take_all()
    assert guest.core.pressed == set()
    assert kbdif.Key(0, 30) in guest.core.events
    hand.close()


def test_a_key_held_on_two_keyboards() -> None:
    guest, hands = Guest(Features()), [Hand(name, Capabilities(keys=frozenset((30,)))) for name in "ab"]
    for value in (1, 0):
        for hand in hands:
            hand.device.emit((EV_KEY, 30, value))
            hand.read(guest.guest_input)
    guest.take_all()
    assert guest.core.events == [kbdif.Key(1, 30), kbdif.Key(0, 30)]
    for hand in hands:
        hand.close()


def test_a_guest_that_takes_nothing_gets_the_whole_motion_and_every_release() -> None:
    """More keys and motions in turns than may wait: motions are merged, taps are dropped, the release of a key that is down is kept."""
    guest = Guest(Features())
    source = InputSource("both", repeats=True)
    guest.guest_input.key(source, 57, 1)
    for _ in range(2 * CAPACITY):
        guest.guest_input.key(source, 30, 1)
        guest.guest_input.move(1, -2, 0)
        guest.guest_input.key(source, 30, 0)
    guest.guest_input.key(source, 57, 0)
    assert guest.guest_input.queue.waiting <= CAPACITY
    guest.take_all()
    assert (guest.core.moved, guest.core.pressed) == ([2 * CAPACITY, -4 * CAPACITY], set())
    assert guest.guest_input.queue.dropped > CAPACITY


@given(taps=st.integers(0, 3 * CAPACITY), takes=st.booleans())
def test_locks_are_those_that_the_guest_has(taps: int, takes: bool) -> None:
    """Taps that the guest never gets count neither way."""
    guest = Guest(Features())
    source = InputSource("keyboard", repeats=True)
    for number in range(taps):
        guest.guest_input.key(source, KEY_CAPSLOCK, 1)
        guest.guest_input.key(source, KEY_CAPSLOCK, 0)
        if takes and number % 7 == 0:
            guest.take()
    guest.take_all()
    presses = guest.core.events.count(kbdif.Key(1, KEY_CAPSLOCK))
    assert (KEY_CAPSLOCK in guest.guest_input.queue.locks.on) == bool(presses % 2)


def test_a_page_that_was_used_before_is_no_reason_to_look_through_the_queue_for_each_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest claims that its page was used before, and consumes nothing: the releases of all keys wait, which is more than CAPACITY."""
    looks = 0
    drop = EventQueue._drop_taps

    def count(queue: EventQueue) -> None:
        nonlocal looks
        looks += 1
        drop(queue)

    monkeypatch.setattr(EventQueue, "_drop_taps", count)
    guest = Guest(Features(contacts=10), used=5)
    guest.guest_input.release_everything()
    releases = guest.guest_input.queue.waiting
    assert releases > CAPACITY
    source = InputSource("touch", repeats=True)
    for number in range(10 * CAPACITY):
        guest.guest_input.touch_down(source, number % 10, 0.5, 0.5)
        guest.guest_input.touch_move(source, number % 10, number % 100 / 100, 0.5)
        guest.guest_input.touch_up(source, (number + 5) % 10)
        guest.guest_input.touch_frame(source)
        guest.guest_input.flush()
    assert guest.guest_input.queue.waiting <= 2 * (releases + 3 * 10)
    assert looks < 50
    guest.guest_input.leave_all()
    guest.take_all()
    assert guest.core.fingers == {}
    assert guest.core.pressed == set()


def test_a_finger_that_came_down_elsewhere_meanwhile_is_no_drag() -> None:
    guest = Guest(Features(contacts=2, touch_width=100, touch_height=100))
    source = InputSource("touch", repeats=True)
    for number in range(CAPACITY):
        guest.guest_input.touch_down(source, 0, number % 100 / 100, 0)
        guest.guest_input.touch_frame(source)
        guest.guest_input.touch_up(source, 0)
        guest.guest_input.touch_frame(source)
    guest.guest_input.touch_down(source, 0, 0.99, 0)
    guest.guest_input.touch_frame(source)
    guest.take_all()
    ends = [event for event in guest.core.events if not isinstance(event, kbdif.TouchSyn)][-3:]
    assert isinstance(ends[-2], kbdif.TouchUp)
    assert ends[-1] == kbdif.TouchDown(0, 99, 0)


# The life of a device


def test_a_device_passes_events_on_only_while_it_is_read() -> None:
    guest, device = Guest(Features()), SimDevice("keyboard", Capabilities(keys=frozenset((30, 48))))
    node = SimNode(device)
    reader = EvdevDevice(device.name, node, {("guest", 0): ClaimedRoles(ASSIGNMENT, ALL)})
    focus = cast("InputFocus", Given(guest.guest_input))
    reader.follow(focus)
    device.emit((EV_KEY, 30, 1))
    assert reader.state is DeviceState.HELD_BACK
    assert not reader._pass_buffered()
    reader.start(DeviceState.SHARED)
    device.emit((EV_KEY, 48, 1))
    assert reader._pass_buffered()
    guest.take_all()
    assert guest.core.events == [kbdif.Key(1, 48)], "keys that were down at the start were pressed for another program"
    reader.state = DeviceState.LOST
    reader.leave()
    reader.follow(focus)
    assert reader.guest_input is None
    guest.take_all()
    assert guest.core.events == [kbdif.Key(1, 48), kbdif.Key(0, 48)]
    node.close()


@pytest.mark.parametrize("where", ["decode", "leave"])
def test_an_error_in_a_device_costs_that_device(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Not the caller, which gives the focus of all devices to another guest."""
    first, second = Guest(Features()), Guest(Features())
    hand = Hand("keyboard", Capabilities(keys=frozenset((30,))))
    hand.give(first.guest_input)
    hand.device.emit((EV_KEY, 30, 1))

    def fail(*_: object) -> bool:
        raise ValueError("a mistake")

    monkeypatch.setattr(Decoder if where == "decode" else GuestInput, where, fail)
    hand.give(second.guest_input)
    assert hand.reader.state is DeviceState.LOST
    hand.give(second.guest_input)
    assert hand.reader.guest_input is None
    hand.close()


# The pointer


@pytest.mark.parametrize(
    ("capabilities", "kind"),
    [
        (Capabilities(keys=frozenset((30,))), PointerKind.RELATIVE),
        (Capabilities(rel_axes=frozenset((REL_X, REL_Y))), PointerKind.RELATIVE),
        (Capabilities(abs_axes={ABS_X: AbsAxis(0, 9)}), PointerKind.RELATIVE),
        (Capabilities(abs_axes=dict.fromkeys((ABS_X, ABS_Y), AbsAxis(0, 9))), PointerKind.ABSOLUTE),
        (Capabilities(abs_axes=dict.fromkeys((ABS_X, ABS_Y), AbsAxis(0, 9)), is_touchpad=True), PointerKind.TOUCHPAD),
    ],
)
def test_kinds_of_pointers(capabilities: Capabilities, kind: PointerKind) -> None:
    assert PointerDecoder(InputSource("device", repeats=True), capabilities, Snapshot()).kind is kind


def told(features: Features, description: Capabilities, *events: InputEvent, roles: frozenset[Role] = ALL) -> Guest:
    """Return a guest that has consumed these events."""
    guest = Guest(features)
    state = Snapshot(axes=dict.fromkeys(description.abs_axes, 0))
    Decoder(InputSource("device", repeats=True), description, state).decode(events, guest.guest_input, roles)
    guest.take_all()
    return guest


MOUSE: Final = Capabilities(keys=frozenset((LEFT,)), rel_axes=frozenset((REL_X, REL_Y, REL_WHEEL, REL_WHEEL_HI_RES)))
Moves = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(-3, 3)), max_size=200)


@given(moves=Moves)
def test_a_mouse_in_a_guest_that_takes_nothing_loses_no_motion(moves: list[tuple[int, int, int]]) -> None:
    events = [
        event
        for x, y, wheel in moves
        for event in (
            (EV_REL, REL_X, x),
            (EV_REL, REL_Y, y),
            (EV_REL, REL_WHEEL, wheel),
            (EV_REL, REL_WHEEL_HI_RES, 120 * wheel),
            END,
        )
    ]
    core = told(Features(), MOUSE, *events).core
    assert core.moved == [sum(x for x, _, _ in moves), sum(y for _, y, _ in moves)]
    assert core.wheel == sum(wheel for _, _, wheel in moves)


@given(turns=st.lists(st.integers(1, 50), max_size=100), up=st.booleans())
def test_a_wheel_of_high_resolution_alone_counts_detents(turns: list[int], up: bool) -> None:
    wheel = Capabilities(rel_axes=frozenset((REL_WHEEL_HI_RES,)))
    sign = 1 if up else -1
    events = [event for turn in turns for event in ((EV_REL, REL_WHEEL_HI_RES, sign * turn), END)]
    assert told(Features(), wheel, *events).core.wheel == sign * (sum(turns) // 120)


def test_motions_that_come_together_are_one() -> None:
    """But a button separates them: it goes down where the pointer is at that moment. A motion is passed on when its frame ends."""
    right, down, up = (EV_REL, REL_X, 1), (EV_KEY, LEFT, 1), (EV_KEY, LEFT, 0)
    guest = Guest(Features())
    decoder = Decoder(InputSource("mouse", repeats=True), MOUSE, Snapshot())
    decoder.decode(
        [right, END, right, END, right, down, END, right, END, up, END, right, END, right], guest.guest_input, ALL
    )
    guest.take_all()
    events = [kbdif.Motion(3, 0, 0), kbdif.Key(1, LEFT), kbdif.Motion(1, 0, 0), kbdif.Key(0, LEFT)]
    assert guest.core.events[:4] == events
    decoder.decode([right, END], guest.guest_input, ALL)
    guest.take_all()
    assert guest.core.moved == [7, 0]


def test_a_horizontal_wheel_is_no_vertical_one() -> None:
    core = told(Features(), MOUSE, (EV_REL, 6, 5), (EV_REL, 12, 600), END).core
    assert (core.wheel, core.events) == (0, [])


@given(low=st.integers(-1000, 1000), span=st.integers(1, 70000), size=st.integers(1, 5000), data=st.data())
def test_positions_are_scaled(low: int, span: int, size: int, data: st.DataObject) -> None:
    axis = AbsAxis(low, low + span)
    values = sorted(data.draw(st.lists(st.integers(low - 10, low + span + 10), min_size=1, max_size=20)))
    tablet = Capabilities(abs_axes={ABS_X: axis, ABS_Y: axis})
    features = Features(absolute=True, width=size, height=size)
    found = []
    for value in values:
        core = told(features, tablet, (EV_ABS, ABS_X, value), (EV_ABS, ABS_Y, value), END).core
        assert core.position is not None
        found.append(core.position[0])
        # Within a pixel of the exact position, and never outside the screen.
        inside = min(max(value, low), low + span) - low
        assert abs(core.position[0] - inside * (size - 1) / span) <= 1
        if size == span + 1:
            assert core.position[0] == inside
    assert found == sorted(found)


@given(moves=Moves)
def test_a_mouse_for_a_guest_with_positions(moves: list[tuple[int, int, int]]) -> None:
    x, y = 50.0, 40.0
    for dx, dy, _ in moves:
        x, y = min(max(x + dx, 0), 99), min(max(y + dy, 0), 79)
    guest = Guest(Features(absolute=True, width=100, height=80))
    decoder = Decoder(InputSource("mouse", repeats=True), MOUSE, Snapshot())
    for dx, dy, _ in moves:
        decoder.decode([(EV_REL, REL_X, dx), (EV_REL, REL_Y, dy), END], guest.guest_input, ALL)
    guest.take_all()
    assert guest.core.position in (None, (int(x), int(y)))


@given(places=st.lists(st.integers(0, 999), min_size=1, max_size=50))
def test_positions_for_a_guest_with_motions(places: list[int]) -> None:
    """The first position is no motion; then each motion is the difference of two positions."""
    tablet = Capabilities(abs_axes={ABS_X: AbsAxis(0, 999), ABS_Y: AbsAxis(0, 999)})
    events = [event for place in places for event in ((EV_ABS, ABS_X, place), END)]
    core = told(Features(width=1000, height=1000), tablet, *events).core
    assert core.moved == [places[-1] - places[0], 0]


def test_a_pen_that_comes_down_elsewhere_drags_nothing() -> None:
    tablet = Capabilities(keys=frozenset((BTN_TOUCH,)), abs_axes={ABS_X: AbsAxis(0, 999), ABS_Y: AbsAxis(0, 999)})
    features = Features(width=1000, height=1000)
    events: list[InputEvent] = []
    for start in (100, 800):
        events += [(EV_ABS, ABS_X, start), (EV_KEY, BTN_TOUCH, 1), END]
        events += [(EV_ABS, ABS_X, start + 10), END, (EV_KEY, BTN_TOUCH, 0), END]
    core = told(features, tablet, *events, roles=frozenset((Role.POINTER,))).core
    assert core.moved == [20, 0]
    assert [event for event in core.events if isinstance(event, kbdif.Key)] == [
        kbdif.Key(1, LEFT),
        kbdif.Key(0, LEFT),
    ] * 2, "what is only touched has one button"


def test_the_pointer_is_there_before_its_button_goes_down() -> None:
    tablet = Capabilities(keys=frozenset((LEFT,)), abs_axes={ABS_X: AbsAxis(0, 99), ABS_Y: AbsAxis(0, 99)})
    features = Features(absolute=True, width=100, height=100)
    core = told(features, tablet, (EV_KEY, LEFT, 1), (EV_ABS, ABS_X, 7), (EV_ABS, ABS_Y, 8), END).core
    assert core.events == [kbdif.Position(7, 8, 0), kbdif.Key(1, LEFT)]


def test_a_touchpad_moves_the_pointer() -> None:
    pad = Capabilities(
        keys=frozenset((BTN_TOUCH,)), abs_axes={ABS_X: AbsAxis(0, 3999), ABS_Y: AbsAxis(0, 1999)}, is_touchpad=True
    )
    events: list[InputEvent] = [(EV_KEY, BTN_TOUCH, 1), (EV_ABS, ABS_X, 100), END]
    events += [event for step in range(1, 41) for event in ((EV_ABS, ABS_X, 100 + step), END)]
    core = told(Features(absolute=True, width=1000, height=1000), pad, *events).core
    assert core.position == (510, 500)


@pytest.mark.parametrize(
    ("features", "allowed"),
    [
        (Features(), {30, 200, 0x160, LEFT}),
        (Features(keyboard=False), {LEFT}),
        (Features(pointer=False), set()),
        (Features(keyboard=False, pointer=False, contacts=1), set()),
    ],
)
def test_only_keys_that_the_frontend_can_bear(features: Features, allowed: set[int]) -> None:
    codes = [0, 30, 200, 240, 255, 0x100, 0x10F, LEFT, 0x118, BTN_TOUCH, 0x15F, 0x160, 0x2FF, 0x300, 0xFFFF]
    events = [event for code in codes for event in ((EV_KEY, code, 1), END)]
    core = told(features, Capabilities(keys=frozenset(codes)), *events).core
    assert core.pressed == allowed


@pytest.mark.parametrize("role", list(Role))
def test_a_role_is_all_that_a_device_plays(role: Role) -> None:
    axes = {code: AbsAxis(0, 9) for code in (ABS_MT_POSITION_X, ABS_MT_POSITION_Y)}
    both = Capabilities(keys=frozenset((30, LEFT)), rel_axes=frozenset((REL_X,)), abs_axes=axes)
    touch: list[InputEvent] = [(EV_ABS, ABS_MT_POSITION_X, 5), (EV_SYN, SYN_MT_REPORT, 0)]
    events: list[InputEvent] = [(EV_KEY, 30, 1), (EV_KEY, LEFT, 1), (EV_REL, REL_X, 3), *touch, END]
    core = told(Features(contacts=2), both, *events, roles=frozenset((role,))).core
    assert core.pressed == {Role.KEYBOARD: {30}, Role.POINTER: {LEFT}, Role.TOUCH: set()}[role]
    assert core.moved == [3 if role is Role.POINTER else 0, 0]
    assert len(core.fingers) == (role is Role.TOUCH)


# Contacts


def test_shape_and_orientation() -> None:
    axes = {code: AbsAxis(0, 999) for code in (ABS_MT_POSITION_X, ABS_MT_POSITION_Y)}
    axes |= {ABS_MT_SLOT: AbsAxis(0, 1), ABS_MT_TRACKING_ID: AbsAxis(0, 9), ABS_MT_ORIENTATION: AbsAxis(-4, 4)}
    axes |= {code: AbsAxis(0, 999) for code in (ABS_MT_TOUCH_MAJOR, ABS_MT_TOUCH_MINOR)}
    device = SimDevice("touch", Capabilities(abs_axes=axes))
    guest = Guest(Features(contacts=1, touch_width=2000, touch_height=500))
    node = SimNode(device)
    decoder = Decoder(InputSource("touch", repeats=True), device.capabilities, node.snapshot())
    shape = (ABS_MT_TOUCH_MAJOR, 20), (ABS_MT_TOUCH_MINOR, 10), (ABS_MT_ORIENTATION, 2)
    place = (ABS_MT_TRACKING_ID, 1), (ABS_MT_POSITION_X, 500), (ABS_MT_POSITION_Y, 500)
    device.emit(*((EV_ABS, *event) for event in (*place, *shape)))
    decoder.decode(node.read(), guest.guest_input, ALL)
    guest.take_all()
    assert guest.core.events == [
        kbdif.TouchDown(0, 1001, 250),
        kbdif.TouchShape(0, 20, 10),
        kbdif.TouchOrientation(0, 45),
        kbdif.TouchSyn(0),
    ]
    node.close()


def test_numbers_that_do_not_fit() -> None:
    """A device may report any s32 in any range: values are limited to what the event's field holds."""
    least, most = -0x80000000, 0x7FFFFFFF
    far = ((EV_REL, REL_X, least), (EV_REL, REL_X, least), (EV_REL, REL_WHEEL, least), END)
    assert told(Features(), MOUSE, *far).core.events == [kbdif.Motion(least, 0, most)]
    axes = dict.fromkeys((ABS_MT_POSITION_X, ABS_MT_POSITION_Y), AbsAxis(0, 0))
    finger = [(EV_ABS, ABS_MT_POSITION_X, most), (EV_ABS, ABS_MT_TOUCH_MAJOR, most), (EV_SYN, SYN_MT_REPORT, 0), END]
    core = told(Features(contacts=1), Capabilities(abs_axes=axes), *finger).core
    assert core.events[1] == kbdif.TouchShape(0, 0xFFFFFFFF, 0)
    pad = Capabilities(abs_axes={ABS_X: AbsAxis(1, 0), ABS_Y: AbsAxis(0, 9)}, is_touchpad=True)
    assert told(Features(), pad, (EV_ABS, ABS_X, 1), END, (EV_ABS, ABS_X, 2), END).core.moved == [1000, 0]


def test_up_and_down_in_one_frame_are_two_moments() -> None:
    axes = dict.fromkeys((ABS_MT_POSITION_X, ABS_MT_POSITION_Y), AbsAxis(0, 9))
    axes |= {ABS_MT_SLOT: AbsAxis(0, 1), ABS_MT_TRACKING_ID: AbsAxis(0, 9)}
    down: list[InputEvent] = [(EV_ABS, ABS_MT_TRACKING_ID, 1), (EV_ABS, ABS_MT_POSITION_X, 3), END]
    again: list[InputEvent] = [(EV_ABS, ABS_MT_TRACKING_ID, -1), (EV_ABS, ABS_MT_TRACKING_ID, 2), END]
    guest = Guest(Features(contacts=1, touch_width=10, touch_height=10))
    state = Snapshot(slots=[Slot(), Slot()])
    Decoder(InputSource("touch", repeats=True), Capabilities(abs_axes=axes), state).decode(
        [*down, *again], guest.guest_input, ALL
    )
    guest.take_all()
    touch = [kbdif.TouchDown(0, 3, 0), kbdif.TouchSyn(0)]
    assert guest.core.events == [*touch, kbdif.TouchUp(0), kbdif.TouchSyn(0), *touch]


def test_what_a_device_did_for_another_guest_is_no_motion() -> None:
    guest = Guest(Features(width=100, height=100))
    tablet = Capabilities(abs_axes={ABS_X: AbsAxis(0, 99), ABS_Y: AbsAxis(0, 99)})
    decoder = Decoder(InputSource("tablet", repeats=True), tablet, Snapshot(axes={ABS_X: 0, ABS_Y: 0}))
    decoder.decode([(EV_ABS, ABS_X, 10), END], guest.guest_input, ALL)
    guest.guest_input.leave(decoder._source)
    decoder.decode([(EV_ABS, ABS_X, 90), END], None, frozenset())
    decoder.decode([(EV_ABS, ABS_X, 91), END], guest.guest_input, ALL)
    guest.take_all()
    assert guest.core.moved == [0, 0]


Spots = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=4, unique=True)


@given(frames=st.lists(Spots, max_size=20))
def test_fingers_without_numbers(frames: list[list[tuple[int, int]]]) -> None:
    """Type A: after each frame the guest's contacts are those of the frame, and a contact that stays keeps its number."""
    axes = dict.fromkeys((ABS_MT_POSITION_X, ABS_MT_POSITION_Y), AbsAxis(0, 99))
    guest = Guest(Features(contacts=8, touch_width=100, touch_height=100))
    decoder = Decoder(InputSource("touch", repeats=True), Capabilities(abs_axes=axes), Snapshot())
    before: dict[int, tuple[int, int]] = {}
    for frame in frames:
        events: list[InputEvent] = []
        for x, y in frame:
            events += [(EV_ABS, ABS_MT_POSITION_X, x), (EV_ABS, ABS_MT_POSITION_Y, y), (EV_SYN, SYN_MT_REPORT, 0)]
        decoder.decode([*(events or [(EV_SYN, SYN_MT_REPORT, 0)]), END], guest.guest_input, ALL)
        guest.take_all()
        now = guest.core.fingers
        assert sorted(now.values()) == sorted(frame)
        for number, spot in before.items():
            if spot in frame and len(frame) == len(before) == len({*before.values(), *frame}):
                assert now[number] == spot, "one that has not moved keeps its number"
        before = dict(now)


def test_one_finger() -> None:
    """A touch screen with one contact: ABS_X, ABS_Y, BTN_TOUCH."""
    screen = Capabilities(keys=frozenset((BTN_TOUCH,)), abs_axes={ABS_X: AbsAxis(0, 9), ABS_Y: AbsAxis(0, 9)})
    features = Features(contacts=1, touch_width=10, touch_height=10)
    events: list[InputEvent] = [
        (EV_KEY, BTN_TOUCH, 1),
        (EV_ABS, ABS_X, 3),
        (EV_ABS, ABS_Y, 4),
        END,
        (EV_ABS, ABS_X, 5),
        END,
    ]
    core = told(features, screen, *events, (EV_KEY, BTN_TOUCH, 0), END, roles=frozenset((Role.TOUCH,))).core
    assert core.events == [
        *(kbdif.TouchDown(0, 3, 4), kbdif.TouchSyn(0)),
        *(kbdif.TouchMotion(0, 5, 4), kbdif.TouchSyn(0)),
        *(kbdif.TouchUp(0), kbdif.TouchSyn(0)),
    ]


# unique-id


@given(
    bindings=st.lists(
        st.builds(
            Binding, st.sampled_from(Role), st.text("abc/:= -._", min_size=1).filter(lambda text: text.strip() == text)
        ),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    small=st.booleans(),
)
def test_unique_ids(bindings: list[Binding], small: bool) -> None:
    letters = [binding.role.value.lower() if small else binding.role.value for binding in bindings]
    text = ";".join(f"{letter}:{binding.id}" for letter, binding in zip(letters, bindings, strict=True))
    assert parse_unique_id(text) == tuple(bindings)


@pytest.mark.parametrize(
    "text",
    ["", ";", "K", "K:", "K: ", "X:/dev/input/event0", "/dev/input/event0", "K:a;;Q:b", "K:a\n", "K:" + "a" * 2000],
)
def test_what_is_no_unique_id(text: str) -> None:
    with pytest.raises(ValueError, match=r"it names no device|none of K:ID|not a list of devices"):
        parse_unique_id(text)


@given(text=st.text(max_size=50))
def test_any_unique_id(text: str) -> None:
    try:
        assert parse_unique_id(text)
    except ValueError:
        pass
