"""Windows on a real X server that have the keyboard to themselves, keep the screen on, and fill a monitor."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest
import structlog.testing
import trio
import xcffib
import xcffib.randr
import xcffib.screensaver
import xcffib.xproto as x
from scenario.world import World, spec, until
from sinks.x11.conftest import Worlds, output_of, sink_of
from sinks.x11.test_x11 import HEIGHT, WIDTH, Heard, as_shown, seen, show, size_of, the_window
from sinks.x11.xvfb import SIZE, Manager, User, Xvfb

from displbe.sinks.seat import KeyboardKey
from displbe.sinks.x11 import sink as sink_module
from displbe.sinks.x11.keyboard_grab import GrabState, KeyboardGrab
from displbe.sinks.x11.monitors import Monitor

KEY_LEFTCTRL, KEY_LEFTALT, KEY_TAB, KEY_A = 29, 56, 15, 30
ALT = x.ModMask._1


class Shortcut:
    """A window manager with a shortcut: Alt+Tab."""

    def __init__(self, user: User) -> None:
        self.user = user
        user.core.GrabKey(False, user.root, x.ModMask.Any, KEY_TAB + 8, x.GrabMode.Async, x.GrabMode.Async)
        user.done()

    def pressed(self) -> bool:
        """Press Alt+Tab. Return whether the window manager got it."""
        for code in (KEY_LEFTALT, KEY_TAB):
            self.user.key(code, True)
        for code in (KEY_TAB, KEY_LEFTALT):
            self.user.key(code, False)
        events = []
        while (event := self.user.connection.poll_for_event()) is not None:
            events.append(event)
        return any(isinstance(event, x.KeyPressEvent) for event in events)


def chord(user: User) -> None:
    """Press and release left Ctrl and left Alt together."""
    for down in (True, False):
        for code in (KEY_LEFTCTRL, KEY_LEFTALT):
            user.key(code, down)


def grab_of(world: World) -> KeyboardGrab:
    window = output_of(world)._painter._window
    assert window is not None
    return window._grab


async def becomes(grab: KeyboardGrab, state: GrabState) -> None:
    """Wait until the grab has this state."""
    await until(lambda: grab.state is state)


@contextlib.contextmanager
def another_window(user: User) -> Iterator[int]:
    """A window of another program."""
    window = user.connection.generate_id()
    depth, visual = user.screen.root_depth, user.screen.root_visual
    user.core.CreateWindow(
        depth, window, user.root, 400, 300, 50, 50, 0, x.WindowClass.InputOutput, visual, x.CW.OverrideRedirect, [1]
    )
    user.core.MapWindow(window)
    user.done()
    yield window
    user.core.DestroyWindow(window)
    user.done()


async def test_shortcuts(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The guest with the focus gets Alt+Tab; another window's focus, and left Ctrl+Alt, give it back to the window manager."""
    with User.of(xvfb) as manager:
        shortcut = Shortcut(manager)
        async with worlds(xvfb.display, inhibit_shortcuts=True) as world:
            heard = Heard()
            with sink_of(world).seats.listening(1, "HDMI-A-1", heard.hear):
                async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                    _, _, pixels = await show(guest)
                    await seen(user, as_shown(pixels))
                    grab, window = grab_of(world), the_window(user)
                    await becomes(grab, GrabState.AWAY)
                    assert shortcut.pressed()
                    user.focus(window)
                    await becomes(grab, GrabState.GRABBED)
                    heard.clear()
                    assert not shortcut.pressed()
                    await until(lambda: KeyboardKey(KEY_TAB, True) in heard)
                    with another_window(user) as other:
                        user.focus(other)
                        await becomes(grab, GrabState.AWAY)
                        await until(shortcut.pressed)
                    user.focus(window)
                    await becomes(grab, GrabState.GRABBED)
                    chord(user)
                    await becomes(grab, GrabState.LEFT)
                    await until(shortcut.pressed)
                    heard.clear()
                    user.key(KEY_A, True)
                    user.key(KEY_A, False)
                    await until(lambda: heard[-2:] == [KeyboardKey(KEY_A, True), KeyboardKey(KEY_A, False)])
                    await becomes(grab, GrabState.LEFT)
                    chord(user)
                    await becomes(grab, GrabState.GRABBED)
                    assert not shortcut.pressed()
                    user.key(KEY_LEFTCTRL, True)
                    user.key(KEY_LEFTALT, True)
                    user.key(KEY_A, True)  # the guest's own shortcut is no way out
                    for code in (KEY_A, KEY_LEFTALT, KEY_LEFTCTRL):
                        user.key(code, False)
                    await trio.sleep(0.05)
                    await becomes(grab, GrabState.GRABBED)
            # The guest takes no keys any more: it keeps none either.
            await until(shortcut.pressed)
    user.focus(1)


