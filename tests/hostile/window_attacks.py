"""What a guest does to have its window mapped, raised or focused. tests/sinks does the same on a real compositor and a real X server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from scenario.world import until

from displbe.sim.guest import DisplayBuffer, Guest
from displbe.wire.displif import FbAttach, FbDetach
from displbe.wire.formats import fourcc
from displbe.wire.xenbus import State

__all__ = ["ATTACKS", "WINDOW_SIZE", "detach_and_flip", "off_and_on", "other_sizes", "reconnect", "screen"]

WINDOW_SIZE: Final = 320, 200


async def screen(guest: Guest, size: tuple[int, int] = WINDOW_SIZE) -> tuple[int, int, DisplayBuffer]:
    """Show a white picture. Return the cookies of its buffer and framebuffer, and the buffer."""
    dbuf, fb, buffer = await guest.display.create_framebuffer(*size)
    buffer.pixels[:] = b"\xff" * len(buffer.pixels)
    await guest.display.show(0, fb, *size)
    return dbuf, fb, buffer


async def off_and_on(guest: Guest) -> None:
    """Switch the screen off and on (SET_CONFIG)."""
    dbuf, fb, buffer = await screen(guest)
    for _ in range(5):
        await guest.display.hide(0)
        await guest.display.show(0, fb, *WINDOW_SIZE)
    await guest.display.hide(0)
    await guest.display.destroy_framebuffer(dbuf, fb, buffer)


async def detach_and_flip(guest: Guest) -> None:
    """Remove the framebuffer that is shown, and flip to another one."""
    dbuf, fb, buffer = await screen(guest)
    connector, other = guest.display.connectors[0], guest.display.cookie()
    for _ in range(5):
        await connector.order(FbAttach(0, dbuf, other, *WINDOW_SIZE, fourcc("XR24")))
        await connector.order(FbDetach(0, fb))
        await connector.flip(other)
        fb, other = other, fb
    await guest.display.hide(0)
    await guest.display.destroy_framebuffer(dbuf, fb, buffer)


async def other_sizes(guest: Guest) -> None:
    """Change the mode's size."""
    for size in ((64, 48), (1, 1), WINDOW_SIZE):
        made = await screen(guest, size)
        await guest.display.hide(0)
        await guest.display.destroy_framebuffer(*made)


async def reconnect(guest: Guest) -> None:
    """Unload the driver and load it again, with a picture each time."""
    for _ in range(3):
        _, _, buffer = await screen(guest)
        await guest.display.close()
        buffer.free()
        await guest.display._switch(State.INITIALISING)
        guest.display._changed.set()
        await until(lambda: guest.display.connectors and guest.display.connected.is_set())


ATTACKS: Final[tuple[Callable[[Guest], Awaitable[None]], ...]] = off_and_on, detach_and_flip, other_sizes, reconnect
