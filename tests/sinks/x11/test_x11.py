"""The X11 sink against a real X server, observed by another client of it: pictures, flips, windows, keys."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import partial

import pytest
import structlog.testing
import trio
from memory_watch import MemoryWatch
from PIL import Image, ImageChops
from scenario.world import spec, until
from sinks.x11.conftest import Worlds, output_of, reopen, sink_of
from sinks.x11.xvfb import SIZE, Manager, User, Xvfb

from displbe.sim.guest import DisplayBuffer, Guest, GuestFailure
from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    KeyboardLocks,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
)
from displbe.sinks.x11 import output as output_module
from displbe.sinks.x11 import server as server_module
from displbe.sinks.x11 import sink as sink_module
from displbe.sinks.x11.output import OutputState
from displbe.sinks.x11.server import Event, Server, ServerUnreachable
from displbe.wire.formats import FORMATS, fourcc

WIDTH, HEIGHT = 96, 64
RAW = {"XR24": "BGRX", "AR24": "BGRX", "RG16": "BGR;16", "XR15": "BGR;15", "AR15": "BGR;15"}
"""DRM format -> Pillow's raw mode."""


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def as_shown(pixels: bytes, name: str = "XR24", width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """The picture that a screen shows for these pixels."""
    return Image.frombytes("RGB", (width, height), pixels, "raw", RAW[name])


def the_window(user: User) -> int:
    """The only window on the screen."""
    (window,) = user.windows()
    return window


def at(user: User, left: int, top: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return user.picture().crop((left, top, left + width, top + height))


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


async def framebuffer(guest: Guest, seed: int, name: str = "XR24") -> tuple[int, DisplayBuffer, bytes]:
    """Make a framebuffer of noise. Return its cookie, its buffer and its pixels."""
    _, fb, buffer = await guest.display.create_framebuffer(WIDTH, HEIGHT, name)
    pixels = noise(WIDTH * HEIGHT * FORMATS[fourcc(name)].bits // 8, seed)
    buffer.pixels[: len(pixels)] = pixels
    return fb, buffer, pixels


async def show(guest: Guest, seed: int = 1, name: str = "XR24") -> tuple[int, DisplayBuffer, bytes]:
    """Make a framebuffer of noise and show it."""
    made = await framebuffer(guest, seed, name)
    await guest.display.show(0, made[0], WIDTH, HEIGHT, FORMATS[fourcc(name)].bits)
    return made


async def seen(user: User, picture: Image.Image, left: int = 0, top: int = 0) -> None:
    """Wait until this picture is on the screen."""
    await until(lambda: same(at(user, left, top, *picture.size), picture), 10)


@pytest.mark.parametrize("name", RAW)
async def test_formats(worlds: Worlds, xvfb: Xvfb, user: User, name: str) -> None:
    """The window shows each pixel that the guest draws; colours of fewer than 8 bits are as near as possible."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        _, _, pixels = await show(guest, 1, name)
        wanted = as_shown(pixels, name)

        def there() -> bool:
            difference = max(ImageChops.difference(at(user, 0, 0), wanted).tobytes())
            return difference <= (0 if FORMATS[fourcc(name)].bits == 32 else 8)

        await until(there, 10)


@pytest.mark.parametrize("name", ["RG24", "YUYV"])
async def test_formats_that_x_does_not_have(worlds: Worlds, xvfb: Xvfb, name: str) -> None:
    """Such formats are refused when the framebuffer is attached, while the guest can still choose another one."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        await until(lambda: sink_of(world).desktop.server is not None)
        with pytest.raises(GuestFailure):
            await guest.display.create_framebuffer(WIDTH, HEIGHT, name)


async def test_flips(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """Every flip ends once, in order, and the window shows its frame then."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        frames = [await framebuffer(guest, seed) for seed in range(3)]
        await guest.display.show(0, frames[0][0], WIDTH, HEIGHT)
        await seen(user, as_shown(frames[0][2]))
        for turn in range(1, 31):
            fb, _, pixels = frames[turn % 3]
            await guest.display.connectors[0].flip(fb)
            assert same(at(user, 0, 0), as_shown(pixels)), turn
        assert guest.display.connectors[0].flips_done == [frames[turn % 3][0] for turn in range(1, 31)]
        output = output_of(world)
        assert (output.page_flip.shown, output.page_flip.late) == (30, 0)
        await until(lambda: output.path == "copy")
        assert output.state is OutputState.SHOWN


async def test_a_flip_waits_for_the_server(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip does not end before the server has read its frame, so that the guest does not overwrite it, whatever else the server sends."""
    monkeypatch.setattr(output_module, "LATE", 1000.0)
    heard = Heard()
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
            frames = [await framebuffer(guest, seed) for seed in range(2)]
            await guest.display.show(0, frames[0][0], WIDTH, HEIGHT)
            await seen(user, as_shown(frames[0][2]))
            display = guest.display.connectors[0]
            user.core.GrabServer()  # the server handles no requests of others, and still sends them events
            async with trio.open_nursery() as nursery:
                nursery.start_soon(display.flip, frames[1][0])
                for _ in range(3):
                    await heard.expect(PointerEnter(5, 5, WIDTH, HEIGHT), do=lambda: user.point(5, 5))
                    await heard.expect(PointerLeave(), do=lambda: user.point(500, 400))
                assert display.flips_done == []
                user.core.UngrabServer()
                user.done()
            assert display.flips_done == [frames[1][0]]
            assert same(at(user, 0, 0), as_shown(frames[1][2]))


async def test_drawing_without_flips(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The window follows a guest that draws into the frame on the screen (Xorg, a text console)."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        _, buffer, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        for seed in range(5, 8):
            pixels = noise(len(pixels), seed)
            buffer.pixels[: len(pixels)] = pixels
            await seen(user, as_shown(pixels))


async def manager_told(user: User, message: tuple[int, tuple[int, ...]]) -> None:
    """Wait until the window manager gets this client message."""
    with trio.fail_after(5):
        while message not in user.heard():
            await trio.sleep(0.01)


BLACK = (0, 0, 0)


@pytest.mark.parametrize(
    ("scale", "window", "where"),
    [
        ("fit", (WIDTH * 2, HEIGHT * 2), (0, 0, WIDTH * 2, HEIGHT * 2)),
        ("fit", (WIDTH * 3, HEIGHT * 2), (WIDTH // 2, 0, WIDTH * 2, HEIGHT * 2)),
        ("fit", (WIDTH, HEIGHT * 2), (0, HEIGHT // 2, WIDTH, HEIGHT)),
        ("stretch", (WIDTH * 3, HEIGHT * 2), (0, 0, WIDTH * 3, HEIGHT * 2)),
        ("none", (WIDTH * 3, HEIGHT * 2), (WIDTH, HEIGHT // 2, WIDTH, HEIGHT)),
    ],
)
async def test_sizes(
    worlds: Worlds, xvfb: Xvfb, user: User, scale: str, window: tuple[int, int], where: tuple[int, int, int, int]
) -> None:
    """In a window of another size, the picture is where it should be, and everything around it is black."""
    async with worlds(xvfb.display, scale=scale) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        _, buffer, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        # There are four areas of one colour each, because scaling does not change the colour in their middles.
        upper = b"\x10\x20\xf0\0" * (WIDTH // 2) + b"\x10\xf0\x20\0" * (WIDTH // 2)
        lower = b"\xf0\x20\x10\0" * (WIDTH // 2) + b"\xf0\xf0\xf0\0" * (WIDTH // 2)
        buffer.pixels[: len(pixels)] = upper * (HEIGHT // 2) + lower * (HEIGHT // 2)
        user.resize(the_window(user), *window)
        small = as_shown(bytes(buffer.pixels[: len(pixels)]))
        left, top, width, height = where
        wanted = Image.new("RGB", window, BLACK)
        wanted.paste(small.resize((width, height), Image.Resampling.NEAREST), (left, top))

        def there() -> bool:
            got = at(user, 0, 0, *window)
            corners = [(fx, fy) for fx in (0.25, 0.75) for fy in (0.25, 0.75)]
            middles = [(left + int(width * fx), top + int(height * fy)) for fx, fy in corners]
            borders = [(0, 0), (window[0] - 1, 0), (0, window[1] - 1), (window[0] - 1, window[1] - 1)]
            return all(got.getpixel(point) == wanted.getpixel(point) for point in (*middles, *borders))

        await until(there, 10)


async def test_off_and_on(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The window is black while the guest's screen is off. It stays, so that a key can wake the guest."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        window = the_window(user)
        await guest.display.hide(0)
        await seen(user, Image.new("RGB", (WIDTH, HEIGHT), BLACK))
        assert the_window(user) == window
        assert output_of(world).state is OutputState.OFF
        await guest.display.show(0, fb, WIDTH, HEIGHT)
        await seen(user, as_shown(pixels))
    assert user.windows() == []


async def test_buffer_goes(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The last frame stays when the guest destroys its buffer. The guest can show another frame of another size then."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        dbuf, fb, buffer = await guest.display.create_framebuffer(WIDTH, HEIGHT)
        pixels = noise(WIDTH * HEIGHT * 4, 3)
        buffer.pixels[: len(pixels)] = pixels
        await guest.display.show(0, fb, WIDTH, HEIGHT)
        await seen(user, as_shown(pixels))
        await guest.display.destroy_framebuffer(dbuf, fb, buffer)
        user.resize(the_window(user), WIDTH + 1, HEIGHT)  # the window is drawn again
        user.resize(the_window(user), WIDTH, HEIGHT)
        await seen(user, as_shown(pixels))
        _, small, other = await guest.display.create_framebuffer(40, 30)
        other.pixels[: 40 * 30 * 4] = noise(40 * 30 * 4, 4)
        await guest.display.show(0, small, 40, 30)
        await seen(user, as_shown(noise(40 * 30 * 4, 4), width=40, height=30))
        assert user.core.GetGeometry(the_window(user)).reply().width == 40


async def test_two_guests(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """Each guest has a window of its own."""
    async with (
        worlds(xvfb.display) as world,
        world.guest(1, spec("ONE", WIDTH, HEIGHT)) as one,
        world.guest(2, spec("TWO", WIDTH, HEIGHT)) as two,
    ):
        await show(one, 1)
        await show(two, 2)
        await until(lambda: len(user.windows()) == 2)
        titles = sorted(user.property(window, "_NET_WM_NAME") for window in user.windows())
        assert [title.split(b": ")[1] for title in titles] == [b"ONE", b"TWO"]


async def test_no_server_yet(worlds: Worlds) -> None:
    """Without a server the daemon is ready and the guest's flips go on. Its picture appears when the server does."""
    with Xvfb.running() as chosen:
        number = chosen.number
    async with worlds(f":{number}") as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        fb, _, pixels = await show(guest)
        for _ in range(5):
            await guest.display.connectors[0].flip(fb)
        assert output_of(world).state is OutputState.UNSEEN
        with Xvfb.running(number) as server, User.of(server) as user:
            await seen(user, as_shown(pixels))


async def test_server_killed(worlds: Worlds) -> None:
    """When the server crashes, the guest's flips go on, and its picture is back as soon as the server is, each time."""
    with Xvfb.running() as first:
        number = first.number
        async with worlds(first.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
            frames = [await framebuffer(guest, seed) for seed in range(2)]
            await guest.display.show(0, frames[0][0], WIDTH, HEIGHT)
            with User.of(first) as user:
                await seen(user, as_shown(frames[0][2]))
            first.kill()
            for turn in range(1, 8):
                await guest.display.connectors[0].flip(frames[turn % 2][0])
            for _ in range(2):
                with Xvfb.running(number) as again:
                    with User.of(again) as user:
                        await seen(user, as_shown(frames[1][2]))
                    again.kill()
                    await guest.display.connectors[0].flip(frames[1][0])


async def test_server_hangs(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server hangs, flips end by the timer. When it goes on, it shows the newest frame."""
    monkeypatch.setattr(server_module, "HANG", 1000.0)
    with Xvfb.running() as server:
        async with worlds(server.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
            frames = [await framebuffer(guest, seed) for seed in range(2)]
            await guest.display.show(0, frames[0][0], WIDTH, HEIGHT)
            with User.of(server) as user:
                await seen(user, as_shown(frames[0][2]))
                server.hang()
                for turn in range(1, 10):
                    await guest.display.connectors[0].flip(frames[turn % 2][0])
                assert output_of(world).page_flip.late == 1
                assert output_of(world).state is OutputState.STALLED
                server.go_on()
                await seen(user, as_shown(frames[1][2]))
                await until(lambda: output_of(world).state is OutputState.SHOWN)
                await guest.display.connectors[0].flip(frames[0][0])
                await seen(user, as_shown(frames[0][2]))


async def test_server_hangs_for_long(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests must not pile up: a server that hangs for long counts as lost, and is connected again when it goes on."""
    monkeypatch.setattr(server_module, "HANG", 0.2)
    with Xvfb.running() as server:
        async with worlds(server.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
            frames = [await framebuffer(guest, seed) for seed in range(2)]
            await guest.display.show(0, frames[0][0], WIDTH, HEIGHT)
            with User.of(server) as user:
                await seen(user, as_shown(frames[0][2]))
            connected = sink_of(world).desktop.server
            server.hang()
            await guest.display.connectors[0].flip(frames[1][0])
            await until(lambda: sink_of(world).desktop.server is None, 10)
            for turn in range(5):
                await guest.display.connectors[0].flip(frames[turn % 2][0])
            server.go_on()
            with User.of(server) as user:
                await seen(user, as_shown(frames[0][2]))
                assert len(user.windows()) == 1
            assert sink_of(world).desktop.server is not connected


async def test_window_manager(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The properties of the window, and its answer to _NET_WM_PING."""
    async with (
        worlds(xvfb.display, fullscreen=True, scale="none") as world,
        world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
    ):
        _, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        window = the_window(user)
        assert user.property(window, "_NET_WM_STATE") == user.atom("_NET_WM_STATE_FULLSCREEN").to_bytes(4, "little")
        assert user.property(window, "WM_CLASS") == b"displbe\0displbe\0"
        size = b"".join(value.to_bytes(4, "little") for value in (WIDTH, HEIGHT))
        assert user.property(window, "WM_NORMAL_HINTS")[20:36] == size * 2
        user.manage()
        user.message(window, "_NET_WM_PING", 77, window)
        answer = (user.atom("WM_PROTOCOLS"), (user.atom("_NET_WM_PING"), 77, window, 0, 0))
        await manager_told(user, answer)


@pytest.mark.parametrize("policy", ["ignore", "detach", "iconify"])
async def test_close(worlds: Worlds, xvfb: Xvfb, user: User, policy: str) -> None:
    """The guest goes on when the user closes the window, with each policy."""
    async with (
        worlds(xvfb.display, on_close=policy) as world,
        world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
    ):
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        window = the_window(user)
        user.manage()
        user.message(window, "WM_DELETE_WINDOW")
        if policy == "detach":
            await until(lambda: not user.windows())
        elif policy == "iconify":
            await manager_told(user, (user.atom("WM_CHANGE_STATE"), (3, 0, 0, 0, 0)))
        for _ in range(5):
            await guest.display.connectors[0].flip(fb)
        assert (user.windows() == []) == (policy == "detach")
        assert output_of(world).state is (OutputState.UNSEEN if policy == "detach" else OutputState.SHOWN)
        await until(lambda: output_of(world).path == ("" if policy == "detach" else "copy"))
        await guest.display.show(0, fb, WIDTH, HEIGHT)
        assert (user.windows() == []) == (policy == "detach")
        reopen(world)
        await seen(user, as_shown(pixels))


@pytest.mark.parametrize("policy", ["detach", "iconify"])
async def test_full_screen_again(worlds: Worlds, policy: str) -> None:
    """Under a window manager, a full-screen window that was closed is full-screen again when the operator opens it. Its guest cannot."""
    with Xvfb.running() as server, Manager.of(server) as manager, User.of(server) as user:
        async with (
            worlds(server.display, on_close=policy, fullscreen=True) as world,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(manager.run)
            async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                fb, _, _ = await show(guest)
                for _ in range(3):
                    await until(lambda: [size_of(user, window) for window in user.windows()] == [SIZE])
                    window = the_window(user)
                    user.message(window, "WM_DELETE_WINDOW")
                    await until(lambda: not user.windows())
                    gone = manager.withdrawn if policy == "detach" else manager.icons
                    await until(partial(gone.__contains__, window))
                    await until(lambda: output_of(world).state is OutputState.UNSEEN)
                    user.resize(
                        window, WIDTH, HEIGHT
                    )  # the window manager chooses the size anew when the window is shown again
                    await guest.display.hide(0)
                    await guest.display.show(0, fb, WIDTH, HEIGHT)
                    await guest.display.connectors[0].flip(fb)
                    assert user.windows() == []
                    assert "displbectl reopen" in output_of(world).reason
                    reopen(world)
            nursery.cancel_scope.cancel()


def size_of(user: User, window: int) -> tuple[int, int]:
    geometry = user.core.GetGeometry(window).reply()
    return geometry.width, geometry.height


class Heard(list[SeatEvent]):
    """The input events of one guest, without PointerFrame."""

    def hear(self, event: SeatEvent) -> None:
        """The callback for Seats.listening."""
        if not isinstance(event, PointerFrame):
            self.append(event)

    async def expect(self, *events: SeatEvent, do: Callable[[], None] = lambda: None) -> None:
        """Do something, and assert that exactly these events follow."""
        self.clear()
        do()
        await until(lambda: len(self) >= len(events))
        await trio.sleep(0.02)
        assert list(self) == list(events)


def send(user: User, window: int, event: bytes) -> None:
    """Send an event to a window's owner, as any client of the server can."""
    user.core.SendEvent(False, window, 0, event)
    user.done()


@pytest.mark.parametrize("scale", ["fit", "stretch", "none"])
async def test_a_window_of_no_size(worlds: Worlds, xvfb: Xvfb, user: User, scale: str) -> None:
    """Any client can say that the window is 0x0. The server never makes such a window, so it is not believed."""
    async with worlds(xvfb.display, scale=scale) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        server, window = sink_of(world).desktop.server, the_window(user)
        for size in ((0, 0), (0, HEIGHT), (WIDTH, 0)):
            send(user, window, struct.pack("=BxHIIIhhHHHBx", 22, 0, window, window, 0, 0, 0, *size, 0, 0) + bytes(4))
        for _ in range(3):
            await guest.display.connectors[0].flip(fb)
        user.resize(window, WIDTH, HEIGHT)
        await seen(user, as_shown(pixels))
        assert sink_of(world).desktop.server is server


async def test_a_window_that_another_client_destroys(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The connection stays, and the guest goes on unseen, through mode sets and off and on."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        server = sink_of(world).desktop.server
        user.core.DestroyWindow(the_window(user))
        user.done()
        await until(lambda: output_of(world).state is OutputState.UNSEEN)
        for _ in range(3):
            await guest.display.connectors[0].flip(fb)
        await guest.display.hide(0)
        await guest.display.show(0, fb, WIDTH, HEIGHT)
        await guest.display.connectors[0].flip(fb)
        assert user.windows() == []
        reopen(world)
        await seen(user, as_shown(pixels))
        assert sink_of(world).desktop.server is server


async def test_events_of_any_bytes(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """Whatever a client sends to the window, the connection stays, and the guest flips."""
    chance = random.Random(8)
    async with (
        worlds(xvfb.display, on_close="ignore") as world,
        world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
    ):
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        server, window = sink_of(world).desktop.server, the_window(user)
        ours = window.to_bytes(4, "little")
        for _ in range(400):
            event = bytearray(chance.randbytes(32))
            event[0] = chance.choice([*range(2, 35), *range(64, 100)])
            for at in chance.sample((4, 8, 12), 2):
                event[at : at + 4] = ours
            user.core.SendEvent(False, window, 0, bytes(event))
        user.done()
        for _ in range(5):
            await guest.display.connectors[0].flip(fb)
        assert sink_of(world).desktop.server is server


async def test_a_handler_that_fails_costs_its_event(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection and the guest go on, and the traceback is written once."""
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        fb, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        server, window = sink_of(world).desktop.server, the_window(user)
        assert server is not None
        handle, failed = server.on_event[window], []

        def fail(event: Event) -> None:
            failed.append(event)
            raise ZeroDivisionError

        server.on_event[window] = fail
        with structlog.testing.capture_logs() as logs:
            user.resize(window, WIDTH * 2, HEIGHT)
            user.resize(window, WIDTH, HEIGHT)
            await until(lambda: len(failed) > 1)
            for _ in range(3):
                await guest.display.connectors[0].flip(fb)
        assert sink_of(world).desktop.server is server
        written = [line["reason"] for line in logs if line["event"] == "X event ignored: its handler failed"]
        assert written
        assert len(set(written)) == len(written)
        server.on_event[window] = handle


async def test_a_server_that_cannot_be_used_is_tried_again(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot be parsed does not end the daemon, neither at the start nor later."""
    monkeypatch.setattr(sink_module, "RETRY", 0.02)
    begin, find, mistakes = Server._begin, Server._next_event, [IndexError("roots"), AssertionError()]

    def fail(server: Server) -> None:
        if len(mistakes) == 2:
            raise mistakes.pop()
        begin(server)

    def fail_later(server: Server) -> Event | None:
        if mistakes:
            raise mistakes.pop()
        return find(server)

    monkeypatch.setattr(Server, "_begin", fail)
    monkeypatch.setattr(Server, "_next_event", fail_later)
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        _, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        assert not mistakes
    with pytest.raises(ServerUnreachable, match="no X server"):
        Server(":\N{EURO SIGN}")


async def test_keyboard(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The guest whose window has the focus gets keys as Linux key codes, and the keys that are down when it gets the focus."""
    heard = Heard()
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
            _, _, pixels = await show(guest)
            await seen(user, as_shown(pixels))
            window = the_window(user)
            user.key(42, True)  # left shift, before the window has the focus
            await heard.expect(KeyboardEnter((42,)), do=lambda: user.focus(window))
            await heard.expect(KeyboardKey(42, False), do=lambda: user.key(42, False))
            await heard.expect(KeyboardLocks(False, False), KeyboardKey(30, True), do=lambda: user.key(30, True))
            await trio.sleep(1)  # the server repeats the key; the guest does not get the repetitions
            assert heard == [KeyboardLocks(False, False), KeyboardKey(30, True)]
            await heard.expect(KeyboardLeave(), do=lambda: user.focus(user.root))
            await heard.expect(do=lambda: user.key(30, False))


async def test_pointer(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """Positions are relative to the picture, wherever it lies in the window; buttons and wheel have Linux's codes."""
    heard = Heard()
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
            _, _, pixels = await show(guest)
            await seen(user, as_shown(pixels))
            window = the_window(user)
            user.resize(window, WIDTH * 3, HEIGHT * 2)  # twice as large, black at both sides
            await until(lambda: user.picture().getpixel((WIDTH * 2, HEIGHT)) != BLACK)
            size = WIDTH * 2, HEIGHT * 2
            inside = WIDTH // 2 + 30, 50
            await heard.expect(PointerEnter(30, 50, *size), do=lambda: user.point(*inside))
            await heard.expect(PointerMotion(0, 60, *size), do=lambda: user.point(3, 60))  # on the border
            await heard.expect(PointerMotion(30, 50, *size), do=lambda: user.point(*inside))
            for number, code in ((1, 0x110), (2, 0x112), (3, 0x111), (8, 0x113), (9, 0x114)):
                await heard.expect(PointerButton(code, True), do=partial(user.button, number, True))
                await heard.expect(PointerButton(code, False), do=partial(user.button, number, False))
            for number, turned in ((4, (120, 0)), (5, (-120, 0)), (6, (0, -120)), (7, (0, 120))):
                await heard.expect(PointerAxis(*turned), do=partial(user.button, number, True))
                await heard.expect(do=partial(user.button, number, False))
            # Out of the window with a button down: the pointer leaves when the button is released.
            await heard.expect(PointerButton(0x110, True), do=partial(user.button, 1, True))
            await heard.expect(PointerMotion(WIDTH * 2, HEIGHT * 2, *size), do=lambda: user.point(500, 400))
            await heard.expect(PointerButton(0x110, False), PointerLeave(), do=lambda: user.button(1, False))


async def test_keyboard_without_window_manager(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """If no window has the focus, the window under the pointer gets the keys, until the pointer leaves it."""
    heard = Heard()
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
            _, _, pixels = await show(guest)
            await seen(user, as_shown(pixels))
            await heard.expect(PointerEnter(5, 5, WIDTH, HEIGHT), do=lambda: user.point(5, 5))
            await heard.expect(
                KeyboardEnter(()), KeyboardLocks(False, False), KeyboardKey(30, True), do=lambda: user.key(30, True)
            )
            await heard.expect(KeyboardLeave(), PointerLeave(), do=lambda: user.point(500, 400))
            user.key(30, False)


@pytest.mark.parametrize("how", ["server", "guest", "detach"])
async def test_focus_is_lost_with_the_window(worlds: Worlds, how: str) -> None:
    """A key that is down when the window disappears is released, whatever the cause."""
    heard = Heard()
    with Xvfb.running() as server, User.of(server) as user:
        async with worlds(server.display, on_close="detach") as world:
            with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
                async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                    _, _, pixels = await show(guest)
                    await seen(user, as_shown(pixels))
                    user.focus(the_window(user))
                    await heard.expect(
                        KeyboardEnter(()),
                        KeyboardLocks(False, False),
                        KeyboardKey(30, True),
                        do=lambda: user.key(30, True),
                    )
                    heard.clear()
                    if how == "server":
                        server.kill()
                    elif how == "detach":
                        user.message(the_window(user), "WM_DELETE_WINDOW")
                    if how != "guest":
                        await until(lambda: KeyboardLeave() in heard)
                await until(lambda: KeyboardLeave() in heard)
                assert heard == [KeyboardLeave()]


async def test_frames_of_many_sizes_are_freed_off_the_loop(
    worlds: Worlds, xvfb: Xvfb, memory_watch: MemoryWatch
) -> None:
    """A guest shows framebuffers of other sizes and takes each back while it is copied and looked at.

    The memory shared with the X server is unmapped in worker threads, and one frame's is left.
    """
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        await until(lambda: sink_of(world).desktop.server is not None)
        for turn in range(12):
            width = WIDTH - 8 * (turn % 4)
            made = await guest.display.create_framebuffer(width, HEIGHT)
            made[2].pixels[:] = bytes([turn]) * len(made[2].pixels)
            await guest.display.show(0, made[1], width, HEIGHT)
            await trio.sleep(0.03 * (turn % 3))
            await guest.display.destroy_framebuffer(*made)  # it asserts that nothing maps the pages
        await show(guest)
        await until(lambda: output_of(world).path == "copy")
        places = memory_watch.open
        await until(lambda: [place[:19] for place in places.values()].count("sinks/x11/window.py") == 1)
