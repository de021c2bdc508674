"""The Wayland sink with a compositor that follows the protocols' rules: imports, order, release, hidden surfaces, lost connections."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing
from memory_watch import MemoryWatch
from sinks.compositor import CORE, FakeCompositor, Surface
from sinks.compositor import Client as FakeClient

from displbe.sinks import redraw, window_queue
from displbe.sinks.base import Claimant, DeviceConnector, Geometry, OutputUnavailable, Part, SinkError
from displbe.sinks.frame_copy import FrameRows, frame_checksum
from displbe.sinks.wayland import client as client_module
from displbe.sinks.wayland import dmabuf_feedback
from displbe.sinks.wayland import output as output_module
from displbe.sinks.wayland import window as window_module
from displbe.sinks.wayland.buffers import BufferState, WaylandBuffer
from displbe.sinks.wayland.conn import Connection
from displbe.sinks.wayland.copies import CopyFrame, CopyPool
from displbe.sinks.wayland.output import WaylandOutput
from displbe.sinks.wayland.reports import MOST_CALLBACKS
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.sinks.wayland.socket_path import socket_path
from displbe.sinks.wayland.surface import SurfaceState
from displbe.sinks.wayland.sync_gate import GateState
from displbe.sinks.wayland.window import WAY_OUT, WaylandWindow, ivi_id
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory
from displbe.xen.port import HypervisorError

GUEST = Claimant(1, "cockpit")
WIDTH, HEIGHT = 64, 48
WHOLE = Part(0, 0, WIDTH, HEIGHT)


class Pages:
    """A guest's buffer (port.GuestBuffer)."""

    def __init__(self, size: int, *, shared: bool = True) -> None:
        self.domid = GUEST.domid
        self.size = -(-size // PAGE_SIZE) * PAGE_SIZE
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, self.size)
        self._mapping = Mapping(self.fd, [(0, self.size)], writable=False)
        self._drawing = Mapping(self.fd, [(0, self.size)], writable=True)
        self._borrowed = self._drawing.borrow()
        self.memory = self._borrowed.__enter__()
        """The memory as the guest sees it."""
        self.shared = shared
        self.views = 0

    async def map(self) -> Memory:
        await trio.lowlevel.checkpoint()
        self.views += 1
        return self._mapping

    async def dmabuf(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.fd

    async def shm_fd(self) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        if not self.shared:
            raise HypervisorError(22, "granted for reading only")
        return os.dup(self.fd), 0

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._borrowed.__exit__()
        assert self._drawing.close()
        assert self._mapping.close(), "still borrowed"
        os.close(self.fd)


async def until(what: Callable[[], object]) -> None:
    """Wait until a function returns something true, at most 5 s."""
    with trio.fail_after(5):
        while not what():
            await trio.sleep(0.002)


def connection_of(output: WaylandOutput) -> Connection:
    """Return the connection over which an output's surface is shown."""
    link = output._guest.imports.link
    assert link is not None
    return link.conn


async def on_screen(output: WaylandOutput) -> None:
    """Wait until the compositor has shown the output's last frame."""
    await until(lambda: output.path and output.surface.state is SurfaceState.SHOWN)


class Stage:
    """A sink, a compositor, and a claimed output."""

    def __init__(self, sink: WaylandSink, compositor: FakeCompositor) -> None:
        self.sink = sink
        self.compositor = compositor
        self.flipped: list[int] = []
        self.connectors: dict[tuple[Claimant, str], DeviceConnector] = {}
        self._files: list[Pages] = []

    def add(self, name: str = "HDMI-A-1", claimant: Claimant = GUEST) -> DeviceConnector:
        """Let the toolstack create a device with this connector."""
        connector = DeviceConnector(claimant, 0, len(self.connectors), name, WIDTH, HEIGHT)
        self.connectors[claimant, name] = connector
        self.sink.connector_added(connector)
        return connector

    def remove(self, name: str = "HDMI-A-1", claimant: Claimant = GUEST) -> None:
        """Let the toolstack remove the device with this connector."""
        self.sink.connector_removed(self.connectors.pop((claimant, name)))

    def claim(self, name: str = "HDMI-A-1", claimant: Claimant = GUEST) -> WaylandOutput:
        """Connect a guest, whose device has been created before, or is created now."""
        if (claimant, name) not in self.connectors:
            self.add(name, claimant)
        output = self.sink.claim(name, WIDTH, HEIGHT, claimant)
        assert isinstance(output, WaylandOutput)
        output.flipped = self.flipped.append
        return output

    async def connected(self, claimant: Claimant = GUEST) -> None:
        await until(lambda: self.sink.clients[claimant].link)

    async def attach(
        self,
        output: WaylandOutput,
        *,
        code: str = "XR24",
        stride: int = WIDTH * 4,
        offset: int = 0,
        colour: bytes = b"\0\0\0\0",
        size: int | None = None,
        shared: bool = True,
        width: int = WIDTH,
        height: int = HEIGHT,
    ) -> WaylandBuffer:
        pages = Pages(offset + stride * height if size is None else size, shared=shared)
        pages.memory[:] = (colour * (pages.size // len(colour) + 1))[: pages.size]
        self._files.append(pages)
        made = await output.attach(pages, Geometry(width, height, fourcc(code), stride, offset))
        assert isinstance(made, WaylandBuffer)
        return made

    async def lit(self, name: str = "HDMI-A-1", **how: Any) -> tuple[WaylandOutput, WaylandBuffer, WaylandBuffer]:
        """Return an output that shows the first of two buffers, and the buffers."""
        output = self.claim(name)
        await self.connected()
        first = await self.attach(output, colour=b"\1\2\3\0", **how)
        second = await self.attach(output, colour=b"\4\5\6\0", **how)
        await output.enable(first, WHOLE)
        await on_screen(output)
        return output, first, second

    @property
    def buffers(self) -> set[WaylandBuffer]:
        """The guest's buffers that its outputs hold."""
        return self.sink.clients[GUEST]._imports.buffers

    @property
    def surface(self) -> Surface:
        (surface,) = self.compositor.client.surfaces.values()
        return surface

    async def flip(self, output: WaylandOutput, buffer: WaylandBuffer, token: int) -> None:
        """Flip, and wait for the end of the flip."""
        output.flip(buffer, token)
        await until(lambda: token in self.flipped)

    def close(self) -> None:
        for pages in self._files:
            pages.close()


@contextlib.asynccontextmanager
async def staged(compositor: FakeCompositor | None = None, **settings: Any) -> AsyncIterator[Stage]:
    """Run a sink and a compositor. At the end, give everything back, and check that no file is left open."""
    gc.collect()  # close files of earlier tests now, and not while this one runs
    before = os.listdir("/proc/self/fd")
    compositor = compositor or FakeCompositor()
    async with trio.open_nursery() as nursery:
        compositor.nursery = nursery
        sink = WaylandSink(WaylandSettings(**{"refresh": 0.0, "trust_compositor": True, **settings}), compositor.opened)
        await nursery.start(sink.run)
        stage = Stage(sink, compositor)
        yield stage
        for client in list(sink.clients.values()):
            for buffer in list(client._imports.buffers):
                await buffer.aclose()
            for output in list(client.outputs.values()):
                await output.release()
        for claimant, name in list(stage.connectors):
            stage.remove(name, claimant)
        compositor.crash()
        nursery.cancel_scope.cancel()
    assert sink.clients == {}
    stage.close()
    assert os.listdir("/proc/self/fd") == before


# The three ways to import a buffer


async def test_the_compositor_maps_the_guests_pages() -> None:
    async with staged() as stage:
        output, first, second = await stage.lit()
        assert (first.state, first.path) == (BufferState.SHM, "zero copy")
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0) == b"\1\2\3\0" * WIDTH
        await stage.flip(output, second, 7)
        assert stage.surface.shown.row(HEIGHT - 1) == b"\4\5\6\0" * WIDTH
        assert stage.flipped == [7]


async def test_a_compositor_gets_no_file_of_gntdev_unless_it_is_trusted() -> None:
    assert not WaylandSink(WaylandSettings()).wants_shared
    assert WaylandSink(WaylandSettings(trust_compositor=True)).wants_shared
    async with staged(trust_compositor=False) as stage:
        output, first, _ = await stage.lit()
        assert (first.state, first.path) == (BufferState.COPY, "copy")
        assert "not shared with the compositor: it would reach every page that is granted" in first.reason
        assert first.reason.endswith("trust-compositor allows it")
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0) == b"\1\2\3\0" * WIDTH
        await output.release()


@pytest.mark.parametrize("offset", [0, 64, 8192])
async def test_an_offset_is_the_buffers_in_the_pool(offset: int) -> None:
    async with staged() as stage:
        _output, first, _ = await stage.lit(offset=offset, stride=WIDTH * 4 + 32)
        assert first.state is BufferState.SHM
        assert stage.surface.shown is not None
        assert (stage.surface.shown.offset, stage.surface.shown.stride) == (offset, WIDTH * 4 + 32)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"code": "RG24", "stride": WIDTH * 3}, "no RG24"),
        ({"stride": WIDTH * 4 + 2}, "not aligned"),
        ({"offset": 2}, "not aligned"),
        ({"shared": False}, "reading only"),
        ({"stride": 6000, "size": 6000 * (HEIGHT - 1) + WIDTH * 4}, "last row"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_buffers_that_are_unsuitable_for_wl_shm_are_copied(how: dict[str, Any], said: str) -> None:
    async with staged() as stage:
        output, first, second = await stage.lit(**how)
        assert (first.state, first.path) == (BufferState.COPY, "copy")
        assert said in first.reason
        for token in range(10):
            await stage.flip(output, (second, first)[token % 2], token)
        assert stage.surface.shown is not None
        assert stage.surface.shown.kind == 1
        assert stage.flipped == list(range(10))


async def test_a_compositor_that_cannot_map_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compositor that cannot map a pool costs one connection for any number of buffers. Buffers are copied from then on."""
    monkeypatch.setattr(output_module, "ATTACH_PATIENCE", 30.0)
    compositor = FakeCompositor()
    compositor.cannot_map = True

    def one_chance(client: Any) -> None:
        compositor.cannot_map = len(compositor.clients) == 1

    compositor.on_client = one_chance
    async with staged(compositor) as stage:
        output = stage.claim()
        await stage.connected()
        with trio.fail_after(5):
            first = await stage.attach(output)
        assert first.state is BufferState.COPY
        assert "ended the connection for it" in first.reason
        await output.enable(first, WHOLE)
        await on_screen(output)
        compositor.cannot_map = True
        for token in range(3):
            with trio.fail_after(5):
                buffer = await stage.attach(output)
            assert buffer.state is BufferState.COPY
            await stage.flip(output, buffer, token)
        assert len(compositor.clients) == 2


async def test_a_refused_surface_is_not_taken_for_a_buffers_fault() -> None:
    """Buffers are still shared after the compositor has ended the connection because another client has the surface's ivi id."""
    compositor = FakeCompositor({**CORE, "ivi_application": 1})
    compositor.ivi_taken = 1000
    async with staged(compositor) as stage:
        output = stage.claim("1000")
        await stage.connected()
        first, second = await stage.attach(output), await stage.attach(output)
        await output.enable(first, WHOLE)
        third = await stage.attach(output)
        await until(lambda: len(compositor.clients) > 2)
        compositor.ivi_taken = None
        await on_screen(output)
        await stage.flip(output, second, 1)
        assert [buffer.state for buffer in (first, second, third)] == [BufferState.SHM] * 3


async def test_a_dmabuf_where_the_compositor_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 4})
    compositor.dmabuf_formats = [fourcc("XR24")]
    compositor.main_device = os.makedev(226, 128)
    asked: list[int] = []

    def gpu(device: int) -> str:
        asked.append(device)
        return ""

    monkeypatch.setattr(dmabuf_feedback, "gpu_that_does_dma", gpu)
    async with staged(compositor) as stage:
        output, first, second = await stage.lit(code="AR24", offset=4096)
        assert asked == [compositor.main_device]
        assert (first.state, second.state) == (BufferState.DMABUF, BufferState.DMABUF)
        assert isinstance(first.pages, Pages)
        inode = os.fstat(first.pages.fd).st_ino
        assert compositor.client.dmabufs[0] == (inode, 0, 4096, WIDTH * 4, 0, WIDTH, HEIGHT, fourcc("XR24"))
        await stage.flip(output, second, 1)
        await second.aclose()
        assert compositor.client.of("zwp_linux_buffer_params_v1") == []
        assert len(compositor.client.frames) == 1


