"""Linux guests with an unmodified xen-kbdfront: the guest's programs read the events that are injected into Dom0's input devices."""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

import pytest
from lab.backend import Backend, Held, backend, no_zombie, screens
from lab.figures import Figure
from lab.flips import flips
from lab.vm import LabError, Machine, guest_config

HERE = Path(__file__).resolve().parent
FIFO: Final = "/run/devices"
LOG: Final = "/var/log/devices.log"

SYN, KEY, REL, ABS = range(4)
KEY_A, KEY_B, KEY_POWER, BTN_LEFT, BTN_RIGHT, BTN_TOUCH = 30, 48, 116, 0x110, 0x111, 0x14A
REL_X, REL_Y, REL_HWHEEL, REL_WHEEL, REL_WHEEL_HI_RES = 0, 1, 6, 8, 11
ABS_X, ABS_Y, SLOT, MAJOR, MT_X, MT_Y, TRACKING = 0, 1, 47, 48, 53, 54, 57

KEYBOARD, POINTER, TOUCH = "Xen Virtual Keyboard", "Xen Virtual Pointer", "Xen Virtual Multi-touch"
Frame = list[tuple[int, int, int]]
CONFIG: Final = """sink = "drm"
[input]
devices = ["name=lab *"]
"""


LOST: Final = "input events lost: the guest gets the device's present state instead"


