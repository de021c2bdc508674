"""Simulated guests as windows of a real Weston: pictures, and a Weston that ends, stops responding and comes back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hostile.stage import attach, config, create, raw_buffer, status
from PIL import Image
from sinks.headless_weston import IVI, Weston, version, weston

from displbe.backend.quota import Limits
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.sim.guest import Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.base import Claimant, DeviceConnector, Geometry, Part
from displbe.sinks.wayland.buffers import BufferState, WaylandBuffer
from displbe.sinks.wayland.client import Client
from displbe.sinks.wayland.output import WaylandOutput
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.wire.displif import DbufDestroy, FbDetach
from displbe.wire.formats import fourcc
from displbe.xen.memory import Memory
from displbe.xen.port import Ledger

SIZE = 1024, 768


def create_of(width: int, height: int, size: int, bpp: int = 32, data_ofs: int = 0) -> dict[str, int]:
    """Return the fields of DBUF_CREATE."""
    return {"width": width, "height": height, "buffer_sz": size, "bpp": bpp, "data_ofs": data_ofs}


class Player:
    """A guest that shows bars, and flips between two phases of them."""

    def __init__(self, daemon: Daemon, guest: Guest, name: str) -> None:
        self.daemon = daemon
        self.guest = guest
        self.name = name
        self.flips = 0
        self.framebuffers: list[tuple[int, Any]] = []

    async def show(self, width: int = SIZE[0], height: int = SIZE[1]) -> None:
        for phase in (0.0, 0.5):
            _, fb, buffer = await self.guest.display.create_framebuffer(width, height)
            draw_bars(buffer.pixels, width, height, phase)
            self.framebuffers.append((fb, buffer))
        await self.guest.display.show(0, self.framebuffers[0][0], width, height)

    async def flip(self, times: int) -> None:
        for _ in range(times):
            self.flips += 1
            await self.guest.display.connectors[0].flip(self.framebuffers[self.flips % 2][0])

    @property
    def output(self) -> WaylandOutput:
        found = self.daemon.sink.claimed(self.name)
        assert isinstance(found, WaylandOutput)
        return found

    @property
    def client(self) -> Client:
        assert isinstance(self.daemon.sink, WaylandSink)
        (client,) = [client for client in self.daemon.sink.clients.values() if self.name in client.outputs]
        return client

    @property
    def objects(self) -> int:
        """The number of objects that the connection holds."""
        assert self.client.link is not None
        return self.client.link.conn.objects

    async def on_screen(self) -> None:
        """Wait until the compositor reports that it shows a frame."""
        with trio.fail_after(30):
            while not self.output.path or not self.output.shown:
                await trio.sleep(0.01)

    def picture(self, width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
        """Return the picture that the guest shows."""
        data = bytes(self.framebuffers[self.flips % 2][1].pixels)
        return Image.frombytes("RGB", (width, height), data, "raw", "BGRX")


async def expect(compositor: Weston, wanted: Image.Image) -> None:
    """Wait until the whole screen shows this picture."""
    with trio.fail_after(30):
        while (await compositor.screenshot()).tobytes() != wanted.tobytes():
            await trio.sleep(0.05)


@contextlib.asynccontextmanager
async def playing(
    folder: Path, compositor: Weston, name: str, size: tuple[int, int] = SIZE, **wayland: Any
) -> AsyncIterator[Player]:
    """Run a daemon with a guest. Check at the end that the daemon holds nothing of the guest."""
    shown = WaylandSettings(display=str(compositor.socket), **{"trust_compositor": True, **wayland})
    settings = Settings(sink="wayland", wayland=shown, limits=Limits(modesets_per_second=10_000.0))
    async with Xen(folder / "xen").running() as xen, trio.open_nursery() as nursery:
        hypervisor = xen.hypervisor(0)
        daemon = Daemon(settings, hypervisor)
        await nursery.start(daemon.run)
        async with Guest.booted(xen, 1, ConnectorSpec(name, *size)) as guest:
            with trio.fail_after(10):
                await guest.display.connected.wait()
            yield Player(daemon, guest, name)
        with trio.fail_after(30):
            while hypervisor.ledger != Ledger():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "xen").mkdir()
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize(("zero_copy", "way"), [("auto", BufferState.SHM), ("off", BufferState.COPY)])
async def test_the_guests_picture_fills_the_screen(folder: Path, zero_copy: str, way: BufferState) -> None:
    """If the connector has the name of an output, the screenshot is the guest's picture, pixel by pixel."""
    async with weston(folder) as compositor, playing(folder, compositor, "headless", zero_copy=zero_copy) as player:
        await player.show()
        await player.on_screen()
        assert {buffer.state for buffer in player.client._imports.buffers} == {way}
        await expect(compositor, player.picture())
        await player.flip(5)
        await expect(compositor, player.picture())
        assert player.output.late == 0
        assert compositor.mapped("memfd:dom1") == (2 if way is BufferState.SHM else 0)
    assert player.daemon.sink.claimed("headless") is None