@pytest.mark.parametrize("version", [3, 4])
async def test_a_software_renderer_gets_no_dmabuf(version: int) -> None:
    """If the main device is unknown or not a GPU, the pages are shared with `auto`, and imported as a dma-buf with `always`."""
    for wish, wanted in (("auto", BufferState.SHM), ("always", BufferState.DMABUF), ("never", BufferState.SHM)):
        compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": version})
        compositor.dmabuf_formats = [fourcc("XR24")]
        async with staged(compositor, dmabuf=wish) as stage:
            _, first, _ = await stage.lit()
            assert first.state is wanted, wish
            assert first.path == "zero copy"
            shared = "the compositor maps the guest's pages itself; no dma-buf: "
            assert first.reason.startswith(shared) if wanted is BufferState.SHM else first.reason == ""


@pytest.mark.parametrize(("table_bytes", "main_devices"), [(0, 1), (15, 1), (None, 0), (None, 3)])
async def test_dmabuf_feedback_that_breaks_the_protocol(table_bytes: int | None, main_devices: int) -> None:
    """A table whose file is too short, or a main device that is no dev_t, costs the compositor its dma-bufs and nothing else."""
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 4})
    compositor.dmabuf_formats = [fourcc("XR24")]
    compositor.main_device = os.makedev(226, 128)
    compositor.table_bytes, compositor.main_devices = table_bytes, main_devices
    async with staged(compositor, dmabuf="auto") as stage:
        _, first, _ = await stage.lit()
        assert first.state is BufferState.SHM
        assert len(compositor.clients) == 1


async def test_a_refused_import_falls_back() -> None:
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 3})
    compositor.dmabuf_formats = [fourcc("XR24")]
    compositor.imports = False
    async with staged(compositor, dmabuf="always") as stage:
        _, first, _ = await stage.lit()
        assert first.state is BufferState.SHM
        assert "cannot import" in first.reason


async def test_a_compositor_that_a_dmabuf_ends_is_given_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compositor that crashes when it draws a dma-buf gets no more dma-bufs, neither of this guest nor of another one."""
    monkeypatch.setattr(dmabuf_feedback, "gpu_that_does_dma", lambda device: "")
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 4})
    compositor.dmabuf_formats = [fourcc("XR24")]
    compositor.dies_of_dmabufs = True
    other = Claimant(2, "other")
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        assert len(compositor.clients) == 2
        await stage.flip(output, second, 1)
        theirs = stage.claim("DP-1", other)
        await stage.connected(other)
        buffer = await stage.attach(theirs)
        await theirs.enable(buffer, WHOLE)
        await on_screen(theirs)
        assert [b.state for b in (first, second, buffer)] == [BufferState.SHM] * 3
        assert "lost before" in buffer.reason
        assert len(compositor.clients) == 3


async def test_a_compositor_that_draws_dmabufs_ends_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the compositor ends before it has drawn a guest's dma-buf, this guest's pages are shared; other guests' dma-bufs are imported."""
    monkeypatch.setattr(dmabuf_feedback, "gpu_that_does_dma", lambda device: "")
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 4})
    compositor.dmabuf_formats = [fourcc("XR24")]
    other = Claimant(2, "other")
    async with staged(compositor) as stage:
        output, first, _ = await stage.lit()
        compositor.shows_at_once = False
        theirs = stage.claim("DP-1", other)
        await stage.connected(other)
        buffer = await stage.attach(theirs)
        await theirs.enable(buffer, WHOLE)
        await until(lambda: buffer.held)
        compositor.crash()
        await until(lambda: not output.path and not theirs.path)
        compositor.shows_at_once = compositor.there = True
        await on_screen(output)
        await on_screen(theirs)
        assert (first.state, buffer.state) == (BufferState.DMABUF, BufferState.SHM)


@pytest.mark.usefixtures("no_window_is_kept")
async def test_two_guests_with_dmabufs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of one guest does not destroy another guest's buffers, although pywayland assigns a proxy to an arbitrary connection."""
    monkeypatch.setattr(dmabuf_feedback, "gpu_that_does_dma", lambda device: "")
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 4})
    compositor.dmabuf_formats = [fourcc("XR24")]
    async with staged(compositor) as stage:
        outputs, buffers = [], []
        for n in (1, 2, 3):
            output = stage.claim(f"O-{n}", Claimant(n, f"guest {n}"))
            outputs.append(output)
            await stage.connected(Claimant(n, f"guest {n}"))
            buffers.append(await stage.attach(output))
            await output.enable(buffers[-1], WHOLE)
            await on_screen(output)
        await buffers[0].aclose()
        await outputs[0].release()
        stage.remove("O-1", Claimant(1, "guest 1"))
        await until(lambda: compositor.clients[0].closed)
        for token, (output, buffer) in enumerate(zip(outputs[1:], buffers[1:], strict=True)):
            await stage.flip(output, buffer, token)
            assert len([c for c in compositor.clients if not c.closed]) == 2
        await buffers[1].aclose()
        await until(lambda: compositor.clients[1].frames == [])


