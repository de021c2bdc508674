"""Key combinations that move the input focus, and the locks that follow it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from scenario.devices import SimDevice, SimNode
from scenario.test_input import grabbed
from scenario.world import World, until

from displbe.ctl.tables import WIDTH, status_lines
from displbe.input.evdev.capabilities import Capabilities
from displbe.input.evdev.device import DeviceState
from displbe.input.event_codes import (
    EV_KEY,
    EV_REL,
    EV_SYN,
    KEY_CAPSLOCK,
    KEY_NUMLOCK,
    KEY_SCROLLLOCK,
    LED_CAPSL,
    LED_NUML,
    LED_SCROLLL,
    REL_X,
    REL_Y,
    SYN_REPORT,
)
from displbe.input.key_names import KEY_CODES
from displbe.input.settings import InputSettings
from displbe.input.shortcuts import Action, Shortcut, ShortcutKeys, parse_keys
from displbe.sinks.headless.sink import HeadlessSink
from displbe.sinks.seat import KeyboardEnter, KeyboardKey, KeyboardLeave, KeyboardLocks, Seats
from displbe.wire import kbdif

KEYBOARD, MOUSE = "/dev/input/event0", "/dev/input/event1"
KEY_A, KEY_B, BTN_LEFT = 30, 48, 0x110
CTRL, ALT, RIGHT, PAUSE = 29, 56, 106, 119
LEDS = frozenset((LED_NUML, LED_CAPSL, LED_SCROLLL))
NEXT, RELEASE = "leftctrl+leftalt+right", "leftctrl+leftalt+pause"


def plug(world: World) -> tuple[SimDevice, SimDevice]:
    keyboard = SimDevice("keyboard", Capabilities(keys=frozenset(range(1, 128)), leds=LEDS))
    mouse = SimDevice("mouse", Capabilities(keys=frozenset((BTN_LEFT,)), rel_axes=frozenset((REL_X, REL_Y))))
    return world.nodes.plug(KEYBOARD, keyboard), world.nodes.plug(MOUSE, mouse)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = InputSettings(devices=["/dev/input/*"], next_guest=NEXT, release=RELEASE)
    async with World.running(tmp_path, input=settings) as world:
        plug(world)
        yield world


def state(world: World) -> DeviceState | None:
    """Return the state of the keyboard; None: the daemon does not know it now."""
    device = world.daemon.evdev.devices.get(KEYBOARD)
    return None if device is None else device.state


def press(device: SimDevice, *codes: int) -> None:
    for code in codes:
        device.emit((EV_KEY, code, 1))


def release(device: SimDevice, *codes: int) -> None:
    for code in codes:
        device.emit((EV_KEY, code, 0))


def keys(events: list[kbdif.InEvent]) -> list[tuple[int, bool]]:
    return [(event.keycode, bool(event.pressed)) for event in events if isinstance(event, kbdif.Key)]


async def test_the_next_guest(world: World) -> None:
    """The old guest gets the releases of what it has; the new one gets what is typed afterwards, all keys of the combination excepted."""
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    both = f"K:{KEYBOARD};P:{MOUSE}"
    async with world.typist(1, both, "first") as first, world.typist(2, both, "second") as second:
        await grabbed(keyboard)
        await grabbed(mouse)
        press(keyboard, KEY_B, CTRL, ALT, RIGHT, KEY_A)  # all of it may be read at once
        await until(lambda: second.pressed == {KEY_A})
        mouse.emit((EV_REL, REL_X, 5))
        await until(lambda: second.moved == [5, 0])
        assert keys(first.events)[:3] == [(KEY_B, True), (CTRL, True), (ALT, True)]
        assert sorted(keys(first.events)[3:]) == [(CTRL, False), (KEY_B, False), (ALT, False)]
        keyboard.emit((EV_KEY, RIGHT, 2))
        release(keyboard, RIGHT, ALT, CTRL, KEY_B, KEY_A)
        await until(lambda: not second.pressed)
        assert keys(second.events) == [(KEY_A, True), (KEY_A, False)]
        assert (await world.daemon.commands.status()).focus == "second"
        press(keyboard, CTRL, ALT, RIGHT)
        release(keyboard, CTRL, ALT, RIGHT)
        press(keyboard, KEY_A)
        await until(lambda: first.pressed == {KEY_A})
        release(keyboard, KEY_A)
        await until(lambda: not first.pressed and not second.pressed)


async def test_a_combination_is_not_made_of_lost_events(world: World) -> None:
    """Ctrl and Alt are released among events that the kernel drops; the key that is pressed afterwards completes nothing."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first") as first, world.typist(2, f"K:{KEYBOARD}", "second") as second:
        await grabbed(keyboard)
        press(keyboard, CTRL, ALT)
        await until(lambda: first.pressed == {CTRL, ALT})
        release(keyboard, CTRL, ALT)
        for _ in range(40):
            press(keyboard, KEY_B)
            release(keyboard, KEY_B)
        press(keyboard, RIGHT)
        assert keyboard.readers[0].has_lost
        await until(lambda: first.pressed == {RIGHT})
        assert second.events == []


