"""Events of an X server's keyboard and pointer reach the guest through the wl_seat of a real Weston. (It has no touch device.)"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hostile.window_attacks import ATTACKS, WINDOW_SIZE, screen
from scenario.world import until
from sinks.headless_weston import weston
from sinks.window_guest import both_connected, on_compositor, show_bars, window_guest
from sinks.x11.xvfb import User, Xvfb

from displbe.backend.quota import Limits
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
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
        async with weston(folder, display=server.display) as compositor:
            settings, bindings = on_compositor(compositor.socket), f"K:{OUTPUT};P:{OUTPUT}"
            async with window_guest(folder / "xen", settings, OUTPUT, SIZE, bindings) as guest:
                await _used(guest, user)


@contextlib.asynccontextmanager
async def _desktop(folder: Path) -> AsyncIterator[tuple[Xen, User, int]]:
    """Run a daemon whose guests are windows of Weston. Return the user of the X server on which Weston runs, and Weston's window there."""
    async with contextlib.AsyncExitStack() as stack:
        user = stack.enter_context(User.of(server := stack.enter_context(Xvfb.running())))
        compositor = await stack.enter_async_context(weston(folder, display=server.display))
        await until(user.windows)
        (window,) = user.windows()
        user.focus(window)  # before any guest has a window: Weston then focuses each one that it maps
        user.point(600, 400)
        xen = await stack.enter_async_context(Xen(folder / "xen").running())
        settings = Settings(
            sink="wayland",
            wayland=WaylandSettings(display=str(compositor.socket)),
            limits=Limits(modesets_per_second=10_000.0, reconnects_per_second=1000.0),
            control=ControlSettings(socket=""),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
            yield xen, user, window
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _shown(xen: Xen, domid: int, name: str) -> AsyncIterator[Guest]:
    """Run a guest with a screen and a keyboard, which shows a picture."""
    connector, vkb = ConnectorSpec(name, *WINDOW_SIZE), {"unique-id": f"K:{name}"}
    async with Guest.booted(xen, domid, connector, vkb=vkb, name=name) as guest:
        await both_connected(guest)
        await screen(guest)
        yield guest


async def test_a_guest_cannot_take_the_keyboard(folder: Path) -> None:
    """The user types into the window of one guest. Whatever another guest does with its screen, each key goes to the first."""
    async with (
        _desktop(folder) as (xen, user, window),
        _shown(xen, 1, "attacker") as attacker,
        _shown(xen, 2, "victim") as victim,  # the compositor focuses the window that it maps last
    ):
        await _focused(victim, user, window)
        attacker.input.events.clear()
        await _typed(victim, user)
        for attack in ATTACKS:
            await attack(attacker)
            dbuf, fb, buffer = await screen(attacker)
            await trio.sleep(0.3)  # until the compositor has drawn
            await _typed(victim, user)
            await attacker.display.hide(0)
            await attacker.display.destroy_framebuffer(dbuf, fb, buffer)
        assert attacker.input.events == []


async def test_a_guest_that_reboots_cannot_take_the_keyboard(folder: Path) -> None:
    """The user types into the window of one guest. However often another guest reboots itself, each key goes to the first."""
    reboots = trio.Event()

    async def run_attacker(xen: Xen, *, task_status: trio.TaskStatus[None]) -> None:
        async with _shown(xen, 1, "attacker"):
            task_status.started()
            await reboots.wait()

    async with _desktop(folder) as (xen, user, window), trio.open_nursery() as nursery:
        await nursery.start(run_attacker, xen)
        async with _shown(xen, 2, "victim") as victim:
            await _focused(victim, user, window)
            reboots.set()
            await until(lambda: not nursery.child_tasks)
            for domid in range(3, 6):
                await _typed(victim, user)
                async with _shown(xen, domid, "attacker") as attacker:
                    await trio.sleep(0.3)  # until the compositor has drawn
                    await _typed(victim, user)
                    assert attacker.input.events == []


async def _focused(guest: Guest, user: User, window: int) -> None:
    """Wait until the guest's window has the keyboard."""
    with trio.fail_after(30):
        while guest.input.pressed != {KEY_A}:
            user.key(KEY_A, False)
            user.focus(window)  # repeated, because the compositor maps the windows after a while
            user.key(KEY_A, True)
            await trio.sleep(0.5)
    user.key(KEY_A, False)
    await until(lambda: not guest.input.pressed)


async def _typed(guest: Guest, user: User) -> None:
    """Press and release a key: the guest gets it."""
    user.key(KEY_A, True)
    await until(lambda: guest.input.pressed == {KEY_A})
    user.key(KEY_A, False)
    await until(lambda: not guest.input.pressed)


async def _used(guest: Guest, user: User) -> None:
    """Show a framebuffer of the guest, and use keyboard and pointer. (Weston chooses the place of the window.)"""
    await show_bars(guest, SIZE)
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
        async with weston(folder, display=server.display) as compositor:
            settings, bindings = on_compositor(compositor.socket), bound.format(OUTPUT)
            async with window_guest(folder / "xen", settings, OUTPUT, SIZE, bindings) as guest:
                await _cursor_is(guest, user, arrow)


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
