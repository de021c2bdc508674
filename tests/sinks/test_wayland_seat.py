"""The events of a compositor's seat reach the guest whose surface has the focus, and no other guest."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import AsyncIterator

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sinks.compositor import CORE, Client, FakeCompositor, Surface
from sinks.test_wayland import GUEST, HEIGHT, WHOLE, WIDTH, Stage, on_screen, staged, until

from displbe.sinks.base import Claimant
from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    KeyboardLocks,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)
from displbe.sinks.wayland import cursor as cursor_module
from displbe.sinks.wayland.conn import Connection
from displbe.sinks.wayland.us_layout import ALPHANUMERIC

SIZE = WIDTH, HEIGHT
DEVICES = "wl_keyboard", "wl_pointer", "wl_touch"


class Seat:
    """The seat of the compositor, and the events that the guest gets from it."""

    def __init__(self, stage: Stage, heard: list[SeatEvent]) -> None:
        self.stage = stage
        self.heard = heard
        self.client: Client = stage.compositor.client
        self.surface: Surface = stage.surface

    async def says(self, device: str, name: str, *arguments: object, fds: tuple[int, ...] = ()) -> None:
        """Send an event of a device, and return when the client has processed it."""
        self.client.event(self.client.device(device), name, *arguments, fds=fds)
        await self.settled()

    @property
    def conn(self) -> Connection:
        link = self.stage.sink.clients[GUEST].link
        assert link is not None
        return link.conn

    async def settled(self) -> None:
        await self.conn.sync()

    def take(self) -> list[SeatEvent]:
        """Return the events since the last call."""
        heard = self.heard[:]
        self.heard.clear()
        return heard


@contextlib.asynccontextmanager
async def seated(version: int = 8, **settings: str) -> AsyncIterator[Seat]:
    compositor = FakeCompositor({**CORE, "wl_seat": version})
    async with staged(compositor, **settings) as stage:
        heard: list[SeatEvent] = []
        assert stage.sink.seats is not None
        with stage.sink.seats.listening(GUEST.domid, "HDMI-A-1", heard.append):
            await stage.lit()
            await until(lambda: all(compositor.client.of(device) for device in DEVICES))
            yield Seat(stage, heard)


async def test_keyboard() -> None:
    async with seated() as seat:
        await seat.says("wl_keyboard", "key", 1, 0, 30, 1)
        assert seat.take() == [], "no focus yet"
        await seat.says("wl_keyboard", "enter", 2, seat.surface.number, struct.pack("=2I", 29, 42))
        await seat.says("wl_keyboard", "key", 3, 0, 30, 1)
        await seat.says("wl_keyboard", "key", 4, 0, 30, 2)
        await seat.says("wl_keyboard", "key", 5, 0, 30, 0)
        await seat.says("wl_keyboard", "leave", 6, seat.surface.number)
        await seat.says("wl_keyboard", "key", 7, 0, 31, 1)
        assert seat.take() == [KeyboardEnter((29, 42)), KeyboardKey(30, True), KeyboardKey(30, False), KeyboardLeave()]


def keymap(text: str) -> int:
    """Return a file with a keymap, as a compositor sends it."""
    fd = os.memfd_create("keymap")
    os.write(fd, text.encode() + b"\0")
    return fd


async def test_a_virtual_keyboard_with_a_keymap_of_its_own() -> None:
    """`wtype h` beside a real keyboard, whose keymap the compositor sends again afterwards."""
    virtual = (
        "xkb_keymap { xkb_keycodes { <K1> = 9; <K2> = 10; }; xkb_symbols { key <K1> {[H]}; key <K2> {[U1F600]}; }; };"
    )
    names = "".join(f"<{name}> = {code + 8}; " for name, code in ALPHANUMERIC.items())
    real = f"xkb_keymap {{ xkb_keycodes {{ {names} }}; }};"
    async with seated() as seat:

        async def use(text: str) -> None:
            fd = keymap(text)
            await seat.says("wl_keyboard", "keymap", 1, len(text) + 1, fds=(fd,))
            os.close(fd)

        await use(real)
        await seat.says("wl_keyboard", "enter", 1, seat.surface.number, b"")
        await seat.says("wl_keyboard", "key", 2, 0, 1, 1)
        await use(virtual)
        with structlog.testing.capture_logs() as logs:
            for code in (1, 2):
                await seat.says("wl_keyboard", "modifiers", 3, 4, 0, 0, 0)
                await seat.says("wl_keyboard", "key", 4, 0, code, 1)
                await seat.says("wl_keyboard", "key", 5, 0, code, 0)
        assert [(entry["event"][:11], entry["symbol"]) for entry in logs] == [("key ignored", "U1F600")]
        await use(real)
        await seat.says("wl_keyboard", "key", 6, 0, 1, 0)
        keys = [(event.code, event.down) for event in seat.take() if isinstance(event, KeyboardKey)]
        assert keys == [
            (1, True),
            (42, True),
            (29, True),
            (35, True),
            (35, False),
            (29, False),
            (42, False),
            (1, False),
        ]


async def test_locks_come_before_the_first_key() -> None:
    """Caps Lock is the second bit and Num Lock the fifth, as locked modifiers; modifiers that are down are none."""
    async with seated() as seat:
        await seat.says("wl_keyboard", "enter", 1, seat.surface.number, b"")
        await seat.says("wl_keyboard", "modifiers", 2, 0xFF, 0, 0x02, 0)
        assert seat.take() == [KeyboardEnter(())]
        for code in (30, 31):
            await seat.says("wl_keyboard", "key", 3, 0, code, 1)
        await seat.says("wl_keyboard", "modifiers", 4, 0, 0, 0x12, 0)
        await seat.says("wl_keyboard", "key", 5, 0, 32, 1)
        assert seat.take() == [
            KeyboardLocks(True, False),
            KeyboardKey(30, True),
            KeyboardKey(31, True),
            KeyboardKey(32, True),
        ]
        await seat.says("wl_keyboard", "leave", 6, seat.surface.number)
        await seat.says("wl_keyboard", "enter", 7, seat.surface.number, struct.pack("=I", 58))
        await seat.says("wl_keyboard", "key", 8, 0, 30, 1)
        assert seat.take() == [KeyboardLeave(), KeyboardEnter((58,)), KeyboardKey(30, True)], "Caps Lock is down"
        await seat.says("wl_keyboard", "enter", 9, seat.surface.number, b"")
        await seat.says("wl_keyboard", "key", 10, 0, 30, 1)
        assert seat.take() == [KeyboardLeave(), KeyboardEnter(()), KeyboardLocks(True, True), KeyboardKey(30, True)]


async def test_locks_for_a_guest_that_connects_while_its_window_has_the_keyboard() -> None:
    async with seated() as seat:
        await seat.says("wl_keyboard", "enter", 1, seat.surface.number, b"")
        await seat.says("wl_keyboard", "modifiers", 2, 0, 0, 0x02, 0)
        await seat.says("wl_keyboard", "key", 3, 0, 30, 1)
        seat.take()
        seats, heard = seat.stage.sink.seats, list[SeatEvent]()
        assert seats is not None
        with seats.listening(GUEST.domid, "HDMI-A-1", heard.append):
            await seat.says("wl_keyboard", "key", 4, 0, 31, 1)
            await seat.says("wl_keyboard", "key", 5, 0, 32, 1)
        assert heard == [KeyboardLocks(True, False), KeyboardKey(31, True), KeyboardKey(32, True)]


async def test_keys_that_are_not_whole() -> None:
    """The remainder of an array that is no number of keys is ignored. The connection goes on."""
    async with seated() as seat:
        await seat.says("wl_keyboard", "enter", 1, seat.surface.number, struct.pack("=IB", 29, 42))
        assert seat.take() == [KeyboardEnter((29,))]


async def test_pointer() -> None:
    async with seated() as seat:
        await seat.says("wl_pointer", "enter", 1, seat.surface.number, 10.5, 20.25)
        await seat.says("wl_pointer", "frame")
        await seat.says("wl_pointer", "motion", 0, -3.0, 99.0)
        await seat.says("wl_pointer", "button", 2, 0, 0x110, 1)
        await seat.says("wl_pointer", "frame")
        await seat.says("wl_pointer", "leave", 3, seat.surface.number)
        assert seat.take() == [
            PointerEnter(10.5, 20.25, *SIZE),
            PointerFrame(),
            PointerMotion(-3.0, 99.0, *SIZE),
            PointerButton(0x110, True),
            PointerFrame(),
            PointerLeave(),
        ]
        assert seat.client.requests("wl_pointer", "set_cursor") == [(1, 0, 0, 0)]


class Cursors:
    """The cursors that the compositor was told to show."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    async def expect(self, *, arrow: bool, serial: int = 7) -> None:
        """Assert that the newest set_cursor shows an arrow or nothing, with the serial number of the newest enter event."""
        await self.seat.settled()
        said, number, *spot = self.seat.client.requests("wl_pointer", "set_cursor")[-1]
        assert (said, bool(number), spot) == (serial, arrow, [0, 0])
        if arrow:
            shown = self.seat.client.surfaces[number].shown
            assert shown is not None
            assert shown.kind == 0
            assert shown.row(1)[:12] == b"\xff" * 8 + bytes(4)
            assert shown.row(5)[:12] == b"\xff" * 4 + b"\0\0\0\xff" * 2


