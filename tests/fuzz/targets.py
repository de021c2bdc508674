"""Fuzz targets. A target takes any bytes; an exception is a defect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from displbe.backend.guests import GuestSettings
from displbe.backend.nodes import DeviceRefused
from displbe.display.published import read_connectors
from displbe.ops.text import escape
from displbe.wire import displif, xs
from displbe.wire.edid import sanitise
from displbe.wire.errors import FrontendBroken, RequestError
from displbe.wire.formats import FORMATS, fourcc_name
from displbe.wire.pgdir import REFS_PER_PAGE, DirectoryReader, DirectoryWriter
from displbe.wire.ring import PAGE_SIZE, BackControlRing, BackEventPage
from displbe.wire.xenbus import parse_state

from . import configuration, inputs, pump
from .choices import Choices
from .rig import Machine, Rig, fake_nodes

__all__ = ["TARGETS", "Choices", "drive", "requests_of"]


DBUFS: Final = (0x1000, 0x1040, 0x1080)
FBS: Final = (0x2000, 0x2040, 0x2080)
COOKIES: Final = (*DBUFS, *FBS, 0, 1, (1 << 64) - 1)
SIZES: Final = (64, 48, 1, 0, 16, 32, 63, 65, 16384, 16385, 1 << 31, 0xFFFFFFFF)
CODES: Final = (*FORMATS, 0, 0x3231564E)
OPERATIONS: Final = (0x10, 0x10, 0x10, 0x11, 0x12, 0x12, 0x12, 0x13, 0x14, 0x14, 0x15, 0x15, 0x15, 0x15, 0x15, 0x16)


def requests_of(choices: Choices, directories: list[int]) -> Iterator[bytes]:
    """Yield requests of 64 bytes: most are nearly valid, some are random."""
    while not choices.over:
        kind = choices.below(16)
        if kind == 0:
            yield choices.number(64).to_bytes(64, "little")
            continue
        slot = bytearray(_nearly_right(choices, directories))
        if kind == 1:
            slot[choices.below(64)] = choices.number(1)
        yield bytes(slot)


def _nearly_right(choices: Choices, directories: list[int]) -> bytes:
    """Return a request: three of four are valid in themselves, with cookies that may exist."""
    operation = OPERATIONS[choices.below(len(OPERATIONS))]
    number = choices.number(2)
    dbuf, fb = DBUFS[choices.below(len(DBUFS))], FBS[choices.below(len(FBS))]
    if choices.below(4):
        return displif.encode_request(_right(choices, operation, number, dbuf, fb, directories))

    def cookie() -> int:
        return COOKIES[choices.below(len(COOKIES))]

    def size() -> int:
        return SIZES[choices.below(len(SIZES))]

    request: displif.Request
    match operation:
        case 0x10:
            room = (12288, 6144, 49152, 4096, 0, 1, 0xFFFFFFFF)[choices.below(7)]
            flags = (0, 1, 0xFFFFFFFE, 0xFFFFFFFF)[choices.below(4)]
            offset = (0, 64, 12287, 0xFFFFFFFF)[choices.below(4)]
            first = (*directories, 0, 0xFFFFFFFF)[choices.below(len(directories) + 2)]
            bpp = 8 * choices.below(6)
            request = displif.DbufCreate(number, cookie(), size(), size(), bpp, room, flags, first, offset)
        case 0x11:
            request = displif.DbufDestroy(number, cookie())
        case 0x12:
            code = CODES[choices.below(len(CODES))]
            request = displif.FbAttach(number, cookie(), cookie(), size(), size(), code)
        case 0x13:
            request = displif.FbDetach(number, cookie())
        case 0x14:
            request = displif.SetConfig(number, cookie(), size(), size(), size(), size(), size())
        case 0x15:
            request = displif.PageFlip(number, cookie())
        case _:
            room = (256, 4096, 0, 127, 0xFFFFFFFF)[choices.below(5)]
            first = (*directories, 0, 0xFFFFFFFF)[choices.below(len(directories) + 2)]
            request = displif.GetEdid(number, room, first)
    return displif.encode_request(request)


def _right(
    choices: Choices, operation: int, number: int, dbuf: int, fb: int, directories: list[int]
) -> displif.Request:
    match operation:
        case 0x10:
            shape = ((64, 48, 32), (64, 48, 32), (64, 48, 16), (0, 0, 0))[choices.below(4)]
            return displif.DbufCreate(number, dbuf, *shape, 12288, choices.below(2), directories[0], 0)
        case 0x11:
            return displif.DbufDestroy(number, dbuf)
        case 0x12:
            return displif.FbAttach(number, dbuf, fb, 64, 48, CODES[(2, 2, 0)[choices.below(3)]])
        case 0x13:
            return displif.FbDetach(number, fb)
        case 0x14:
            if not choices.below(8):
                return displif.SetConfig(number, 0, 0, 0, 0, 0, 0)
            return displif.SetConfig(number, fb, 0, 0, 64, 48, 32)
        case 0x15:
            return displif.PageFlip(number, fb)
        case _:
            return displif.GetEdid(number, 128, directories[0])


async def drive(
    rig: Rig, slots: Iterator[bytes], limit: int = 1 << 62, rounds: Sequence[int] = (32, 8), pause: float = 0.0
) -> int:
    """Send requests over the rings; return the number of responses, each of which must have the id and operation of its request.

    A round sends at most so many over each ring, and pauses for some seconds when they are answered.

    There must be one event for each accepted flip, in order, numbered without a gap.
    """
    served = 0
    numbers = [0] * len(rig.fronts)
    accepted: list[list[int]] = [[] for _ in rig.fronts]
    while served < limit:
        sent: list[list[bytes]] = []
        for index, front in enumerate(rig.fronts):
            # Most requests are for connector 0; each round fills a ring, or sends what is left.
            batch = [slot for _, slot in zip(range(rounds[index]), slots, strict=False)]
            for slot in batch:
                front.put(slot)
            sent.append(batch)
        if not any(sent):
            break
        await rig.settle()
        if pause:
            await trio.sleep(pause)
        assert rig.broken is None, rig.broken
        for index, front in enumerate(rig.fronts):
            responses = front.take_responses()
            assert len(responses) == len(sent[index])
            for slot, response in zip(sent[index], responses, strict=True):
                assert (response.id, response.operation) == (int.from_bytes(slot[:2], "little"), slot[2])
                assert -95 <= response.status <= 0
                if slot[2] == displif.PageFlip.operation and response.status == 0:
                    accepted[index].append(int.from_bytes(slot[8:16], "little"))
            served += len(responses)
            for event in front.take_events():
                assert event.id == numbers[index] & 0xFFFF
                assert event.fb_cookie == accepted[index][numbers[index]]
                numbers[index] += 1
            assert len(accepted[index]) - numbers[index] in (0, 1)
    return served


def requests(data: bytes) -> None:
    """Fuzz the request path: rings, decoding, buffers, framebuffers, configurations, flips."""

    async def main() -> None:
        machine = Machine()
        async with machine.running(), Rig.connected(machine) as rig:
            await drive(rig, requests_of(Choices(data[:8192]), machine.directories))
        machine.close()

    trio.run(main)


def card(data: bytes) -> None:
    """Fuzz the request path over a card whose flips the pump serves. Its frames are scanned out or copied. Most requests are flips, because
    the pump serves them only while nothing else happens.
    """
    from .card_rig import CardMachine  # most targets need no card

    choices = Choices(data[:512])
    dmabufs = choices.below(2) == 0

    def slots(directories: list[int]) -> Iterator[bytes]:
        others = requests_of(choices, directories)
        while not choices.over:
            flip = displif.encode_request(displif.PageFlip(choices.number(2), FBS[choices.below(2)]))
            yield flip if choices.below(8) else next(others, flip)

    async def main() -> None:
        async with CardMachine.made(2, dmabufs=dmabufs) as machine, Rig.connected(machine) as rig:
            machine.refresh()
            begin: list[displif.Request] = [
                displif.DbufCreate(0, DBUFS[0], 64, 48, 32, 12288, 0, machine.directories[0], 0)
            ]
            begin += [displif.FbAttach(0, DBUFS[0], fb, 64, 48, CODES[2]) for fb in FBS[:2]]
            show = displif.SetConfig(0, FBS[0], 0, 0, 64, 48, 32)
            await drive(rig, map(displif.encode_request, begin), rounds=(32, 0))
            await drive(rig, map(displif.encode_request, (show, show)), rounds=(1, 1))
            await drive(rig, slots(machine.directories), rounds=(1, 1), pause=0.002)

    trio.run(main)


def decode(data: bytes) -> None:
    """Fuzz messages: what has been decoded is encoded to the same bytes, where these have a meaning."""
    slot = data[:64].ljust(64, b"\0")
    request = displif.decode_request(slot)
    again = displif.encode_request(request)
    assert displif.decode_request(again) == request
    displif.decode_response(slot)
    try:
        displif.decode_event(slot)
    except ValueError:
        assert slot[2] != 0
    fourcc_name(int.from_bytes(slot[:4], "little"))


def directory(data: bytes) -> None:
    """Fuzz page directories, read and filled."""
    choices = Choices(data)
    count = 1 + choices.below(5000)
    reader = DirectoryReader(choices.number(4), count)
    writer = DirectoryWriter(choices.number(4), list(range(count)))
    fed = 0
    for walker in (reader, writer):
        pages = 0
        try:
            while walker.next_ref is not None:
                page = b"".join(
                    (choices.below(16) if n == 0 else choices.number(4)).to_bytes(4, "little") for n in range(8)
                ).ljust(PAGE_SIZE, b"\0")
                if isinstance(walker, DirectoryReader):
                    walker.feed(page)
                else:
                    offset, entries = walker.feed(page)
                    assert offset == 4
                    assert 0 < len(entries) <= PAGE_SIZE - 4
                pages += 1
            fed += 1
        except RequestError:
            pass
        assert pages <= -(-count // REFS_PER_PAGE)
    assert len(reader.refs) <= count


class _Page:
    """A page that the guest changes between any two reads."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.loads = 0

    words = None

    def load(self, offset: int) -> int:
        self.loads += 1
        value = self._choices.number(1)
        return value if value < 64 else self._choices.number(4) if value < 96 else 0xFFFFFFFF - value

    def store(self, offset: int, value: int) -> None:
        assert offset in (0, 4, 8, 12)
        assert 0 <= value <= 0xFFFFFFFF

    def fence(self) -> None:
        pass

    def copy(self, offset: int, size: int) -> bytes:
        assert 64 <= offset <= PAGE_SIZE - size
        return self._choices.number(8).to_bytes(8, "little") * (size // 8)

    def write(self, offset: int, data: bytes) -> None:
        assert 64 <= offset <= PAGE_SIZE - len(data)


def rings(data: bytes) -> None:
    """Fuzz the indices of the control ring and of the event page, which change between any two reads. A broken ring is replaced."""
    choices = Choices(data)
    while not choices.over:
        for serve in (_control_ring, _event_page):
            try:
                serve(choices)
            except FrontendBroken:
                pass


def _control_ring(choices: Choices) -> None:
    page = _Page(choices)
    ring = BackControlRing(page)
    owed = 0
    for _ in range(200):
        if choices.over:
            break
        before = page.loads
        match choices.below(4):
            case 0 | 1:
                if ring.take() is not None:
                    owed += 1
                    assert owed <= 32
            case 2:
                ring.final_check()
            case _:
                if owed:
                    ring.respond(bytes(64))
                    owed -= 1
        assert page.loads - before <= 1, "each index is read once"


def _event_page(choices: Choices) -> None:
    events = BackEventPage(_Page(choices))
    for _ in range(200):
        if choices.over:
            break
        if events.space():
            events.put(bytes(64))


def store(data: bytes) -> None:
    """Fuzz XenStore's stream and the values in it."""
    choices = Choices(data)
    decoder = xs.Decoder(limit=1 << 16)
    at = 0
    try:
        while at < len(data):
            step = 1 + choices.below(64)
            for packet in decoder.feed(data[at : at + step]):
                xs.split(packet.payload)
            at += step
    except xs.ProtocolError:
        pass
    try:
        xs.parse_perms(data)
    except xs.ProtocolError:
        pass
    for value in (data, data[:10], *data.split(b"\0")[:8]):
        number = xs.parse_number(value)
        assert number is None or value == b"%d" % number
        parse_state(value)
        text = escape(value.decode("utf-8", "replace"))
        assert text.isprintable()
        assert len(text) < 8 * 512
    assert sanitise(data, len(data) + 1) == sanitise(sanitise(data, len(data) + 1), len(data) + 1)


KEYS: Final = ("unique-id", "resolution", "req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel")


def keys(data: bytes) -> None:
    """Fuzz the nodes that a guest publishes in XenStore."""
    owner = (0, 0, 0, 1, 2)[data[0] % 5] if data else 0
    values = data[1:].split(b"\n")
    home = "/local/domain/1/device/vdispl/0"
    nodes = {f"{home}/{n // 6}/{KEYS[n % 6]}": value for n, value in enumerate(values[:60])}
    reading = read_connectors(fake_nodes(nodes, owner), GuestSettings())
    found = None
    try:
        reading.send(None)
    except DeviceRefused as refused:
        found = []
        escape(str(refused))
    except StopIteration as done:
        found = done.value
    assert found is not None, "it waits for something"
    assert len(found) <= 8
    assert owner == 0 or not found, "only the toolstack is believed"
    for key in found:
        assert key.name.isprintable()
        assert 1 <= key.width <= 16384
        assert 1 <= key.height <= 16384
        assert 0 <= key.rings.req_ref <= 0xFFFFFFFF


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "requests": requests,
    "card": card,
    "decode": decode,
    "directory": directory,
    "rings": rings,
    "store": store,
    "keys": keys,
    **inputs.TARGETS,
    **configuration.TARGETS,
    **pump.TARGETS,
}

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "requests": (bytes(range(256)) * 4, bytes((5, 0, 0, 0, 0, 0, 0, 0) * 64)),
    "card": (bytes(range(256)) * 2, bytes((1, *range(255))) * 2),
    "decode": (bytes((1, 0, 0x10)), bytes((1, 0, 0x15))),
    "directory": (bytes(64),),
    "rings": (bytes((1, 1, 2, 3) * 40),),
    "store": (
        b"n0\0r1\0",
        b"\x0f\0\0\0" + bytes(8) + b"\x04\0\0\0a\0b\0",
        b"4294967295",
        b"\0\xff\xff\xff\xff\xff\xff\0" + bytes(120),
    ),
    "keys": tuple(
        owner + b"HDMI-A-1\n1920x1080\n8\n1\n9\n2\nDP-1\n800x600\n10\n3\n11\n4" for owner in (b"\0", b"\3", b"\4")
    ),
    **inputs.SEEDS,
    **configuration.SEEDS,
    **pump.SEEDS,
}