@pytest.mark.parametrize("code", ["RG24", "RG16", "XR15", "AR12"])
async def test_converted_frames(code: str) -> None:
    pixel_bytes = {"RG24": 3}.get(code, 2)
    white = b"\xff" * pixel_bytes
    async with staged() as stage:
        output = stage.claim()
        await stage.connected()
        buffer = await stage.attach(output, code=code, stride=WIDTH * pixel_bytes, colour=white)
        await output.enable(buffer, WHOLE)
        await on_screen(output)
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(HEIGHT // 2) == b"\xff" * (4 * WIDTH)


async def test_a_format_that_cannot_be_shown() -> None:
    async with staged() as stage:
        output = stage.claim()
        await stage.connected()
        with pytest.raises(SinkError) as refused:
            await stage.attach(output, code="YUYV", stride=WIDTH * 2)
        assert refused.value.code == Errno.EINVAL
        assert stage.buffers == set()
        with pytest.raises(SinkError) as none:
            await output.allocate(1)
        assert none.value.code == Errno.EOPNOTSUPP


async def test_a_format_that_a_later_compositor_cannot_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log and the output's status give the reason."""
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    compositor = FakeCompositor()
    compositor.there = False
    async with staged(compositor) as stage:
        output = stage.claim()
        buffer = await stage.attach(output, code="YUYV", stride=WIDTH * 2)
        await output.enable(buffer, WHOLE)
        with structlog.testing.capture_logs() as logs:
            compositor.there = True
            await until(lambda: buffer.failure)
        assert "YUYV" in output.reason
        assert output.path == ""
        (line,) = [line for line in logs if line["event"] == "framebuffer refused"]
        assert "YUYV" in line["reason"]
        with pytest.raises(SinkError):
            await output.enable(buffer, WHOLE)


# Flips


async def test_a_flip_ends_when_it_is_shown_and_the_last_frame_is_free() -> None:
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        compositor.shows_at_once = compositor.releases = False
        surface = stage.surface
        before = surface.commits
        output.flip(second, 1)
        await until(lambda: surface.commits == before + 1)
        number = surface.frames[-2]
        compositor.refresh()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert stage.flipped == []
        compositor.client.event(number, "release")
        await until(lambda: stage.flipped == [1])
        output.flip(first, 2)
        await until(lambda: surface.commits == before + 2)
        compositor.client.event(surface.frames[-2], "release")
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert stage.flipped == [1]
        compositor.refresh()
        await until(lambda: stage.flipped == [1, 2])
        assert output.late == 0


async def test_frame_callbacks_where_there_is_no_presentation() -> None:
    compositor = FakeCompositor({name: version for name, version in CORE.items() if name != "wp_presentation"})
    async with staged(compositor) as stage:
        output, _first, second = await stage.lit()
        compositor.shows_at_once = False
        output.flip(second, 1)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert stage.flipped == []
        compositor.refresh()
        await until(lambda: stage.flipped == [1])


async def test_a_hidden_surface_flips_by_the_timer() -> None:
    """Flips of a hidden surface end at the screen's rate, and the compositor gets the newest frame. Later its reports end flips again."""
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        compositor.shows_at_once = False
        surface = stage.surface
        await stage.flip(output, second, 0)
        assert output.late == 1
        began = trio.current_time()
        for token in range(1, 13):
            await stage.flip(output, (second, first)[token % 2], token)
        assert trio.current_time() - began > 10 / 60
        assert output.late == 1
        await until(lambda: surface.shown_number == surface.frames[-1])
        assert surface.commits > 6
        assert len(compositor.client.of("wp_presentation_feedback")) <= surface.commits
        compositor.shows_at_once = True
        compositor.refresh()
        await until(lambda: output.surface.state is not SurfaceState.HIDDEN)
        shown = output.shown
        await stage.flip(output, first, 99)
        assert output.shown == shown + 1


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
@pytest.mark.parametrize("presentation", [True, False])
async def test_a_hidden_surface_at_rest_costs_nothing(zero_copy: str, presentation: bool) -> None:
    """While the guest of a hidden surface flips, the number of objects stays the same; while it does not flip, no requests are sent."""
    compositor = FakeCompositor({n: v for n, v in CORE.items() if presentation or n != "wp_presentation"})
    async with staged(compositor, zero_copy=zero_copy) as stage:
        output, first, second = await stage.lit()
        conn = connection_of(output)
        objects = conn.objects
        compositor.shows_at_once = False
        for token in range(30):
            await stage.flip(output, (second, first)[token % 2], token)
        assert output.late == 1
        await until(lambda: output.surface.gate.state is not GateState.HOLDING)
        await conn.sync()
        asked = len(compositor.client.asked)
        await trio.sleep(0.3)
        assert len(compositor.client.asked) == asked
        assert conn.objects <= objects + 2
        compositor.shows_at_once = True
        compositor.refresh()
        await on_screen(output)
        await stage.flip(output, first, 99)
        await until(lambda: conn.objects == objects)


async def test_a_suspended_window_does_not_wait_to_be_late() -> None:
    """A suspended window gets the newest frame, even if the compositor had not answered yet when the guest flipped."""
    compositor = FakeCompositor({**CORE, "xdg_wm_base": 6})
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        compositor.shows_at_once = False
        compositor.client.configure(stage.surface, WIDTH, HEIGHT, (9,))
        await until(lambda: output.surface.state is SurfaceState.SUSPENDED)
        for token in range(5):
            await stage.flip(output, (second, first)[token % 2], token)
        await connection_of(output).sync()
        for last, colour in ((first, b"\1\2\3\0"), (second, b"\4\5\6\0")):
            compositor.client.stopped = True
            await stage.flip(output, second if last is first else first, 0)
            output.flip(last, 10)
            await until(lambda: 10 in stage.flipped)
            assert stage.surface.shown is not None
            assert stage.surface.shown.row(0) != colour * WIDTH
            compositor.client.stopped = False
            await until(lambda colour=colour: stage.surface.shown.row(0) == colour * WIDTH)  # type: ignore[misc]
            stage.flipped.clear()
        compositor.shows_at_once = True
        compositor.client.configure(stage.surface, WIDTH, HEIGHT, ())
        await on_screen(output)
        assert output.late == 0


async def test_a_suspended_window_follows_its_guest() -> None:
    """Frames that a guest draws without flipping reach a suspended window, for thumbnails. Its configures need no frame again."""
    compositor = FakeCompositor({**CORE, "xdg_wm_base": 6})
    async with staged(compositor, refresh=100.0) as stage:
        output, shown, _ = await stage.lit()
        compositor.client.configure(stage.surface, WIDTH, HEIGHT, (9,))
        await until(lambda: output.surface.state is SurfaceState.SUSPENDED)
        await connection_of(output).sync()
        pages = cast("Pages", shown.pages)
        await until(lambda: not output.surface.is_unreported)
        pages.memory[: WIDTH * 4] = b"\7\7\7\0" * WIDTH
        await until(lambda: stage.surface.shown is not None and stage.surface.shown.row(0) == b"\7\7\7\0" * WIDTH)
        await until(lambda: not output.surface.is_unreported)
        await trio.sleep(0.5)
        before = len(compositor.client.requests("wl_surface", "attach"))
        for states in ((9,), (9,), ()):
            compositor.client.configure(stage.surface, WIDTH, HEIGHT, states)
            await connection_of(output).sync()
        await until(lambda: output.surface.state is SurfaceState.SHOWN)
        assert len(compositor.client.requests("wl_surface", "attach")) == before


async def test_two_hidden_outputs_of_one_guest_are_both_shown() -> None:
    """A frame is shown that was kept back while the compositor had not answered for the other output yet."""
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        outputs = [stage.claim(name) for name in ("DP-1", "DP-2")]
        await stage.connected()
        buffers = [[await stage.attach(output, colour=bytes([n, n, n, 0])) for n in (1, 2, 3)] for output in outputs]
        for output, (one, *_) in zip(outputs, buffers, strict=True):
            await output.enable(one, WHOLE)
            await on_screen(output)
        compositor.shows_at_once = False
        for last in (1, 2):
            for output, its in zip(outputs, buffers, strict=True):
                output.flip(its[last], last)
            await until(lambda last=last: stage.flipped.count(last) == 2)  # type: ignore[misc]
        surfaces = compositor.client.surfaces.values()
        await until(lambda: [s.shown is not None and s.shown.row(0)[0] for s in surfaces] == [3, 3])


async def test_a_flip_is_not_over_when_its_frame_is_committed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a new size makes the surface commit its frame again, the flip ends when that is shown and the previous buffer is released."""
    monkeypatch.setattr(window_module, "LATE", 30.0)
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, _first, second = await stage.lit()
        compositor.shows_at_once = compositor.releases = False
        surface = stage.surface
        number = surface.shown_number
        output.flip(second, 1)
        await until(lambda: surface.shown_number != number)
        for size, states in (((128, 96), (1,)), ((128, 96), (1, 4)), ((32, 24), (1,))):
            compositor.client.configure(surface, *size, states)
            commits = surface.commits
            await until(lambda commits=commits: surface.commits > commits)  # type: ignore[misc]
        await connection_of(output).sync()
        await trio.sleep(0.05)
        assert stage.flipped == [], "nothing was presented, and the old buffer is held"
        compositor.refresh()
        await connection_of(output).sync()
        assert stage.flipped == []
        compositor.client.event(number, "release")
        await until(lambda: stage.flipped == [1])


async def test_a_copy_under_way_is_not_the_flip_that_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [threading.Event(), threading.Event()]
    waiting = iter(gates)
    copy = CopyPool.copy

    def held(self: CopyPool, memory: Memory, to: CopyFrame) -> None:
        assert next(waiting).wait(5)
        copy(self, memory, to)

    monkeypatch.setattr(window_module, "LATE", 30.0)
    compositor = FakeCompositor()
    async with staged(compositor, zero_copy="off") as stage:
        output, first, second = await stage.lit()
        compositor.shows_at_once = False
        commits = stage.surface.commits
        monkeypatch.setattr(CopyPool, "copy", held)
        await output.enable(first, WHOLE)
        output.flip(second, 1)
        gates[0].set()
        await until(lambda: stage.surface.commits == commits + 1)
        compositor.refresh()
        await connection_of(output).sync()
        assert stage.flipped == [], "that was the previous frame"
        gates[1].set()
        await until(lambda: stage.surface.commits == commits + 2)
        compositor.refresh()
        await until(lambda: stage.flipped == [1])


async def test_no_copy_is_begun_of_a_buffer_that_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configure event while the last copy of a buffer is under way starts no other copy."""
    gate, copies = threading.Event(), []
    copy = CopyPool.copy

    def held(self: CopyPool, memory: Memory, to: CopyFrame) -> None:
        copies.append(to)
        assert gate.wait(5)
        copy(self, memory, to)

    async with staged(zero_copy="off") as stage:
        output, _first, second = await stage.lit()
        role = output.surface.role
        assert role is not None
        monkeypatch.setattr(CopyPool, "copy", held)
        output.flip(second, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.aclose)
            await until(lambda: output._current is None or second.is_closed)
            stage.compositor.client.configure(stage.surface, 128, 96, (1,))
            await until(lambda: role.size_for(WIDTH, HEIGHT) == (128, 96))
            gate.set()
        assert second.memory is None
        await output._copying.finished()
        assert len(copies) == 1


async def test_an_old_frame_that_is_taken_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "LATE", 30.0)
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        compositor.releases = False
        output.flip(second, 1)
        await until(lambda: output.surface._on_screen == output._flip.serial)
        assert stage.flipped == []
        await first.aclose()
        assert stage.flipped == [1]


