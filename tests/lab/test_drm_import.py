"""Dma-bufs without a guest (udmabufs, dumb buffers) through the DRM sink, on a screen and on vkms: offsets, pitches, formats, borders."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import TREE
from lab.pictures import Picture, drawn
from lab.test_drm import framed
from lab.vkms import checksum_of, encoded, vkms
from lab.vm import Machine

SCRIPT = Path(__file__).parent / "importing.py"


@contextlib.contextmanager
def shown(
    machine: Machine,
    connector: str,
    picture: Picture,
    fourcc: str,
    stride: int,
    offset: int = 0,
    memory: str = "",
    times: int = 1,
    **settings: object,
) -> Iterator[dict[str, object]]:
    """Show a picture in a dma-buf on one or more connectors (separated by spaces) while the block lasts. Give its path to the screen."""
    machine.put("/tmp/importing.py", SCRIPT.read_text())
    machine.put("/tmp/pixels", bytes(offset) + encoded(picture, fourcc, stride))
    geometry = picture.width, picture.height, fourcc, stride, offset
    asked = {
        "settings": settings,
        "connectors": connector.split(),
        "geometry": geometry,
        "file": "/tmp/pixels",
        "memory": memory,
        "times": times,
    }
    command = f"PYTHONPATH={TREE} exec python3 /tmp/importing.py '{json.dumps(asked)}'"
    group = machine.start(command, "/tmp/importing.log")
    said: list[dict[str, object]] = []

    def ready() -> bool:
        log = machine.run("cat /tmp/importing.log").output
        assert "Traceback" not in log, log
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        said[:] = [line for line in lines if line["event"] == "shown"]
        return bool(said)

    try:
        machine.wait_for(ready, 60, why="the picture")
        yield said[0]
    finally:
        machine.stop(group)


@pytest.mark.parametrize(("stride", "offset"), [(4096, 0), (4096 + 256, 0), (4096, 8192), (4096 + 64, 4096 + 128)])
def test_on_a_screen(machine: Machine, stride: int, offset: int) -> None:
    """virtio-gpu shows a dma-buf with its pitch and offset."""
    name = next(iter(machine.connectors()))
    picture = drawn(1024, 768, 3)
    with shown(machine, name, picture, "XR24", stride, offset) as said:
        print(f"\npitch {stride}, offset {offset}: {said}")
        machine.expect_picture(picture, f"udmabuf-{stride}-{offset}", timeout=10)
        assert said["path"] == "zero copy"


def test_edid(machine: Machine) -> None:
    """A guest gets the monitor's EDID as the kernel has it."""
    name = next(iter(machine.connectors()))
    file = f"/sys/class/drm/{machine.card().name}-{name}/edid"
    with shown(machine, name, drawn(1024, 768, 1), "XR24", 4096) as said:
        edid = bytes.fromhex(machine.check(f"python3 -c \"print(open('{file}', 'rb').read().hex())\"").strip())
        assert edid[:8] == bytes.fromhex("00ffffffffffff00")
        assert said["edid"] == edid[: len(edid) // 128 * 128].hex()


def test_format_that_the_card_does_not_show(machine: Machine) -> None:
    """virtio-gpu supports no format of 16 bits, so the frame is converted as it is copied."""
    name = next(iter(machine.connectors()))
    picture = drawn(1024, 768, 2)
    rgb = bytearray(picture.rgb)
    for channel, bits in enumerate((5, 6, 5)):
        fewer = [value >> (8 - bits) for value in range(256)]
        rgb[channel::3] = rgb[channel::3].translate(bytes(v << (8 - bits) | v >> (2 * bits - 8) for v in fewer))
    with shown(machine, name, picture, "RG16", 2048) as said:
        machine.expect_picture(Picture(1024, 768, bytes(rgb)), "rg16", timeout=10)
        assert said["path"] == "copy"
        assert "RG16" in str(said["reason"])


def test_the_same_memory_on_two_connectors(machine: Machine) -> None:
    """One dma-buf is attached to two outputs of a card at once, many times. It is never copied, and at the end both pictures are right."""
    picture = drawn(640, 480, 3)
    with (
        vkms(machine, connectors=2) as card,
        shown(machine, " ".join(card.connectors), picture, "XR24", 2560, times=200) as said,
    ):
        assert said["path"] == "zero copy", said
        assert [card.checksum(index) for index in (0, 1)] == [checksum_of(picture)] * 2


def test_our_own_memory(machine: Machine) -> None:
    """A dumb buffer of the card itself, as be-alloc gives it to a guest, is shown on virtio-gpu and on vkms."""
    name = next(iter(machine.connectors()))
    picture = drawn(1024, 768, 1)
    with shown(machine, name, picture, "XR24", 4096, memory="ours") as said:
        machine.expect_picture(picture, "dumb-ours", timeout=10)
        assert said["path"] == "be-alloc"
    picture = drawn(640, 480, 1)
    with vkms(machine) as card, shown(machine, card.connectors[0], picture, "XR24", 2560, memory="ours") as said:
        assert card.checksum() == checksum_of(picture)
        assert said["path"] == "be-alloc"


def test_memory_of_another_card(machine: Machine) -> None:
    """A dumb buffer of one card is shown on the screen of another, by the best path that the two support: the picture is right."""
    name = next(iter(machine.connectors()))
    with vkms(machine) as card:
        picture = drawn(1024, 768, 2)
        with shown(machine, name, picture, "XR24", 4096, memory=f"/dev/dri/{card.card}") as said:
            print(f"\nvkms' memory on virtio-gpu: {said}")
            machine.expect_picture(picture, "dumb-vkms", timeout=10)
        picture = drawn(640, 480, 2)
        theirs = machine.card().node
        with shown(machine, card.connectors[0], picture, "XR24", 2560, memory=theirs) as said:
            print(f"virtio-gpu's memory on vkms: {said}")
            assert card.checksum() == checksum_of(picture)


@pytest.mark.parametrize("fourcc", ["XR24", "AR24", "RG16"])
@pytest.mark.parametrize("more", [0, 64])
def test_formats(machine: Machine, fourcc: str, more: int) -> None:
    """vkms shows more formats, and the checksum of the pixels is right. (vkms counts offsets twice, and the kernel crashes then.)"""
    picture = drawn(640, 480, 2)
    pixel_size = 2 if fourcc == "RG16" else 4
    with (
        vkms(machine) as card,
        shown(machine, card.connectors[0], picture, fourcc, 640 * pixel_size + more) as said,
    ):
        assert said["path"] == "zero copy", said
        assert card.checksum() == checksum_of(picture, fourcc)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("zero_copy", ["auto", "off"])
def test_turned_by_the_plane(machine: Machine, zero_copy: str, degrees: int) -> None:
    """vkms turns planes: a panel that is mounted turned shows the frame upright, without a copy and with one."""
    size = (480, 640) if degrees in (90, 270) else (640, 480)
    picture = drawn(*size, 2)
    with (
        vkms(machine) as card,
        shown(
            machine,
            card.connectors[0],
            picture,
            "XR24",
            4 * size[0],
            zero_copy=zero_copy,
            screens={"rotate": str(degrees)},
        ) as said,
    ):
        assert said["path"] == ("copy" if zero_copy == "off" else "zero copy"), said
        assert card.checksum() == checksum_of(picture.turned(degrees))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_as_it_is_copied(machine: Machine, degrees: int) -> None:
    """virtio-gpu cannot turn planes: each frame is turned as it is copied."""
    name = next(iter(machine.connectors()))
    size = (768, 1024) if degrees in (90, 270) else (1024, 768)
    picture = drawn(*size, 2)
    with shown(machine, name, picture, "XR24", 4 * size[0], screens={name: {"rotate": str(degrees)}}) as said:
        machine.expect_picture(picture.turned(degrees), f"turned-{degrees}", timeout=10)
        assert said["path"] == "copy"
        assert f"turn the plane by {degrees} degrees" in str(said["reason"])


@pytest.mark.parametrize("scale", ["fit", "none"])
def test_borders(machine: Machine, scale: str) -> None:
    """vkms can leave a part of the screen free but does not scale: the frame is shown without a copy, with black borders."""
    picture = drawn(600, 440, 2)
    with (
        vkms(machine) as card,
        shown(machine, card.connectors[0], picture, "XR24", 2400, scale=scale) as said,
    ):
        assert said["path"] == "zero copy", said
        assert card.checksum() == checksum_of(framed(picture, 640, 480))
