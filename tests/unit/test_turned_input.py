"""Touch screens and pointers that are mounted turned: the guest gets positions and motions as they are on its upright screen."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario.devices import SimDevice, SimNodes
from unit.test_guest_input import ALL, END, Guest

from displbe.input.bindings import Role
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent, Snapshot
from displbe.input.evdev.decoder import Decoder
from displbe.input.evdev.lookup import DeviceLookup
from displbe.input.event_codes import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_TOUCH,
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SYN,
    REL_X,
    REL_Y,
    SYN_MT_REPORT,
)
from displbe.input.features import Features
from displbe.input.guest_input import InputSource
from displbe.input.settings import InputSettings
from displbe.sinks.turn import Turn
from displbe.wire import kbdif

PANEL: Final = 800, 1280
TOUCH: Final = Features(
    keyboard=True, pointer=True, absolute=True, width=1280, height=800, contacts=10, touch_width=1280, touch_height=800
)
X, Y = AbsAxis(0, PANEL[0] - 1), AbsAxis(0, PANEL[1] - 1)
SLOTTED: Final = Capabilities(
    keys=frozenset((BTN_TOUCH,)),
    abs_axes={
        ABS_X: X,
        ABS_Y: Y,
        ABS_MT_SLOT: AbsAxis(0, 9),
        ABS_MT_TRACKING_ID: AbsAxis(0, 65535),
        ABS_MT_POSITION_X: X,
        ABS_MT_POSITION_Y: Y,
        ABS_MT_ORIENTATION: AbsAxis(0, 1),
    },
)
ANONYMOUS: Final = Capabilities(abs_axes={ABS_MT_POSITION_X: X, ABS_MT_POSITION_Y: Y})
SINGLE: Final = Capabilities(keys=frozenset((BTN_TOUCH,)), abs_axes={ABS_X: X, ABS_Y: Y})
FORMS: Final = {"slots": SLOTTED, "anonymous": ANONYMOUS, "single": SINGLE}
CORNERS: Final = {
    # Panel's corner -> the corner of the upright screen, of (left, right) times (top, bottom).
    Turn.NONE: {(0, 0): (0, 0), (1, 0): (1, 0), (0, 1): (0, 1), (1, 1): (1, 1)},
    Turn.LEFT: {(0, 0): (1, 0), (1, 0): (1, 1), (0, 1): (0, 0), (1, 1): (0, 1)},
    Turn.HALF: {(0, 0): (1, 1), (1, 0): (0, 1), (0, 1): (1, 0), (1, 1): (0, 0)},
    Turn.RIGHT: {(0, 0): (0, 1), (1, 0): (0, 0), (0, 1): (1, 1), (1, 1): (1, 0)},
}


def touch(form: str, x: int, y: int) -> list[InputEvent]:
    """Return the events of a contact that comes down."""
    match form:
        case "slots":
            return [
                (EV_ABS, ABS_MT_TRACKING_ID, 5),
                (EV_ABS, ABS_MT_POSITION_X, x),
                (EV_ABS, ABS_MT_POSITION_Y, y),
                END,
            ]
        case "anonymous":
            return [
                (EV_ABS, ABS_MT_POSITION_X, x),
                (EV_ABS, ABS_MT_POSITION_Y, y),
                (EV_SYN, SYN_MT_REPORT, 0),
                END,
            ]
        case _:
            return [(EV_ABS, ABS_X, x), (EV_ABS, ABS_Y, y), (EV_KEY, BTN_TOUCH, 1), END]


def told(
    turn: Turn, description: Capabilities, *events: InputEvent, features: Features = TOUCH, roles: frozenset[Role] = ALL
) -> Guest:
    """Return a guest that has consumed the events of a device that is mounted with this turn."""
    guest = Guest(features)
    state = Snapshot(axes=dict.fromkeys(description.abs_axes, 0))
    decoder = Decoder(InputSource("device", repeats=True), description, state, lambda: turn)
    decoder.decode(events, guest.guest_input, roles)
    guest.take_all()
    return guest


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("turn", list(Turn))
def test_the_corners(turn: Turn, form: str) -> None:
    """The corners of the panel are the corners of the picture that is turned onto it, in each form of multi-touch and for a pointer."""
    for corner, seen in CORNERS[turn].items():
        at = corner[0] * (PANEL[0] - 1), corner[1] * (PANEL[1] - 1)
        expected = seen[0] * 1279, seen[1] * 799
        assert told(turn, FORMS[form], *touch(form, *at), roles=frozenset((Role.TOUCH,))).core.fingers == {0: expected}
        if form == "single":
            assert told(turn, SINGLE, *touch(form, *at), roles=frozenset((Role.POINTER,))).core.position == expected


@given(turn=st.sampled_from([Turn.LEFT, Turn.RIGHT]), x=st.integers(0, PANEL[0] - 1), y=st.integers(0, PANEL[1] - 1))
def test_a_touch_is_on_the_pixel_below_it(turn: Turn, x: int, y: int) -> None:
    """A finger on a pixel of the panel touches the guest's pixel that is shown there."""
    ((across, down),) = told(turn, SLOTTED, *touch("slots", x, y)).core.fingers.values()
    left, top, *_ = turn.on_panel((across, down, 1, 1), 1280, 800)
    assert abs(left - x) <= 1
    assert abs(top - y) <= 1


