"""`displbe demo`: a simulated Xen in this process, a guest that draws, and the real daemon, which shows a window or writes a PNG."""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Frontend, Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.x11.settings import X11Settings
from displbe.threads import run_in_thread

__all__ = ["run_demo"]

CONNECTOR: Final = ConnectorSpec("DEMO-1", 800, 600)
NO_CONTROL: Final = ControlSettings(socket="")
"""No control socket: displbectl controls the daemon that serves this machine's guests, not the demo."""
FRAMES: Final = 120
"""Page flips without a window: two seconds at 60 Hz."""
FRAMES_IN_WINDOW: Final = 600
"""Page flips in a window: ten seconds at 60 Hz."""
TIMEOUT: Final = 3.0
"""Seconds to wait for an answer of a compositor or an X server."""


async def run_demo(output: str, frames: int | None, window: bool) -> None:
    """Boot a guest that flips `frames` times in a window.

    Without `window`, or without a display server, write a PNG of its last frame to `output` instead.
    """
    settings = (await _on_wayland() or await _on_x11()) if window else None
    if settings is not None:
        display = getattr(settings, settings.sink).display
        frames = frames or FRAMES_IN_WINDOW
        print(f"a window on {display} shows the guest's screen for about {frames / 60:.0f} s", flush=True)
    else:
        frames = frames or FRAMES
    headless = Settings(sink="headless", control=NO_CONTROL, headless=HeadlessSettings(outputs=[CONNECTOR.name]))
    with (
        tempfile.TemporaryDirectory(prefix="displbe-demo-") as folder,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        async with Xen(Path(folder)).running() as xen, trio.open_nursery() as nursery:
            daemon = Daemon(settings or headless, xen.hypervisor(0))
            await nursery.start(daemon.run)
            async with Guest.booted(xen, 1, CONNECTOR) as guest:
                flipped = await _draw_until(signals, guest.display, frames)
                if settings is None and flipped:
                    _write(daemon, output)
            nursery.cancel_scope.cancel()
    where = f"the last one is in {output}" if settings is None else "the window is closed"
    print(
        f"{flipped} frames of {CONNECTOR.width}x{CONNECTOR.height} flipped; {where}"
        if flipped
        else "no frame was flipped"
    )


async def _draw_until(signals: AsyncIterator[int], display: Frontend, frames: int) -> int:
    """Draw `frames` frames, or fewer if a signal comes (Ctrl-C). Return the number of frames that were flipped."""
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            async for _ in signals:
                nursery.cancel_scope.cancel()

        nursery.start_soon(end)
        await display.connected.wait()
        await _draw(display, frames)
        nursery.cancel_scope.cancel()
    return sum(len(connector.flips_done) for connector in display.connectors)


async def _on_wayland() -> Settings | None:
    """Return settings for a window of the Wayland compositor in the environment, or None."""
    name = os.environ.get("WAYLAND_DISPLAY", "")
    if not name or find_spec("pywayland") is None:
        return None
    path = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/"), name)
    try:
        with trio.fail_after(TIMEOUT):
            await (await trio.open_unix_socket(path)).aclose()
    except (OSError, trio.TooSlowError) as error:
        print(f"no window: {path}: {error or 'no answer'}")
        return None
    return Settings(sink="wayland", control=NO_CONTROL, wayland=WaylandSettings(display=path))


async def _on_x11() -> Settings | None:
    """Return settings for a window of the X server in the environment, or None."""
    display = os.environ.get("DISPLAY", "")
    if not display or find_spec("xcffib") is None:
        return None
    from displbe.sinks.x11.server import Server, ServerUnreachable  # an extra: it may be missing

    with trio.move_on_after(TIMEOUT):
        try:
            server = await run_in_thread(Server, display, abandon_on_cancel=True)
        except ServerUnreachable as error:
            print(f"no window: {error}")
            return None
        server.close()
        return Settings(sink="x11", control=NO_CONTROL, x11=X11Settings(display=display, on_close="detach"))
    print(f"no window: {display} does not answer")
    return None


def _write(daemon: Daemon, output: str) -> None:
    # Pillow is installed; without it, the daemon would not have started.
    from displbe.sinks.headless.output import HeadlessOutput

    shown = daemon.sink.claimed(CONNECTOR.name)
    assert isinstance(shown, HeadlessOutput)
    shown.write(Path(output))


async def _draw(display: Frontend, frames: int) -> None:
    """Act as a guest's compositor: draw into the buffer that is not shown, flip, wait for the event."""
    width, height = CONNECTOR.width, CONNECTOR.height
    buffers = [await display.create_framebuffer(width, height) for _ in range(2)]
    draw_bars(buffers[0][2].pixels, width, height)
    await display.show(0, buffers[0][1], width, height)
    for frame in range(1, frames + 1):
        _, fb, buffer = buffers[frame % 2]
        draw_bars(buffer.pixels, width, height, math.fmod(frame / 240, 1.0))
        await display.connectors[0].flip(fb)