async def test_a_cursor_for_a_guest_that_draws_none() -> None:
    """The compositor's seat has a cursor over a guest that gets no pointer, or whose screen is off, and none over any other guest."""
    async with seated() as seat:
        await seat.says("wl_pointer", "enter", 7, seat.surface.number, 1.0, 1.0)
        await Cursors(seat).expect(arrow=False)
    compositor = FakeCompositor({**CORE, "wl_seat": 8})
    async with staged(compositor) as stage:
        seats = stage.sink.seats
        assert seats is not None
        output, first, _ = await stage.lit()
        await until(lambda: all(compositor.client.of(device) for device in DEVICES))
        seat = Seat(stage, [])
        number, objects = seat.surface.number, 0
        cursors = Cursors(seat)
        for turn in range(3):
            await seat.says("wl_pointer", "enter", 7, number, 1.0, 1.0)
            await cursors.expect(arrow=True)
            with seats.listening(GUEST.domid, "HDMI-A-1", seat.heard.append, pointer=False):
                await cursors.expect(arrow=True)
                with seats.listening(GUEST.domid, "HDMI-A-1", seat.heard.append):
                    await cursors.expect(arrow=False)
                await cursors.expect(arrow=True)
            assert turn == 0 or seat.conn.objects == objects, "the arrow is made once"
            objects = seat.conn.objects
            await seat.says("wl_pointer", "leave", 8, number)
        asked = len(seat.client.asked)
        with seats.listening(GUEST.domid, "HDMI-A-1", seat.heard.append):
            await seat.settled()
        assert not [entry for entry in seat.client.asked[asked:] if entry[1] == "set_cursor"], (
            "the pointer is elsewhere"
        )
        await output.disable()
        await output.enable(first, WHOLE)
        await on_screen(output)


