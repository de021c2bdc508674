"""An output shows exactly the pixels that its guest draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from depths import DEPTHS
from scenario.cards import Screens, world_on
from scenario.world import World, spec

from displbe.sim.guest import DisplayBuffer, Frontend, Guest, GuestFailure
from displbe.wire import displif
from displbe.wire.displif import SetConfig
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc

Colour = tuple[int, int, int]


def bytes_per_pixel(name: str) -> int:
    """Return the bytes of a pixel."""
    return {"XR24": 4, "AR24": 4, "RG24": 3}.get(name, 2)


def encode(name: str, colour: Colour, junk: int) -> bytes:
    """Return a pixel; `junk` fills the bits that hold no colour."""
    red, green, blue = DEPTHS[name]
    value = colour[0] << (green + blue) | colour[1] << blue | colour[2]
    value |= junk << (red + green + blue)
    return (value & (1 << 8 * bytes_per_pixel(name)) - 1).to_bytes(bytes_per_pixel(name), "little")


def shown(name: str, colour: Colour) -> Colour:
    """Return a colour with eight bits for each component."""
    red, green, blue = (v * 255 // ((1 << bits) - 1) for v, bits in zip(colour, DEPTHS[name], strict=True))
    return red, green, blue


def random_picture(name: str, width: int, height: int) -> list[list[Colour]]:
    """Return a picture of many colours; if 256x256 pixels are enough, of all colours."""
    chance = random.Random(f"{name} {width} {height}")
    red, green, blue = DEPTHS[name]
    if (width, height) == (256, 256) and bytes_per_pixel(name) == 2:
        values = list(range(65536))
        chance.shuffle(values)
        masks = ((green + blue, (1 << red) - 1), (blue, (1 << green) - 1), (0, (1 << blue) - 1))
        pixels = [tuple(value >> shift & mask for shift, mask in masks) for value in values]
    else:
        pixels = [tuple(chance.randrange(1 << bits) for bits in DEPTHS[name]) for _ in range(width * height)]
    return [[(p[0], p[1], p[2]) for p in pixels[row * width : (row + 1) * width]] for row in range(height)]


def draw(buffer: DisplayBuffer, name: str, picture: list[list[Colour]], stride: int, offset: int = 0) -> None:
    """Write a picture into a display buffer."""
    for row, colours in enumerate(picture):
        data = b"".join(encode(name, colour, row) for colour in colours)
        start = offset + row * stride
        buffer.pixels[start : start + len(data)] = data


def assert_shown(world: World, name: str, picture: list[list[Colour]], output: str = "HDMI-A-1") -> None:
    """Check that the output shows this picture. If the depths differ, components may differ by 1 because of rounding."""
    image = world.picture(output)
    assert image is not None
    assert (image.mode, image.size) == ("RGB", (len(picture[0]), len(picture)))
    wanted = bytes(part for row in picture for colour in row for part in shown(name, colour))
    differences = {abs(a - b) for a, b in zip(image.tobytes(), wanted, strict=True)}
    assert differences <= ({0} if bytes_per_pixel(name) > 2 else {0, 1})


async def create(
    guest: Guest, name: str, size: tuple[int, int], *, offset: int = 0, stated: bool = True
) -> tuple[int, DisplayBuffer, int]:
    """Create a display buffer whose pixels begin at an offset; return its cookie, the buffer and its stride."""
    width, height = size
    stride = (width * 8 * bytes_per_pixel(name) + 7) // 8
    buffer = DisplayBuffer(guest.domain, offset + stride * height)
    cookie = guest.display.cookie()
    shape = (width, height, 8 * bytes_per_pixel(name)) if stated else (0, 0, 0)
    request = displif.DbufCreate(0, cookie, *shape, buffer.size, 0, buffer.directory, offset)
    await guest.display.connectors[0].order(request)
    return cookie, buffer, stride


async def attach(display: Frontend, dbuf: int, name: str, width: int, height: int) -> int:
    """Attach a framebuffer; return its cookie."""
    fb = display.cookie()
    await display.connectors[0].order(displif.FbAttach(0, dbuf, fb, width, height, fourcc(name)))
    return fb


async def test_yuyv(world: World) -> None:
    """Two red and two white pixels in BT.601's limited range are shown as such."""
    async with world.guest(1, spec(width=256, height=256)) as guest:
        dbuf, fb, buffer = await guest.display.create_framebuffer(4, 3, "YUYV")
        buffer.pixels[:24] = bytes((81, 90, 81, 240, 235, 128, 235, 128)) * 3
        await guest.display.show(0, fb, 4, 3, 16)
        image = world.picture()
        assert image is not None
        for x, colour in enumerate(((255, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255))):
            got = image.getpixel((x, 2))
            assert isinstance(got, tuple)
            assert max(abs(a - b) for a, b in zip(got, colour, strict=True)) <= 3
        await guest.display.hide(0)
        await guest.display.destroy_framebuffer(dbuf, fb, buffer)