async def test_a_window(folder: Path) -> None:
    """If the connector has another name, and the picture is smaller than the screen, the picture is somewhere on the desktop."""
    async with weston(folder) as compositor, playing(folder, compositor, "VM-1", (320, 200)) as player:
        await player.show(320, 200)
        await player.on_screen()
        shot, wanted = await compositor.screenshot(), player.picture(320, 200)
        at = shot.tobytes().find(wanted.tobytes()[: 320 * 3])
        assert at >= 0
        top, left = at // (3 * SIZE[0]), at // 3 % SIZE[0]
        assert shot.crop((left, top, left + 320, top + 200)).tobytes() == wanted.tobytes()


async def test_options_of_desktops(folder: Path) -> None:
    """A guest is shown whatever Weston offers of desktops' protocols. An option that has no effect says so (no Weston up to 14 has one)."""
    options: dict[str, Any] = {"inhibit_idle": True, "inhibit_shortcuts": True, "decorations": "server"}
    async with weston(folder) as compositor, playing(folder, compositor, "headless", **options) as player:
        await player.show()
        await player.on_screen()
        await expect(compositor, player.picture())
        said = player.daemon.sink.abilities()
        protocols = ("idle-inhibit", "keyboard-shortcuts-inhibit", "xdg-decoration")
        for option, protocol in zip(options, protocols, strict=True):
            assert (f"{protocol}: yes" in said["compositor"]) != (f"option {option.replace('_', '-')}" in said)


async def test_scaled_to_the_screen(folder: Path) -> None:
    """A picture of half the size is scaled up: each of its pixels covers four."""
    async with weston(folder) as compositor, playing(folder, compositor, "headless") as player:
        await player.show(512, 384)
        await player.on_screen()
        wanted = player.picture(512, 384).resize(SIZE, Image.Resampling.NEAREST)
        shot = await compositor.screenshot()
        # Compare points away from the bars' edges, where Weston interpolates.
        points = [(x, y) for x in range(64, SIZE[0], 128) for y in range(10, 500, 50)]
        assert [shot.getpixel(at) for at in points] == [wanted.getpixel(at) for at in points]


async def test_killed_and_started_again(folder: Path) -> None:
    async with weston(folder) as compositor, playing(folder, compositor, "headless") as player:
        await player.show()
        await player.flip(5)
        for _ in range(2):
            await compositor.end()
            with trio.fail_after(20):
                await player.flip(20)
            assert not player.output.path
            shown = player.output.shown
            await compositor.start()
            with trio.fail_after(20):
                while player.output.shown == shown:
                    await player.flip(1)
            await expect(compositor, player.picture())


async def test_stopped_and_continued(folder: Path) -> None:
    async with weston(folder) as compositor, playing(folder, compositor, "headless") as player:
        await player.show()
        await player.flip(5)
        compositor.send(signal.SIGSTOP)
        objects = player.objects
        began = trio.current_time()
        with trio.fail_after(20):
            await player.flip(60)
        assert trio.current_time() - began > 0.9, "no faster than a screen"
        assert player.objects <= objects + 4
        compositor.send(signal.SIGCONT)
        shown = player.output.shown
        with trio.fail_after(20):
            while player.output.shown == shown:
                await player.flip(1)
        await expect(compositor, player.picture())
        assert player.client.connections == 1


async def test_there_before_the_compositor(folder: Path) -> None:
    compositor = Weston(folder)
    async with playing(folder, compositor, "headless") as player:
        await player.show()
        await player.flip(3)
        assert not player.output.path
        await compositor.start()
        try:
            await player.on_screen()
            await expect(compositor, player.picture())
        finally:
            await compositor.end()


