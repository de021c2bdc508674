"""Guests' keyboards, pointers and touch screens: the way of events from a device to the guest's input core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.lowlevel
from scenario.devices import SimDevice, SimNode
from scenario.world import World, descriptors, flip_on, spec, until

from displbe.backend.guests import GuestSettings
from displbe.backend.nodes import DeviceNodes
from displbe.ctl.tables import WIDTH, status_lines
from displbe.input import device as input_device
from displbe.input import focus
from displbe.input.evdev import devices as evdev_devices
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent
from displbe.input.evdev.decoder import Decoder
from displbe.input.evdev.device import DeviceState
from displbe.input.evdev.lookup import DeviceLookup
from displbe.input.event_codes import ABS_X, ABS_Y, EV_ABS, EV_KEY, EV_REL, REL_WHEEL, REL_X, REL_Y
from displbe.input.focus_file import FocusFile
from displbe.input.settings import InputSettings
from displbe.ops import status
from displbe.sim.input import InputFrontend
from displbe.sinks.headless.sink import HeadlessSink
from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
    Seats,
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)
from displbe.wire import kbdif
from displbe.wire.xenbus import State

KEYBOARD = "/dev/input/event0"
MOUSE = "/dev/input/event1"
KEY_A, KEY_B, BTN_LEFT = 30, 48, 0x110
REL_HWHEEL = 6


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world with a keyboard and a mouse, whose guests may use every device."""
    before = descriptors()
    async with World.running(tmp_path, input=InputSettings(devices=["/dev/input/*"])) as world:
        world.nodes.plug(KEYBOARD, SimDevice("keyboard", Capabilities(keys=frozenset(range(1, 128)))))
        mouse = Capabilities(
            keys=frozenset(range(0x110, 0x118)), rel_axes=frozenset((REL_X, REL_Y, REL_WHEEL, REL_HWHEEL))
        )
        world.nodes.plug(MOUSE, SimDevice("mouse", mouse))
        yield world
    assert descriptors() == before


async def grabbed(device: SimDevice) -> None:
    """Wait until the daemon has grabbed a device."""
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


@pytest.mark.parametrize(("rotate", "moved"), [("0", [5, -3]), ("90", [3, 5]), ("180", [-5, 3]), ("270", [-3, -5])])
async def test_a_mouse_that_is_mounted_turned(tmp_path: Path, rotate: str, moved: list[int]) -> None:
    """`[input.rotate]`: by degrees. The screens of the headless sink are not turned, so its outputs turn no device."""
    settings = InputSettings(devices=["/dev/input/*"], rotate={"name=ball*": rotate, "name=other": "HDMI-A-1"})
    async with World.running(tmp_path, input=settings) as world:
        balls = Capabilities(keys=frozenset((BTN_LEFT,)), rel_axes=frozenset((REL_X, REL_Y)))
        ball = world.nodes.plug(MOUSE, SimDevice("ball in the casing", balls))
        other = world.nodes.plug(KEYBOARD, SimDevice("other", balls))
        async with world.typist(1, f"P:{MOUSE}") as guest, world.typist(2, f"P:{KEYBOARD}") as neighbour:
            await grabbed(ball)
            await grabbed(other)
            for device in (ball, other):
                device.emit((EV_REL, REL_X, 5), (EV_REL, REL_Y, -3))
                device.emit((EV_KEY, BTN_LEFT, 1))
            await until(lambda: guest.pressed == neighbour.pressed == {BTN_LEFT})
            assert guest.moved == moved
            assert neighbour.moved == [5, -3]


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