async def test_a_discarded_frame_ends_its_flip_no_sooner_than_the_screen() -> None:
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        compositor.shows_at_once = False
        began = trio.current_time()
        for token in range(12):
            output.flip((second, first)[token % 2], token)
            await until(lambda: stage.surface.waiting)
            compositor.client.discard(stage.surface)
            await until(lambda token=token: token in stage.flipped)  # type: ignore[misc]
        assert trio.current_time() - began > 10 / 60
        assert output.late == 0


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_settings_for_a_compositor_that_does_not_respond(monkeypatch: pytest.MonkeyPatch, zero_copy: str) -> None:
    """No requests pile up, and the last setting is shown when the compositor responds again."""
    monkeypatch.setattr(window_module, "LATE", 30.0)
    compositor = FakeCompositor()
    async with staged(compositor, zero_copy=zero_copy) as stage:
        output, first, second = await stage.lit()
        client, conn = compositor.client, connection_of(output)
        client.stopped = True
        asked, objects = len(client.asked), conn.objects
        for turn in range(300):
            await output.enable((first, second)[turn % 2], (WHOLE, Part(0, 0, 8, 4 + turn % 3))[turn % 2])
        await trio.sleep(0.05)
        assert conn.objects <= objects + 12, "two more commits, or the frames of two more shapes"
        await output.enable(second, Part(0, 0, 16, 8))
        client.stopped = False
        await until(lambda: stage.surface.size == (16, 8))
        await on_screen(output)
        assert len(client.asked) - asked < 100
        await stage.flip(output, second, 1)


async def test_a_full_socket() -> None:
    """Requests that do not fit are sent when the compositor reads again."""
    compositor = FakeCompositor()
    compositor.room = 1
    async with staged(compositor) as stage:
        output, _first, second = await stage.lit()
        client, conn = compositor.client, connection_of(output)
        client.stopped = True
        heard: list[int] = []
        while conn.keeps_up:
            conn.call_after_sync(lambda: heard.append(1))
            assert conn.objects < 200
        # If the compositor does not report on a surface, the surface's frame waits for the compositor's answer.
        await stage.flip(output, second, 1)
        await stage.flip(output, second, 2)
        assert output.surface.gate.state is GateState.HOLDING
        client.stopped = False
        await until(lambda: conn.keeps_up and output.surface.gate.state is not GateState.HOLDING)
        await until(lambda: stage.surface.shown is not None and stage.surface.shown.row(0) == b"\4\5\6\0" * WIDTH)
        assert heard
        assert len(compositor.clients) == 1


async def test_a_compositor_that_does_not_respond() -> None:
    """Flips go on, no requests pile up, and the newest frame is shown when the compositor responds again."""
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        client, surface = compositor.client, stage.surface
        await stage.flip(output, second, 0)
        client.stopped = True
        asked, objects = len(client.asked), connection_of(output).objects
        for token in range(1, 30):
            await stage.flip(output, (second, first)[token % 2], token)
        assert connection_of(output).objects <= objects + 3
        client.stopped = False
        await until(lambda: len(client.asked) > asked)
        await until(lambda: surface.shown is not None and surface.shown.row(0) == b"\1\2\3\0" * WIDTH)
        await until(lambda: output.surface.state is not SurfaceState.HIDDEN)
        await stage.flip(output, second, 100)
        assert surface.shown is not None
        assert surface.shown.row(0) == b"\4\5\6\0" * WIDTH


async def test_a_buffer_attached_while_the_compositor_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "ATTACH_PATIENCE", 0.05)
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, _first, _second = await stage.lit()
        compositor.client.stopped = True
        third = await stage.attach(output, colour=b"\7\7\7\0")
        assert third.state is BufferState.NEW
        await output.enable(third, WHOLE)
        await stage.flip(output, third, 1)
        compositor.client.stopped = False
        await until(lambda: stage.surface.shown is not None and stage.surface.shown.row(0) == b"\7\7\7\0" * WIDTH)


async def test_pages_are_kept_until_the_compositor_has_released_them() -> None:
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, first, second = await stage.lit()
        assert compositor.client.mapped == 2
        done = trio.Event()

        async def close() -> None:
            await first.aclose()
            done.set()

        compositor.client.stopped = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.sleep(0.1)
            assert not done.is_set()
            compositor.client.stopped = False
            with trio.fail_after(5):
                await done.wait()
        assert compositor.client.mapped == 1
        assert not output.path
        await stage.flip(output, second, 1)
        await until(lambda: stage.surface.shown is not None and output.path)
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0) == b"\4\5\6\0" * WIDTH


async def test_a_buffer_that_is_taken_back_while_it_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that takes a buffer back before the compositor has mapped it waits until the buffer is not mapped any more."""
    monkeypatch.setattr(output_module, "ATTACH_PATIENCE", 0.01)
    async with staged() as stage:
        output, *_ = await stage.lit()
        client = stage.compositor.client
        answer, done = client._wl_display_sync, trio.Event()

        def answer_and_stop(number: int, callback: int) -> None:
            answer(number, callback)
            client.stopped = client.mapped == 3

        async def close() -> None:
            await third.aclose()
            done.set()

        monkeypatch.setattr(client, "_wl_display_sync", answer_and_stop)
        client.stopped = True
        third = await stage.attach(output)
        (guest,) = stage.sink.clients.values()
        await until(guest._imports._one_at_a_time.locked)  # the buffer is being offered
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.sleep(0.05)
            client.stopped = False
            await until(lambda: client.stopped)
            await trio.sleep(0.05)
            assert not done.is_set(), "it is mapped"
            client.stopped = False
            await done.wait()
        assert client.mapped == 2


async def test_a_compositor_that_never_releases_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compositor that does not release is waited for once, not for each buffer. When it responds again, it has released everything."""
    monkeypatch.setattr(output_module, "RELEASE_PATIENCE", 0.5)
    monkeypatch.setattr(output_module, "ATTACH_PATIENCE", 0.01)
    compositor = FakeCompositor()
    async with staged(compositor) as stage:
        output, *two = await stage.lit()
        client = compositor.client
        client.stopped = True
        others = [await stage.attach(output) for _ in range(4)]
        began = trio.current_time()
        for buffer in (*others, *two):
            await buffer.aclose()
        assert trio.current_time() - began < 2 * 0.5
        client.stopped = False
        await until(lambda: not client.frames and client.mapped == 0)
        again = await stage.attach(output)
        await again.wait_decided()
        await again.aclose()
        assert client.mapped == 0
        assert len(compositor.clients) == 1