@pytest.mark.parametrize("how", ["no option", "no keyboard"])
async def test_no_guest_takes_shortcuts_by_itself(worlds: Worlds, xvfb: Xvfb, user: User, how: str) -> None:
    with User.of(xvfb) as manager:
        shortcut = Shortcut(manager)
        async with worlds(xvfb.display, inhibit_shortcuts=how != "no option") as world:
            hear = sink_of(world).seats.listening(1, "HDMI-A-1", lambda event: None, keyboard=how == "no option")
            with hear:
                async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                    _, _, pixels = await show(guest)
                    await seen(user, as_shown(pixels))
                    user.focus(the_window(user))
                    await trio.sleep(0.05)
                    assert shortcut.pressed()
                    assert grab_of(world).state is (GrabState.AWAY if how == "no option" else GrabState.FOCUSED)
    user.focus(1)


async def test_a_keyboard_that_another_program_has_grabbed(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The grab comes when the other one ends: the server then gives the window the focus once more."""
    with User.of(xvfb) as other:
        async with worlds(xvfb.display, inhibit_shortcuts=True) as world:
            with sink_of(world).seats.listening(1, "HDMI-A-1", lambda event: None):
                async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                    _, _, pixels = await show(guest)
                    await seen(user, as_shown(pixels))
                    grab, window = grab_of(world), the_window(user)
                    mode = x.GrabMode.Async
                    assert other.core.GrabKeyboard(False, other.root, 0, mode, mode).reply().status == 0
                    user.focus(window)
                    await becomes(grab, GrabState.ASKED)
                    other.core.UngrabKeyboard(0)
                    other.done()
                    await becomes(grab, GrabState.GRABBED)
                    # It ends with the window, by whatever cause.
                    user.core.UnmapWindow(window)
                    user.done()
                    await becomes(grab, GrabState.AWAY)
                    assert other.core.GrabKeyboard(False, other.root, 0, mode, mode).reply().status == 0
    user.focus(1)


# Idleness


@pytest.mark.parametrize("inhibit", [False, True])
async def test_idle(worlds: Worlds, inhibit: bool) -> None:
    """The server's screen saver does not start while the guest's picture is on the screen, if so configured."""
    with Xvfb.running() as server, User.of(server) as user:
        saver = user.connection(xcffib.screensaver.key)
        saver.QueryVersion(1, 1).reply()
        user.core.SetScreenSaver(1, 0, x.Blanking.Preferred, x.Exposures.Allowed)  # after one second
        user.done()

        def saving() -> bool:
            return bool(saver.QueryInfo(user.root).reply().state == xcffib.screensaver.State.On)

        async with worlds(server.display, inhibit_idle=inhibit) as world:
            async with world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
                fb, _, pixels = await show(guest)
                await seen(user, as_shown(pixels))
                user.point(5, 5)
                if not inhibit:
                    await until(saving)
                    return
                await trio.sleep(2)
                assert not saving()
                await guest.display.hide(0)
                await until(saving)
                user.point(6, 6)
                await until(lambda: not saving())
                await guest.display.show(0, fb, WIDTH, HEIGHT)
                await trio.sleep(2)
                assert not saving()
            await until(saving)


# Monitors


class Monitors:
    """The monitors of a server, which the user plugs in and out. RandR's own monitor is all of Xvfb's screen."""

    def __init__(self, user: User) -> None:
        self.user = user
        self._randr = user.connection(xcffib.randr.key)
        self._randr.QueryVersion(1, 5).reply()
        self.crtc = self._randr.GetScreenResourcesCurrent(user.root).reply().crtcs[0]

    def define(self, name: str, left: int, top: int, width: int, height: int) -> None:
        """Define a monitor."""
        atom = self.user.atom(name)
        info = xcffib.randr.MonitorInfo.synthetic(atom, 0, 0, 0, left, top, width, height, 100, 100, [])
        self._randr.SetMonitor(self.user.root, info)
        self.happen()

    def remove(self, name: str) -> None:
        """Remove a monitor."""
        self._randr.DeleteMonitor(self.user.root, self.user.atom(name))
        self.happen()

    def happen(self) -> None:
        """Let the server tell all clients that its outputs have changed: switch its CRTC off and on."""
        now = self._randr.GetScreenResourcesCurrent(self.user.root).reply()
        info = self._randr.GetCrtcInfo(self.crtc, now.config_timestamp).reply()
        for mode, outputs in ((0, []), (info.mode, list(info.outputs))):
            self._randr.SetCrtcConfig(
                self.crtc, 0, now.config_timestamp, 0, 0, mode, info.rotation, len(outputs), outputs
            ).reply()
        self.user.done()


def area(user: User, window: int) -> tuple[int, int, int, int]:
    """The window's area of the screen. It may lie in a frame of the window manager."""
    at = user.core.TranslateCoordinates(window, user.root, 0, 0).reply()
    return int(at.dst_x), int(at.dst_y), *size_of(user, window)


LEFT, RIGHT = (0, 0, 320, 480), (320, 100, 320, 240)


async def test_a_window_fills_its_monitor(worlds: Worlds) -> None:
    """Without a window manager, the window has the monitor's area. It follows the monitor; without it, it is a window, with the reason."""
    with Xvfb.running() as server, User.of(server) as user:
        monitors = Monitors(user)
        monitors.define("DP-1", *LEFT)
        monitors.define("DP-2", *RIGHT)
        with structlog.testing.capture_logs() as logs:
            async with (
                worlds(server.display, outputs={"HDMI-A-1": "DP-2"}) as world,
                world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
            ):
                fb, _, pixels = await show(guest)
                await until(user.windows)
                window, output = the_window(user), output_of(world)
                await until(lambda: area(user, window) == RIGHT)
                await until(lambda: output.path)
                assert "monitor" not in output.reason
                assert sink_of(world).abilities()["monitors"] == "DP-1, DP-2, screen"
                # The picture has the monitor's width: 320 of 96 pixels, and is in its middle.
                await until(lambda: user.picture().getpixel((330, 220)) != (0, 0, 0))
                assert user.picture().getpixel((10, 10)) == (0, 0, 0)
                monitors.remove("DP-2")
                await until(lambda: "no monitor DP-2 (DP-1, screen)" in output.reason)
                await until(lambda: size_of(user, window) == (WIDTH, HEIGHT))
                user.resize(window, 200, 150)
                monitors.happen()
                await trio.sleep(0.3)
                assert size_of(user, window) == (200, 150), "its user's size"
                monitors.define("DP-2", *LEFT)
                await until(lambda: area(user, window) == LEFT)
                await until(lambda: "monitor" not in output.reason)
                # Another size of the guest's picture leaves the window where it is.
                _, other, _ = await guest.display.create_framebuffer(64, 48)
                await guest.display.show(0, other, 64, 48)
                await trio.sleep(0.2)
                assert area(user, window) == LEFT
                await guest.display.show(0, fb, WIDTH, HEIGHT)
                del pixels
        said = [entry for entry in logs if entry["event"] == "monitor missing"]
        assert len(said) == 1
        assert "xrandr --listmonitors" in said[0]["reason"]


async def test_monitors_that_cannot_be_read(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file for another connection, the window stays where it is, until there is one."""
    monkeypatch.setattr(sink_module, "RETRY", 0.05)
    read, failures = (
        sink_module.monitors_of,
        [OSError(errno.EMFILE, "Too many open files"), xcffib.ConnectionException("no")],
    )

    def fail(display: str, root: int) -> tuple[Monitor, ...]:
        if failures:
            raise failures.pop()
        return read(display, root)

    monkeypatch.setattr(sink_module, "monitors_of", fail)
    with Xvfb.running() as server, User.of(server) as user:
        monitors = Monitors(user)
        monitors.define("DP-2", *RIGHT)
        async with (
            worlds(server.display, outputs={"HDMI-A-1": "DP-2"}) as world,
            world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
        ):
            await show(guest)
            await until(user.windows)
            await until(lambda: area(user, the_window(user)) == RIGHT)
            monitors.remove("DP-2")
            monitors.define("DP-2", *LEFT)
            await until(lambda: area(user, the_window(user)) == LEFT)
            assert not failures


async def test_the_window_manager_is_told_the_monitor(worlds: Worlds) -> None:
    """A window manager of EWMH gets the state and the monitor's number, when the window is mapped and when the monitors change."""
    with Xvfb.running() as server, User.of(server) as user, Manager.of(server) as manager:
        monitors = Monitors(user)
        monitors.define("DP-1", *LEFT)
        monitors.define("DP-2", *RIGHT)
        user.manage()
        told, state = user.atom("_NET_WM_FULLSCREEN_MONITORS"), user.atom("_NET_WM_STATE")
        full = user.atom("_NET_WM_STATE_FULLSCREEN")
        heard: list[tuple[int, tuple[int, ...]]] = []

        def hears(message: tuple[int, tuple[int, ...]]) -> bool:
            heard.extend(user.heard())
            return message in heard

        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.run)
            async with (
                worlds(server.display, outputs={"HDMI-A-1": "DP-2"}) as world,
                world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest,
            ):
                await show(guest)
                await until(lambda: hears((told, (1, 1, 1, 1, 1))))
                await until(user.windows)
                window = the_window(user)
                assert full.to_bytes(4, "little") in user.property(window, "_NET_WM_STATE")
                heard.clear()
                monitors.remove("DP-2")
                await until(lambda: hears((state, (0, full, 0, 1, 0))))
                heard.clear()
                monitors.remove("DP-1")
                monitors.define("DP-2", 0, 0, *SIZE)
                await until(lambda: hears((told, (0, 0, 0, 0, 1))))
                assert hears((state, (1, full, 0, 1, 0)))
            nursery.cancel_scope.cancel()