async def test_a_keyboard_that_is_pulled_out(world: World) -> None:
    """A keyboard's keys are released when it is unplugged. Plugged in again as another node, it is found by its name."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, "K:name=keyboard") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        world.nodes.unplug(KEYBOARD)
        await until(lambda: not guest.pressed)
        world.nodes.plug("/dev/input/event9", keyboard)
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.pressed == {KEY_B})


async def test_names_that_udev_makes(world: World) -> None:
    world.nodes.links["/dev/input/by-id/usb-Keyboard-event-kbd"] = KEYBOARD
    world.nodes.links["/dev/input/by-path/platform-mouse"] = MOUSE
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    async with world.typist(1, "k:by-id/usb-Keyboard-event-kbd;p:/dev/input/by-path/platform-mouse") as guest:
        await grabbed(keyboard)
        await grabbed(mouse)
        keyboard.emit((EV_KEY, KEY_A, 1))
        mouse.emit((EV_REL, REL_X, 1))
        await until(lambda: guest.pressed == {KEY_A} and guest.moved == [1, 0])


async def test_a_pattern_is_no_name(world: World) -> None:
    """IDs in a vkb line are taken literally: only the configuration has patterns."""
    for unique_id in ("K:/dev/input/event*", "K:name=*", "K:by-id/*"):
        async with world.typist(1, unique_id):
            await trio.sleep(0.05)
            assert world.nodes.opened == 0


async def test_a_guest_that_publishes_another_page(world: World) -> None:
    """After a resume the frontend has a new page and channel; it passes through states 3 and 4 quickly (xenkbd_resume)."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        guest.pressed.clear()  # the guest's kernel has released it on suspend
        await guest.publish()
        await guest.switch(State.CONNECTED)
        await until(lambda: guest.history.count(State.CONNECTED) == 2 and guest.connected.is_set())
        keyboard.emit((EV_KEY, KEY_A, 0))
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.pressed == {KEY_B})


async def test_killed_with_a_key_down(world: World) -> None:
    """The next daemon does not know which keys are down. It sends the guest the release of all keys and contacts."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", feature_multi_touch="1", multi_touch_num_contacts="2") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        guest.reads = False  # events that the daemon sends while it ends come too late
        await world.kill_daemon()
        guest.memory.store(4, guest.memory.load(0))
        guest.reads = True
        assert guest.pressed == {KEY_A}
        await world.start_daemon()
        await until(lambda: not guest.pressed)
        await until(lambda: any(isinstance(event, kbdif.TouchUp) for event in guest.events))
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.pressed == {KEY_B})


async def test_features_are_published_before_the_guest_looks(world: World) -> None:
    """displbe publishes an absolute pointer and a touch screen, with the size of the guest's screen. Nodes of the toolstack stay."""
    tablet = Capabilities(keys=frozenset((BTN_LEFT,)), abs_axes={ABS_X: AbsAxis(0, 99), ABS_Y: AbsAxis(0, 99)})
    world.nodes.plug("/dev/input/event2", SimDevice("tablet", tablet))
    vkb = {"unique-id": "P:name=tablet;T:name=tablet", "multi-touch-num-contacts": "2"}
    async with world.booted(1, spec("screen", 300, 200), vkb=vkb) as guest:
        await guest.input.connected.wait()
        assert (guest.input.absolute, guest.input.contacts) == (True, 2)
        path = world.tools.vinput(1)
        keys = ("width", "height", "multi-touch-height", "feature-raw-pointer")
        published = {key: world.tools.read(f"{path}/{key}") for key in keys}
        assert published == dict(zip(keys, (b"300", b"200", b"200", b"1"), strict=True))
        tablet_device = world.nodes.devices["/dev/input/event2"]
        await grabbed(tablet_device)
        tablet_device.emit((EV_ABS, ABS_X, 50), (EV_ABS, ABS_Y, 99))
        await until(lambda: guest.input.position == (151, 199))


@pytest.mark.parametrize("feature", ["feature_disable_keyboard", "feature_disable_pointer"])
async def test_no_key_that_would_crash_the_guest(world: World, feature: str) -> None:
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}", **{feature: "1"}) as guest:
        await grabbed(keyboard)
        await grabbed(mouse)
        keyboard.emit((EV_KEY, KEY_A, 1))
        mouse.emit((EV_REL, REL_X, 3), (EV_KEY, BTN_LEFT, 1))
        if feature == "feature_disable_keyboard":
            await until(lambda: guest.pressed == {BTN_LEFT})
        await trio.sleep(0.05)
        assert KEY_A not in guest.pressed
        assert guest.moved == [0 if feature == "feature_disable_pointer" else 3, 0]


async def test_keys_repeat_where_the_device_does_not(tmp_path: Path) -> None:
    settings = InputSettings(devices=["/dev/input/*"], repeat_delay=0.05, repeat_rate=100)
    async with World.running(tmp_path, input=settings) as world:
        keyboard = SimDevice("keyboard", Capabilities(keys=frozenset((KEY_A, KEY_B, BTN_LEFT))), repeats=False)
        world.nodes.plug(KEYBOARD, keyboard)
        async with world.typist(1, f"K:{KEYBOARD};P:{KEYBOARD}") as guest:
            await grabbed(keyboard)
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: len(guest.repeats) > 3)
            keyboard.emit((EV_KEY, KEY_B, 1))
            await until(lambda: guest.repeats[-1] == KEY_B)
            keyboard.emit((EV_KEY, KEY_A, 0), (EV_KEY, BTN_LEFT, 1))
            await until(lambda: guest.pressed == {KEY_B, BTN_LEFT})
            keyboard.emit((EV_KEY, KEY_B, 0))
            await until(lambda: guest.pressed == {BTN_LEFT})
            count = len(guest.repeats)
            await trio.sleep(0.15)
            assert len(guest.repeats) == count
            assert BTN_LEFT not in guest.repeats