async def test_a_compositor_that_ends_just_when_the_wait_for_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a compositor ends just when the wait for it ends, displbe does not ask it whether it responds again."""
    monkeypatch.setattr(output_module, "RELEASE_PATIENCE", 0.2)
    async with staged() as stage:
        _output, _first, second = await stage.lit()
        client = stage.sink.clients[GUEST]
        async with (
            client._imports._one_at_a_time,
            trio.open_nursery() as nursery,
        ):  # as if the compositor did not answer
            nursery.start_soon(second.aclose)
            await trio.testing.wait_all_tasks_blocked()
            stage.compositor.crash()
            await until(lambda: client.link is None)
        assert second not in stage.buffers


async def test_off_and_on_again() -> None:
    async with staged() as stage:
        output, first, second = await stage.lit()
        output.flip(second, 1)
        await output.disable()
        assert stage.flipped == [1]
        surface = stage.surface
        await until(lambda: surface.shown is not None and surface.shown.is_black)
        assert (output.path, output.reason) == ("", "off")
        with pytest.raises(SinkError):
            output.flip(first, 2)
        await output.enable(first, WHOLE)
        await on_screen(output)
        assert stage.surface is surface


async def test_a_part_of_a_framebuffer() -> None:
    async with staged() as stage:
        output, first, second = await stage.lit()
        await output.enable(second, Part(8, 4, 20, 10))
        await until(lambda: stage.surface.source == (8, 4, 20, 10))
        assert stage.surface.size == (20, 10)
        await stage.flip(output, first, 1)
        await output.enable(first, WHOLE)
        await until(lambda: stage.surface.source is None)
        assert stage.surface.size == (WIDTH, HEIGHT)


async def test_a_part_after_a_black_frame() -> None:
    """The viewport of the black frame is not left for the guest's next one."""
    async with staged() as stage:
        output, first, _ = await stage.lit()
        for _ in range(2):
            await output.enable(first, Part(8, 4, 20, 10))
            await until(lambda: stage.surface.source == (8, 4, 20, 10))
            await output.disable()
            await until(lambda: stage.surface.source is None)


async def test_framebuffers_of_different_sizes_show_the_same_part() -> None:
    """Only the larger one is cropped, at each flip between the two."""
    async with staged() as stage:
        output, whole, _ = await stage.lit()
        larger = await stage.attach(output, width=2 * WIDTH, height=2 * HEIGHT, stride=2 * WIDTH * 4)
        for token in (1, 3):
            await stage.flip(output, larger, token)
            assert stage.surface.source == (0, 0, WIDTH, HEIGHT)
            await stage.flip(output, whole, token + 1)
            assert stage.surface.source is None


async def test_a_part_of_a_copied_frame() -> None:
    async with staged(zero_copy="off") as stage:
        output, first, second = await stage.lit()
        assert (first.state, "configuration" in first.reason) == (BufferState.COPY, True)
        assert isinstance(second.pages, Pages)
        second.pages.memory[(4 * WIDTH + 8) * 4 : (4 * WIDTH + 8) * 4 + 4] = b"\x99\x98\x97\0"
        await output.enable(second, Part(8, 4, 20, 10))
        await until(lambda: stage.surface.shown is not None and stage.surface.shown.size == (20, 10))
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0)[:8] == b"\x99\x98\x97\0\4\5\6\0"


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_what_is_drawn_without_flipping_is_shown(zero_copy: str) -> None:
    async with staged(refresh=100.0, zero_copy=zero_copy) as stage:
        _, first, _ = await stage.lit()
        await trio.sleep(0.5)
        before = stage.surface.commits
        await trio.sleep(0.3)
        assert stage.surface.commits == before, "nothing has changed"
        assert isinstance(first.pages, Pages)
        first.pages.memory[100:104] = b"new!"
        await until(lambda: stage.surface.commits > before)
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0)[100:104] == b"new!"


async def test_a_frame_that_was_never_presented_is_dark() -> None:
    """The status says why, and what to do. A frame that the compositor discards is dark, too."""
    compositor = FakeCompositor()
    compositor.shows_at_once = False
    async with staged(compositor) as stage:
        output = stage.claim()
        await stage.connected()
        await until(lambda: output.surface.state is SurfaceState.BLACK)
        first, second = await stage.attach(output), await stage.attach(output)
        with structlog.testing.capture_logs() as logs:
            await output.enable(first, WHOLE)
            await connection_of(output).sync()
            assert (output.path, WAY_OUT in output.reason) == ("", True)
            await stage.flip(output, second, 1)
            assert (output.surface.state, output.path) == (SurfaceState.HIDDEN, "")
            assert "does not show the window" in output.reason
            assert WAY_OUT in output.reason
            compositor.refresh()
            await until(lambda: output.path)
            assert output.path == "zero copy"
            output.flip(first, 2)
            await connection_of(output).sync()
            compositor.client.discard(stage.surface)
            await until(lambda: not output.path)
            assert "has not shown the newest frame" in output.reason
        assert [line["event"] for line in logs if line["event"] in ("output on", "output dark")] == [
            "output dark",
            "output on",
            "output dark",
        ]


async def test_a_hidden_window_whose_frame_is_discarded_follows_its_guest() -> None:
    """The guest only draws. When the window is visible again, displbe hears of it and shows what was drawn."""
    compositor = FakeCompositor()
    async with staged(compositor, refresh=100.0) as stage:
        output, _first, second = await stage.lit()
        surface = stage.surface
        compositor.shows_at_once = False
        await stage.flip(output, second, 1)
        assert output.surface.state is SurfaceState.HIDDEN
        commits = surface.commits
        for _ in range(3):
            compositor.client.discard(surface)
            await connection_of(output).sync()
        assert surface.commits == commits + 1, "one commit asks for a frame callback"
        assert isinstance(second.pages, Pages)
        second.pages.memory[:4] = b"new!"
        await trio.sleep(0.3)
        assert surface.commits == commits + 1
        compositor.shows_at_once = True
        compositor.refresh()
        await until(lambda: output.surface.state is SurfaceState.SHOWN and surface.commits > commits + 1)
        assert surface.shown is not None
        assert surface.shown.row(0)[:4] == b"new!"


async def test_the_black_frame_without_a_viewporter() -> None:
    """It has the size of the picture, and the newest one is kept only."""
    compositor = FakeCompositor({name: version for name, version in CORE.items() if name != "wp_viewporter"})
    async with staged(compositor) as stage:
        output, *_ = await stage.lit()
        client, surface = compositor.client, stage.surface
        for part in (WHOLE, Part(0, 0, 20, 10), WHOLE):
            await output.enable(await stage.attach(output), part)
            await on_screen(output)
            await output.disable()
            await connection_of(output).sync()
            assert surface.shown is not None
            assert surface.shown.size == (part.width, part.height)
            assert set(surface.shown.row(0)) == {0}
            assert output.surface._black is not None
            assert len(client.buffers) == 1


# Shells


@pytest.mark.usefixtures("no_window_is_kept")
async def test_a_surfaces_states() -> None:
    """A surface passes through its states in this order."""
    compositor = FakeCompositor({**CORE, "xdg_wm_base": 6})
    compositor.shows_at_once = False
    async with staged(compositor) as stage:
        configured: list[Surface] = []
        compositor.on_client = lambda client: setattr(
            client, "configure", lambda surface, *_: configured.append(surface)
        )
        output = stage.claim()
        surface = output.surface
        states = [surface.state]
        await until(lambda: configured)
        states.append(surface.state)
        assert states == [SurfaceState.CLOSED, SurfaceState.CONFIGURING]
        FakeClient.configure(compositor.client, configured[0], 0, 0)
        del vars(compositor.client)["configure"]
        await until(lambda: surface.state is SurfaceState.BLACK)
        first, second = await stage.attach(output), await stage.attach(output)
        assert surface.state is SurfaceState.BLACK
        await output.enable(first, WHOLE)
        assert (surface.state, output.path) == (SurfaceState.UNSEEN, "")
        await connection_of(output).sync()
        compositor.refresh()
        await until(lambda: surface.state is SurfaceState.SHOWN)
        await stage.flip(output, second, 1)
        assert (surface.state, output.late) == (SurfaceState.HIDDEN, 1)
        compositor.refresh()
        await until(lambda: surface.state is SurfaceState.SHOWN)
        compositor.client.configure(stage.surface, WIDTH, HEIGHT, (9,))
        await until(lambda: surface.state is SurfaceState.SUSPENDED)
        await stage.flip(output, first, 2)
        assert (surface.state, output.late) == (SurfaceState.SUSPENDED, 1)
        compositor.client.configure(stage.surface, WIDTH, HEIGHT, ())
        await until(lambda: surface.state is SurfaceState.UNSEEN)
        compositor.client.discard(stage.surface)
        await until(lambda: surface.state is SurfaceState.SHOWN)
        await output.disable()
        states = [surface.state]
        stage.remove()
        await until(lambda: surface.state is not SurfaceState.BLACK)
        states.append(surface.state)
        assert states == [SurfaceState.BLACK, SurfaceState.CLOSED]


