"""kbdif's codec and page against protocol/vectors/kbdif.json, and both halves of the ring against each other."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from displbe.input import event_codes
from displbe.wire import kbdif
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import EVENT_SIZE, IN_SLOTS, OUT_SLOTS, BackKbdPage, FrontKbdPage, InEvent
from displbe.xen.barriers import SharedMemory

PROTOCOL: Final = Path(__file__).parents[2] / "protocol"
VECTORS: Final[dict[str, Any]] = json.loads((PROTOCOL / "vectors" / "kbdif.json").read_text("ascii"))
KINDS: Final[dict[str, type[InEvent]]] = {
    "MOTION": kbdif.Motion,
    "KEY": kbdif.Key,
    "POS": kbdif.Position,
    "TOUCH_DOWN": kbdif.TouchDown,
    "TOUCH_UP": kbdif.TouchUp,
    "TOUCH_MOTION": kbdif.TouchMotion,
    "TOUCH_SYN": kbdif.TouchSyn,
    "TOUCH_SHAPE": kbdif.TouchShape,
    "TOUCH_ORIENT": kbdif.TouchOrientation,
}
U32: Final = 0xFFFFFFFF
STARTS: Final = st.sampled_from([0, 1, 50, 51, 52, 0x7FFFFFFF, 0x80000000, U32 - 60, U32 - 51, U32 - 1, U32])


def page() -> SharedMemory:
    """An empty page."""
    return SharedMemory(memoryview(bytearray(4096)))


def test_numbers() -> None:
    assert {kind.name: kind.value for kind in kbdif.EventType} == VECTORS["types"]
    assert {kind.name: kind.value for kind in kbdif.TouchEvent} == VECTORS["touch_events"]
    assert VECTORS["page"] == {
        "in_cons": kbdif._IN_CONS,
        "in_prod": kbdif._IN_PROD,
        "out_cons": kbdif._OUT_CONS,
        "out_prod": kbdif._OUT_PROD,
        "in_ring": kbdif._IN_RING,
        "in_slot_size": EVENT_SIZE,
        "in_slots": IN_SLOTS,
        "out_ring": kbdif._IN_RING + 2048,
        "out_slot_size": EVENT_SIZE,
        "out_slots": OUT_SLOTS,
    }


def test_codes_of_linux() -> None:
    for name, number in VECTORS["codes"].items():
        assert getattr(event_codes, name, number) == number, name


@pytest.mark.parametrize("vector", VECTORS["events"], ids=lambda vector: vector["event"])
def test_events(vector: dict[str, Any]) -> None:
    fields = {
        field["name"]: field["value"] for field in vector["fields"] if field["name"] not in ("type", "event_type")
    }
    event = KINDS[vector["event"]](**fields)
    assert kbdif.encode_event(event).hex() == vector["bytes"]
    assert kbdif.decode_event(bytes.fromhex(vector["bytes"])) == event


def test_an_unknown_event() -> None:
    for head in (b"\x00\x00", b"\x02\x00", b"\x06\x00", b"\x05\x06"):
        with pytest.raises(ValueError, match="unknown type"):
            kbdif.decode_event(head.ljust(EVENT_SIZE, b"\0"))


@given(start=STARTS, batches=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=30))
def test_every_event_arrives_in_order_and_is_announced(start: int, batches: list[tuple[int, bool]]) -> None:
    """For any timing of the frontend, which consumes everything when it is notified and notifies back, or is slow."""
    memory = page()
    front = FrontKbdPage(memory)
    for offset in (0, 4):
        memory.store(offset, start)
    back = BackKbdPage(memory)
    sent: list[int] = []
    got: list[int] = []
    woken = False

    def take() -> None:
        nonlocal woken
        woken = False
        got.extend(struct.unpack_from("<I", slot, 4)[0] for slot in front.take())
        woken = back.push()  # its notification back

    for count, is_quick in batches:
        for _ in range(min(count, back.room())):
            sent.append(len(sent))
            back.put(kbdif.encode_key(sent[-1], True))
        woken = back.push() or woken
        if is_quick and woken:
            take()
    while woken:
        take()
    assert got == sent
    assert not back.is_waiting()


@given(start=STARTS, count=st.integers(1, IN_SLOTS))
def test_one_notification_until_the_frontend_answers(start: int, count: int) -> None:
    memory = page()
    front = FrontKbdPage(memory)
    for offset in (0, 4):
        memory.store(offset, start)
    back = BackKbdPage(memory)
    asked = []
    for number in range(min(count, back.room())):
        back.put(kbdif.encode_key(number, True))
        asked.append(back.push())
    assert asked == [True] + [False] * (len(asked) - 1)
    front.take()
    assert not back.push()
    if back.room():
        back.put(kbdif.encode_key(0, False))
        assert back.push()


def test_an_event_while_the_frontend_is_looking() -> None:
    """An event is put after the frontend has read `in_prod`: the frontend's notification tells us that it has not seen the event."""
    memory = page()
    FrontKbdPage(memory)
    back = BackKbdPage(memory)
    back.put(kbdif.encode_key(1, True))
    assert back.push()
    back.put(kbdif.encode_key(2, True))
    assert not back.push()
    memory.store(0, 1)  # it has taken the first only
    assert back.push(), "asked again when it notifies"
    memory.store(0, 2)
    assert not back.push()


