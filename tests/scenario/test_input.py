"""Guests' keyboards, pointers and touch screens, from a device to what the guest's programs read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from scenario.devices import SimDevice
from scenario.world import World, descriptors, until

from displbe.config import InputSettings
from displbe.input.translate import EV_KEY, EV_REL, REL_WHEEL, REL_X, REL_Y, Description

KEYBOARD = "/dev/input/event0"
MOUSE = "/dev/input/event1"
KEY_A, KEY_B, BTN_LEFT = 30, 48, 0x110
REL_HWHEEL = 6


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world whose guests may name every device, with a keyboard and a mouse."""
    before = descriptors()
    async with World.running(tmp_path, input=InputSettings(devices=["/dev/input/*"])) as world:
        world.nodes.plug(KEYBOARD, SimDevice("keyboard", Description(keys=frozenset(range(1, 128)))))
        mouse = Description(
            keys=frozenset(range(0x110, 0x118)), wheels=frozenset((REL_X, REL_Y, REL_WHEEL, REL_HWHEEL))
        )
        world.nodes.plug(MOUSE, SimDevice("mouse", mouse))
        yield world
    assert descriptors() == before


async def grabbed(device: SimDevice) -> None:
    """Wait until the daemon has a device."""
    await until(lambda: any(reader.grabbed for reader in device.readers))


async def test_a_key(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        keyboard.emit((EV_KEY, KEY_A, 2))
        await until(lambda: guest.repeats == [KEY_A])
        keyboard.emit((EV_KEY, KEY_A, 0))
        await until(lambda: not guest.pressed)
    await until(lambda: not keyboard.readers)


async def test_a_mouse(world: World) -> None:
    mouse = world.nodes.devices[MOUSE]
    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}") as guest:
        await grabbed(mouse)
        mouse.emit((EV_REL, REL_X, 5), (EV_REL, REL_Y, -3))
        mouse.emit((EV_REL, REL_WHEEL, 1))
        mouse.emit((EV_REL, REL_HWHEEL, 7))
        mouse.emit((EV_KEY, BTN_LEFT, 1))
        await until(lambda: guest.pressed == {BTN_LEFT})
        assert (guest.moved, guest.wheel) == ([5, -3], 1)


async def test_nothing_sticks_when_the_daemon_ends(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed)
        await world.stop_daemon()
        assert not guest.pressed
        await world.start_daemon()
        await guest.connected.wait()
        keyboard.emit((EV_KEY, KEY_A, 0))
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.pressed == {KEY_B})
        await trio.lowlevel.checkpoint()