async def test_an_ivi_surface_is_empty_until_it_has_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ivi_surface needs no configuration before its first frame."""
    gate = threading.Event()
    copy = CopyPool.copy

    def held(self: CopyPool, memory: Memory, to: CopyFrame) -> None:
        assert gate.wait(5)
        copy(self, memory, to)

    monkeypatch.setattr(CopyPool, "copy", held)
    async with staged(FakeCompositor({**CORE, "ivi_application": 1}), zero_copy="off") as stage:
        output = stage.claim("1000")
        await stage.connected()
        await output.enable(await stage.attach(output), WHOLE)
        await until(lambda: output.surface.is_open)
        assert output.surface.state is SurfaceState.BLACK
        gate.set()
        await on_screen(output)


async def test_a_buffers_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    compositor = FakeCompositor()
    compositor.there = False
    async with staged(compositor) as stage:
        output = stage.claim()
        buffers = [await stage.attach(output, shared=shared) for shared in (True, False)]
        buffers.append(await stage.attach(output, code="YUYV", stride=WIDTH * 2))
        assert {buffer.state for buffer in buffers} == {BufferState.NEW}
        wanted = [BufferState.SHM, BufferState.COPY, BufferState.FAILED]
        for _ in range(2):
            compositor.there = True
            await until(lambda: [buffer.state for buffer in buffers] == wanted)
            compositor.crash()
            await until(lambda: {buffer.state for buffer in buffers} == {BufferState.NEW})
        await buffers[0].aclose()
        assert buffers[0].state is BufferState.CLOSED
        compositor.there = True
        await until(lambda: buffers[1].state is BufferState.COPY)
        assert buffers[0].state is BufferState.CLOSED
        with pytest.raises(SinkError) as gone:
            await output.enable(buffers[0], WHOLE)
        assert gone.value.code == Errno.ENOENT


async def test_a_window_has_a_name() -> None:
    async with staged() as stage:
        await stage.lit("DP-3")
        assert (stage.surface.title, stage.surface.app_id) == ("cockpit: DP-3", "displbe.cockpit.DP-3")
        assert stage.surface.fullscreen is None


@pytest.mark.parametrize("outputs", [{}, {"HDMI-A-1": "eDP-1"}])
async def test_a_connector_fills_the_output_of_its_name(outputs: dict[str, str]) -> None:
    compositor = FakeCompositor({"wl_output": 4, **CORE})
    compositor.screen = outputs.get("HDMI-A-1", "HDMI-A-1")
    compositor.first_size = (1024, 768, (2,))
    async with staged(compositor, outputs=outputs) as stage:
        await stage.lit()
        assert stage.surface.fullscreen == compositor.client.of("wl_output")[0]
        assert stage.surface.size == (1024, 768)


@pytest.mark.parametrize("offers", [{"wl_output": 4}, {"wl_output": 3, "zxdg_output_manager_v1": 3}], ids=str)
async def test_an_output_that_goes_and_comes(offers: dict[str, int]) -> None:
    """A connector fills an output that comes back, whether wl_output or zxdg_output sends the output's name."""
    compositor = FakeCompositor({**CORE, **offers})
    compositor.first_size = (1024, 768, (2,))
    place = [*CORE, *offers].index("wl_output") + 1
    async with staged(compositor) as stage:
        output, _first, second = await stage.lit()
        client, conn, surface = compositor.client, connection_of(output), stage.surface
        link = output._guest.link
        assert link is not None
        outputs = link.outputs
        assert surface.fullscreen == client.device("wl_output")
        assert outputs.names == ["HDMI-A-1"]
        objects = conn.objects
        for token in range(3):
            compositor.remove(place)
            await until(lambda: not outputs.names)
            await conn.sync()
            assert client.of("wl_output") == client.of("zxdg_output_v1") == []
            await stage.flip(output, second, token)
            place = compositor.add("wl_output", offers["wl_output"])
            await until(lambda: surface.fullscreen in client.of("wl_output"))
        await conn.sync()
        assert outputs.period == 1 / 60
        assert conn.objects == objects


@pytest.mark.parametrize(
    ("scale", "states", "asked", "size"),
    [
        ("fit", (2,), (1000, 300), (400, 300)),
        ("fit", (2,), (100, 300), (100, 75)),
        ("stretch", (2,), (1000, 300), (1000, 300)),
        ("none", (2,), (1000, 300), (WIDTH, HEIGHT)),
        ("none", (2,), (32, 300), (32, 24)),
        ("fit", (1,), (1000, 300), (1000, 300)),
        ("none", (1, 4), (33, 7), (33, 7)),
        ("fit", (5, 7), (500, 500), (500, 500)),
        ("fit", (3,), (100, 100), (100, 75)),
        ("fit", (), (0, 0), (WIDTH, HEIGHT)),
    ],
)
async def test_configured_sizes(
    scale: str, states: tuple[int, ...], asked: tuple[int, int], size: tuple[int, int]
) -> None:
    """A surface has the configured size at the start and later. If a maximised or full-screen one had another, the connection would end."""
    compositor = FakeCompositor()
    compositor.first_size = (*asked, states)
    async with staged(compositor, scale=scale) as stage:
        output, _first, second = await stage.lit()
        assert stage.surface.size == size
        compositor.client.configure(stage.surface, 0, 0, ())
        await until(lambda: stage.surface.size == (WIDTH, HEIGHT))
        compositor.client.configure(stage.surface, *asked, states)
        await until(lambda: stage.surface.size == size)
        await stage.flip(output, second, 1)
        assert len(compositor.clients) == 1


@pytest.mark.parametrize("policy", ["ignore", "detach"])
async def test_closing(policy: str) -> None:
    async with staged(on_close=policy) as stage:
        output, first, second = await stage.lit()
        stage.compositor.client.event(stage.surface.toplevel, "close")
        await trio.testing.wait_all_tasks_blocked(0.02)
        await until(lambda: bool(stage.compositor.client.surfaces) == (policy == "ignore"))
        await stage.flip(output, second, 1)
        assert bool(stage.compositor.client.surfaces) == (policy == "ignore")
        assert (output.surface.state is SurfaceState.DISMISSED) == (policy == "detach")
        await second.aclose()
        await output.disable()
        await output.enable(first, WHOLE)
        await stage.flip(output, first, 2)
        assert (output.surface.state is SurfaceState.DISMISSED) == (policy == "detach")
        assert bool(output.path) == (policy == "ignore")
        stage.sink.reopen(stage.connectors[GUEST, "HDMI-A-1"])
        await on_screen(output)


@pytest.mark.parametrize("how", ["hidden", "suspended", "shown"])
async def test_a_window_that_is_not_shown_opens_anew(how: str) -> None:
    """When the operator wants it. One that is shown stays where it is."""
    compositor = FakeCompositor({**CORE, "xdg_wm_base": 6})
    async with staged(compositor) as stage:
        output, _, second = await stage.lit()
        before = stage.surface
        if how == "hidden":
            compositor.shows_at_once = False
            await stage.flip(output, second, 1)
            await until(lambda: output.surface.state is SurfaceState.HIDDEN)
        elif how == "suspended":
            compositor.client.configure(before, WIDTH, HEIGHT, (9,))
            await until(lambda: output.surface.state is SurfaceState.SUSPENDED)
        compositor.shows_at_once = True
        stage.sink.reopen(stage.connectors[GUEST, "HDMI-A-1"])
        await connection_of(output).sync()
        await on_screen(output)
        assert (stage.surface is before) == (how == "shown")
        assert len(compositor.clients) == 1


async def test_ivi_surfaces() -> None:
    compositor = FakeCompositor({**CORE, "ivi_application": 1})
    compositor.first_size = (800, 600, ())
    async with staged(compositor, surfaces={"DP-1": 77}) as stage:
        output, _, second = await stage.lit("1000")
        assert (stage.surface.role, stage.surface.ivi_id) == ("ivi", 1000)
        await until(lambda: stage.surface.size == (800, 600))
        await stage.flip(output, second, 1)
        other = stage.claim("DP-1")
        buffer = await stage.attach(other)
        await other.enable(buffer, WHOLE)
        await on_screen(other)
        assert {surface.ivi_id for surface in compositor.client.surfaces.values()} == {1000, 77}
        third = stage.claim("DP-2")
        buffer = await stage.attach(third)
        await third.enable(buffer, WHOLE)
        await on_screen(third)
        assert {surface.role for surface in compositor.client.surfaces.values()} == {"ivi", "xdg"}