async def test_a_release_does_not_wait_for_the_next_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a device are released when it is lost, not at the next look for devices."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        device = world.daemon.evdev.devices[KEYBOARD]
        monkeypatch.setattr(evdev_devices, "RESCAN_INTERVAL", 1000.0)
        world.nodes.unplug(KEYBOARD)
        await until(lambda: not guest.pressed, timeout=10)
        assert device.state is DeviceState.LOST
        world.daemon.focus.changed()
        assert device.guest_input is None, "no guest has a lost device"


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a name"), ModuleNotFoundError("evdev")])
async def test_a_device_that_cannot_be_opened_is_one_device(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Other devices are served, whatever the error is, and the device is served as soon as it can be opened."""
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    opened = world.nodes.open

    def fail(path: str) -> SimNode:
        if path == KEYBOARD:
            raise error
        return opened(path)

    monkeypatch.setattr(evdev_devices, "RESCAN_INTERVAL", 0.01)
    monkeypatch.setattr(world.nodes, "open", fail)
    with structlog.testing.capture_logs() as lines:
        async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}") as guest:
            await grabbed(mouse)
            mouse.emit((EV_REL, REL_X, 5))
            await until(lambda: guest.moved == [5, 0])
            await trio.sleep(0.1)
            monkeypatch.setattr(world.nodes, "open", opened)
            await grabbed(keyboard)
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: guest.pressed == {KEY_A})
    (line,) = [line for line in lines if line["event"] == "cannot open input device"]
    assert line["device"] == KEYBOARD
    assert line["exc_info"]


async def test_errors_are_one_devices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose events cannot be decoded is opened again, and an error in a look for devices ends nothing."""
    keyboard, mouse = world.nodes.devices[KEYBOARD], world.nodes.devices[MOUSE]
    decode, mistakes = Decoder.decode, [ValueError("a mistake")]

    def fail(decoder: Decoder, events: Sequence[InputEvent], *arguments: Any) -> bool:
        if mistakes and any(kind == EV_KEY for kind, _, _ in events):
            raise mistakes.pop()
        return decode(decoder, events, *arguments)

    resolve, looks = world.nodes.resolve, [ValueError("embedded null byte")]

    def fail_to_resolve(path: str) -> list[str]:
        if looks:
            raise looks.pop()
        return resolve(path)

    monkeypatch.setattr(evdev_devices, "RESCAN_INTERVAL", 0.01)
    monkeypatch.setattr(Decoder, "decode", fail)
    monkeypatch.setattr(world.nodes, "resolve", fail_to_resolve)
    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}") as guest:
        await grabbed(mouse)
        await grabbed(keyboard)
        assert not looks
        (before,) = keyboard.readers
        keyboard.emit((EV_KEY, KEY_A, 1))
        keyboard.emit((EV_KEY, KEY_A, 0))
        await until(lambda: keyboard.readers not in ([], [before]))
        await grabbed(keyboard)
        mouse.emit((EV_REL, REL_X, 5))
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.moved == [5, 0] and guest.pressed == {KEY_B})
        assert not mistakes


async def test_the_fittest_node_of_a_name(world: World) -> None:
    """Among nodes of one name, the one with the most capabilities for a role is taken; of two equal ones, the one with the lower number."""
    can = {
        "event2": Capabilities(keys=frozenset((113, 114, 115))),
        "event10": Capabilities(keys=frozenset(range(1, 128))),
        "event11": Capabilities(keys=frozenset((BTN_LEFT,)), rel_axes=frozenset((REL_X, REL_Y))),
        "event12": Capabilities(keys=frozenset((BTN_LEFT,)), rel_axes=frozenset((REL_X, REL_Y))),
    }
    nodes = {
        name: world.nodes.plug(f"/dev/input/{name}", SimDevice("Receiver", what))
        for name, what in reversed(can.items())
    }
    async with world.typist(1, "K:name=Receiver;P:name=Receiver") as guest:
        await grabbed(nodes["event10"])
        await grabbed(nodes["event11"])
        nodes["event10"].emit((EV_KEY, KEY_A, 1))
        nodes["event11"].emit((EV_REL, REL_X, 3))
        await until(lambda: guest.pressed == {KEY_A} and guest.moved == [3, 0])
        assert not nodes["event2"].readers
        assert not nodes["event12"].readers