@example(prod=0, ahead=IN_SLOTS)
@example(prod=0, ahead=IN_SLOTS + 1)
@given(prod=STARTS, ahead=st.integers(0, U32))
def test_impossible_indices(prod: int, ahead: int) -> None:
    memory = page()
    memory.store(4, prod)
    memory.store(0, (prod - ahead) & U32)
    if ahead <= IN_SLOTS:
        assert BackKbdPage(memory).room() <= IN_SLOTS - ahead
    else:
        with pytest.raises(FrontendBroken, match="impossible event index"):
            BackKbdPage(memory)


@example(sent=[OUT_SLOTS])
@example(sent=[OUT_SLOTS + 1])
@given(sent=st.lists(st.integers(0, 60), max_size=10))
def test_what_the_frontend_sends_is_taken_away(sent: list[int]) -> None:
    memory = page()
    back = BackKbdPage(memory)
    prod = 0
    for count in sent:
        prod = (prod + count) & U32
        memory.store(12, prod)
        if count > OUT_SLOTS:
            with pytest.raises(FrontendBroken, match="impossible event index"):
                back.drain()
            return
        assert back.drain() == count
        assert memory.load(8) == prod


def test_our_index_is_ours() -> None:
    """The guest may overwrite our indices: they are never read back."""
    memory = page()
    back = BackKbdPage(memory)
    for number in range(3):
        memory.store(4, 0xDEAD)
        back.put(kbdif.encode_key(number, True))
        back.push()
        assert memory.load(4) == number + 1


def test_input_md_has_every_field() -> None:
    """Each event's heading is followed by one row per field: | byte | type | name |."""
    text = (PROTOCOL / "input.md").read_text("utf-8")
    sections = dict(re.findall(r"^#{2,3} `(\w+)`.*?\n(.*?)(?=^#|\Z)", text, re.M | re.S))
    for vector in VECTORS["events"]:
        expected = {(str(field["offset"]), field["type"], field["name"]) for field in vector["fields"]}
        common = {("0", "u8", "type"), ("1", "u8", "event_type"), ("2", "u8", "contact_id")}
        rows = set(re.findall(r"^\| (\d+) \| (\w+) \| `(\w+)` \|", sections[vector["event"]], re.M))
        assert expected - rows <= common, vector["event"]
        assert rows <= expected, vector["event"]
    for key in VECTORS["xenstore_keys"].values():
        assert re.search(rf"^\| `{key}` \|", text, re.M), key
