"""Events of an X server's keyboard and pointer reach the guest through the wl_seat of a real Weston. (It has no touch device.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from scenario.world import until
from sinks.headless_weston import weston
from sinks.x11.xvfb import User, Xvfb

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest, draw_bars
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.wayland.settings import WaylandSettings

KEY_A, KEY_B, BTN_LEFT = 30, 48, 0x110
SIZE = 1024, 768
OUTPUT = "screen0"
"""The name of Weston's output on an X server."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "xen").mkdir()
    tmp_path.chmod(0o700)
    return tmp_path


async def test_keyboard_and_pointer(folder: Path) -> None:
    with Xvfb.running() as server, User.of(server) as user:
        async with weston(folder, display=server.display) as compositor, Xen(folder / "xen").running() as xen:
            settings = Settings(
                sink="wayland",
                wayland=WaylandSettings(display=str(compositor.socket)),
                control=ControlSettings(socket=""),
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
                vkb = {"unique-id": f"K:{OUTPUT};P:{OUTPUT}"}
                async with Guest.booted(xen, 1, ConnectorSpec(OUTPUT, *SIZE), vkb=vkb) as guest:
                    await _used(guest, user)
                nursery.cancel_scope.cancel()


async def _used(guest: Guest, user: User) -> None:
    """Show a framebuffer of the guest, and use keyboard and pointer. (Weston chooses the place of the window.)"""
    with trio.fail_after(30):
        await guest.display.connected.wait()
        await guest.input.connected.wait()
    _, fb, buffer = await guest.display.create_framebuffer(*SIZE)
    draw_bars(buffer.pixels, *SIZE, 0.0)
    await guest.display.show(0, fb, *SIZE)
    heard = guest.input
    (window,) = user.windows()
    user.focus(window)

    def point() -> bool:
        """Move the pointer. This is repeated, because the guest gets no events before its window is there."""
        user.point(99, 80)
        user.point(100, 80)
        return heard.position is not None

    await until(point)
    await trio.sleep(0.5)  # until all events have arrived
    assert heard.position is not None
    x, y = heard.position
    user.button(1, True)
    await until(lambda: heard.pressed == {BTN_LEFT})
    assert heard.position == (x, y)
    user.point(150, 110)
    await until(lambda: heard.position == (x + 50, y + 30))
    user.button(1, False)
    await until(lambda: not heard.pressed)
    user.key(KEY_A, True)
    await until(lambda: heard.pressed == {KEY_A})
    user.key(KEY_B, True)
    user.key(KEY_A, False)
    await until(lambda: heard.pressed == {KEY_B})
    for button in (5, 4, 4):
        user.button(button, True)
        user.button(button, False)
    await until(lambda: heard.wheel == 1)
    user.focus(user.root)
    await until(lambda: not heard.pressed)
    assert heard.warnings == []


@pytest.mark.parametrize(("bound", "arrow"), [("K:{0}", True), ("K:{0};P:{0}", False)])
async def test_cursor(folder: Path, bound: str, arrow: bool) -> None:
    """Over a guest that gets no pointer, Weston shows displbe's arrow; over one that gets it, nothing."""
    with Xvfb.running() as server, User.of(server) as user:
        async with weston(folder, display=server.display) as compositor, Xen(folder / "xen").running() as xen:
            settings = Settings(
                sink="wayland",
                wayland=WaylandSettings(display=str(compositor.socket)),
                control=ControlSettings(socket=""),
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
                vkb = {"unique-id": bound.format(OUTPUT)}
                async with Guest.booted(xen, 1, ConnectorSpec(OUTPUT, *SIZE), vkb=vkb) as guest:
                    with trio.fail_after(30):
                        await guest.display.connected.wait()
                        await guest.input.connected.wait()
                    await _cursor_is(guest, user, arrow)
                nursery.cancel_scope.cancel()


async def _cursor_is(guest: Guest, user: User, arrow: bool) -> None:
    """Wait until the screen is blue, with the arrow on it (more than 10 black and 10 white pixels) or nothing.

    Weston on an X server sometimes leaves its pointer at 0, 0 until it has left its window, so the arrow may be anywhere.
    """
    _, fb, buffer = await guest.display.create_framebuffer(*SIZE)
    buffer.pixels[: SIZE[0] * SIZE[1] * 4] = b"\xf0\x20\x10\0" * (SIZE[0] * SIZE[1])
    await guest.display.show(0, fb, *SIZE)
    blue = (0x10, 0x20, 0xF0)

    def there() -> bool:
        user.point(299, 200)
        user.point(300, 200)
        drawn = {colour: count for count, colour in user.picture().getcolors() or []}
        if drawn.get(blue, 0) < 0.9 * 640 * 480:
            return False
        if arrow:
            return drawn.get((0, 0, 0), 0) > 10 < drawn.get((255, 255, 255), 0)
        return guest.input.position is not None and set(drawn) == {blue}

    await until(there)