async def test_devices_that_are_not_grabbed(tmp_path: Path) -> None:
    """With `grab = false`, devices are not grabbed. A guest's `input` replaces its vkb line, and needs no entry in `[input] devices`."""
    settings = InputSettings(grab=False)
    guests = {"typist": GuestSettings(input=f"K:{KEYBOARD}")}
    async with World.running(tmp_path, input=settings, guests=guests) as world:
        keyboard = world.nodes.plug(KEYBOARD, SimDevice("keyboard", Capabilities(keys=frozenset(range(1, 128)))))
        other = world.nodes.plug(MOUSE, SimDevice("other", Capabilities(keys=frozenset(range(1, 128)))))
        console = world.nodes.open(KEYBOARD)
        async with world.typist(1, f"K:{MOUSE}", "typist") as guest, world.typist(2, f"K:{MOUSE}", "other") as none:
            await until(lambda: len(keyboard.readers) == 2)
            await until(lambda: world.daemon.evdev.devices[KEYBOARD].state is DeviceState.SHARED)
            await until(lambda: all(device.guest_input for device in world.daemon.evdev.devices.values()))
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: guest.pressed == {KEY_A})
            assert (EV_KEY, KEY_A, 1) in console.read()
            assert not other.readers
            assert none.events == []
        console.close()


async def test_events_that_were_lost(world: World) -> None:
    """After SYN_DROPPED, the guest gets the keyboard's present state."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})
        keyboard.emit((EV_KEY, KEY_A, 0))
        for number in range(101):
            keyboard.emit((EV_KEY, KEY_B, 1 - number % 2))
        await until(lambda: guest.pressed == {KEY_B})


async def test_a_device_that_another_program_has_grabbed(world: World) -> None:
    """Another program has grabbed the device: grabbing is tried again until it succeeds."""
    keyboard = world.nodes.devices[KEYBOARD]
    other = world.nodes.open(KEYBOARD)
    other.grab()
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await until(lambda: world.nodes.opened >= 3)
        other.close()
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.pressed == {KEY_A})


async def test_keys_that_are_down_when_the_device_is_opened(world: World) -> None:
    """The guest gets neither press nor release of a key that is down when the device is opened, like the Enter that started the guest."""
    keyboard = world.nodes.devices[KEYBOARD]
    keyboard.emit((EV_KEY, KEY_A, 1))
    console = world.nodes.open(KEYBOARD)
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await until(lambda: len(keyboard.readers) == 2)
        await trio.sleep(0.05)
        assert world.daemon.evdev.devices[KEYBOARD].state is DeviceState.HELD_BACK
        assert not any(reader.grabbed for reader in keyboard.readers)
        keyboard.emit((EV_KEY, KEY_A, 0))
        assert (EV_KEY, KEY_A, 0) in console.read()
        await grabbed(keyboard)
        assert world.daemon.evdev.devices[KEYBOARD].state is DeviceState.GRABBED
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: guest.pressed == {KEY_B})
        assert [event.keycode for event in guest.events if isinstance(event, kbdif.Key)] == [KEY_B]
    console.close()


async def test_qemus_keyboards_are_left_alone(world: World) -> None:
    async with world.booted(1, vkb={"unique-id": f"K:{KEYBOARD}"}) as guest:
        await guest.input.connected.wait()
        world.tools.add_input(1, {"unique-id": f"K:{KEYBOARD}"}, 1, kind="vkbd")
        await trio.sleep(0.1)
        assert world.tools.read("/local/domain/0/backend/vkbd/1/1/state") == b"1"
        world.tools.remove("/local/domain/0/backend/vkbd/1/1")


async def test_a_fast_mouse_causes_few_notifications(world: World) -> None:
    """However fast the mouse moves, the guest is not notified again before it has answered."""
    mouse = world.nodes.devices[MOUSE]
    async with world.typist(1, f"P:{MOUSE}") as guest:
        await grabbed(mouse)
        for number in range(1000):
            mouse.emit((EV_REL, REL_X, 1))
            if number % 10 == 9:
                await trio.lowlevel.checkpoint()
                await until(lambda: not mouse.readers[0]._events)
        await until(lambda: guest.moved == [1000, 0])
        (claim,) = world.daemon.focus.claims
        assert claim.guest_input is not None
        assert claim.guest_input.queue.notified <= guest.kicks + 1


async def test_a_guest_beside_a_display(world: World) -> None:
    """A guest's display and input share its quota, and come and go together."""
    async with world.booted(1, spec(), vkb={"unique-id": f"K:{KEYBOARD}"}) as guest:
        await guest.input.connected.wait()
        await guest.display.connected.wait()
        assert world.daemon.quotas.guests[1] is world.device(1).quota is world.daemon.inputs.devices[1, 0].quota
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 3)


