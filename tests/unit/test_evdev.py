"""The kernel's interfaces to input devices: struct input_event, sysfs, EVIOCGMTSLOTS."""

from __future__ import annotations

import fcntl
import os
from struct import Struct
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.input.bindings import Role
from displbe.input.evdev import nodes as evdev_nodes
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent, Slot
from displbe.input.evdev.nodes import LONG, READ_EVENTS, SystemNode, SystemNodes, read_events
from displbe.input.event_codes import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TRACKING_ID,
)

EVENT: Final = Struct("@llHHi")
NODE: Final = "/dev/input/event0"
ATTRIBUTES: Final = ("capabilities/key", "capabilities/rel", "capabilities/abs", "properties")


def test_events_are_read_together(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with pytest.raises(BlockingIOError):
        read_events(read)
    events: list[InputEvent] = [(1, 30, 1), (0, 0, 0), (2, 0, -5), (3, 57, -1)]
    os.write(write, b"".join(EVENT.pack(1 << 30, 999999, *event) for event in events))
    assert read_events(read) == events
    os.write(write, EVENT.pack(0, 0, 1, 30, 1) * (READ_EVENTS + 1))
    assert len(read_events(read)) == READ_EVENTS
    assert len(read_events(read)) == 1


def test_a_file_that_has_ended(pipe: tuple[int, int]) -> None:
    read, write = pipe
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, write)
    os.close(null)
    with pytest.raises(OSError, match="No such device"):
        read_events(read)


def bitmap(bits: set[int]) -> str:
    """Format a bitmap as the kernel does (input_print_bitmap): longs in hexadecimal, from the highest that is not 0, at least one."""
    words = [0] * (max(bits, default=0) // (8 * LONG) + 1)
    for bit in bits:
        words[bit // (8 * LONG)] |= 1 << bit % (8 * LONG)
    return " ".join(f"{word:x}" for word in reversed(words))


def shown(monkeypatch: pytest.MonkeyPatch, **bits: set[int]) -> None:
    """Replace the sysfs attributes of all devices."""
    texts = dict(
        zip(ATTRIBUTES, (bitmap(bits.get(kind, set())) for kind in ("key", "rel", "abs", "properties")), strict=True)
    )
    monkeypatch.setattr(evdev_nodes, "_attribute", lambda path, name: texts[name])


@given(bits=st.sets(st.integers(0, 0x2FF)))
def test_bits(bits: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shown(patch, key=bits)
        assert evdev_nodes.sysfs_capabilities(NODE).keys == bits


def test_a_device_that_has_gone() -> None:
    assert evdev_nodes.sysfs_capabilities("/dev/input/event987654") == Capabilities()
    assert [SystemNodes().fitness("/dev/input/event987654", role) for role in Role] == [0, 0, 0]


@pytest.mark.parametrize(
    ("bits", "fit", "absolute"),
    [
        ({"key": set(range(1, 128))}, (127, 0, 0), False),
        ({"key": {113, 114, 115}}, (3, 0, 0), False),
        ({"key": {0x110, 0x111}, "rel": {0, 1, 8}}, (0, 2, 0), False),
        ({"key": {0x110}, "abs": {0, 1}, "rel": {8}}, (0, 2, 0), True),
        ({"key": {0x14A}, "abs": {0, 1, 47, 53, 54, 57}}, (0, 2, 2), True),
        ({"key": {0x14A}, "abs": {0, 1}}, (0, 2, 1), True),
        ({"key": {0x110, 0x14A}, "abs": {0, 1, 47, 53, 54, 57}, "properties": {0, 2}}, (0, 2, 0), False),
        ({"abs": {53, 54}}, (0, 0, 2), False),
        ({"rel": {8}}, (0, 0, 0), False),
    ],
    ids=["keyboard", "buttons", "mouse", "tablet", "touch", "one finger", "touchpad", "type A", "wheel"],
)
def test_what_a_device_can_be(
    monkeypatch: pytest.MonkeyPatch, bits: dict[str, set[int]], fit: tuple[int, ...], absolute: bool
) -> None:
    shown(monkeypatch, **bits)
    nodes = SystemNodes()
    assert tuple(nodes.fitness(NODE, role) for role in Role) == fit
    assert nodes.is_absolute(NODE) is absolute


def test_fingers_are_asked_for_by_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """EVIOCGMTSLOTS(len) in linux/input.h: the axis' code, then a value for each slot. An axis that the device lacks is not requested."""
    answers = {
        ABS_MT_TRACKING_ID: (7, -1, 9),
        ABS_MT_POSITION_X: (10, 20, 30),
        ABS_MT_POSITION_Y: (11, 21, 31),
        ABS_MT_TOUCH_MAJOR: (1, 2, 3),
        ABS_MT_ORIENTATION: (-4, 0, 4),
    }
    layout = Struct("=I3i")

    def ioctl(fd: int, request: int, answer: bytearray) -> int:
        assert (fd, request) == (5, 0x80000000 | layout.size << 16 | 0x450A)
        (code, *_) = layout.unpack(answer)
        answer[:] = layout.pack(code, *answers[code])
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    node: Any = object.__new__(SystemNode)
    node.fd = 5
    axes = dict.fromkeys(answers, AbsAxis(0, 99)) | {ABS_MT_SLOT: AbsAxis(0, 2)}
    node.capabilities = Capabilities(abs_axes=axes)
    node._device = SimpleNamespace(absinfo=lambda code: SimpleNamespace(value=code), active_keys=lambda: [30])
    state = node.snapshot()
    assert state.keys == {30}
    assert state.axes == {code: code for code in axes}
    assert state.slots == [Slot(7, 10, 11, 1, 0, -4), Slot(-1, 20, 21, 2, 0, 0), Slot(9, 30, 31, 3, 0, 4)]
