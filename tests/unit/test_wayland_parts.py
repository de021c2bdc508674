"""Parts of the Wayland sink that need no compositor: conversion of formats, sizes, which GPU does DMA."""

from __future__ import annotations

import math
import os
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from depths import DEPTHS
from hypothesis import example, given
from hypothesis import strategies as st

from displbe.sinks.convert import CONVERTED, convert
from displbe.sinks.fitting import fit
from displbe.sinks.sealed_memory import sealed_memfd
from displbe.sinks.wayland.dmabuf_feedback import gpu_that_does_dma, read_file
from displbe.sinks.wayland.sizes import ONE, fit_units, pixels, units, units_of
from displbe.wire.formats import fourcc

PLAIN = ("XR24", "AR24")
"""The formats that need no conversion."""


def test_the_formats() -> None:
    assert set(CONVERTED) == {fourcc(name) for name in DEPTHS if name not in PLAIN}


@pytest.mark.parametrize("name", [name for name in DEPTHS if name not in PLAIN])
@given(data=st.data())
def test_conversion(name: str, data: st.DataObject) -> None:
    """Compare each pixel with exact arithmetic, for any strides of both sides. Bytes beside the picture are not written."""
    pixel_bytes = 3 if name == "RG24" else 2
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    of_stride = width * pixel_bytes + data.draw(st.integers(0, 5))
    to_stride = width * 4 + data.draw(st.integers(0, 8))
    source = data.draw(st.binary(min_size=of_stride * height, max_size=of_stride * height))
    target = bytearray(b"\x5a" * (to_stride * height))
    convert(fourcc(name), memoryview(target), to_stride, memoryview(source), of_stride, width * pixel_bytes, height)
    red, green, blue = DEPTHS[name]
    for y in range(height):
        for x in range(width):
            at = y * of_stride + x * pixel_bytes
            value = int.from_bytes(source[at : at + pixel_bytes], "little")
            parts = (value, blue), (value >> blue, green), (value >> (blue + green), red)
            exact = [(part & (1 << bits) - 1) * 255 / ((1 << bits) - 1) for part, bits in parts]
            made = target[y * to_stride + 4 * x : y * to_stride + 4 * x + 4]
            assert all(abs(a - b) <= 1 for a, b in zip(made, exact, strict=False))
            assert made[3] == 255
        assert set(target[y * to_stride + 4 * width : (y + 1) * to_stride]) <= {0x5A}


SIDES = st.integers(1, 16384)


@example(width=1, height=3, into_width=1, into_height=2)
@given(width=SIDES, height=SIDES, into_width=SIDES, into_height=SIDES)
def test_fitting(width: int, height: int, into_width: int, into_height: int) -> None:
    """The result touches two sides, exceeds none, and has the same aspect ratio to a pixel."""
    made_width, made_height = fit(width, height, into_width, into_height)
    assert 1 <= made_width <= into_width
    assert 1 <= made_height <= into_height
    if into_width * height <= into_height * width:  # the width limits the size
        assert made_width == into_width
        assert abs(made_height - into_width * height / width) < 1 or made_height == 1
    else:
        assert made_height == into_height
        assert abs(made_width - into_height * width / height) < 1 or made_width == 1


SCALES = st.integers(1, 8 * ONE)


@given(length=SIDES, scale=SCALES)
def test_pixels(length: int, scale: int) -> None:
    """A length in pixels is rounded half away from zero."""
    assert pixels(length, scale) == math.floor(Fraction(length * scale, ONE) + Fraction(1, 2))


@given(length=SIDES, scale=SCALES)
def test_units(length: int, scale: int) -> None:
    """A length in pixels comes back to a pixel wherever a length in units has it. No other length in units is nearer."""
    made = units(length, scale)
    assert made >= 1
    error = abs(pixels(made, scale) - length)
    around = range(max(1, made - 3), made + 4)
    assert error == min(abs(pixels(other, scale) - length) for other in around)
    assert pixels(made, scale) == 0 or error <= scale // ONE
    there = units(pixels(made, scale), scale)
    assert pixels(there, scale) == pixels(made, scale) or pixels(made, scale) == 0


@given(width=SIDES, height=SIDES, scale=SCALES)
def test_a_picture_fills_its_monitor(width: int, height: int, scale: int) -> None:
    """A surface that the compositor asks to fill a monitor of the picture's size fills it, however that size is rounded."""
    exact = units_of((width, height), scale)
    assert fit_units((width, height), exact, scale) == exact
    if (pixels(exact[0], scale), pixels(exact[1], scale)) == (width, height):
        wider = fit_units((width, height), (exact[0] + 9 * ONE, exact[1]), scale)
        assert (pixels(wider[0], scale), pixels(wider[1], scale)) == (width, height)


