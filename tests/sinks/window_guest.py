"""A guest with a window on a real compositor or X server, whose user types into it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.wayland.settings import WaylandSettings

__all__ = ["both_connected", "on_compositor", "show_bars", "window_guest"]


def on_compositor(socket: Path) -> Settings:
    """Return the settings of a daemon that shows guests on a compositor."""
    return Settings(sink="wayland", wayland=WaylandSettings(display=str(socket)), control=ControlSettings(socket=""))


@contextlib.asynccontextmanager
async def window_guest(
    folder: Path, settings: Settings, output: str, size: tuple[int, int], bindings: str
) -> AsyncIterator[Guest]:
    """Run a daemon and a guest with a display and an input device, which are connected."""
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
        async with Guest.booted(xen, 1, ConnectorSpec(output, *size), vkb={"unique-id": bindings}) as guest:
            await both_connected(guest)
            yield guest
        nursery.cancel_scope.cancel()


async def both_connected(guest: Guest) -> None:
    """Wait until the guest's display and its input device are connected."""
    with trio.fail_after(30):
        await guest.display.connected.wait()
        await guest.input.connected.wait()


async def show_bars(guest: Guest, size: tuple[int, int]) -> None:
    """Show a framebuffer with bars."""
    _, fb, buffer = await guest.display.create_framebuffer(*size)
    draw_bars(buffer.pixels, *size, 0.0)
    await guest.display.show(0, fb, *size)
