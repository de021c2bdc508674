"""The states of an X11 output, and the rules that end its flips. No server is needed: a stand-in replaces the painter."""

from __future__ import annotations

from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.base import Claimant, Geometry, Part, SinkError
from displbe.sinks.flip import LATE_CHECK, FlipState
from displbe.sinks.x11.desktop import Desktop
from displbe.sinks.x11.output import LATE, OutputState, X11Output
from displbe.sinks.x11.painter import Frame, Painter
from displbe.sinks.x11.server import Server
from displbe.sinks.x11.settings import X11Settings
from displbe.wire.formats import fourcc
from displbe.xen.memory import Memory

PERIOD = 0.02
WHOLE = Part(0, 0, 4, 2)
NO_SERVER = "there is no X server: the window opens when it is back"
NOT_VISIBLE = "the window is closed or iconified: displbectl reopen guest opens it again"


class StandIn:
    """A painter that only records calls. The test says when the window is visible and what the server has read."""

    def __init__(self, desktop: Desktop) -> None:
        self.desktop = desktop
        self.newest_serial = 0
        self.viewer: Any = None
        self.complaint = ""
        self.visible = False
        self.is_unread = False
        self.obstacle = ""
        self.serial = 0
        self.frame: Frame | None = None

    def attach(self, viewer: Any) -> None:
        self.viewer = viewer

    def detach(self) -> None:
        self.viewer = None

    def on_read(self, serial: int | None) -> None:
        if self.viewer is not None:
            self.viewer.on_read(serial)

    def show(self, frame: Frame, part: Part) -> None:
        self.frame = frame

    def flip(self, frame: Frame, serial: int) -> None:
        self.frame, self.serial = frame, serial

    def blank(self) -> None:
        self.frame = None

    def forget(self, frame: Frame) -> bool:
        return self.frame is frame

    async def copied(self) -> None:
        await trio.lowlevel.checkpoint()

    def on_server(self) -> None:
        self.set_visible(self.visible and self.desktop.server is not None)

    def set_visible(self, visible: bool) -> None:
        """Map or unmap the window."""
        self.visible = visible
        if self.viewer is not None:
            self.viewer.on_visibility()


class Rig:
    """A claimed output with its stand-in."""

    def __init__(self) -> None:
        self.desktop = Desktop(X11Settings(refresh=1 / PERIOD))
        self.desktop.server = cast("Server", object())
        self.released = 0
        self.painter = StandIn(self.desktop)
        painter = cast("Painter", self.painter)
        self.output = X11Output(self.desktop, "HDMI-A-1", Claimant(1, "guest"), painter, self._on_release)
        self.ended: list[int] = []
        self.output.flipped = self.ended.append
        geometry = Geometry(4, 2, fourcc("XR24"), 16, 0)
        self.frame = Frame(cast("Memory", object()), geometry, self.output._forget)

    def _on_release(self) -> None:
        self.released += 1

    def set_server(self, server: object) -> None:
        """Let the output find a server, or lose it (None)."""
        self.desktop.server = cast("Server", server)
        self.painter.on_server()