@given(width=SIDES, height=SIDES, into_width=SIDES, into_height=SIDES, scale=SCALES)
def test_fitting_in_units(width: int, height: int, into_width: int, into_height: int, scale: int) -> None:
    """The result exceeds no side. It fills one of them, unless the picture is not scaled and misses a unit. It has the aspect ratio of the
    picture to a pixel and a unit.
    """
    made = fit_units((width, height), (into_width, into_height), scale)
    assert 1 <= made[0] <= into_width
    assert 1 <= made[1] <= into_height
    if made == units_of((width, height), scale):
        return
    assert made[0] == into_width or made[1] == into_height
    across, down = pixels(made[0], scale), pixels(made[1], scale)
    slack = 2 + scale / ONE
    assert abs(across * height - down * width) <= slack * max(width, height) or 1 in made


SIZES = st.tuples(st.integers(16, 16384), st.integers(16, 16384))


@example(picture=(320, 365), into=(320, 200), scale=340)
@example(picture=(16, 17), into=(16, 16), scale=133)
@given(picture=SIZES, into=SIZES, scale=st.integers(ONE, 8 * ONE))
def test_a_size_that_is_asked_for_again(picture: tuple[int, int], into: tuple[int, int], scale: int) -> None:
    """A compositor that asks for the size that the surface has got does not make it smaller and smaller. It may get the picture's own size
    then, if that is at most a unit smaller, and the surface keeps that.
    """
    made = fit_units(picture, into, scale)
    again = fit_units(picture, made, scale)
    assert again in (made, units_of(picture, scale))
    assert fit_units(picture, again, scale) == again


def test_the_usual_size_at_the_usual_scale() -> None:
    assert units_of((1280, 800), 180) == (853, 533)
    assert fit_units((1280, 800), (853, 533), 180) == (853, 533)
    assert fit(1280, 800, 853, 533) == (853, 533), "also where the compositor does not say the scale"
    assert fit_units((1280, 800), (854, 534), 180) == (853, 533), "a compositor that rounds up"
    assert fit_units((2256, 1504), (1504, 1002), 180) == (1504, 1002), (
        "one that rounds down: 1002 are 1503 pixels, 1003 are 1505"
    )
    assert fit(1280, 800, 1281, 800) == (1280, 800), "a picture that fits is not scaled"
    assert fit(1366, 768, 1920, 1080) == (1920, 1080), "no black row for half a pixel"
    assert units_of((1024, 768), 180) == (683, 512), "1025 pixels: no length in units is 1024"
    assert units_of((1920, 1080), 240) == (960, 540)


class Sysfs:
    """A machine with one DRM device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device = root / "devices/gpu"
        (self.device / "drm/card0").mkdir(parents=True)
        (root / "dev/char/226:128").mkdir(parents=True)
        (root / "dev/char/226:128/device").symlink_to(self.device)

    def on(self, bus: str) -> None:
        (self.root / "bus" / bus).mkdir(parents=True)
        (self.device / "subsystem").symlink_to(self.root / "bus" / bus)

    def verdict(self) -> str:
        return gpu_that_does_dma(os.makedev(226, 128), self.root)


@pytest.mark.parametrize(
    ("bus", "has", "said"),
    [
        ("pci", ["drm/renderD128"], ""),
        ("platform", ["drm/renderD128", "of_node"], ""),
        ("platform", ["drm/renderD128"], "platform bus"),  # vgem
        ("faux", ["drm/renderD128"], "faux bus"),  # vkms
        ("pci", [], "no render node"),  # a server's display controller
        ("platform", ["of_node"], "no render node"),
        ("virtio", ["drm/renderD128"], "virtio bus"),
        ("pci", ["drm/renderD128", "virtio0"], "virtual"),
        ("platform", ["drm/renderD128", "of_node", "virtio3"], "virtual"),
        ("usb", ["drm/renderD128"], "usb bus"),
    ],
)
def test_which_gpu_does_dma(tmp_path: Path, bus: str, has: list[str], said: str) -> None:
    machine = Sysfs(tmp_path)
    machine.on(bus)
    for name in has:
        (machine.device / name).mkdir()
    assert said in machine.verdict()
    assert bool(machine.verdict()) == bool(said)


def test_an_unknown_device(tmp_path: Path) -> None:
    assert "unknown" in gpu_that_does_dma(os.makedev(226, 129), tmp_path)
    assert gpu_that_does_dma(0, tmp_path)


# Files that a peer may truncate


def test_a_file_that_shrinks_while_it_is_read() -> None:
    """It is never mapped: reading a page of a mapping that is beyond the end of its file is SIGBUS."""
    size, ended = 1 << 20, threading.Event()
    fd = os.memfd_create("formats")
    os.ftruncate(fd, size)

    def truncate() -> None:
        while not ended.is_set():
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        for _ in range(200):
            assert len(read_file(fd, size)) <= size
    finally:
        ended.set()
        thread.join()
        os.close(fd)


def test_a_pipe_is_not_waited_for() -> None:
    read, write = os.pipe()
    with pytest.raises(OSError, match="regular"):
        read_file(read, 16)
    os.close(read)
    os.close(write)


def test_sealed_memory_keeps_its_size() -> None:
    fd = sealed_memfd(8192)
    for size in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert os.fstat(fd).st_size == 8192
    os.close(fd)
