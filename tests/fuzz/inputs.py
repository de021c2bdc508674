"""Fuzz targets of input: the event page, a vkbd's XenStore nodes, unique-id, a device's events."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from displbe.backend.nodes import DeviceRefused
from displbe.input.bindings import MAX_BINDINGS, Role, parse_unique_id
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent, Slot, Snapshot
from displbe.input.evdev.decoder import Decoder
from displbe.input.event_queue import CAPACITY
from displbe.input.features import Features
from displbe.input.guest_input import GuestInput, InputSource
from displbe.input.key_repeater import AutoRepeat
from displbe.input.published import MAX_CONTACTS, MAX_SIZE, read_features, read_published
from displbe.ops.text import escape
from displbe.sim.input import InputCore
from displbe.sinks.wayland.key_translator import KeyTranslator
from displbe.sinks.wayland.keymap import read_keymap
from displbe.wire import kbdif
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import EVENT_SIZE, IN_SLOTS, BackKbdPage, FrontKbdPage
from displbe.xen.barriers import SharedMemory

from .choices import Choices
from .rig import fake_nodes

__all__ = ["SEEDS", "TARGETS"]

FINGERS: Final = 4
ALL: Final = frozenset(Role)
MOST: Final = 2 * max(CAPACITY, 700 + 4 * FINGERS)
"""The limit of waiting events."""


class _Page:
    """A page whose guest changes it between any two reads."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.written = 0

    words = None

    def load(self, offset: int) -> int:
        """Return a value that an honest guest might write, most often."""
        kind = self._choices.number(1)
        if kind < 128:
            return max(0, self.written - kind % IN_SLOTS) & 0xFFFFFFFF
        return self._choices.number(4) if kind < 132 else kind % 8

    def store(self, offset: int, value: int) -> None:
        """Check that only our own indices are written."""
        assert offset in (4, 8)
        assert 0 <= value <= 0xFFFFFFFF

    def fence(self) -> None:
        """Do nothing: there is no other CPU."""

    def copy(self, offset: int, size: int) -> bytes:
        """Fail: the guest's events are never read."""
        raise AssertionError("the guest's events are not read")

    def write(self, offset: int, data: bytes) -> None:
        """Check that only whole events are written, and only to slots."""
        assert (offset - 1024) % EVENT_SIZE == 0
        assert 1024 <= offset < 1024 + IN_SLOTS * EVENT_SIZE
        assert len(data) == EVENT_SIZE
        kbdif.decode_event(data)
        self.written += 1


def page(data: bytes) -> None:
    """Fuzz the event page, and the queue for it."""
    choices = Choices(data)
    broken: list[FrontendBroken] = []
    try:
        back = BackKbdPage(_Page(choices))
    except FrontendBroken:
        return
    guest_input = GuestInput(back, Features(contacts=FINGERS), AutoRepeat(period=0), lambda: None, broken.append)
    source = InputSource("fuzz", repeats=True)
    if back.used:
        guest_input.release_everything()
    while not choices.over and not broken:
        _say(choices, guest_input, source)
        assert guest_input.queue.waiting <= MOST
        try:
            back.drain()
            back.taken()
            back.is_waiting()
        except FrontendBroken as error:
            broken.append(error)
    guest_input.leave_all()
    assert not guest_input.queue.pressed
    assert not guest_input.queue.contacts


def _say(choices: Choices, guest_input: GuestInput, source: InputSource) -> None:
    """Report an event as a source does."""
    finger = choices.below(FINGERS + 1)
    x, y = choices.number(1) / 255, choices.number(1) / 255
    match choices.below(9):
        case 0 | 1:
            guest_input.key(source, choices.below(0x300), choices.below(3))
        case 2:
            guest_input.move(choices.below(9) - 4, choices.below(9) - 4, choices.below(3) - 1)
        case 3:
            guest_input.touch_down(source, finger, x, y)
        case 4:
            guest_input.touch_move(source, finger, x, y)
        case 5:
            guest_input.touch_up(source, finger)
        case 6:
            guest_input.touch_shape(source, finger, x, y)
        case 7:
            guest_input.touch_frame(source)
        case _:
            guest_input.flush()


