"""`displbe demo`: a simulated Xen in this process, a guest that draws, the real daemon; a window with the guest's picture, or a PNG."""

from __future__ import annotations

import math
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import trio

from displbe.config import ControlSettings, HeadlessSettings, Settings, X11Settings
from displbe.daemon import Daemon
from displbe.sim.guest import Frontend, Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec

__all__ = ["run_demo"]

NO_CONTROL: Final = ControlSettings(socket="")
CONNECTOR: Final = ConnectorSpec("DEMO-1", 800, 600)
FRAMES: Final = 120
FRAMES_IN_WINDOW: Final = 600
"""At 60 Hz: two seconds where nobody looks, ten where somebody does."""
PATIENCE: Final = 3.0
"""Seconds that an X server may take to answer."""


async def run_demo(output: str, frames: int | None, window: bool) -> None:
    """Boot a guest, let it flip so many frames in a window, or without one and then write what its output shows."""
    display = await _display() if window else ""
    if display:
        settings = Settings(sink="x11", control=NO_CONTROL, x11=X11Settings(display=display, on_close="detach"))
        frames = frames or FRAMES_IN_WINDOW
        print(f"a window on {display} shows the guest's screen for {frames / settings.x11.refresh:.0f} s", flush=True)
    else:
        settings = Settings(sink="headless", control=NO_CONTROL, headless=HeadlessSettings(outputs=[CONNECTOR.name]))
        frames = frames or FRAMES
    with tempfile.TemporaryDirectory(prefix="displbe-demo-") as folder:
        async with Xen(Path(folder)).running() as xen, trio.open_nursery() as nursery:
            daemon = Daemon(settings, xen.hypervisor(0))
            await nursery.start(daemon.run)
            async with Guest.booted(xen, 1, CONNECTOR) as guest:
                await guest.display.connected.wait()
                await _draw(guest.display, frames)
                if not display:
                    _write(daemon, output)
            nursery.cancel_scope.cancel()
    where = f"the last one is in {output}" if not display else "the window is closed"
    print(f"{frames} frames of {CONNECTOR.width}x{CONNECTOR.height} flipped; {where}")


async def _display() -> str:
    """The X server to show a window on; empty: there is none."""
    display = os.environ.get("DISPLAY", "")
    if not display or find_spec("xcffib") is None:
        return ""
    from displbe.sinks.x11.server import Refused, Server  # an extra: it may be missing

    with trio.move_on_after(PATIENCE):
        try:
            server = await trio.to_thread.run_sync(Server, display, abandon_on_cancel=True)
        except Refused as error:
            print(f"no window: {error}")
            return ""
        server.close()
        return display
    print(f"no window: {display} does not answer")
    return ""


def _write(daemon: Daemon, output: str) -> None:
    from displbe.sinks.headless import HeadlessOutput  # had Pillow been missing, the daemon would have said so

    shown = daemon.sink.claimed(CONNECTOR.name)
    assert isinstance(shown, HeadlessOutput)
    shown.write(Path(output))


async def _draw(display: Frontend, frames: int) -> None:
    """What a guest's compositor does: draw into the buffer that is not shown, flip, wait for the event."""
    width, height = CONNECTOR.width, CONNECTOR.height
    buffers = [await display.create_framebuffer(width, height) for _ in range(2)]
    draw_bars(buffers[0][2].pixels, width, height)
    await display.show(0, buffers[0][1], width, height)
    for frame in range(1, frames + 1):
        _, fb, buffer = buffers[frame % 2]
        draw_bars(buffer.pixels, width, height, math.fmod(frame / 240, 1.0))
        await display.connectors[0].flip(fb)