async def test_there_is_no_next_guest(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first") as first, world.typist(2, f"P:{MOUSE}", "other") as other:
        await grabbed(keyboard)
        with structlog.testing.capture_logs() as logs:
            press(keyboard, CTRL, ALT, RIGHT)
            await until(lambda: any("no other connected guest" in entry["event"] for entry in logs))
        release(keyboard, RIGHT, ALT, CTRL)
        await until(lambda: not first.pressed)
        await trio.sleep(0.05)
        assert keys(first.events) == [(CTRL, True), (ALT, True), (ALT, False), (CTRL, False)]
        assert other.events == []


async def test_back_to_the_host(world: World) -> None:
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    console = SimNode(keyboard)
    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}", "guest") as guest:
        await grabbed(keyboard)
        await grabbed(mouse)
        press(keyboard, CTRL, ALT, PAUSE)
        await until(lambda: guest.pressed == set() and not mouse.readers[0].grabbed)
        assert state(world) is DeviceState.GRABBED, "the host would get the repetitions of keys that are down"
        press(keyboard, KEY_A)
        release(keyboard, PAUSE, ALT, CTRL, KEY_A)
        await until(lambda: state(world) is DeviceState.RELEASED)
        assert not console._events
        press(keyboard, KEY_B)
        release(keyboard, KEY_B)
        mouse.emit((EV_REL, REL_X, 5))
        await trio.sleep(0.05)
        assert [event for event in console._events if event[0] == EV_KEY] == [(EV_KEY, KEY_B, 1), (EV_KEY, KEY_B, 0)]
        assert keys(guest.events) == [(CTRL, True), (ALT, True), (CTRL, False), (ALT, False)]
        assert guest.moved == [0, 0]
        said = await world.daemon.commands.status()
        assert said.input_with_host
        lines = list(status_lines(said))
        assert any("the host has its input devices" in line for line in lines)
        assert all(len(line) <= WIDTH for line in lines)
        press(keyboard, CTRL, ALT, RIGHT)  # it may mean something else to the host
        release(keyboard, CTRL, ALT, RIGHT)
        await trio.sleep(0.05)
        assert state(world) is DeviceState.RELEASED
        press(keyboard, CTRL, ALT, PAUSE)
        await trio.sleep(0.05)
        assert state(world) is DeviceState.RELEASED, "the host is to get the releases of what it has"
        release(keyboard, CTRL, ALT, PAUSE)
        await grabbed(keyboard)
        await grabbed(mouse)
        assert console._events[-2] == (EV_KEY, PAUSE, 0)
        press(keyboard, KEY_A)
        await until(lambda: guest.pressed == {KEY_A})
        assert not (await world.daemon.commands.status()).input_with_host
    os.eventfd_read(console.fd)
    console.close()


async def test_the_operator_takes_the_devices_back(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "guest") as guest:
        await grabbed(keyboard)
        press(keyboard, CTRL, ALT, PAUSE)
        release(keyboard, CTRL, ALT, PAUSE)
        await until(lambda: state(world) is DeviceState.RELEASED)
        async with world.typist(2, f"K:{KEYBOARD}", "late") as late:
            press(keyboard, KEY_B)
            release(keyboard, KEY_B)
            await trio.sleep(0.05)
            assert (late.events, keys(guest.events)[4:]) == ([], [])
            world.daemon.focus.give("late")
            await grabbed(keyboard)
            press(keyboard, KEY_A)
            await until(lambda: late.pressed == {KEY_A})


async def test_a_device_that_is_plugged_in_while_the_host_has_the_devices(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}", "guest") as guest:
        await grabbed(world.nodes.devices[MOUSE])
        world.daemon.focus.give_to_host(True)
        world.nodes.unplug(KEYBOARD)
        world.nodes.plug(KEYBOARD, keyboard)
        await until(lambda: keyboard.readers)
        await until(lambda: state(world) is DeviceState.RELEASED)
        assert not keyboard.readers[0].grabbed
        press(keyboard, CTRL, ALT, PAUSE)
        release(keyboard, CTRL, ALT, PAUSE)
        await grabbed(keyboard)
        press(keyboard, KEY_A)
        await until(lambda: guest.pressed == {KEY_A})


