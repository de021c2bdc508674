"""Guests and compositors act in any order: each accepted flip ends once, no rule of the protocols is broken, and the compositor does not
map buffers that were taken back.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sinks.compositor import CORE, DESKTOP, FakeCompositor
from sinks.test_wayland import GUEST, WHOLE, WIDTH, Stage, connection_of, on_screen, staged, until

from displbe.sinks.base import Claimant, Part, SinkError
from displbe.sinks.flip import FlipState
from displbe.sinks.wayland import client as client_module
from displbe.sinks.wayland import output as output_module
from displbe.sinks.wayland import window as window_module
from displbe.sinks.wayland.buffers import WaylandBuffer
from displbe.sinks.wayland.conn import CompositorLost
from displbe.sinks.wayland.output import WaylandOutput
from displbe.sinks.wayland.surface import SurfaceState

SHAPES: list[dict[str, Any]] = [
    {},
    {"offset": 4096},
    {"code": "RG24", "stride": WIDTH * 3},
    {"stride": WIDTH * 4 + 2},
    {"shared": False},
    {"code": "AR24", "stride": 512},
]
PARTS = [WHOLE, Part(8, 4, 20, 10), Part(0, 0, 1, 1)]
STATES: list[tuple[int, ...]] = [(), (1,), (2,), (5, 6), (9,), (1, 2), (4,)]
WHICH = st.integers(0, 5)
MOST = 35
"""Maximum objects of one output: 7 of a surface, 7 buffers, 3 copies of each of two shapes, and requested reports."""

WORDS = [
    "disable",
    "refresh",
    "crash",
    "stop",
    "go on",
    "close",
    "reopen",
    "reconnect",
    "reboot",
    "hide",
    "see",
    "keep",
    "release",
]
ACTIONS = st.one_of(
    st.tuples(st.just("attach"), st.sampled_from(SHAPES)),
    st.tuples(st.just("enable"), WHICH, st.sampled_from(PARTS)),
    st.tuples(st.just("flip"), WHICH),
    st.tuples(st.just("flip"), WHICH),
    st.tuples(st.just("detach"), WHICH),
    st.tuples(
        st.just("configure"), st.sampled_from([(0, 0), (100, 100), (1024, 768), (7, 5)]), st.sampled_from(STATES)
    ),
    st.tuples(st.just("rescale"), st.sampled_from([120, 150, 180, 240, 1])),
    *(st.just((word,)) for word in WORDS),
)


class Play:
    """One run, which begins with a frame on the screen."""

    def __init__(self, stage: Stage, output: WaylandOutput) -> None:
        self.stage = stage
        self.compositor = stage.compositor
        self.output = output
        self.buffers: list[WaylandBuffer] = []
        self.guest = GUEST
        """The guest's present domain."""
        self.token = 0
        self.reopened = 0
        """How often the operator has opened the window again."""
        self.idle = 0
        """The number of objects of a connection whose guest has no surface and no buffer."""

    def which(self, number: int) -> WaylandBuffer | None:
        return self.buffers[number % len(self.buffers)] if self.buffers else None

    async def act(self, word: str, *values: Any) -> None:
        there = [client for client in self.compositor.clients if not client.closed]
        match word:
            case "attach" if len(self.buffers) < 6:
                self.buffers.append(await self.stage.attach(self.output, **values[0]))
            case "enable":
                buffer = self.which(values[0])
                if buffer is not None:
                    await self.output.enable(buffer, values[1])
            case "flip":
                await self.flip(values[0])
            case "detach":
                buffer = self.which(values[0])
                if buffer is not None:
                    self.buffers.remove(buffer)
                    await buffer.aclose()
            case "disable":
                await self.output.disable()
            case "configure":
                for client in there:
                    for surface in client.surfaces.values():
                        if surface.toplevel and surface.configured:
                            width, height = values[0]
                            client.configure(surface, width, height, values[1] if width else ())
            case "close":
                for client in there:
                    for surface in client.surfaces.values():
                        if surface.toplevel:
                            client.event(surface.toplevel, "close")
            case "reopen":
                self.stage.sink.reopen(self.stage.connectors[self.guest, "HDMI-A-1"])
                self.reopened += 1
            case "reconnect":
                for one in self.buffers:
                    await one.aclose()
                self.buffers.clear()
                await self.output.release()
                self.output = self.stage.claim(claimant=self.guest)
            case "reboot":
                for one in self.buffers:
                    await one.aclose()
                self.buffers.clear()
                await self.output.release()
                self.stage.remove(claimant=self.guest)
                self.guest = Claimant(self.guest.domid + 1, self.guest.name)
                self.output = self.stage.claim(claimant=self.guest)
            case "crash":
                self.compositor.crash()
                self.compositor.there = True
            case "stop" | "go on":
                for client in there:
                    client.stopped = word == "stop"
            case "hide" | "see":
                self.compositor.shows_at_once = word == "see"
            case "rescale":
                self.compositor.rescale(values[0])
            case "keep" | "release":
                self.compositor.releases = word == "release"
            case "refresh":
                self.compositor.refresh()
        assert all(client.error is None for client in self.compositor.clients)
        link = self.output._guest.imports.link
        assert link is None or link.conn.objects <= self.idle + MOST
        self.check_surface()

    def check_surface(self) -> None:
        """Check that the surface has what its state says, and that no flip is under way."""
        surface = self.output.surface
        assert surface.is_open == (surface.state not in (SurfaceState.CLOSED, SurfaceState.DISMISSED))
        assert surface.is_open == (surface.proxy is not None) == (surface.role is not None)
        match surface.state:
            case SurfaceState.CLOSED | SurfaceState.DISMISSED | SurfaceState.CONFIGURING | SurfaceState.BLACK:
                assert surface.attached is None
            case SurfaceState.UNSEEN | SurfaceState.SHOWN:
                assert surface.attached is not None
        assert bool(self.output.path) == (surface.attached is not None and surface.is_presented)
        assert self.output.path or self.output.reason
        assert self.output._flip.state is FlipState.NONE
        if self.output._part is None:
            assert surface.attached is None
        surfaces = sum(len(client.requests("wl_compositor", "create_surface")) for client in self.compositor.clients)
        assert surfaces <= len(self.compositor.clients) + self.reopened

    async def flip(self, number: int) -> None:
        """Flip, and wait for the end of the flip, as a guest does."""
        buffer = self.which(number)
        shown = self.output._current
        if buffer is None or (shown is not None and shown.geometry != buffer.geometry):
            return
        part = self.output._part
        if part is None:
            with pytest.raises(SinkError):
                self.output.flip(buffer, 0)
            return
        self.token += 1
        self.output.flip(buffer, self.token)
        await until(lambda: self.token in self.stage.flipped)
        assert self.stage.flipped.count(self.token) == 1

    async def end(self) -> None:
        """Let the compositor show everything. Check that it shows the guest's last frame, and that after the release nothing is left."""
        self.compositor.shows_at_once = self.compositor.releases = True
        for client in self.compositor.clients:
            client.stopped = False
        with trio.fail_after(5):
            while True:  # the compositor may just have crashed, or the user closed the window
                try:
                    await self.stage.connected(self.guest)
                    await connection_of(self.output).sync()
                    break
                except CompositorLost:
                    await trio.sleep(0.005)
        await self.act("reopen")
        await until(lambda: self.output.surface.is_ready)
        await self.act("configure", (0, 0), ())
        buffer = await self.stage.attach(self.output, colour=b"\7\7\7\0")
        await self.output.disable()
        await self.output.enable(buffer, WHOLE)
        await on_screen(self.output)
        client, conn = self.compositor.client, connection_of(self.output)
        (surface,) = client.surfaces.values()
        assert surface.shown is not None
        assert surface.shown.row(0) == b"\7\7\7\0" * WIDTH
        for one in (*self.buffers, buffer):
            await one.aclose()
        await self.output.disable()
        await until(lambda: surface.shown is not None and surface.shown.is_black and not client.mapped)
        await until(lambda: conn.objects == self.idle)
        assert len(self.stage.flipped) == len(set(self.stage.flipped)) == self.token


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
@given(
    actions=st.lists(ACTIONS, min_size=8, max_size=40),
    presentation=st.booleans(),
    desktop=st.booleans(),
    policy=st.sampled_from(["ignore", "detach"]),
)
def test_anything(
    monkeypatch: pytest.MonkeyPatch, actions: list[tuple[Any, ...]], presentation: bool, desktop: bool, policy: str
) -> None:
    for module, name, value in (
        (client_module, "SEARCH", 0.005),
        (client_module, "FIRST_PAUSE", 0.005),
        (client_module, "LAST_PAUSE", 0.02),
        (output_module, "ATTACH_PATIENCE", 0.02),
        (output_module, "RELEASE_PATIENCE", 0.02),
        (window_module, "LATE", 0.02),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("displbe.sinks.flip.LATE_CHECK", 0.02)

    async def play() -> None:
        there = DESKTOP if desktop else CORE
        offers = {name: version for name, version in there.items() if presentation or name != "wp_presentation"}
        compositor = FakeCompositor({**offers, "xdg_wm_base": 6})
        async with staged(compositor, on_close=policy, inhibit_idle=True, inhibit_shortcuts=True) as stage:
            output = stage.claim()
            await until(lambda: GUEST in stage.sink.clients)
            played = Play(stage, output)
            await stage.connected()
            await until(lambda: output.surface.state is SurfaceState.BLACK)
            await connection_of(output).sync()
            played.idle = connection_of(output).objects
            await played.act("attach", {})
            await played.act("enable", 0, WHOLE)
            for action in actions:
                await played.act(*action)
            await played.end()

    async def play_in_time() -> None:
        with trio.fail_after(30):
            await play()

    trio.run(play_in_time)