@pytest.mark.parametrize("name", DEPTHS)
async def test_formats(world: World, name: str) -> None:
    async with world.guest(1, spec(width=256, height=256)) as guest:
        for width, height in ((256, 256), (1, 1), (33, 7)):
            dbuf, fb, buffer = await guest.display.create_framebuffer(width, height, name)
            picture = random_picture(name, width, height)
            draw(buffer, name, picture, width * bytes_per_pixel(name))
            await guest.display.show(0, fb, width, height, 8 * bytes_per_pixel(name))
            assert_shown(world, name, picture)
            await guest.display.hide(0)
            await guest.display.destroy_framebuffer(dbuf, fb, buffer)


@pytest.mark.parametrize("name", ["XR24", "RG24", "RG16"])
async def test_a_part_of_a_buffer_behind_an_offset(world: World, name: str) -> None:
    """The framebuffer may be smaller than its buffer, and its pixels may begin anywhere."""
    async with world.guest(1) as guest:
        for offset in (0, 64, 4093, 8192):
            dbuf, buffer, stride = await create(guest, name, (61, 40), offset=offset)
            fb = await attach(guest.display, dbuf, name, 50, 40)
            picture = random_picture(name, 50, 40)
            draw(buffer, name, picture, stride, offset)
            await guest.display.show(0, fb, 50, 40)
            assert_shown(world, name, picture)


async def test_a_screen_that_looks_at_a_part_of_a_larger_framebuffer(world: World) -> None:
    """The output shows the part of the framebuffer at the position that Linux sends, with the framebuffer's whole size."""
    async with world.guest(1) as guest:
        dbuf, buffer, stride = await create(guest, "XR24", (100, 80))
        fb = await attach(guest.display, dbuf, "XR24", 100, 80)
        picture = random_picture("XR24", 100, 80)
        draw(buffer, "XR24", picture, stride, 0)
        for x, y in ((0, 0), (10, 20), (36, 32)):
            await guest.display.connectors[0].order(SetConfig(0, fb, x, y, 100, 80, 32))
            assert_shown(world, "XR24", [row[x : x + 64] for row in picture[y : y + 48]])
        await guest.display.connectors[0].order(SetConfig(0, fb, 90, 70, 100, 80, 32))
        assert_shown(world, "XR24", [row[90:] for row in picture[70:]])


async def test_an_imported_buffer_gets_its_shape_with_its_framebuffer(world: World) -> None:
    """A buffer with width, height and bpp 0 gets its shape with its framebuffer: Linux imports buffers so (xen_drm_front_gem.c)."""
    async with world.guest(1) as guest:
        dbuf, buffer, stride = await create(guest, "XR24", (32, 16), offset=128, stated=False)
        fb = await attach(guest.display, dbuf, "XR24", 32, 16)
        picture = random_picture("XR24", 32, 16)
        draw(buffer, "XR24", picture, stride, 128)
        await guest.display.show(0, fb, 32, 16)
        assert_shown(world, "XR24", picture)
        with pytest.raises(GuestFailure) as larger:
            await attach(guest.display, dbuf, "XR24", 32, 17)
        assert larger.value.status == -Errno.EINVAL


@pytest.mark.parametrize("name", ["NV12", "UYVY", "BG16"])
async def test_formats_that_no_frontend_offers(world: World, name: str) -> None:
    async with world.guest(1) as guest:
        dbuf, _, _ = await create(guest, "RG16", (16, 16))
        with pytest.raises(GuestFailure) as refused:
            await attach(guest.display, dbuf, name, 16, 16)
        assert refused.value.status == -Errno.EINVAL
        assert world.held(1) == {"connectors": 1, "buffers": 1, "pages": 1}