async def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest gets the events of a compositor's seat for the window of its own connector."""
    seats = Seats()
    monkeypatch.setattr(HeadlessSink, "seats", seats)
    async with (
        World.running(tmp_path) as world,
        world.typist(1, "K:screen;P:screen;T:screen", width="1000", height="500") as guest,
    ):
        assert (guest.absolute, guest.contacts) == (True, 10)
        said = await world.daemon.commands.status()
        (told,) = (device.input for each in said.guests for device in each.devices if device.kind == "vkbd")
        assert told == status.InputStatus((), 0, 0, 0, ("screen",))
        assert "input     from the window of screen; 0 events" in "\n".join(status_lines(said))

        def tell(*events: SeatEvent) -> None:
            for event in events:
                seats.tell(1, "screen", event)

        tell(KeyboardEnter((KEY_A,)), KeyboardKey(KEY_B, True), KeyboardKey(KEY_A, False))
        await until(lambda: guest.pressed == {KEY_B})
        tell(PointerEnter(100.0, 50.0, 200, 100), PointerButton(BTN_LEFT, True), PointerFrame())
        await until(lambda: guest.pressed == {KEY_B, BTN_LEFT})
        assert guest.position == (500, 250)
        tell(
            PointerAxis(60, 0),
            PointerFrame(),
            PointerAxis(60, 300),
            PointerFrame(),
            PointerAxis(-240, 0),
            PointerFrame(),
        )
        await until(lambda: guest.wheel == -1)
        tell(PointerMotion(250.0, -3.0, 200, 100), PointerFrame(), KeyboardLeave())
        await until(lambda: guest.pressed == {BTN_LEFT})
        assert guest.position == (999, 0)
        tell(PointerLeave())
        await until(lambda: not guest.pressed)
        tell(TouchDown(7, 20.0, 20.0, 40, 40), TouchDown(3, 0.0, 0.0, 40, 40), TouchFrame())
        await until(lambda: guest.fingers == {7: (400, 300), 3: (0, 0)})
        tell(TouchMotion(3, 39.99, 0.0, 40, 40), TouchUp(7), TouchFrame())
        await until(lambda: guest.fingers == {3: (799, 0)})
        tell(TouchShape(3, 10.0, 5.0, 40, 40), TouchOrientation(3, -44.6), TouchFrame())
        await until(lambda: kbdif.TouchOrientation(3, -45) in guest.events)
        assert kbdif.TouchShape(3, 173, 87) in guest.events, "a quarter of the square root of 800 * 600"
        tell(TouchCancel())
        await until(lambda: not guest.fingers)
        seats.tell(2, "screen", KeyboardKey(KEY_A, True))
        tell(KeyboardKey(KEY_A, True))
        await until(lambda: guest.pressed == {KEY_A})
        await world.stop_daemon()
        assert not guest.pressed
        await world.start_daemon()


async def test_a_window_where_there_are_none(world: World) -> None:
    async with world.booted(1, vkb={"unique-id": "K:HDMI-A-1"}) as guest:
        path = f"{world.tools.vinput(1)}/error"
        await until(lambda: b"no input of their own" in (world.tools.read(path) or b""))
        assert guest.input.state is not State.CLOSED


