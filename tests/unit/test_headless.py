"""The headless sink alone."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
import trio
import trio.testing
from PIL import Image

from displbe.sinks import picture
from displbe.sinks.base import Geometry, OutputUnavailable, Part, SinkError
from displbe.sinks.headless import output as headless
from displbe.sinks.headless.output import HeadlessOutput
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.headless.sink import HeadlessSink
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc
from displbe.xen.memory import Memory, PrivateMemory

XR24 = fourcc("XR24")
WHOLE = Part(0, 0, 4, 2)


class Pages:
    """A guest's buffer, in plain memory."""

    domid = 1

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.memory = PrivateMemory(self.size)
        with self.memory.borrow() as view:
            view[:] = content

    async def map(self) -> Memory:
        return self.memory

    async def shm_fd(self) -> tuple[int, int]:
        raise NotImplementedError

    async def dmabuf(self) -> int:
        raise AssertionError("the headless sink uses no dma-bufs")

    async def aclose(self) -> None:
        assert self.memory.close(), "still borrowed"


def plain(colour: tuple[int, int, int]) -> Pages:
    """A picture of 4x2 pixels in one colour."""
    return Pages(bytes((*colour[::-1], 0)) * 8)


RED, GREEN = (255, 0, 0), (0, 255, 0)
SHAPE = Geometry(4, 2, XR24, 16, 0)


def claimed(sink: HeadlessSink, name: str = "A") -> HeadlessOutput:
    """Claim an output."""
    output = sink.claim(name, 4, 2)
    assert isinstance(output, HeadlessOutput)
    return output


def colour(image: Image.Image | None) -> object:
    """Return the colour of the first pixel."""
    return image.getpixel((0, 0)) if image is not None else None


def test_outputs_by_name() -> None:
    sink = HeadlessSink(HeadlessSettings(outputs=["A", "B"]))
    output = sink.claim("A", 4, 2)
    assert sink.claimed("A") is output
    assert sink.claimed("B") is None
    with pytest.raises(OutputUnavailable, match="A is taken by another guest"):
        sink.claim("A", 4, 2)
    with pytest.raises(OutputUnavailable, match="no output C; there are: A, B"):
        sink.claim("C", 4, 2)


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b", ".hidden", ".."])
def test_a_path_is_no_output_name(name: str) -> None:
    with pytest.raises(OutputUnavailable):
        HeadlessSink(HeadlessSettings()).claim(name, 4, 2)


async def test_a_flip_is_shown_at_the_next_refresh(autojump_clock: trio.testing.MockClock) -> None:
    sink = HeadlessSink(HeadlessSettings(refresh=50))
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        output, shown = claimed(sink), list[tuple[int, float]]()
        output.flipped = lambda token: shown.append((token, trio.current_time()))
        one, other = [await output.attach(plain(c), SHAPE) for c in (RED, GREEN)]
        assert output.picture() is None
        await output.enable(one, WHOLE)
        assert colour(output.picture()) == RED
        begun = trio.current_time()
        for token in range(100):
            output.flip(other if token % 2 else one, token)
            await trio.sleep(0.021)
        assert [token for token, _ in shown] == list(range(100))
        assert all(abs(time * 50 - round(time * 50)) < 1e-6 for _, time in shown), "flips end in steps of 20 ms"
        assert 2 < trio.current_time() - begun < 2.2
        assert output.flips == 100
        await output.release()
        assert sink.claimed("A") is None
        nursery.cancel_scope.cancel()


async def test_only_the_part_asked_for_is_shown() -> None:
    sink = HeadlessSink(HeadlessSettings())
    output = claimed(sink)
    pixels = b"".join(bytes((n, n, n, 0)) for n in range(8))
    frame = await output.attach(Pages(pixels), SHAPE)
    await output.enable(frame, Part(1, 1, 2, 1))
    image = output.picture()
    assert image is not None
    assert image.size == (2, 1)
    assert image.tobytes() == bytes((5, 5, 5, 6, 6, 6))


async def test_the_picture_of_a_destroyed_framebuffer_stays() -> None:
    sink = HeadlessSink(HeadlessSettings())
    output, shown = claimed(sink), list[int]()
    output.flipped = shown.append
    pages = plain(RED)
    frame = await output.attach(pages, SHAPE)
    await output.enable(frame, WHOLE)
    output.flip(frame, 7)
    await frame.aclose()
    assert shown == [7]
    with pages.memory.borrow() as view:
        view[:] = bytes(pages.size)
    assert colour(output.picture()) == RED