@pytest.mark.parametrize(("turn", "degrees"), [(Turn.NONE, None), (Turn.LEFT, 90), (Turn.HALF, 180), (Turn.RIGHT, -90)])
def test_the_orientation_of_a_contact(turn: Turn, degrees: int | None) -> None:
    """A contact whose longer axis is the panel's Y axis lies across on a screen that is mounted sideways."""
    events = told(turn, SLOTTED, *touch("slots", 9, 9)).core.events
    found = [event.orientation for event in events if isinstance(event, kbdif.TouchOrientation)]
    assert found == ([] if degrees is None else [degrees])


@given(turn=st.sampled_from(list(Turn)), moves=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=20))
def test_motions(turn: Turn, moves: list[tuple[int, int]]) -> None:
    """A trackball that is built into the casing with the panel moves the pointer upright."""
    ball = Capabilities(keys=frozenset((0x110,)), rel_axes=frozenset((REL_X, REL_Y)))
    events = [event for x, y in moves for event in ((EV_REL, REL_X, x), (EV_REL, REL_Y, y), END)]
    relative = msgspec.structs.replace(TOUCH, absolute=False)
    total = sum(x for x, _ in moves), sum(y for _, y in moves)
    assert tuple(told(turn, ball, *events, features=relative).core.moved) == turn.upright_motion(*total)


async def test_which_device_turns() -> None:
    """The first entry that matches a device's path or name counts; a device without an entry is upright."""
    nodes = SimNodes()
    nodes.plug("/dev/input/event0", SimDevice("Goodix Capacitive TouchScreen", SINGLE))
    nodes.plug("/dev/input/event1", SimDevice("Logitech Mouse", SINGLE))
    nodes.plug("/dev/input/event2", SimDevice("Wacom Pen", SINGLE))
    settings = InputSettings(rotate={"name=Goodix*": "DSI-1", "/dev/input/event1": "90", "name=*TouchScreen": "180"})
    lookup = DeviceLookup(settings, nodes)
    assert [await lookup.rotate(f"/dev/input/event{n}") for n in range(3)] == ["DSI-1", "90", ""]


@pytest.mark.parametrize("wrong", ["45", "", "360"])
def test_wrong_turns(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"rotate\.name=x must be 0, 90, 180 or 270"):
        InputSettings(rotate={"name=x": wrong})


def test_the_example() -> None:
    """The lines that are commented out in the example are right once they are not."""
    lines = (Path(__file__).parents[2] / "configs" / "displbe.toml").read_text().split("[input.rotate]\n")[1]
    table = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines.split("\n\n")[0].splitlines()))
    assert set(InputSettings(rotate=table).rotate.values()) == {"DSI-1", "90"}
