"""`displbe demo`: a simulated Xen in this process, a guest that draws, the real daemon, and the guest's picture as PNG."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final

import trio

from displbe.config import HeadlessSettings, Settings
from displbe.daemon import Daemon
from displbe.sim.guest import Frontend, Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec

__all__ = ["run_demo"]

CONNECTOR: Final = ConnectorSpec("DEMO-1", 800, 600)


async def run_demo(output: str, frames: int) -> None:
    """Boot a guest, let it flip so many frames, write what its output shows."""
    with tempfile.TemporaryDirectory(prefix="displbe-demo-") as folder:
        async with Xen(Path(folder)).running() as xen, trio.open_nursery() as nursery:
            settings = Settings(sink="headless", headless=HeadlessSettings(outputs=[CONNECTOR.name]))
            daemon = Daemon(settings, xen.hypervisor(0))
            from displbe.sinks.headless import HeadlessOutput  # had Pillow been missing, the daemon would have said so

            await nursery.start(daemon.run)
            async with Guest.booted(xen, 1, CONNECTOR) as guest:
                await guest.display.connected.wait()
                await _draw(guest.display, frames)
                shown = daemon.sink.claimed(CONNECTOR.name)
                assert isinstance(shown, HeadlessOutput)
                shown.write(Path(output))
            nursery.cancel_scope.cancel()
    print(f"{frames} frames of {CONNECTOR.width}x{CONNECTOR.height} flipped; the last one is in {output}")


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