class Devices:
    """Dom0's simulated input devices (devices.py)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ids = itertools.count(1)
        machine.put("/root/devices.py", (HERE / "devices.py").read_text())
        machine.run(f"rm -f {FIFO}")
        self.group = machine.start(f"exec python3 /root/devices.py {FIFO}", LOG)
        machine.wait_for(f"grep -q ready {LOG}", 60, why="the simulated devices")

    def order(self, timeout: float = 30, **fields: object) -> float:
        """Execute an order (see devices.py). Return the seconds that it took."""
        return self.end(self.begin(**fields), timeout)

    def begin(self, **fields: object) -> int:
        """Give an order without waiting. Return its number."""
        number = next(self._ids)
        self._machine.put("/tmp/order", json.dumps({**fields, "id": number}) + "\n")
        self._machine.check(f"cat /tmp/order >{FIFO}")
        return number

    def end(self, number: int, timeout: float) -> float:
        """Wait until an order has been executed. Return the seconds that it took."""

        def done() -> str:
            said = self._machine.run(f"cat {LOG}").output
            if "Traceback" in said:
                raise LabError(said)
            found = re.search(rf"^done {number} ([\d.]+)$", said, re.M)
            return found[1] if found else ""

        self._machine.wait_for(done, timeout, why=f"device order {number}")
        return float(done())

    def plug(self, name: str, kind: str, called: str = "") -> None:
        """Plug a device in. It reports the name `called`; empty: `name`."""
        self.order(do="plug", name=name, kind=kind, called=called or name)

    def unplug(self, name: str) -> None:
        """Unplug a device."""
        self.order(do="unplug", name=name)

    def emit_all(self, name: str, frames: list[Frame], times: int, rate: int) -> float:
        """Emit all frames `times` times, at `rate` frames per second. Return the seconds that it took. Dom0 does nothing else meanwhile."""
        number = self.begin(do="emit", name=name, frames=frames, times=times, rate=rate)
        self._machine.sleep(len(frames) * times / rate)
        return self.end(number, 120)

    def emit(self, name: str, *frames: Frame) -> None:
        """Emit frames, each with SYN_REPORT at its end, 10 ms apart, so that the kernel does not repeat a key."""
        self.order(do="emit", name=name, frames=frames, rate=100)


@pytest.fixture(scope="module")
def devices(machine: Machine) -> Iterator[Devices]:
    found = Devices(machine)
    for name, kind in (
        ("lab keyboard", "keyboard"),
        ("lab mouse", "mouse"),
        ("lab tablet", "tablet"),
        ("lab touch", "touch"),
        ("lab touch A", "touch A"),
        ("lab plain keyboard", "plain keyboard"),
    ):
        found.plug(name, kind)
    yield found
    machine.stop(found.group)


@pytest.fixture(scope="module")
def displbe(machine: Machine, devices: Devices) -> Iterator[Backend]:
    with backend(machine, CONFIG) as running:
        yield running


@pytest.fixture
def idle(machine: Machine, displbe: Backend) -> Iterator[Held]:
    """The resources that displbe holds without guests. After the test it must hold the same again."""
    before = displbe.held()
    yield before
    machine.destroy("input")
    machine.wait_for(lambda: displbe.held() == before, 20, why=f"everything released: {displbe.held()} != {before}")
    no_zombie(machine)


def vkb(unique_id: str, more: str = "") -> str:
    """Return the line of an xl configuration that gives a guest input."""
    return f"vkb=['backend=0,backend-type=linux,unique-id={unique_id}{more}']"


STATE_RESET: Final = "state reset occurred"
"""Linux 7.2 logs this when it mistakes its input device for a new one while the driver starts: xenbus_dev_changed() reads `state` 1 from
XenStore, the driver goes to 3 in another thread, and xenbus_dev_changed() compares the two. It then removes the device.
"""


def boot(machine: Machine, displbe: Backend, *lines: str, how: str = "print", count: int = 1) -> None:
    """Create a guest, and wait until its programs read its devices and displbe has opened `count` devices."""
    opened = len(displbe.events("input device opened"))
    machine.create("input", guest_config("input", "\n".join(lines), extra=f"do={how} loglevel=5"))
    try:
        machine.wait_for(lambda: is_alive(machine), 90, why="the guest's input")
    except LabError:
        print(machine.console("input")[-3000:])
        raise
    machine.wait_for(lambda: len(displbe.events("input device opened")) >= opened + count, 20, why="open devices")


def is_alive(machine: Machine, lives: int = 1) -> bool:
    """Return whether the guest's programs read, after `lives` boots, and its input is connected at both ends.

    Raises LabError when the guest's kernel has lost its device more often than once per boot.
    """
    places = ("/local/domain/0/backend/vinput/$(xl domid input)/0", "/local/domain/$(xl domid input)/device/vkbd/0")
    states = [machine.run(f"xenstore-read {place}/state").output.strip() for place in places]
    console = machine.console("input")
    if console.count(STATE_RESET) > lives:
        raise LabError(f"the guest's kernel loses its input device again and again:\n{console[-3000:]}")
    # When the kernel has lost the device, its state is the last one that either the starting driver or the bus wrote.
    gone = states[1] == "6" or (
        states[1] == "3" and "cannot map" in machine.run(f"xenstore-read {places[0]}/error").output
    )
    if gone and STATE_RESET in console:
        machine.run(f"xenstore-write {places[1]}/state 1")  # plugged in again, as a toolstack would
        print(f"\nthe guest's kernel has lost its input device ({STATE_RESET}): plugged in again")
    return states == ["4", "4"] and console.count("events: ready") >= lives


def expect(machine: Machine, name: str, *wanted: tuple[int, int, int]) -> None:
    """Wait until the guest has read exactly these events from a device, without counting SYN_REPORT."""
    lines = [f"{kind} {code} {value}" for kind, code, value in wanted]

    def read() -> list[str]:
        found = re.findall(rf"^input: {name}: (\d+ \d+ -?\d+)$", machine.console("input"), re.M)
        return [line for line in found if not line.startswith("0 ")]

    try:
        machine.wait_for(lambda: len(read()) >= len(lines), 20)
        machine.sleep(0.3)
    finally:
        assert read() == lines, machine.console("input")[-3000:]


# The tests that start and end displbe themselves come first. The others share one displbe.


def held_down(machine: Machine, displbe: Backend, devices: Devices) -> None:
    """Create a guest and press a key on its keyboard."""
    boot(machine, displbe, vkb("K:name=lab plain keyboard"))
    devices.emit("lab plain keyboard", [(KEY, KEY_A, 1)])
    machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 1", 20)


def goes_on(machine: Machine, displbe: Backend, devices: Devices, opened: int) -> None:
    """Wait until the guest has got the key's release; then release the real key, and check that the next key arrives."""
    machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 0", 40)
    machine.wait_for(lambda: len(displbe.events("input device opened")) > opened, 30, why="an open device")
    devices.emit("lab plain keyboard", [(KEY, KEY_A, 0)], [(KEY, KEY_B, 1)], [(KEY, KEY_B, 0)])
    machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_B} 0", 20)