async def test_ivi_shell(folder: Path) -> None:
    """A surface whose ivi id is the connector's name is shown at the place and in the size that the controller gives it."""
    async with weston(folder, IVI) as compositor:
        # The controller ignores surfaces that come before its own user interface, which shows images.
        images = 0
        with trio.fail_after(30):
            while images == 0 or images != compositor.mapped("weston-shared"):
                images = compositor.mapped("weston-shared")
                await trio.sleep(0.5)
        async with playing(folder, compositor, "5001") as player:
            await player.show()
            await player.on_screen()
            assert player.output.surface.role is not None
            assert player.output.surface.role.name == "ivi-application"
            await player.flip(5)
            assert player.output.late == 0


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_buffers_taken_back_are_not_mapped_any_more(folder: Path, zero_copy: str) -> None:
    """When DBUF_DESTROY is answered, Weston does not map pages any more that were shown, replaced by a flip, or never shown."""
    async with weston(folder) as compositor, playing(folder, compositor, "headless", zero_copy=zero_copy) as player:
        display = player.guest.display
        with trio.fail_after(30):
            while player.client.link is None:
                await trio.sleep(0.01)
        here = 1 if zero_copy == "auto" else 0
        for shown in (True, False) * 5:
            first, second = [await display.create_framebuffer(*SIZE) for _ in range(2)]
            with trio.fail_after(30):  # under load, the guest may get its response before Weston maps the buffer
                while compositor.mapped("memfd:dom1") != 2 * here:
                    await trio.sleep(0.01)
            if shown:
                await display.show(0, first[1], *SIZE)
                await player.on_screen()
                await display.connectors[0].flip(second[1])
            await display.destroy_framebuffer(*second)
            assert compositor.mapped("memfd:dom1") == here
            await display.destroy_framebuffer(*first)
            assert compositor.mapped("memfd:dom1") == 0
        assert player.client.connections == 1


WINDOWS = [
    (create_of(16384, 16384, 262144), (16384, 16384, "XR24")),  # far larger than its pages
    (create_of(256, 256, 262144), (256, 257, "XR24")),  # the framebuffer is larger than its buffer
    (create_of(61, 50, 61 * 2 * 50, bpp=16), (61, 50, "RG16")),  # the stride is not a multiple of 4
    (create_of(33, 99, 33 * 3 * 99, bpp=24), (33, 99, "RG24")),  # an odd stride
    (create_of(200, 100, 80002, data_ofs=2), (200, 100, "XR24")),
    (create_of(200, 100, 84096, data_ofs=4096), (100, 50, "XR24")),
    (create_of(1, 1, 4), (1, 1, "XR24")),
    (create_of(0, 0, 262144), (1, 60000, "XR24")),
    (create_of(512, 127, 262144), (512, 127, "YUYV")),
    (create_of(127, 512, 68 + 127 * 2 * 512, bpp=16, data_ofs=68), (126, 511, "AR12")),
]
"""Display buffers, and framebuffers in them. tests/lab/domu/hostile.c has the same list."""