@pytest.mark.parametrize(
    ("name", "number"),
    [("1000", 1000), ("0", 0), ("DP-1", 77), ("5", 9), ("HDMI", None), (str(2**32 - 1), 2**32 - 1)]
    + [(name, None) for name in ("", "-1", "007", "٣", "5000000000", str(2**32), "9" * 5000)],
)
def test_ids_of_surfaces(name: str, number: int | None) -> None:
    assert ivi_id(name, {"DP-1": 77, "5": 9}) == number


async def test_a_name_that_is_too_large_for_an_id() -> None:
    compositor = FakeCompositor({**CORE, "ivi_application": 1})
    async with staged(compositor) as stage:
        await stage.lit("5000000000")
        assert stage.surface.role == "xdg"


@pytest.mark.parametrize(("one", "other"), [("7", "DP-1"), ("DP-1", "7")])
async def test_an_ivi_id_is_one_connectors(one: str, other: str) -> None:
    async with staged(surfaces={"DP-1": 7}) as stage:
        stage.claim(one)
        with pytest.raises(OutputUnavailable, match="ivi id 7"):
            stage.claim(other, Claimant(2, "other"))
        assert list(stage.sink.clients) == [GUEST]
    async with staged(surfaces={"DP-1": 7}, shell="xdg") as stage:
        stage.claim(one)
        stage.claim(other)


async def test_no_shell_for_it() -> None:
    compositor = FakeCompositor({**{n: v for n, v in CORE.items() if n != "xdg_wm_base"}, "ivi_application": 1})
    async with staged(compositor) as stage:
        output = stage.claim("DP-2")
        await stage.connected()
        buffer = await stage.attach(output)
        await output.enable(buffer, WHOLE)
        assert "ivi-application" in output.reason
        assert output.path == ""
        await stage.flip(output, buffer, 1)


# A guest that reboots itself


def reborn(claimant: Claimant) -> Claimant:
    """Return the guest after a reboot: a new domain of the same name."""
    return Claimant(claimant.domid + 1, claimant.name)


async def test_a_guest_that_reboots_keeps_its_windows() -> None:
    """The windows of both connectors, with their surfaces, on the same connection. They are black until the guest is back."""
    async with staged() as stage:
        guest, names = GUEST, ("DP-1", "DP-2")
        for name in names:
            stage.add(name)
        await stage.connected()
        client = stage.compositor.client
        await until(lambda: len(client.surfaces) == 2 and all(each.shown for each in client.surfaces.values()))
        surfaces, titles = dict(client.surfaces), [each.title for each in client.surfaces.values()]
        asked = client.asked[:]
        for _ in range(3):
            output = stage.claim("DP-1", guest)
            buffer = await stage.attach(output, colour=b"\1\2\3\0")
            await output.enable(buffer, WHOLE)
            await on_screen(output)
            await buffer.aclose()
            await output.release()
            for name in names:
                stage.remove(name, guest)
            guest = reborn(guest)
            await connection_of(output).sync()
            assert all(each.shown is not None and each.shown.is_black for each in client.surfaces.values())
            for name in reversed(names):
                stage.add(name, guest)
            assert list(stage.sink.clients) == [guest]
            assert stage.sink.clients[guest].claimant == guest
        assert client.surfaces == surfaces
        assert [each.title for each in client.surfaces.values()] == titles
        assert {name for _, name, *_ in client.asked[len(asked) :]} <= {
            *("attach", "damage_buffer", "commit", "frame", "feedback", "sync", "destroy"),
            *("create_pool", "create_buffer", "set_source", "set_destination"),
        }


async def test_a_window_takes_the_size_of_the_new_connector() -> None:
    async with staged() as stage:
        stage.add()
        await stage.connected()
        await until(lambda: stage.compositor.client.surfaces and stage.surface.shown)
        surface = stage.surface
        stage.remove()
        larger = DeviceConnector(reborn(GUEST), 0, 0, "HDMI-A-1", 2 * WIDTH, 3 * HEIGHT)
        stage.sink.connector_added(larger)
        stage.connectors[larger.claimant, larger.name] = larger
        await until(lambda: surface.size == (2 * WIDTH, 3 * HEIGHT))
        assert stage.surface is surface


async def test_a_guest_that_does_not_come_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its window closes, and its connection ends. A guest that comes later has new ones."""
    monkeypatch.setattr(window_queue, "KEPT", 0.1)
    async with staged() as stage:
        stage.add()
        await stage.connected()
        client = stage.compositor.client
        await until(lambda: client.surfaces)
        stage.remove()
        assert client.surfaces != {}
        await until(lambda: client.closed)
        assert stage.sink.clients == {}
        stage.add(claimant=reborn(GUEST))
        await stage.connected(reborn(GUEST))
        await until(lambda: stage.compositor.client.surfaces)
        assert len(stage.compositor.clients) == 2


@pytest.mark.parametrize("other", [Claimant(2, "other"), Claimant(2, "")], ids=["another guest", "without a name"])
async def test_a_kept_window_is_no_other_guests(other: Claimant) -> None:
    """Another guest's connector of the same name gets the place at once, with a window of its own on its own connection."""
    async with staged() as stage:
        stage.add()
        await stage.connected()
        client = stage.compositor.client
        await until(lambda: client.surfaces)
        stage.remove()
        stage.add(claimant=other)
        await stage.connected(other)
        await until(lambda: client.closed)
        assert list(stage.sink.clients) == [other]
        assert len(stage.compositor.clients) == 2


async def test_a_guest_whose_old_domain_has_a_window_still() -> None:
    """Two domains never share a connection, even if they have had the same name. The new domain's second window is a new one then."""
    async with staged() as stage:
        new = reborn(GUEST)
        for name in ("DP-1", "DP-2"):
            stage.add(name)
        await stage.connected()
        stage.remove("DP-1")
        stage.add("DP-3", new)
        await stage.connected(new)
        stage.remove("DP-2")
        stage.add("DP-1", new)
        assert set(stage.sink.clients[new].windows) == {"DP-3", "DP-1"}
        assert set(stage.sink.clients[GUEST].windows) == {"DP-2"}
        stage.add("DP-2", new)
        assert list(stage.sink.clients) == [new]


async def test_a_new_window_of_a_guest_that_has_rebooted_shares_its_connection() -> None:
    async with staged() as stage:
        new = reborn(GUEST)
        stage.add("DP-1")
        await stage.connected()
        stage.remove("DP-1")
        stage.add("DP-2", new)
        stage.add("DP-1", new)
        assert set(stage.sink.clients[new].windows) == {"DP-2", "DP-1"}
        await until(lambda: len(stage.compositor.client.surfaces) == 2)
        assert len(stage.compositor.clients) == 1


async def test_a_compositor_that_restarts_while_a_guest_reboots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's window opens on the new one, as those of all guests do, unless its user had closed it."""
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    async with staged(on_close="detach") as stage:
        stage.add("DP-1")
        stage.add("DP-2")
        await stage.connected()
        await until(lambda: len(stage.compositor.client.surfaces) == 2)
        closed = next(each for each in stage.compositor.client.surfaces.values() if "DP-2" in each.title)
        stage.compositor.client.event(closed.toplevel, "close")
        await until(lambda: len(stage.compositor.client.surfaces) == 1)
        stage.remove("DP-1")
        stage.remove("DP-2")
        stage.compositor.crash()
        stage.compositor.there = True
        await until(lambda: len(stage.compositor.clients) == 2 and stage.compositor.client.surfaces)
        new = reborn(GUEST)
        stage.add("DP-1", new)
        stage.add("DP-2", new)
        await connection_of(stage.claim("DP-1", new)).sync()
        assert "DP-1" in stage.surface.title
        await stage.sink.clients[new].outputs["DP-1"].release()


# The connection


async def test_a_compositor_that_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    compositor = FakeCompositor()
    compositor.there = False
    async with staged(compositor) as stage:
        output = stage.claim()
        buffer = await stage.attach(output, colour=b"\1\2\3\0")
        await output.enable(buffer, WHOLE)
        for token in range(3):
            await stage.flip(output, buffer, token)
        compositor.there = True
        await on_screen(output)
        assert stage.surface.shown is not None
        assert stage.surface.shown.row(0) == b"\1\2\3\0" * WIDTH


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_a_compositor_that_crashes_and_comes_back(monkeypatch: pytest.MonkeyPatch, zero_copy: str) -> None:
    monkeypatch.setattr(client_module, "SEARCH", 0.01)
    compositor = FakeCompositor()
    async with staged(compositor, zero_copy=zero_copy) as stage:
        output, first, second = await stage.lit()
        for turn in range(3):
            output.flip(second, 10 * turn)
            compositor.crash()
            await until(lambda turn=turn: 10 * turn in stage.flipped)  # type: ignore[misc]
            for token in range(10 * turn + 1, 10 * turn + 4):
                await stage.flip(output, (second, first)[token % 2], token)
            compositor.there = True
            await on_screen(output)
            await until(lambda: stage.surface.shown is not None)
        assert stage.surface.shown is not None
        assert first.state is (BufferState.SHM if zero_copy == "auto" else BufferState.COPY)