async def test_no_flip_completes_after_release() -> None:
    sink = HeadlessSink(HeadlessSettings())
    output, shown = claimed(sink), list[int]()
    output.flipped = shown.append
    frame = await output.attach(plain(RED), SHAPE)
    await output.enable(frame, WHOLE)
    output.flip(frame, 7)
    await frame.aclose()
    await output.release()
    output.refresh()
    assert shown == [7]


async def test_a_released_output_is_not_used(tmp_path: Path) -> None:
    """The file with the output's name has the picture of the guest that has the output now."""
    sink = HeadlessSink(HeadlessSettings(directory=str(tmp_path)))
    old = claimed(sink)
    await old.enable(await old.attach(plain(RED), SHAPE), WHOLE)
    await old.release()
    output = claimed(sink)
    frame = await output.attach(plain(GREEN), SHAPE)
    await output.enable(frame, WHOLE)
    await output.disable()
    await old.disable()
    with pytest.raises(SinkError, match="given back"):
        await old.enable(frame, WHOLE)
    with pytest.raises(SinkError, match="given back"):
        old.flip(frame, 1)
    with Image.open(tmp_path / "A.png") as image:
        assert colour(image) == GREEN
    await output.release()


async def test_pictures_as_files(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    sink = HeadlessSink(HeadlessSettings(directory=str(folder)))
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        output = claimed(sink, "HDMI-A-1")
        await output.disable()
        assert list(folder.iterdir()) == [], "no frame was ever shown"
        frame = await output.attach(plain(RED), SHAPE)
        await output.enable(frame, WHOLE)
        await output.disable()
        with Image.open(folder / "HDMI-A-1.png") as image:
            assert (image.size, colour(image)) == ((4, 2), RED)
        await output.enable(await output.attach(plain(GREEN), SHAPE), WHOLE)
        await output.release()
        with Image.open(folder / "HDMI-A-1.png") as image:
            assert colour(image) == GREEN
        assert [path.name for path in folder.iterdir()] == ["HDMI-A-1.png"]
        nursery.cancel_scope.cancel()


async def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    """Switching the output off raises nothing then; a line is logged."""
    sink = HeadlessSink(HeadlessSettings(directory=str(tmp_path / "gone")))
    output = claimed(sink)
    await output.enable(await output.attach(plain(RED), SHAPE), WHOLE)
    with structlog.testing.capture_logs() as logs:
        await output.disable()
        await output.release()
    assert [line["event"] for line in logs] == ["the picture of the last frame was not written"] * 2
    assert sink.claimed("A") is None


async def test_a_last_row_without_padding() -> None:
    """A guest's buffer may end after the last pixel, before the end of the last row's stride."""
    output = claimed(HeadlessSink(HeadlessSettings()))
    frame = await output.attach(Pages(bytes(64) + bytes((1, 2, 3, 0)) * 3), Geometry(3, 2, XR24, 64, 0))
    await output.enable(frame, Part(0, 0, 3, 2))
    image = output.picture()
    assert image is not None
    assert image.tobytes() == bytes(9) + bytes((3, 2, 1)) * 3


async def test_memory_that_cannot_be_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest gets the error code, and nothing stays allocated."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    output = claimed(HeadlessSink(HeadlessSettings()))
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(headless, "Mapping", refuse)
    with pytest.raises(SinkError, match="cannot allocate memory") as refused:
        await output.allocate(3)
    assert refused.value.code is Errno.ENOMEM
    assert os.listdir("/proc/self/fd") == before


async def test_a_frame_is_closed_while_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy runs when `aclose` returns: the guest's pages may be unmapped then."""
    output = claimed(HeadlessSink(HeadlessSettings()))
    copies, copying, going = list[bool](), threading.Event(), threading.Event()
    image = picture.image

    def slow(*arguments: Any) -> Image.Image:
        copying.set()
        going.wait(5)
        made = image(*arguments)
        copies.append(True)
        return made

    monkeypatch.setattr(headless, "image", slow)
    frame = await output.attach(plain(RED), SHAPE)
    await output.enable(frame, WHOLE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.disable)
        await trio.to_thread.run_sync(copying.wait)
        assert (output.path, copies) == ("copy", [])
        nursery.start_soon(frame.aclose)
        await trio.testing.wait_all_tasks_blocked(0.01)
        going.set()
        await frame.aclose()
        assert copies == [True]
    assert (output.path, output.reason) == ("", "off")
    assert colour(output.picture()) == RED