NODES: Final = (
    *("feature-disable-keyboard", "feature-disable-pointer", "feature-abs-pointer", "feature-raw-pointer"),
    *("feature-multi-touch", "width", "height", "multi-touch-width", "multi-touch-height", "multi-touch-num-contacts"),
)
ASKED: Final = ("request-abs-pointer", "request-raw-pointer", "request-multi-touch", "page-gref", "event-channel")


def _done(reading: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits; return its result. None: it raised DeviceRefused."""
    try:
        reading.send(None)
    except DeviceRefused as refused:
        escape(str(refused))
        return None
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def vkbd(data: bytes) -> None:
    """Fuzz a vkbd's XenStore nodes; each line is a node."""
    values: dict[str, bytes] = {}
    nodes = fake_nodes(values)
    names = [f"{nodes.path}/{key}" for key in NODES] + [f"{nodes.frontend}/{key}" for key in ASKED]
    values |= dict(zip(names, data.split(b"\n"), strict=False))
    found = _done(read_features(nodes))
    if found is not None:
        assert 0 <= found.contacts <= MAX_CONTACTS
        assert all(1 <= side <= MAX_SIZE for side in (found.width, found.height, found.touch_width, found.touch_height))
    keys = _done(read_published(nodes))
    if keys is not None:
        assert 0 <= keys.page_gref <= 0xFFFFFFFF
        assert 0 <= keys.event_channel <= 0xFFFFFFFF


def unique_id(data: bytes) -> None:
    """Fuzz a vkb line's unique-id."""
    try:
        bindings = parse_unique_id(data.decode("utf-8", "replace"))
    except ValueError as error:
        escape(str(error))
        return
    assert 1 <= len(bindings) <= MAX_BINDINGS
    again = ";".join(f"{binding.role.value}:{binding.id}" for binding in bindings)
    assert parse_unique_id(again) == bindings


CODES: Final = (
    0,
    1,
    8,
    11,
    24,
    47,
    48,
    49,
    52,
    53,
    54,
    57,
    58,
    30,
    0x110,
    0x117,
    0x140,
    0x145,
    0x14A,
    0x14D,
    0x160,
    0x2FE,
)
EDGES: Final = (0, 1, -1, 2, 100, 0x7FFFFFFF, -0x80000000)


def _value(choices: Choices) -> int:
    """Return an s32."""
    kind = choices.number(1)
    return EDGES[kind] if kind < len(EDGES) else kind - 128 if kind < 250 else choices.number(4) - 0x80000000


def _device(choices: Choices) -> tuple[Capabilities, Snapshot]:
    """Return the capabilities and the state of some device."""
    codes = [code for code in CODES if choices.below(2)]
    axes = {code: AbsAxis(_value(choices), _value(choices)) for code in codes if code < 64 and choices.below(4)}
    if 47 in axes:
        axes[47] = AbsAxis(0, choices.below(FINGERS + 2) - 1)
    rel_axes = frozenset(code for code in codes if code < 16)
    keys = frozenset(code for code in codes if code not in axes)
    capabilities = Capabilities(keys=keys, rel_axes=rel_axes, abs_axes=axes, is_touchpad=not choices.below(4))
    return capabilities, _state(choices, capabilities)


def _state(choices: Choices, capabilities: Capabilities) -> Snapshot:
    slots = [Slot(choices.below(4) - 1, *(_value(choices) for _ in range(5))) for _ in range(capabilities.slots)]
    keys = frozenset(code for code in capabilities.keys if not choices.below(4))
    return Snapshot(keys, {code: _value(choices) for code in capabilities.abs_axes}, slots)


def evdev(data: bytes) -> None:
    """Fuzz the events of any device for any guest: the guest gets no event that its kernel does not survive."""
    choices = Choices(data)
    features = Features(
        pointer=bool(choices.below(8)),
        keyboard=bool(choices.below(8)),
        absolute=bool(choices.below(2)),
        contacts=choices.below(FINGERS),
    )
    memory = SharedMemory(memoryview(bytearray(4096)))
    front, core = FrontKbdPage(memory), InputCore()
    core.has_keyboard, core.has_pointer, core.contacts = features.keyboard, features.pointer, features.contacts
    core.absolute, core.size = features.absolute, (features.width - 1, features.height - 1)
    broken: list[FrontendBroken] = []
    guest_input = GuestInput(BackKbdPage(memory), features, AutoRepeat(), lambda: None, broken.append)
    source = InputSource("fuzz", repeats=True)
    capabilities, state = _device(choices)
    decoder = Decoder(source, capabilities, state)

    def take() -> None:
        while slots := front.take():
            for slot in slots:
                core.handle(kbdif.decode_event(slot))
            guest_input.flush()

    while not choices.over:
        roles = frozenset(role for role in Role if choices.below(8))
        events: list[InputEvent] = [
            (choices.below(4), CODES[choices.below(len(CODES))], _value(choices)) if choices.below(4) else (0, 0, 0)
            for _ in range(choices.below(32))
        ]
        if decoder.decode(events, guest_input if choices.below(8) else None, roles):
            decoder.resync(_state(choices, capabilities), guest_input, roles)
        decoder.repeat(guest_input, roles)
        if choices.below(2):
            take()
    guest_input.leave(source)
    guest_input.flush()
    take()
    assert not broken
    assert core.oops is None
    assert not core.pressed
    assert not core.fingers
    assert not core.warnings


def keymap(data: bytes) -> None:
    """Fuzz the keymap of a compositor's keyboard, and its keys: when all of them are up, so are the guest's."""
    text, _, rest = data.partition(b"\0")
    fd = os.memfd_create("keymap")
    try:
        os.write(fd, text)
        found = read_keymap(fd, len(text))
    except ValueError as error:
        escape(str(error))
        return
    finally:
        os.close(fd)
    translator = KeyTranslator(lambda keysym: None)
    choices = Choices(rest)
    down: set[int] = set()

    def get(events: Iterable[tuple[int, bool]]) -> None:
        for code, is_down in events:
            (down.add if is_down else down.discard)(code)

    while not choices.over:
        get(translator.set_keymap(found if choices.below(4) else None))
        translator.set_modifiers(choices.number(1), choices.number(1), choices.number(4))
        get(translator.key(choices.below(12), bool(choices.below(2))))
    get(translator.set_keymap(None))
    for code in range(12):
        get(translator.key(code, False))
    assert not down


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "page": page,
    "vkbd": vkbd,
    "unique_id": unique_id,
    "evdev": evdev,
    "keymap": keymap,
}

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "page": (bytes((0, 1, 2, 3, 4, 5, 6, 7) * 40), bytes(range(256))),
    "vkbd": (b"0\n0\n1\n1\n1\n1920\n1080\n800\n600\n10\n1\n1\n1\n8\n9",),
    "unique_id": (b"K:/dev/input/event0;P:name=Mouse;T:HDMI-A-1", b"k:by-id/a;p:1000"),
    "keymap": (
        b"xkb_keymap { xkb_keycodes { <K1> = 9; <K2> = 10; <K3> = 11; alias <A> = <K1>; };\n"
        b'xkb_symbols "x" { key <K1> { [ h, H ] }; key <K2> { symbols[Group1]= [ Shift_L ], actions[1]= [ X() ] };\n'
        b"key <K3> { [ { a, b }, 1 ] }; }; };\0" + bytes(range(256)),
    ),
    "evdev": (bytes((1, 1, 0, 2, *range(200))), bytes(range(256)) * 2),
}