async def test_a_hostile_neighbour(folder: Path) -> None:
    """Odd strides, oversized framebuffers and a flood of SET_CONFIG affect neither Weston nor the other guest's window."""
    async with weston(folder) as compositor, playing(folder, compositor, "headless") as player:
        await player.show()
        await player.on_screen()
        shown = 0
        async with (
            Guest.booted(player.guest.xen, 2, ConnectorSpec("their-window", *SIZE), name="hostile") as hostile,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(player.flip, 10_000)
            with trio.fail_after(10):
                await hostile.display.connected.wait()
            (connector,) = hostile.display.connectors
            for number, (fields, (width, height, code)) in enumerate(WINDOWS):
                pages = raw_buffer(hostile, 262144)
                dbuf, fb = 100 * number + 1, 100 * number + 2
                await status(connector, create(pages, dbuf, **fields))
                await status(connector, attach(fb, dbuf, width, height, fourcc(code)))
                if await status(connector, config(fb, width=width, height=height)) == 0:
                    shown += 1
                    for _ in range(3):
                        await connector.flip(fb)
                    for turn in range(100):
                        await status(connector, config(fb, width=width - width // 2 * (turn % 2), height=height))
                for request in (config(0, width=0, height=0, bpp=0), FbDetach(0, fb), DbufDestroy(0, dbuf)):
                    await status(connector, request)
                assert compositor.mapped("memfd:dom2") == 0
                pages.free()
            nursery.cancel_scope.cancel()
        assert shown == 6
        assert player.client.connections == 1
        # The cancelled task had a flip under way, to an unknown framebuffer: show a known one.
        await player.guest.display.show(0, player.framebuffers[player.flips % 2][0], *SIZE)
        await expect(compositor, player.picture())


class Imported:
    """A guest's buffer (port.GuestBuffer) that is a udmabuf. Unlike a dma-buf of gntdev, software can read it."""

    domid = 1

    def __init__(self, size: int, colour: bytes) -> None:
        self.size = size
        self._memory = os.memfd_create("udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory, size)
        os.write(self._memory, colour * (size // len(colour)))
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        device = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC)
        try:
            # linux/udmabuf.h: UDMABUF_CREATE of { memfd, flags, offset, size }.
            self._fd: int = fcntl.ioctl(device, 0x40187542, bytearray(struct.pack("=IIQQ", self._memory, 0, 0, size)))
        finally:
            os.close(device)

    async def map(self) -> Memory:
        raise NotImplementedError

    async def dmabuf(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._fd

    async def shm_fd(self) -> tuple[int, int]:
        raise NotImplementedError

    async def aclose(self) -> None:
        os.close(self._fd)
        os.close(self._memory)
        await trio.lowlevel.checkpoint()


async def test_a_guest_that_reboots_keeps_its_window(folder: Path) -> None:
    """Its surface stays the same, black between the guest's pictures, and shows the pictures of the new domain."""
    async with weston(folder) as compositor:
        shown = WaylandSettings(display=str(compositor.socket), refresh=0.0)
        async with Xen(folder / "xen").running() as xen, trio.open_nursery() as nursery:
            daemon = Daemon(Settings(sink="wayland", wayland=shown), xen.hypervisor(0))
            await nursery.start(daemon.run)
            surfaces = set()
            for domid in (1, 2, 3):
                async with Guest.booted(xen, domid, ConnectorSpec("headless", *SIZE), name="guest") as guest:
                    with trio.fail_after(10):
                        await guest.display.connected.wait()
                    player = Player(daemon, guest, "headless")
                    await player.show()
                    await player.on_screen()
                    await expect(compositor, player.picture())
                    surfaces.add(player.output.surface.proxy)
                    assert player.client.connections == 1
                await expect(compositor, Image.new("RGB", SIZE))
            assert len(surfaces) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.skipif(not os.path.exists("/dev/udmabuf") or version() < 14, reason="needs /dev/udmabuf and Weston 14")
async def test_a_dmabuf(folder: Path) -> None:
    """Weston's GL renderer imports a dma-buf and shows it."""
    async with weston(folder, renderer="gl") as compositor, trio.open_nursery() as nursery:
        sink = WaylandSink(WaylandSettings(display=str(compositor.socket), dmabuf="always", refresh=0.0))
        await nursery.start(sink.run)
        connector = DeviceConnector(Claimant(1, "guest"), 0, 0, "headless", *SIZE)
        sink.connector_added(connector)
        output = sink.claim(connector.name, *SIZE, connector.claimant)
        assert isinstance(output, WaylandOutput)
        pages = Imported(SIZE[0] * SIZE[1] * 4, b"\x10\x80\xf0\0")
        buffer = await output.attach(pages, Geometry(*SIZE, fourcc("XR24"), SIZE[0] * 4, 0))
        await output.enable(buffer, Part(0, 0, *SIZE))
        with trio.fail_after(30):
            while not output.path or not output.shown:
                await trio.sleep(0.01)
        assert isinstance(buffer, WaylandBuffer)
        assert buffer.state is BufferState.DMABUF
        await expect(compositor, Image.new("RGB", SIZE, (0xF0, 0x80, 0x10)))
        await buffer.aclose()
        await pages.aclose()
        await output.release()
        sink.connector_removed(connector)
        nursery.cancel_scope.cancel()