@pytest.mark.parametrize("file", ["memfd", "duplicate"])
async def test_no_file_for_a_cursor(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Without a file for the arrow, or for its duplicate in libwayland, there is no cursor until there is one. The connection stays."""

    def no_file(number: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    compositor = FakeCompositor({**CORE, "wl_seat": 8})
    async with staged(compositor) as stage:
        await stage.lit()
        await until(lambda: all(compositor.client.of(device) for device in DEVICES))
        seat = Seat(stage, [])
        cursors, number = Cursors(seat), seat.surface.number
        with monkeypatch.context() as patch:
            if file == "memfd":
                patch.setattr(cursor_module, "sealed_memfd", no_file)
            else:
                patch.setattr(Connection, "check_sendable", staticmethod(no_file))
            await seat.says("wl_pointer", "enter", 7, number, 1.0, 1.0)
            await cursors.expect(arrow=False)
        await seat.says("wl_pointer", "leave", 8, number)
        await seat.says("wl_pointer", "enter", 7, number, 1.0, 1.0)
        await cursors.expect(arrow=True)
        assert len(compositor.clients) == 1


@pytest.mark.parametrize(("policy", "arrow"), [("show", True), ("hide", False)])
@pytest.mark.parametrize("pointer", [False, True])
async def test_cursor_policy(policy: str, arrow: bool, pointer: bool) -> None:
    """`show` and `hide` hold whether the guest gets the pointer or not."""
    compositor = FakeCompositor({**CORE, "wl_seat": 8})
    async with staged(compositor, cursor=policy) as stage:
        assert stage.sink.seats is not None
        with stage.sink.seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None, pointer=pointer):
            await stage.lit()
            await until(lambda: all(compositor.client.of(device) for device in DEVICES))
            seat = Seat(stage, [])
            await seat.says("wl_pointer", "enter", 7, seat.surface.number, 1.0, 1.0)
            await Cursors(seat).expect(arrow=arrow)


async def test_positions_are_those_of_the_scaled_surface() -> None:
    async with seated() as seat:
        seat.client.configure(seat.surface, 128, 96, (1,))
        await until(lambda: seat.surface.size == (128, 96))
        await seat.says("wl_pointer", "enter", 1, seat.surface.number, 127.0, 95.0)
        assert seat.take() == [PointerEnter(127.0, 95.0, 128, 96)]


@pytest.mark.parametrize("version", [1, 5, 8])
async def test_wheel(version: int) -> None:
    """The guest gets a detent down and one to the right, as each version of the protocol sends them; then small steps of a touchpad."""
    async with seated(version) as seat:
        await seat.says("wl_pointer", "enter", 1, seat.surface.number, 0.0, 0.0)
        seat.take()
        for axis in (0, 1):
            if version >= 8:
                await seat.says("wl_pointer", "axis_value120", axis, 120)
            elif version >= 5:
                await seat.says("wl_pointer", "axis_discrete", axis, 1)
            await seat.says("wl_pointer", "axis", 0, axis, 10.0)
        if version >= 5:
            await seat.says("wl_pointer", "frame")
        turned = [event for event in seat.take() if isinstance(event, PointerAxis)]
        assert sum(event.vertical for event in turned) == -120
        assert sum(event.horizontal for event in turned) == 120
        for _ in range(10):
            await seat.says("wl_pointer", "axis", 0, 0, -0.125)
            if version >= 5:
                await seat.says("wl_pointer", "frame")
        turned = [event for event in seat.take() if isinstance(event, PointerAxis)]
        assert sum(event.vertical for event in turned) == 15


async def test_touch() -> None:
    async with seated() as seat:
        await seat.says("wl_touch", "down", 1, 0, seat.surface.number, 0, 1.0, 2.0)
        await seat.says("wl_touch", "down", 2, 0, seat.surface.number, 1, 3.0, 4.0)
        await seat.says("wl_touch", "frame")
        await seat.says("wl_touch", "motion", 0, 1, 5.0, 6.0)
        await seat.says("wl_touch", "up", 3, 0, 0)
        await seat.says("wl_touch", "cancel")
        await seat.says("wl_touch", "motion", 0, 1, 7.0, 8.0)
        down = seat.heard[0]
        assert isinstance(down, TouchDown)
        first = down.id
        assert seat.take() == [
            TouchDown(first, 1.0, 2.0, *SIZE),
            TouchDown(first + 1, 3.0, 4.0, *SIZE),
            TouchFrame(),
            TouchMotion(first + 1, 5.0, 6.0, *SIZE),
            TouchUp(first),
            TouchFrame(),
            TouchCancel(),
        ]


@pytest.mark.parametrize("version", [5, 6, 8])
async def test_shape_and_orientation(version: int) -> None:
    """The guest gets shape and orientation of a finger from version 6 of wl_seat on. Those of a finger that is not down are ignored."""
    async with seated(version) as seat:
        await seat.says("wl_touch", "down", 1, 0, seat.surface.number, 0, 1.0, 2.0)
        if version >= 6:
            for finger in (0, 1):
                await seat.says("wl_touch", "shape", finger, 4.5, 3.0)
                await seat.says("wl_touch", "orientation", finger, -30.25)
        await seat.says("wl_touch", "frame")
        first = seat.heard[0]
        assert isinstance(first, TouchDown)
        more = [TouchShape(first.id, 4.5, 3.0, *SIZE), TouchOrientation(first.id, -30.25)] if version >= 6 else []
        assert seat.take() == [first, *more, TouchFrame()]


async def focus_everything(seat: Seat) -> None:
    await seat.says("wl_keyboard", "enter", 1, seat.surface.number, b"")
    await seat.says("wl_pointer", "enter", 2, seat.surface.number, 1.0, 1.0)
    await seat.says("wl_touch", "down", 3, 0, seat.surface.number, 0, 1.0, 2.0)
    seat.take()


LEFT = [KeyboardLeave(), PointerLeave(), TouchCancel()]


async def test_a_window_that_its_user_closes_has_been_left() -> None:
    async with seated(on_close="detach") as seat:
        await focus_everything(seat)
        number = seat.surface.number
        seat.client.event(seat.surface.toplevel, "close")
        # Events that were under way when the surface was destroyed still name it.
        seat.client.event(seat.client.device("wl_keyboard"), "leave", 4, number)
        seat.client.event(seat.client.device("wl_pointer"), "motion", 0, 3.0, 3.0)
        seat.client.event(seat.client.device("wl_touch"), "up", 5, 0, 0)
        await seat.settled()
        assert seat.take() == LEFT


async def test_a_guest_whose_screen_is_off_gets_its_input() -> None:
    """A key can wake a guest that has switched its screen off."""
    async with seated() as seat:
        await focus_everything(seat)
        (output,) = seat.stage.sink.clients[GUEST].outputs.values()
        await output.disable()
        await seat.says("wl_keyboard", "key", 2, 0, 30, 1)
        assert seat.take() == [KeyboardKey(30, True)]


async def test_input_for_a_guest_that_is_away_goes_nowhere() -> None:
    """A guest that disconnects has released everything. When it is back, it gets the input of the window that has kept the focus."""
    async with seated() as seat:
        await focus_everything(seat)
        (output,) = seat.stage.sink.clients[GUEST].outputs.values()
        for buffer in list(seat.stage.buffers):
            await buffer.aclose()
        await output.release()
        assert seat.take() == LEFT
        await seat.says("wl_keyboard", "key", 2, 0, 30, 1)
        await seat.says("wl_pointer", "motion", 0, 3.0, 3.0)
        await seat.says("wl_pointer", "frame")
        await seat.says("wl_touch", "up", 5, 0, 0)
        assert seat.take() == []
        seat.stage.claim()
        await seat.says("wl_keyboard", "key", 3, 0, 31, 1)
        await seat.says("wl_pointer", "motion", 0, 4.0, 5.0)
        await seat.says("wl_pointer", "motion", 0, 6.0, 7.0)
        assert seat.take() == [
            KeyboardKey(31, True),
            PointerEnter(4.0, 5.0, *SIZE),
            PointerMotion(6.0, 7.0, *SIZE),
        ]


async def test_a_window_that_moves_to_the_guest_after_its_reboot() -> None:
    """What is held down is released for the old domain. Until the new one is connected, nothing gets the input; then the new one gets the
    input of the window that has kept the focus, and is not told of presses from before.
    """
    async with seated() as seat:
        await focus_everything(seat)
        seats = seat.stage.sink.seats
        assert seats is not None
        again = Claimant(2, GUEST.name)
        heard: list[SeatEvent] = []
        with seats.listening(again.domid, "HDMI-A-1", heard.append):
            (output,) = seat.stage.sink.clients[GUEST].outputs.values()
            for buffer in list(seat.stage.buffers):
                await buffer.aclose()
            await output.release()
            assert seat.take() == LEFT
            conn = seat.conn
            for there in ("kept", "moved"):
                if there == "kept":
                    seat.stage.remove()
                else:
                    seat.stage.add(claimant=again)
                seat.client.event(seat.client.device("wl_keyboard"), "key", 2, 0, 30, 1)
                seat.client.event(seat.client.device("wl_pointer"), "button", 3, 0, 0x110, 1)
                seat.client.event(seat.client.device("wl_pointer"), "frame")
                await conn.sync()
                assert (seat.take(), heard) == ([], [])
            seat.stage.claim(claimant=again)
            seat.client.event(seat.client.device("wl_keyboard"), "key", 4, 0, 30, 0)
            seat.client.event(seat.client.device("wl_keyboard"), "key", 5, 0, 31, 1)
            await conn.sync()
            assert KeyboardKey(30, True) not in heard
            assert heard.pop() == KeyboardKey(31, True)
            await seat.stage.sink.clients[again].outputs["HDMI-A-1"].release()
            assert heard.pop() == KeyboardLeave()
            assert seat.take() == []


async def test_a_compositor_that_goes_has_taken_the_focus_along() -> None:
    async with seated() as seat:
        await focus_everything(seat)
        seat.stage.compositor.crash()
        await until(lambda: seat.heard == LEFT)


async def test_devices_that_go() -> None:
    async with seated() as seat:
        await focus_everything(seat)
        (number,) = seat.client.of("wl_seat")
        seat.client.event(number, "capabilities", 0)
        await seat.settled()
        assert sorted(map(repr, seat.take())) == sorted(map(repr, LEFT))
        await until(lambda: not any(seat.client.of(device) for device in DEVICES))
        seat.client.event(number, "capabilities", 7)
        await until(lambda: all(seat.client.of(device) for device in DEVICES))
        await seat.says("wl_keyboard", "enter", 9, seat.surface.number, b"")
        assert seat.take() == [KeyboardEnter(())]


async def test_a_seat_that_goes_leaves_nothing() -> None:
    async with seated() as seat:
        compositor, conn = seat.stage.compositor, seat.conn
        objects = conn.objects
        place = [*CORE, "wl_seat"].index("wl_seat") + 1
        for _ in range(3):
            await focus_everything(seat)
            compositor.remove(place)
            await until(lambda: seat.heard == LEFT)
            seat.take()
            await conn.sync()
            assert not any(seat.client.of(name) for name in ("wl_seat", *DEVICES))
            place = compositor.add("wl_seat", 8)
            await until(lambda: all(seat.client.of(device) for device in DEVICES))
            await conn.sync()
            assert conn.objects == objects


async def test_another_guest_gets_nothing() -> None:
    other = Claimant(2, "other")
    async with seated() as seat:
        heard: list[SeatEvent] = []
        assert seat.stage.sink.seats is not None
        with seat.stage.sink.seats.listening(2, "DP-1", heard.append):
            output = seat.stage.claim("DP-1", other)
            await seat.stage.connected(other)
            buffer = await seat.stage.attach(output)
            await output.enable(buffer, WHOLE)
            await on_screen(output)
            client = seat.stage.compositor.clients[1]
            await until(lambda: client.of("wl_keyboard"))
            await seat.says("wl_keyboard", "enter", 1, seat.surface.number, b"")
            await seat.says("wl_keyboard", "key", 2, 0, 30, 1)
            assert heard == []
            (theirs,) = client.surfaces.values()
            client.event(client.device("wl_keyboard"), "enter", 3, theirs.number, b"")
            await until(lambda: heard == [KeyboardEnter(())])
            assert seat.take() == [KeyboardEnter(()), KeyboardKey(30, True)]


FINGERS = st.integers(0, 3)
SAYINGS = st.one_of(
    st.sampled_from([("enter",), ("leave",), ("cancel",), ("frame",)]),
    st.tuples(st.sampled_from(["down", "up", "motion", "shape", "orientation"]), FINGERS),
    st.tuples(st.just("axis"), st.integers(0, 1), st.integers(-2000, 2000)),
)


class Model:
    """The wheel events that a guest must get, and the touch events that it may get."""

    def __init__(self) -> None:
        self.inside = False
        self.turning = [0, 0]
        self.turned = [0, 0]

    def says(self, word: str, *values: int) -> None:
        if word in ("enter", "leave"):
            self.inside, self.turning = word == "enter", [0, 0]
        elif word == "axis":
            self.turning[values[0]] += values[1]
        elif word == "frame":
            if self.inside:
                self.turned = [a + b for a, b in zip(self.turned, self.turning, strict=True)]
            self.turning = [0, 0]

    def check(self, heard: list[SeatEvent]) -> None:
        fingers: set[int] = set()
        for event in heard:
            match event:
                case TouchDown(id=name):
                    assert name not in fingers
                    fingers.add(name)
                case TouchMotion(id=name) | TouchShape(id=name) | TouchOrientation(id=name):
                    assert name in fingers
                case TouchUp(id=name):
                    fingers.remove(name)
                case TouchCancel():
                    assert fingers
                    fingers.clear()
        turns = [event for event in heard if isinstance(event, PointerAxis)]
        assert [-sum(turn.vertical for turn in turns), sum(turn.horizontal for turn in turns)] == self.turned


@settings(max_examples=30, deadline=None)
@given(sayings=st.lists(SAYINGS, max_size=40))
def test_events_in_any_order(sayings: list[tuple[str, *tuple[int, ...]]]) -> None:
    """After events in any order, a finger has come down before it moves or goes up, and the turns of the wheel add up."""

    async def play() -> None:
        model = Model()
        async with seated() as seat:
            number = seat.surface.number
            for word, *values in sayings:
                model.says(word, *values)
                match word:
                    case "enter":
                        await seat.says("wl_pointer", "enter", 1, number, 1.0, 1.0)
                    case "leave":
                        await seat.says("wl_pointer", "leave", 1, number)
                    case "frame":
                        await seat.says("wl_pointer", "frame")
                        await seat.says("wl_touch", "frame")
                    case "cancel":
                        await seat.says("wl_touch", "cancel")
                    case "down":
                        await seat.says("wl_touch", "down", 1, 0, number, values[0], 1.0, 1.0)
                    case "up":
                        await seat.says("wl_touch", "up", 1, 0, values[0])
                    case "motion":
                        await seat.says("wl_touch", "motion", 0, values[0], 2.0, 2.0)
                    case "shape":
                        await seat.says("wl_touch", "shape", values[0], 3.0, 2.0)
                    case "orientation":
                        await seat.says("wl_touch", "orientation", values[0], 90.0)
                    case "axis":
                        await seat.says("wl_pointer", "axis_value120", values[0], values[1])
            model.check(seat.take())

    trio.run(play)