def test_nothing_sticks_when_displbe_ends(machine: Machine, devices: Devices) -> None:
    """SIGTERM while a key is down: displbe sends the release before it ends. The next displbe serves the same guest."""
    try:
        with backend(machine, CONFIG) as displbe:
            held_down(machine, displbe, devices)
        machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 0", 20)
        with backend(machine, CONFIG) as displbe:
            goes_on(machine, displbe, devices, opened=0)
    finally:
        machine.destroy("input")
    no_zombie(machine)


def test_nothing_sticks_when_displbe_is_killed(machine: Machine, devices: Devices) -> None:
    """SIGKILL while a key is down: the next displbe does not know the key, and sends the guest the release of all keys."""
    try:
        with backend(machine, CONFIG) as displbe:
            held_down(machine, displbe, devices)
            displbe.kill()
            goes_on(machine, displbe, devices, opened=1)
    finally:
        machine.destroy("input")
    no_zombie(machine)


def test_keyboard_and_mouse(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """The guest reads keys, relative motions, buttons and the wheel as they were injected."""
    boot(machine, displbe, vkb("K:name=lab keyboard;P:name=lab mouse"))
    devices.emit("lab keyboard", [(KEY, KEY_A, 1)], [(KEY, KEY_B, 1)], [(KEY, KEY_A, 0)], [(KEY, KEY_B, 0)])
    expect(machine, KEYBOARD, (KEY, KEY_A, 1), (KEY, KEY_B, 1), (KEY, KEY_A, 0), (KEY, KEY_B, 0))
    # One at a time, because displbe merges motions that it reads together.
    seen: list[tuple[int, int, int]] = []
    for frames, told in (
        ([[(REL, REL_X, 5), (REL, REL_Y, -3)]], [(REL, REL_X, 5), (REL, REL_Y, -3)]),
        ([[(REL, REL_WHEEL, 1), (REL, REL_WHEEL_HI_RES, 120)]], [(REL, REL_WHEEL, 1)]),
        ([[(REL, REL_WHEEL_HI_RES, 60)], [(REL, REL_HWHEEL, 4)]], []),
        ([[(REL, REL_WHEEL, -2), (REL, REL_WHEEL_HI_RES, -240)]], [(REL, REL_WHEEL, -2)]),
        (
            [[(REL, REL_X, -7), (KEY, BTN_LEFT, 1)], [(KEY, BTN_LEFT, 0)]],
            [(REL, REL_X, -7), (KEY, BTN_LEFT, 1), (KEY, BTN_LEFT, 0)],
        ),
    ):
        devices.emit("lab mouse", *frames)
        seen += told
        expect(machine, POINTER, *seen)


def test_absolute_pointer(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """The positions of a tablet of 32768 steps are scaled to the screen of 1024x768, whose size displbe has published."""
    connector = next(iter(machine.connectors()))
    boot(machine, displbe, vkb("K:name=lab plain keyboard;P:name=lab tablet"), screens(connector))
    devices.emit(
        "lab tablet",
        [(ABS, ABS_X, 16384), (ABS, ABS_Y, 8192)],
        [(ABS, ABS_X, 32767), (ABS, ABS_Y, 32767), (KEY, BTN_RIGHT, 1)],
        [(KEY, BTN_RIGHT, 0)],
        [(REL, REL_WHEEL, -1)],
    )
    expect(
        machine,
        POINTER,
        *((ABS, ABS_X, 512), (ABS, ABS_Y, 192), (ABS, ABS_X, 1023), (ABS, ABS_Y, 767)),
        *((KEY, BTN_RIGHT, 1), (KEY, BTN_RIGHT, 0), (REL, REL_WHEEL, -1)),
    )


def test_repeats(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """displbe repeats the keys of a keyboard that does not repeat them, until the key is up."""
    boot(machine, displbe, vkb("K:name=lab plain keyboard"))
    devices.emit("lab plain keyboard", [(KEY, KEY_A, 1)])
    machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 2", 20, count=3)
    devices.emit("lab plain keyboard", [(KEY, KEY_A, 0)])
    machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 0", 20)
    machine.sleep(1)
    assert machine.console("input").rstrip().endswith(f"input: {KEYBOARD}: 1 {KEY_A} 0\ninput: {KEYBOARD}: 0 0 0")


def test_touch(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """The guest reads two fingers of multi-touch type B, of which the first is lifted first. Diameters are scaled like positions: 566 of
    the device's 4096 units are 100 of the guest's 724 pixels (the square root of 1024 times 512).
    """
    size = ",feature-multi-touch=1,multi-touch-width=1024,multi-touch-height=512,multi-touch-num-contacts=3"
    boot(machine, displbe, vkb("T:name=lab touch", size))
    devices.emit(
        "lab touch",
        [
            *((ABS, SLOT, 0), (ABS, TRACKING, 7), (ABS, MT_X, 2048), (ABS, MT_Y, 1024), (ABS, MAJOR, 566)),
            (KEY, BTN_TOUCH, 1),
        ],
        [(ABS, SLOT, 1), (ABS, TRACKING, 8), (ABS, MT_X, 4095), (ABS, MT_Y, 4095)],
        [(ABS, SLOT, 0), (ABS, MT_X, 2052)],
        [(ABS, TRACKING, -1)],
        [(ABS, SLOT, 1), (ABS, TRACKING, -1), (KEY, BTN_TOUCH, 0)],
    )
    expect(
        machine,
        TOUCH,
        # The first finger. The guest's kernel derives ABS_X, ABS_Y and BTN_TOUCH from the touches.
        *(
            (ABS, TRACKING, 0),
            (ABS, MT_X, 512),
            (ABS, MT_Y, 128),
            (ABS, MAJOR, 100),
            (KEY, BTN_TOUCH, 1),
            (ABS, ABS_X, 512),
            (ABS, ABS_Y, 128),
        ),
        *((ABS, SLOT, 1), (ABS, TRACKING, 1), (ABS, MT_X, 1023), (ABS, MT_Y, 511)),
        *((ABS, SLOT, 0), (ABS, MT_X, 513), (ABS, ABS_X, 513)),
        *((ABS, TRACKING, -1), (ABS, ABS_X, 1023), (ABS, ABS_Y, 511)),
        *((ABS, SLOT, 1), (ABS, TRACKING, -1), (KEY, BTN_TOUCH, 0)),
    )


def test_touch_without_numbers(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """The guest gets the fingers of multi-touch type A, where each frame has all fingers, without numbers."""
    size = ",feature-multi-touch=1,multi-touch-width=4096,multi-touch-height=4096,multi-touch-num-contacts=2"
    boot(machine, displbe, vkb("T:name=lab touch A", size))
    both: Frame = [(ABS, MT_X, 100), (ABS, MT_Y, 100), (SYN, 2, 0), (ABS, MT_X, 3000), (ABS, MT_Y, 3000), (SYN, 2, 0)]
    left: Frame = [(ABS, MT_X, 3010), (ABS, MT_Y, 3010), (SYN, 2, 0)]
    devices.emit("lab touch A", both, left, [(SYN, 2, 0)])
    machine.wait_console("input", f"input: {TOUCH}: {ABS} {TRACKING} -1", 20, count=2)
    found = re.findall(
        rf"^input: {TOUCH}: {ABS} ({SLOT}|{MT_X}|{MT_Y}|{TRACKING}) (-?\d+)$", machine.console("input"), re.M
    )
    wanted = [(TRACKING, 0), (MT_X, 100), (MT_Y, 100), (SLOT, 1), (TRACKING, 1), (MT_X, 3000), (MT_Y, 3000)]
    wanted += [(SLOT, 0), (TRACKING, -1), (SLOT, 1), (MT_X, 3010), (MT_Y, 3010), (TRACKING, -1)]
    assert [(int(code), int(value)) for code, value in found] == wanted


def test_replug_and_reboot(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """A keyboard is unplugged while a key is down, and plugged in again: it works again. So it does when the guest reboots, and when it is
    unplugged and plugged in during the reboot.
    """
    boot(machine, displbe, vkb("K:name=lab plain keyboard"), how="reboot")
    for turn in (1, 2):
        devices.emit("lab plain keyboard", [(KEY, KEY_A, 1)])
        machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 1", 20)
        opened = len(displbe.events("input device opened"))
        devices.unplug("lab plain keyboard")
        machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_A} 0", 20)
        devices.plug("lab plain keyboard", "plain keyboard")
        machine.wait_for(lambda: len(displbe.events("input device opened")) > opened, 20, why="the plugged device")  # noqa: B023
        devices.emit("lab plain keyboard", [(KEY, KEY_B, 1)], [(KEY, KEY_B, 0)])
        machine.wait_console("input", f"{KEYBOARD}: 1 {KEY_B} 0", 20)
        if turn == 1:
            over, opened = len(displbe.events("input over")), len(displbe.events("input device opened"))
            devices.emit("lab plain keyboard", [(KEY, KEY_POWER, 1)], [(KEY, KEY_POWER, 0)])
            machine.wait_for(lambda: len(displbe.events("input over")) > over, 60, why="the guest's end")  # noqa: B023
            devices.unplug("lab plain keyboard")
            devices.plug("lab plain keyboard", "plain keyboard")
            machine.wait_for(lambda: is_alive(machine, 2), 90, why="the rebooted guest's input")
            machine.wait_for(lambda: len(displbe.events("input device opened")) > opened, 20, why="the plugged device")  # noqa: B023
    console = machine.console("input")
    for value in (0, 1):
        assert console.count(f"{KEYBOARD}: 1 {KEY_A} {value}") == console.count(f"{KEYBOARD}: 1 {KEY_B} {value}") == 2


def linked(machine: Machine, link: str, name: str) -> None:
    """Make a link to a device's node, as udev does."""
    node = machine.check(f"grep -lx '{name}' /sys/class/input/event*/device/name").strip().split("/")[4]
    machine.check(f"mkdir -p /dev/input/{link.partition('/')[0]} && ln -sfn ../{node} /dev/input/{link}")


def test_links_to_nodes(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """A guest gets devices named by links, `by-id` and a whole `by-path`. The configuration allows them by their devices' names."""
    linked(machine, "by-id/lab-event-kbd", "lab keyboard")
    linked(machine, "by-path/lab-event-mouse", "lab mouse")
    boot(machine, displbe, vkb("K:by-id/lab-event-kbd;P:/dev/input/by-path/lab-event-mouse"), count=2)
    devices.emit("lab keyboard", [(KEY, KEY_A, 1)], [(KEY, KEY_A, 0)])
    expect(machine, KEYBOARD, (KEY, KEY_A, 1), (KEY, KEY_A, 0))
    devices.emit("lab mouse", [(REL, REL_X, 5)])
    expect(machine, POINTER, (REL, REL_X, 5))


def test_two_nodes_of_one_name(machine: Machine, displbe: Backend, idle: Held, devices: Devices) -> None:
    """Two nodes have the same name, and the first one is a mouse: displbe takes the node that has keys as the keyboard."""
    devices.plug("first twin", "mouse", called="lab twin")
    devices.plug("second twin", "keyboard", called="lab twin")
    try:
        boot(machine, displbe, vkb("K:name=lab twin;P:name=lab twin"), count=2)
        devices.emit("second twin", [(KEY, KEY_A, 1)], [(KEY, KEY_A, 0)])
        expect(machine, KEYBOARD, (KEY, KEY_A, 1), (KEY, KEY_A, 0))
        devices.emit("first twin", [(REL, REL_X, 5)])
        expect(machine, POINTER, (REL, REL_X, 5))
    finally:
        for twin in ("first twin", "second twin"):
            devices.unplug(twin)


def fnv(events: list[tuple[int, int, int]]) -> int:
    """Return the hash that domu/events.c computes over the events that it reads: FNV-1a over type, code and value."""
    found = 2166136261
    for byte in b"".join(struct.pack("<III", kind, code, value & 0xFFFFFFFF) for kind, code, value in events):
        found = (found ^ byte) * 16777619 & 0xFFFFFFFF
    return found


def summed(machine: Machine, name: str) -> dict[str, str]:
    """Return the guest's last summary of the events that it has read from a device."""
    lines = re.findall(rf"^sum: {name}: (.*)$", machine.console("input"), re.M)
    return dict(pair.split("=") for pair in lines[-1].split()) if lines else {"events": "0"}


def settled(machine: Machine, name: str) -> dict[str, str]:
    """Wait until the guest has read events and no more events come. Return its summary."""
    seen: list[dict[str, str]] = [{}]

    def is_still() -> bool:
        seen.append(summed(machine, name))
        return seen[-1] == seen[-2] and seen[-1]["events"] != "0"

    machine.wait_for(is_still, 60, every=3, why="the last of the events")
    return seen[-1]


def test_ten_thousand_keys(machine: Machine, displbe: Backend, idle: Held, devices: Devices, figure: Figure) -> None:
    """10,000 presses and releases at 500 per second all arrive, in order, and no key stays down."""
    cycle: list[Frame] = [[(KEY, 2 + key % 50, value)] for key in range(50) for value in (1, 0)]
    wanted = [event for frame in cycle * 100 for event in frame]
    boot(machine, displbe, vkb("K:name=lab keyboard"), how="sum")
    seconds = devices.emit_all("lab keyboard", cycle, 100, 500)
    found = settled(machine, KEYBOARD)
    figure(f"keys: {len(wanted)} events, {len(wanted) / seconds:.0f} per second")
    assert not displbe.events(LOST)
    assert (int(found["events"]), int(found["hash"], 16)) == (len(wanted), fnv(wanted))
    assert (found["lost"], found["down"]) == ("0", "0")


def test_a_fast_mouse_beside_a_display(
    machine: Machine, displbe: Backend, idle: Held, devices: Devices, figure: Figure
) -> None:
    """No motion of a mouse of 1000 Hz is lost, another guest flips on, and there are fewer notifications than motions."""
    connector = next(iter(machine.connectors()))
    try:
        boot(machine, displbe, vkb("P:name=lab mouse"), how="sum")
        machine.create("flip", guest_config("flip", screens(connector)))
        machine.wait_console("flip", "freq:", 60)
        before = len(flips(machine, "flip"))
        ended = len(displbe.events("input over"))
        cpu = sum(displbe.cpu_seconds())
        steps: list[Frame] = [[(REL, REL_X, 1), (REL, REL_Y, -2)]] * 100
        seconds = devices.emit_all("lab mouse", steps, 100, 1000)
        cpu = sum(displbe.cpu_seconds()) - cpu
        found = settled(machine, POINTER)
        rate = median(flips(machine, "flip")[before:])
        machine.destroy("input")
        machine.wait_for(lambda: len(displbe.events("input over")) > ended, 20, why="the end of the input")
        over = displbe.events("input over")[-1]
        figure(
            f"mouse: 10000 motions at {10000 / seconds:.0f} per second, {over['events']} events, {over['notifications']}"
            f" notifications, {cpu / seconds * 100:.0f} % CPU; beside it {rate:.1f} flips/s"
        )
        assert not displbe.events(LOST)
        assert (found["lost"], found["x"], found["y"]) == ("0", "10000", "-20000")
        assert int(str(over["notifications"])) < 10000 / 2
        assert rate > 55
    finally:
        machine.destroy("flip")