async def test_a_protocol_error_costs_only_its_guest() -> None:
    compositor = FakeCompositor()
    other = Claimant(2, "other")
    async with staged(compositor) as stage:
        output, _, second = await stage.lit()
        theirs = stage.claim("DP-1", other)
        await stage.connected(other)
        buffer = await stage.attach(theirs)
        await theirs.enable(buffer, WHOLE)
        await on_screen(theirs)
        client = compositor.clients[1]
        client.event(1, "error", 1, 0, "no reason")
        client.close()
        await until(lambda: len(compositor.clients) == 3)
        await on_screen(theirs)
        await stage.flip(output, second, 1)
        assert not compositor.clients[0].closed
        assert output.shown >= 2


async def test_a_compositor_that_offers_nothing() -> None:
    compositor = FakeCompositor({"wl_compositor": 4})
    async with staged(compositor) as stage:
        output = stage.claim()
        await until(lambda: len(compositor.clients) > 2)
        assert stage.sink.clients[GUEST].link is None
        buffer = await stage.attach(output)
        await output.enable(buffer, WHOLE)
        await stage.flip(output, buffer, 1)


async def test_a_bug_costs_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that fails ends the connection, which is made again. It does not end the sink."""
    handle = WaylandWindow._on_configured
    mistakes = iter([ValueError("a mistake")])

    def failing(output: WaylandWindow) -> None:
        for mistake in mistakes:
            raise mistake
        handle(output)

    monkeypatch.setattr(WaylandWindow, "_on_configured", failing)
    async with staged() as stage:
        with structlog.testing.capture_logs() as logs:
            output = stage.claim()
            await stage.connected()
            buffer = await stage.attach(output)
            await output.enable(buffer, WHOLE)
            await on_screen(output)
        assert [
            line["log_level"]
            for line in logs
            if line["event"] == "connection to the compositor failed: a new one is made"
        ] == ["error"]
        assert len(stage.compositor.clients) == 2


@pytest.mark.filterwarnings("ignore:Exception ignored from cffi callback:pytest.PytestUnraisableExceptionWarning")
async def test_names_that_are_not_text() -> None:
    """pywayland cannot decode such an event, prints that, and goes on. The connection stays."""
    async with staged(FakeCompositor({**CORE, "wl_output": 4})) as stage:
        output, _, second = await stage.lit()
        client = stage.compositor.client
        client.event(client.device("wl_output"), "name", b"\xe9\xff")
        await stage.flip(output, second, 1)
        assert len(stage.compositor.clients) == 1


async def test_a_connection_that_cannot_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error is: it ends neither the sink nor the guest."""
    monkeypatch.setattr(client_module, "LAST_PAUSE", 0.01)
    compositor = FakeCompositor()
    opened, mistakes = compositor.opened, iter([ValueError("embedded null byte")])

    def fail(path: str) -> Connection:
        for mistake in mistakes:
            raise mistake
        return opened(path)

    monkeypatch.setattr(compositor, "opened", fail)
    with structlog.testing.capture_logs() as logs:
        async with staged(compositor) as stage:
            await stage.lit()
    assert [line["reason"] for line in logs if line["event"] == "cannot connect to the compositor; tried again"] == [
        "ValueError"
    ]


@pytest.mark.usefixtures("no_window_is_kept")
async def test_outputs_that_come_and_go_beside_another_leave_nothing() -> None:
    async with staged(refresh=30.0) as stage:
        await stage.lit()
        client = stage.sink.clients[GUEST]
        nursery = client._tasks._nursery
        assert nursery is not None
        assert client.link is not None
        conn = client.link.conn
        tasks, objects = len(nursery.child_tasks), conn.objects
        gone = []
        for _ in range(20):
            output = stage.claim("DP-1")
            buffer = await stage.attach(output)
            await output.enable(buffer, WHOLE)
            await on_screen(output)
            await buffer.aclose()
            await output.release()
            stage.remove("DP-1")
            gone.append(weakref.ref(output))
            del output, buffer
        await trio.testing.wait_all_tasks_blocked()
        await conn.sync()
        assert len(nursery.child_tasks) == tasks
        assert conn.objects == objects
        # trio's worker threads keep references to their last job for a moment.
        await until(lambda: gc.collect() >= 0 and not any(output() for output in gone))


async def test_a_surface_that_is_not_shown_collects_few_frame_callbacks() -> None:
    compositor = FakeCompositor({name: version for name, version in CORE.items() if name != "wp_presentation"})
    async with staged(compositor) as stage:
        output, _first, second = await stage.lit()
        compositor.shows_at_once = False
        conn = connection_of(output)
        objects = conn.objects
        for token in range(3 * MOST_CALLBACKS):
            output.flip(second, token)
            await output.disable()
            await output.enable(second, WHOLE)
            await until(lambda: output.surface.attached is not None)
        await conn.sync()
        assert objects < conn.objects <= objects + MOST_CALLBACKS
        compositor.shows_at_once = True
        compositor.refresh()
        await on_screen(output)
        await conn.sync()
        assert conn.objects == objects


async def test_names() -> None:
    async with staged() as stage:
        stage.claim("A")
        with pytest.raises(OutputUnavailable, match="taken"):
            stage.claim("A", Claimant(2, "other"))
        assert stage.sink.claimed("A") is not None
        assert stage.sink.claimed("B") is None


@pytest.mark.parametrize(
    ("display", "environment", "path"),
    [
        ("", {"XDG_RUNTIME_DIR": "/run/user/7", "WAYLAND_DISPLAY": "wayland-3"}, "/run/user/7/wayland-3"),
        ("", {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/wayland-0"),
        ("", {}, f"/run/user/{os.getuid()}/wayland-0"),
        ("w", {"XDG_RUNTIME_DIR": "/x", "WAYLAND_DISPLAY": "y"}, "/x/w"),
        ("/a/b", {"XDG_RUNTIME_DIR": "/x"}, "/a/b"),
    ],
)
def test_socket_path(display: str, environment: dict[str, str], path: str) -> None:
    assert socket_path(display, environment) == path


async def test_abilities() -> None:
    async with staged(
        FakeCompositor({name: version for name, version in CORE.items() if name != "wp_viewporter"})
    ) as stage:
        assert stage.sink.abilities() == {"compositor": "not asked before a guest has a display"}
        stage.claim()
        await until(lambda: "xdg-shell: yes" in stage.sink.abilities()["compositor"])
        said = stage.sink.abilities()["compositor"]
        assert "viewporter: no" in said


# Memory that the guest takes back while it is read


@pytest.mark.parametrize("zero_copy", ["off", "auto"])
async def test_redraws_are_noticed_until_the_guest_takes_its_pages_back(
    monkeypatch: pytest.MonkeyPatch, zero_copy: str
) -> None:
    """Checksums and copies run all the time; after a buffer is closed, nothing borrows its pages."""
    monkeypatch.setattr(redraw, "STILL", 0.0)
    looks: list[int] = []

    def counted(rows: FrameRows, view: memoryview) -> int:
        looks.append(frame_checksum(rows, view))
        return looks[-1]

    monkeypatch.setattr("displbe.sinks.wayland.frame_digest.frame_checksum", counted)
    async with staged(zero_copy=zero_copy, refresh=120.0) as stage:
        output, first, second = await stage.lit()
        for turn in range(1, 40):
            pages = Pages(WIDTH * HEIGHT * 4)
            made = await output.attach(pages, Geometry(WIDTH, HEIGHT, fourcc("XR24"), WIDTH * 4, 0))
            assert isinstance(made, WaylandBuffer)
            pages.memory[:] = bytes([turn]) * pages.size
            await stage.flip(output, made, turn)
            await trio.sleep(0.01 * (turn % 3))
            pages.memory[:] = bytes([turn + 100]) * pages.size
            await made.aclose()
            pages.close()  # asserts that nothing borrows them
        await stage.flip(output, first, 1000)
        await stage.flip(output, second, 1001)
    assert len(set(looks)) > 5


async def test_frames_of_many_shapes_are_freed_off_the_loop(memory_watch: MemoryWatch) -> None:
    """The frames of a shape are unmapped when those of the next one are shown, in the copying thread."""
    async with staged(zero_copy="off") as stage:
        output, first, second = await stage.lit()
        for turn in range(1, 9):
            part = Part(0, 0, WIDTH - turn, HEIGHT)
            await output.enable((first, second)[turn % 2], part)
            await until(lambda part=part: stage.surface.shown and stage.surface.shown.size[0] == part.width)  # type: ignore[misc]
            await on_screen(output)
        copying = output._copying
        await copying.finished()
        assert copying.old_pools == []
        frames = [place for place in memory_watch.open.values() if place.startswith("sinks/wayland/copies.py")]
        assert len(frames) == 3, "those of the present shape"