@pytest.fixture
async def rig(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> Rig:
    rig = Rig()
    nursery.start_soon(rig.desktop.clock.run)
    await trio.testing.wait_all_tasks_blocked()
    return rig


async def test_states_and_reasons(rig: Rig) -> None:
    """Each state has its path and its reason."""
    output = rig.output
    assert (output.state, output.path, output.reason) == (OutputState.OFF, "", "off")
    with pytest.raises(SinkError):
        output.flip(rig.frame, 1)
    await output.enable(rig.frame, WHOLE)
    assert (output.state, output.path, output.reason) == (OutputState.UNSEEN, "", NOT_VISIBLE)
    rig.painter.set_visible(True)
    assert (output.state, output.path, output.reason) == (OutputState.SHOWN, "copy", Frame.reason)
    rig.set_server(None)
    assert (output.state, output.path, output.reason) == (OutputState.UNSEEN, "", NO_SERVER)
    rig.set_server(object())
    assert (output.state, output.path, output.reason) == (OutputState.UNSEEN, "", NOT_VISIBLE)
    await output.disable()
    rig.painter.set_visible(True)
    assert output.state is OutputState.OFF
    await output.release()
    assert rig.released == 1


async def test_a_released_output_is_not_used(rig: Rig) -> None:
    await rig.output.enable(rig.frame, WHOLE)
    await rig.output.release()
    with pytest.raises(SinkError, match="given back"):
        await rig.output.enable(rig.frame, WHOLE)
    with pytest.raises(SinkError):
        rig.output.flip(rig.frame, 1)
    await rig.output.disable()
    assert (rig.output.state, rig.released) == (OutputState.OFF, 1)


async def test_a_flip_ends_at_the_refresh_after_its_frame_was_read(rig: Rig) -> None:
    await rig.output.enable(rig.frame, WHOLE)
    rig.painter.set_visible(True)
    rig.output.flip(rig.frame, 7)
    await trio.sleep(LATE / 2)
    assert rig.ended == []
    rig.painter.on_read(rig.painter.serial)
    assert rig.output.page_flip.state is FlipState.TIMED
    await trio.sleep(1.5 * PERIOD)
    assert (rig.ended, rig.output.page_flip.shown, rig.output.page_flip.late) == ([7], 1, 0)


@pytest.mark.parametrize("how", ["never seen", "hidden meanwhile", "server lost"])
async def test_the_timer_ends_a_flip_that_is_not_seen(rig: Rig, how: str) -> None:
    await rig.output.enable(rig.frame, WHOLE)
    rig.painter.set_visible(how != "never seen")
    rig.output.flip(rig.frame, 7)
    if how == "hidden meanwhile":
        rig.painter.set_visible(False)
    elif how == "server lost":
        rig.set_server(None)
    await trio.sleep(1.5 * PERIOD)
    assert (rig.ended, rig.output.page_flip.shown, rig.output.page_flip.late) == ([7], 0, 0)
    rig.painter.on_read(rig.painter.serial)  # the frame is drawn when the window is back
    assert rig.output.page_flip.shown == 0


async def test_a_late_server_stalls_one_flip_only(rig: Rig) -> None:
    """A late server causes one warning. The next flips end by the timer, until the server has read a frame again."""
    await rig.output.enable(rig.frame, WHOLE)
    rig.painter.set_visible(True)
    with structlog.testing.capture_logs() as logs:
        rig.output.flip(rig.frame, 0)
        await trio.sleep(LATE + LATE_CHECK)
        assert (rig.ended, rig.output.state) == ([0], OutputState.STALLED)
        for token in range(1, 5):
            rig.output.flip(rig.frame, token)
            await trio.sleep(1.5 * PERIOD)
        assert rig.ended == list(range(5))
    assert [line["event"] for line in logs] == ["the X server is late: the guest's flips go on by the timer"]
    assert (rig.output.page_flip.late, rig.output.path) == (1, "copy")
    rig.painter.on_read(rig.painter.serial)
    assert rig.output.state is OutputState.SHOWN
    rig.output.flip(rig.frame, 5)
    await trio.sleep(LATE / 2)
    assert rig.ended == list(range(5))


async def test_a_late_server_stays_late_until_it_has_read(rig: Rig) -> None:
    """A mode set, an unmapped window and a screen that is switched off do not make the guest wait again for a server that hangs."""
    await rig.output.enable(rig.frame, WHOLE)
    rig.painter.set_visible(True)
    rig.painter.is_unread = True
    rig.output.flip(rig.frame, 0)
    await trio.sleep(LATE + LATE_CHECK)
    states = [rig.output.state]
    await rig.output.enable(rig.frame, WHOLE)
    states.append(rig.output.state)
    rig.painter.set_visible(False)
    states.append(rig.output.state)
    rig.painter.set_visible(True)
    states.append(rig.output.state)
    await rig.output.disable()
    await rig.output.enable(rig.frame, WHOLE)
    states.append(rig.output.state)
    stalled = OutputState.STALLED
    assert states == [stalled, stalled, OutputState.UNSEEN, stalled, stalled]
    rig.painter.is_unread = False
    rig.painter.on_read(None)  # a frame that the guest drew without flipping
    assert (rig.output.state, rig.output.page_flip.late) == (OutputState.SHOWN, 1)


async def test_no_flip_is_told_after_release(rig: Rig) -> None:
    await rig.output.enable(rig.frame, WHOLE)
    rig.output.flip(rig.frame, 7)
    await rig.output.release()
    await trio.sleep(1)
    assert rig.ended == []


STEPS = ["enable", "disable", "flip", "forget", "map", "unmap", "read", "stale", "lost", "found", "refresh", "wait"]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_each_flip_ends_once_and_the_state_is_right(steps: list[str]) -> None:
    """Each flip ends once and in order, whatever happens; the state follows from power, server and window."""

    async def main() -> None:
        rig = Rig()
        output, painter, begun = rig.output, rig.painter, 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.desktop.clock.run)
            for step in steps:
                match step:
                    case "enable":
                        await output.enable(rig.frame, WHOLE)
                    case "disable":
                        await output.disable()
                    case "flip" if output.state is not OutputState.OFF and len(rig.ended) == begun:
                        output.flip(rig.frame, begun)
                        begun += 1
                    case "forget":
                        await rig.frame.aclose()
                    case "map" if rig.desktop.server is not None:
                        painter.set_visible(True)
                    case "unmap":
                        painter.set_visible(False)
                    case "read":
                        painter.on_read(painter.serial)
                    case "stale":
                        painter.on_read(painter.serial - 1)
                    case "lost":
                        rig.set_server(None)
                    case "found":
                        rig.set_server(object())
                    case "refresh":
                        await trio.sleep(1.5 * PERIOD)
                    case "wait":
                        await trio.sleep(LATE + LATE_CHECK)
                if output.state is OutputState.UNSEEN:
                    assert not painter.visible
                    assert output.page_flip.state is not FlipState.WAITING
                elif output.state is not OutputState.OFF:
                    assert painter.visible
                if output.state is OutputState.STALLED:
                    assert output.page_flip.state is not FlipState.WAITING
                assert rig.ended == list(range(len(rig.ended)))
            await trio.sleep(LATE + 2 * LATE_CHECK)
            nursery.cancel_scope.cancel()
        assert rig.ended == list(range(begun))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