async def test_a_screen_shows_what_the_guest_draws_later(world: World) -> None:
    async with world.guest(1) as guest:
        _, fb, buffer = await guest.display.create_framebuffer(20, 10)
        await guest.display.show(0, fb, 20, 10)
        for _ in range(3):
            picture = random_picture("XR24", 20, 10)
            draw(buffer, "XR24", picture, 80)
            assert_shown(world, "XR24", picture)


async def test_a_flip_shows_the_other_buffer(world: World) -> None:
    async with world.guest(1) as guest:
        pictures, fbs = [], []
        for number in range(3):
            _, fb, buffer = await guest.display.create_framebuffer(16 + number, 16)
            pictures.append(random_picture("XR24", 16 + number, 16))
            draw(buffer, "XR24", pictures[-1], (16 + number) * 4)
            fbs.append(fb)
        await guest.display.show(0, fbs[0], 16, 16)
        assert_shown(world, "XR24", pictures[0])
        await guest.display.connectors[0].flip(fbs[1])
        assert_shown(world, "XR24", pictures[1])
        _, fb, buffer = await guest.display.create_framebuffer(17, 16)
        draw(buffer, "XR24", pictures[1][::-1], 17 * 4)
        await guest.display.connectors[0].flip(fb)
        assert_shown(world, "XR24", pictures[1][::-1])


async def test_guests_and_connectors_side_by_side(world: World) -> None:
    """Two guests with two connectors each flip at the same time; each output shows its own guest's picture."""
    await side_by_side(world)


@pytest.mark.parametrize("screens", ["pump", "card"])
async def test_copied_frames_side_by_side(screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a card that cannot scan guests' pages out."""
    async with world_on(screens, tmp_path, monkeypatch, dmabufs=False) as world:
        await side_by_side(world)


async def side_by_side(world: World) -> None:
    """Let two guests with two connectors each flip. The second ones' buffers are wider than their pictures.

    Each fifth picture is compared, and those at the end.
    """
    pictures: dict[str, list[list[Colour]]] = {}

    async def play(domid: int) -> None:
        names = [f"{domid}-{index}" for index in range(2)]
        async with world.guest(domid, *(spec(name, 40 + domid, 30) for name in names)) as guest:
            async with trio.open_nursery() as nursery:
                for index, name in enumerate(names):
                    nursery.start_soon(flip, guest, index, name)
            for name in names:
                assert_shown(world, "XR24", pictures[name], name)
            ready[domid].set()
            for event in ready.values():
                await event.wait()

    async def flip(guest: Guest, index: int, name: str) -> None:
        width, height = 40 + guest.domain.domid, 30
        buffers = []
        for _ in range(2):
            dbuf, buffer, stride = await create(guest, "XR24", (width + 8 * index, height))
            buffers.append((await attach(guest.display, dbuf, "XR24", width, height), buffer))
        await guest.display.show(index, buffers[0][0], width, height)
        for count in range(1, 31):
            fb, buffer = buffers[count % 2]
            pictures[name] = random_picture("XR24", width, height)
            draw(buffer, "XR24", [[(index, count, blue) for _, _, blue in row] for row in pictures[name]], stride)
            pictures[name] = [[(index, count, blue) for _, _, blue in row] for row in pictures[name]]
            await guest.display.connectors[index].flip(fb)
            if count % 5 == 0:
                assert_shown(world, "XR24", pictures[name], name)
        assert len(guest.display.connectors[index].flips_done) == 30

    ready = {domid: trio.Event() for domid in (1, 2)}
    async with trio.open_nursery() as nursery:
        for domid in ready:
            nursery.start_soon(play, domid)


async def test_a_connector_can_show_another_ones_framebuffer(world: World) -> None:
    async with world.guest(1, spec("left"), spec("right")) as guest:
        _, fb, buffer = await guest.display.create_framebuffer(64, 48)
        picture = random_picture("XR24", 64, 48)
        draw(buffer, "XR24", picture, 256)
        for index, name in enumerate(("left", "right")):
            await guest.display.show(index, fb, 64, 48)
            assert_shown(world, "XR24", picture, name)