async def test_another_program_has_grabbed_the_device_meanwhile(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "guest") as guest:
        await grabbed(keyboard)
        world.daemon.focus.give_to_host(True)
        await until(lambda: state(world) is DeviceState.RELEASED)
        program = SimNode(keyboard)
        program.grab()
        world.daemon.focus.give_to_host(False)
        await trio.sleep(0.1)
        program.close()
        await grabbed(keyboard)
        press(keyboard, KEY_A)
        await until(lambda: guest.pressed == {KEY_A})


async def test_devices_that_are_not_grabbed(tmp_path: Path) -> None:
    settings = InputSettings(devices=["/dev/input/*"], grab=False, next_guest=NEXT, release=RELEASE)
    async with World.running(tmp_path, input=settings) as world:
        keyboard, _ = plug(world)
        async with world.typist(1, f"K:{KEYBOARD}", "guest") as guest:
            await until(lambda: keyboard.readers)
            await until(lambda: state(world) is DeviceState.SHARED)
            press(keyboard, CTRL, ALT, PAUSE)
            release(keyboard, CTRL, ALT, PAUSE)
            await until(lambda: state(world) is DeviceState.RELEASED)
            press(keyboard, KEY_B)
            release(keyboard, KEY_B)
            press(keyboard, CTRL, ALT, PAUSE)
            release(keyboard, CTRL, ALT, PAUSE)
            await until(lambda: state(world) is DeviceState.SHARED)
            press(keyboard, KEY_A)
            await until(lambda: guest.pressed == {KEY_A})
            assert (KEY_B, True) not in keys(guest.events)
            assert keyboard.lamps == {}, "the lamps of a shared keyboard are the host's"


async def test_lamps_show_the_locks_of_the_guest_that_has_the_keyboard(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first") as first, world.typist(2, f"K:{KEYBOARD}", "second") as second:
        await grabbed(keyboard)
        await until(lambda: keyboard.lamps == dict.fromkeys(LEDS, False))
        for code in (KEY_CAPSLOCK, KEY_SCROLLLOCK):
            press(keyboard, code)
            release(keyboard, code)
        await until(lambda: keyboard.lamps == {LED_CAPSL: True, LED_SCROLLL: True, LED_NUML: False})
        world.daemon.focus.give("second")
        assert keyboard.lamps == dict.fromkeys(LEDS, False)
        press(keyboard, KEY_NUMLOCK)
        release(keyboard, KEY_NUMLOCK)
        await until(lambda: keyboard.lamps == {LED_CAPSL: False, LED_SCROLLL: False, LED_NUML: True})
        world.daemon.focus.give("first")
        assert keyboard.lamps == {LED_CAPSL: True, LED_SCROLLL: True, LED_NUML: False}
        press(keyboard, KEY_CAPSLOCK)
        keyboard.emit((EV_KEY, KEY_CAPSLOCK, 2))
        release(keyboard, KEY_CAPSLOCK)
        await until(lambda: keyboard.lamps == {LED_CAPSL: False, LED_SCROLLL: True, LED_NUML: False})
        await until(lambda: not first.pressed and not second.pressed)
    await until(lambda: not keyboard.readers)


async def test_lamps_that_displbe_may_not_switch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is open for reading only: displbe says so once, and the keyboard works."""
    keyboard = world.nodes.devices[KEYBOARD]

    def refuse(node: SimNode, lamps: dict[int, bool]) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(SimNode, "set_lamps", refuse)
    with structlog.testing.capture_logs() as logs:
        async with world.typist(1, f"K:{KEYBOARD}", "first") as first:
            await grabbed(keyboard)
            press(keyboard, KEY_CAPSLOCK)
            await until(lambda: first.pressed == {KEY_CAPSLOCK})
    assert sum("lamps" in entry["event"] for entry in logs) <= 1


async def test_a_window_takes_over_the_desktops_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first key, and only where the guest's lock is different."""
    seats = Seats()
    monkeypatch.setattr(HeadlessSink, "seats", seats)
    async with World.running(tmp_path) as world, world.typist(1, "K:screen") as guest:

        def visit(caps: bool, num: bool, *codes: int) -> None:
            seats.tell(1, "screen", KeyboardEnter(()))
            seats.tell(1, "screen", KeyboardLocks(caps, num))
            for code in codes:
                seats.tell(1, "screen", KeyboardKey(code, True))
                seats.tell(1, "screen", KeyboardKey(code, False))
            seats.tell(1, "screen", KeyboardLeave())

        def tapped(*codes: int) -> list[tuple[int, bool]]:
            return [event for code in codes for event in ((code, True), (code, False))]

        visit(True, False, KEY_A)
        await until(lambda: keys(guest.events) == tapped(KEY_CAPSLOCK, KEY_A))
        guest.events.clear()
        visit(True, True, KEY_A, KEY_CAPSLOCK)
        await until(lambda: keys(guest.events) == tapped(KEY_NUMLOCK, KEY_A, KEY_CAPSLOCK))
        guest.events.clear()
        visit(False, True, KEY_A)
        await until(lambda: keys(guest.events) == tapped(KEY_A))


async def test_a_window_keeps_its_own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seats = Seats()
    monkeypatch.setattr(HeadlessSink, "seats", seats)
    settings = InputSettings(sync_locks=["caps"])
    async with World.running(tmp_path, input=settings) as world, world.typist(1, "K:screen") as guest:
        seats.tell(1, "screen", KeyboardEnter(()))
        seats.tell(1, "screen", KeyboardLocks(True, True))
        seats.tell(1, "screen", KeyboardKey(KEY_A, True))
        await until(lambda: guest.pressed == {KEY_A})
        assert keys(guest.events) == [(KEY_CAPSLOCK, True), (KEY_CAPSLOCK, False), (KEY_A, True)]


# The combinations themselves


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", set()),
        ("leftctrl+leftalt+right", {29, 56, 106}),
        (" KEY_LeftMeta + F24 ", {125, 194}),
        ("scrolllock", {70}),
        ("1+102nd+kp0", {2, 86, 82}),
    ],
)
def test_names_of_keys(text: str, codes: set[int]) -> None:
    assert parse_keys(text) == codes


