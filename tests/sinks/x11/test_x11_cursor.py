"""The cursor of a real X server over a guest's window: hidden over the picture of a guest that draws its own, and only there."""

from __future__ import annotations

import pytest
import xcffib.xfixes
from scenario.world import spec, until
from sinks.x11.conftest import Worlds, sink_of
from sinks.x11.test_x11 import BLACK, HEIGHT, WIDTH, as_shown, seen, show, the_window
from sinks.x11.xvfb import User, Xvfb

PICTURE = WIDTH // 2 + 30, 50
BORDER = 3, 60
"""Points in a window of three times the picture's width and twice its height."""


class Eye:
    """The user's eye for the cursor."""

    def __init__(self, user: User) -> None:
        self.user = user
        self._fixes = user.connection(xcffib.xfixes.key)
        self._fixes.QueryVersion(4, 0).reply()

    @property
    def cursor(self) -> bool:
        """Whether there is a cursor on the screen."""
        return any(int(pixel) >> 24 for pixel in self._fixes.GetCursorImage().reply().cursor_image)

    async def sees(self, cursor: bool) -> None:
        await until(lambda: self.cursor is cursor, 5)


async def test_one_pointer(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The server's cursor gives way to the guest's: over the picture, not on the borders, and only while the guest gets the pointer."""
    eye = Eye(user)
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        seats = sink_of(world).seats
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        user.resize(the_window(user), WIDTH * 3, HEIGHT * 2)
        await until(lambda: user.picture().getpixel((WIDTH * 2, HEIGHT)) != BLACK)
        user.point(*PICTURE)
        await eye.sees(True)
        with seats.listening(1, "HDMI-A-1", lambda event: None, pointer=False):  # a keyboard only
            await eye.sees(True)
            with seats.listening(1, "HDMI-A-1", lambda event: None):
                await eye.sees(False)
                user.point(*BORDER)
                await eye.sees(True)
                user.point(*PICTURE)
                await eye.sees(False)
                user.button(1, True)
                user.point(600, 400)  # dragged out of the window
                await eye.sees(True)
                user.button(1, False)
                user.point(*PICTURE)
                await eye.sees(False)
                await guest.display.hide(0)
                await eye.sees(True)
                await guest.display.show(0, fb, WIDTH, HEIGHT)
                await eye.sees(False)
            await eye.sees(True)


@pytest.mark.parametrize(("policy", "cursor"), [("show", True), ("hide", False)])
@pytest.mark.parametrize("pointer", [False, True])
async def test_policy(worlds: Worlds, xvfb: Xvfb, user: User, policy: str, cursor: bool, pointer: bool) -> None:
    """`show` and `hide` hold whether the guest gets the pointer or not."""
    eye = Eye(user)
    async with worlds(xvfb.display, cursor=policy) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        with sink_of(world).seats.listening(1, "HDMI-A-1", lambda event: None, pointer=pointer):
            _, _, pixels = await show(guest)
            await seen(user, as_shown(pixels))
            user.point(5, 5)
            await eye.sees(cursor)
            user.point(600, 400)
            await eye.sees(True)


@pytest.mark.parametrize(("vkb", "cursor"), [("K:HDMI-A-1;P:HDMI-A-1", False), ("K:HDMI-A-1", True)])
async def test_the_bindings_decide(worlds: Worlds, xvfb: Xvfb, user: User, vkb: str, cursor: bool) -> None:
    """A guest with `P:` gets the pointer; one without it never sees it, so the server's cursor stays."""
    eye = Eye(user)
    async with (
        worlds(xvfb.display) as world,
        world.booted(1, spec("HDMI-A-1", WIDTH, HEIGHT), vkb={"unique-id": vkb}) as guest,
    ):
        await guest.display.connected.wait()
        _, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        await guest.input.connected.wait()
        user.point(5, 5)
        await eye.sees(cursor)