async def test_a_guest_that_asks_for_raw_positions(world: World) -> None:
    """Raw positions are 0 to 0x7fff, whatever the size of the screen. Linux does not request them."""
    tablet = Capabilities(keys=frozenset((BTN_LEFT,)), abs_axes={ABS_X: AbsAxis(0, 9), ABS_Y: AbsAxis(0, 9)})
    device = world.nodes.plug("/dev/input/event2", SimDevice("tablet", tablet))
    async with world.booted(1, vkb={"unique-id": "P:name=tablet", "width": "640"}) as guest:
        probe = guest.input._probe

        async def ask(backend: str) -> None:
            await probe(backend)
            await guest.hypervisor.store.write("device/vkbd/0/request-raw-pointer", b"1")
            guest.input.size = (kbdif.RAW_MAX, kbdif.RAW_MAX)

        guest.input._probe = ask  # type: ignore[method-assign]
        await guest.input.connected.wait()
        await grabbed(device)
        device.emit((EV_ABS, ABS_X, 9), (EV_ABS, ABS_Y, 3))
        await until(lambda: guest.input.position == (kbdif.RAW_MAX, 0x8000 // 3))


async def test_a_frontend_that_does_not_notify_back(world: World) -> None:
    """Events that were put while the frontend was consuming others are delivered without its notification."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        notify, guest.channel.notify = guest.channel.notify, lambda: None  # type: ignore[method-assign]
        guest.reads = False
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: guest.memory.load(4) == 1)
        keyboard.emit((EV_KEY, KEY_A, 0))
        await until(lambda: guest.memory.load(4) == 2)
        guest.memory.store(0, 1)  # it has consumed the first one
        guest.reads = True
        await until(lambda: len(guest.events) == 1)
        guest.channel.notify = notify  # type: ignore[method-assign]


async def test_a_frontend_that_never_notifies_back(world: World) -> None:
    """When there are more events than the page holds, the waiting ones are delivered without a notification from the frontend."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}") as guest:
        await grabbed(keyboard)
        notify, guest.channel.notify = guest.channel.notify, lambda: None  # type: ignore[method-assign]
        guest.reads = False
        for number in range(3 * kbdif.IN_SLOTS):
            keyboard.emit((EV_KEY, KEY_A, 1 - number % 2))
            await until(lambda: not keyboard.readers[0]._events)
        guest.reads = True
        await until(lambda: len(guest.events) == 3 * kbdif.IN_SLOTS and guest.pressed == {KEY_A})
        guest.channel.notify = notify  # type: ignore[method-assign]


async def test_events_from_before_the_switch(world: World) -> None:
    """Events that the kernel buffers while the operator gives the keyboard to another guest do not go to that guest."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "a") as a, world.typist(2, f"K:{KEYBOARD}", "b") as b:
        await grabbed(keyboard)
        for giver, taker, name in ((a, b, "b"), (b, a, "a")):
            giver.events.clear()
            taker.events.clear()
            keyboard.emit((EV_KEY, KEY_A, 1))
            keyboard.emit((EV_KEY, KEY_A, 0))
            keyboard.emit((EV_KEY, KEY_B, 1))
            world.daemon.focus.give(name)
            keyboard.emit((EV_KEY, KEY_B, 0))
            await until(lambda: len(giver.events) == 4)  # noqa: B023 - waited for
            assert giver.events == [
                kbdif.Key(1, KEY_A),
                kbdif.Key(0, KEY_A),
                kbdif.Key(1, KEY_B),
                kbdif.Key(0, KEY_B),  # since the guest has lost the keyboard
            ]
            assert taker.events == []


def is_served(world: World, name: str) -> bool:
    """Return whether a guest's vkbd is connected."""
    return any(claim.guest == name and claim.guest_input is not None for claim in world.daemon.focus.claims)


async def slowly(world: World, guest: InputFrontend) -> trio.Event:
    """Restart the daemon, with a guest that does not change its state until the event is set."""
    switch, hurry = guest.switch, trio.Event()

    async def late(state: State) -> None:
        await hurry.wait()
        await switch(state)

    guest.switch = late  # type: ignore[method-assign]
    await world.stop_daemon()
    await world.start_daemon()
    return hurry


async def test_a_restart_moves_no_keyboard(world: World) -> None:
    """The first of two guests that name a keyboard gets it after a restart, although the second reconnects sooner."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first") as first, world.typist(2, f"K:{KEYBOARD}", "second") as second:
        await grabbed(keyboard)
        hurry = await slowly(world, first)
        await until(lambda: is_served(world, "second"))
        await grabbed(keyboard)
        keyboard.emit((EV_KEY, KEY_A, 1))
        keyboard.emit((EV_KEY, KEY_A, 0))
        await until(lambda: not keyboard.readers[0]._events)
        hurry.set()
        await until(lambda: is_served(world, "first"))
        await until(lambda: all(device.guest_input for device in world.daemon.evdev.devices.values()))
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: first.pressed == {KEY_B})
        assert second.events == []


async def test_the_operators_choice_outlasts_a_restart(world: World) -> None:
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first") as first, world.typist(2, f"K:{KEYBOARD}", "second") as second:
        await grabbed(keyboard)
        world.daemon.focus.give("second")
        hurry = await slowly(world, second)
        await until(lambda: is_served(world, "first"))
        hurry.set()
        await until(lambda: is_served(world, "second"))
        await grabbed(keyboard)
        await until(lambda: all(device.guest_input for device in world.daemon.evdev.devices.values()))
        keyboard.emit((EV_KEY, KEY_A, 1))
        await until(lambda: second.pressed == {KEY_A})
        assert first.events == []


def test_what_is_remembered(tmp_path: Path) -> None:
    """The operator's choice is kept until the configuration changes. A file that is damaged or cannot be written does no harm."""
    FocusFile(tmp_path, "a").save("b")
    assert FocusFile(tmp_path, "a").load() == "b"
    assert FocusFile(tmp_path, "c").load() == "c"
    assert FocusFile(None, "a").load() == "a"
    for spoilt in (b"", b"\xff", b"[]", b"{}", b'{"configured": "a", "first": 1}', b" " * 10000):
        (tmp_path / "focus").write_bytes(spoilt)
        assert FocusFile(tmp_path, "a").load() == "a"
    nowhere = FocusFile(tmp_path / "missing", "a")
    nowhere.save("b")
    assert nowhere.load() == "a"
    FocusFile(None, "a").save("b")


async def test_the_status_of_input_devices(world: World) -> None:
    """The status shows which guest has a device, how many events each guest was sent, and how many wait for it."""
    keyboard = world.nodes.devices[KEYBOARD]

    async def told() -> list[status.InputStatus | None]:
        said = await world.daemon.commands.status()
        assert all(len(line) <= WIDTH for line in status_lines(said))
        return [device.input for guest in said.guests for device in guest.devices]

    async with world.typist(1, f"K:{KEYBOARD};P:{MOUSE}", "a") as a, world.typist(2, f"K:{KEYBOARD}", "b"):
        await grabbed(keyboard)
        await grabbed(world.nodes.devices[MOUSE])
        await until(lambda: all(device.guest_input for device in world.daemon.evdev.devices.values()))
        assert await told() == [status.InputStatus((KEYBOARD, MOUSE), 0, 0, 0), status.InputStatus((), 0, 0, 0)]
        a.reads = False
        for number in range(2 * kbdif.IN_SLOTS):
            keyboard.emit((EV_KEY, KEY_A, 1 - number % 2))
            await until(lambda: not keyboard.readers[0]._events)
        keyboard.emit((EV_KEY, KEY_A, 1))
        keyboard.emit((EV_KEY, KEY_A, 2))
        world.daemon.focus.give("b")
        waiting = kbdif.IN_SLOTS + 2  # the last press and its release
        expected = [status.InputStatus((MOUSE,), kbdif.IN_SLOTS, waiting, 1), status.InputStatus((KEYBOARD,), 0, 0, 0)]
        assert await told() == expected
        lines = " ".join(" ".join(status_lines(await world.daemon.commands.status())).split())
        assert f"from {MOUSE}; 51 events, 53 waiting for the guest, 1 dropped" in lines
        assert "from /dev/input/event0; 0 events" in lines
        a.reads = True
        a.take()
    async with world.booted(3, vkb={"unique-id": "K:HDMI-A-1"}):
        await until(lambda: world.tools.read(f"{world.tools.vinput(3)}/error"))
        assert await told() == [None]


async def test_a_refused_guest_has_no_device(world: World) -> None:
    """A guest with one impossible binding gets no device, and the next guest that names the keyboard gets it."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.booted(1, vkb={"unique-id": f"K:{KEYBOARD};P:HDMI-A-1"}, name="refused"):
        path = f"{world.tools.vinput(1)}/error"
        await until(lambda: b"no input of their own" in (world.tools.read(path) or b""))
        assert world.daemon.focus.claims == []
        async with world.typist(2, f"K:{KEYBOARD}", "next") as guest:
            await grabbed(keyboard)
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: guest.pressed == {KEY_A})


async def test_a_frontend_that_begins_while_its_features_are_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the frontend has started meanwhile, no features are published, because it may have read some of the nodes."""
    world.tools.create_domain(1)

    async def size(nodes: DeviceNodes) -> tuple[int, int]:
        world.tools.write(f"{nodes.frontend}/state", "3")
        return 300, 200

    monkeypatch.setattr(input_device, "read_display_size", size)
    world.tools.add_input(1, {"unique-id": "T:name=keyboard"})
    await world.tools.wait_state(world.tools.vinput(1), State.INIT_WAIT)
    assert world.tools.read(f"{world.tools.vinput(1)}/feature-multi-touch") is None
    await world.tools.remove_input(1)
    world.tools.destroy_domain(1)


async def test_a_keyboard_that_two_guests_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first guest has the keyboard. When it goes, its place is reserved, and events are discarded; then the other guest has it."""
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(2, f"K:{KEYBOARD}", "second") as second:
        async with world.typist(1, f"K:{KEYBOARD}", "first") as first:
            await grabbed(keyboard)
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: second.pressed == {KEY_A})
            keyboard.emit((EV_KEY, KEY_A, 0))
            world.daemon.focus.give("first")
            keyboard.emit((EV_KEY, KEY_B, 1))
            await until(lambda: first.pressed == {KEY_B})
            keyboard.emit((EV_KEY, KEY_B, 0))
            await until(lambda: not first.pressed)
            world.daemon.focus.give("")  # as configured: the guest that arrived first
            seen = len(second.events)
        async with world.typist(3, f"K:{KEYBOARD}", "third") as third:
            keyboard.emit((EV_KEY, KEY_A, 1))
            await until(lambda: second.pressed == {KEY_A})
            assert len(second.events) == seen + 1
            assert third.events == []
            keyboard.emit((EV_KEY, KEY_A, 0))
            await until(lambda: not second.pressed)
    async with world.typist(4, f"K:{KEYBOARD}", "fourth") as fourth:
        keyboard.emit((EV_KEY, KEY_A, 1))
        keyboard.emit((EV_KEY, KEY_A, 0))
        await trio.sleep(0.05)
        assert fourth.events == [], "the place of the previous guest is kept"
        gone = next(claim.gone_since for claim in world.daemon.focus.claims if claim.gone_since is not None)
        monkeypatch.setattr(focus, "RESERVATION", trio.current_time() - gone + 0.2)
        world.daemon.focus.changed()
        await until(lambda: world.daemon.focus.holder(lambda claim: True) is not None)
        await until(lambda: all(device.guest_input for device in world.daemon.evdev.devices.values()))
        keyboard.emit((EV_KEY, KEY_B, 1))
        await until(lambda: fourth.pressed == {KEY_B})


async def test_nothing_is_looked_for_when_the_last_reservation_has_expired(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon rests when the guests that had devices are gone for good."""
    monkeypatch.setattr(focus, "RESERVATION", 0.1)
    keyboard = world.nodes.devices[KEYBOARD]
    async with world.typist(1, f"K:{KEYBOARD}", "first"):
        await grabbed(keyboard)
    await trio.sleep(0.3)
    looks = 0
    claimed_nodes = DeviceLookup.claimed_nodes

    async def counted(lookup: DeviceLookup, claims: Iterable[focus.Claim]) -> Any:
        nonlocal looks
        looks += 1
        return await claimed_nodes(lookup, claims)

    monkeypatch.setattr(DeviceLookup, "claimed_nodes", counted)
    await trio.sleep(0.3)
    assert looks == 0
    assert world.daemon.focus.claims == []


async def test_a_guest_that_reboots_has_its_keyboard_again(world: World) -> None:
    """A guest has its keyboard again after a reboot. The other guest that names it gets no events meanwhile."""
    keyboard = world.nodes.devices[KEYBOARD]
    typed = 0

    async def type_on() -> None:
        nonlocal typed
        while True:
            typed += 1
            keyboard.emit((EV_KEY, KEY_A, typed % 2))
            await trio.lowlevel.checkpoint()

    async with world.typist(2, f"K:{KEYBOARD}", "first") as first:
        await grabbed(keyboard)
        async with world.typist(3, f"K:{KEYBOARD}", "other") as other, trio.open_nursery() as nursery:
            nursery.start_soon(type_on)
            await until(lambda: first.events)
            await world.tools.remove_input(2)
            world.tools.add_input(2, {"unique-id": f"K:{KEYBOARD}"})
            again = InputFrontend(first._domain, first._hypervisor)
            nursery.start_soon(again.run)
            await until(lambda: again.events)
            assert other.events == []
            nursery.cancel_scope.cancel()