@pytest.mark.parametrize("text", ["+", "ctrl", "leftctrl+", "a+a", "a+b+c+d+e+f+g", "-", "leftctrl leftalt", "\0"])
def test_what_is_no_combination(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no key|different keys"):
        parse_keys(text)


@pytest.mark.parametrize(
    ("next_guest", "release"),
    [("ctrl", ""), ("", "leftctrl+nokey"), ("a+b", "b+a"), ("leftctrl+leftalt", "leftctrl+leftalt+f1")],
)
def test_combinations_that_are_refused(next_guest: str, release: str) -> None:
    with pytest.raises(ValueError, match=r"next-guest|release"):
        InputSettings(next_guest=next_guest, release=release)


def test_names_are_the_kernels() -> None:
    ecodes = pytest.importorskip("evdev").ecodes.ecodes
    for name, code in KEY_CODES.items():
        assert ecodes[f"KEY_{name.upper()}"] == code


CODES = st.sampled_from((CTRL, ALT, RIGHT, PAUSE, KEY_A))


@given(
    events=st.lists(st.tuples(CODES, st.sampled_from((0, 1, 2))), max_size=60),
    frames=st.lists(st.integers(1, 4), min_size=1),
    reads=st.lists(st.integers(1, 9), min_size=1),
)
def test_a_guest_never_gets_a_part_of_a_key(events: list[tuple[int, int]], frames: list[int], reads: list[int]) -> None:
    """The events before a combination's end go to one guest, those behind it to the next; a key that is kept back is kept back wholly."""
    acts: list[Action] = []
    shortcuts = (
        Shortcut(frozenset((CTRL, ALT, RIGHT)), Action.NEXT_GUEST),
        Shortcut(frozenset((CTRL, ALT, PAUSE)), Action.RELEASE),
    )
    looked = ShortcutKeys(shortcuts, acts.append)
    stream: list[tuple[int, int, int]] = []
    down: set[int] = set()
    complete = 0
    for place, (code, value) in enumerate(events):
        if (code in down) == (value == 1):
            continue  # the kernel reports changes
        (down.add if value else down.discard)(code)
        stream.append((EV_KEY, code, value))
        complete += value == 1 and any(code in shortcut.keys and shortcut.keys <= down for shortcut in shortcuts)
        if place % frames[place % len(frames)] == 0:
            stream.append((EV_SYN, SYN_REPORT, 0))
    stream.append((EV_SYN, SYN_REPORT, 0))
    got: list[tuple[int, int, int]] = []
    while stream:
        count = reads[len(stream) % len(reads)]
        for part in looked.split(stream[:count]):
            got += part
        stream = stream[count:]
    assert len(acts) <= complete
    assert bool(acts) == bool(complete)
    assert looked.is_any_down == bool(down)
    held: set[int] = set()
    for kind, code, value in got:
        if kind == EV_KEY:
            assert (code in held) == (value != 1)
            (held.add if value else held.discard)(code)
    assert held <= down
