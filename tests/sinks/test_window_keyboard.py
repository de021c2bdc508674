"""The keyboard of a window on a real Weston and a real X server: repetitions when the server is stopped (SIGSTOP), and Caps Lock.

A key that is released while the server is stopped is not repeated afterwards.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import xcffib.xproto as x
from scenario.world import until
from sinks.headless_weston import weston
from sinks.window_guest import on_compositor, show_bars, window_guest
from sinks.x11.xvfb import User, Xvfb

from displbe.config import Settings
from displbe.ops.settings import ControlSettings
from displbe.sim.input import InputFrontend
from displbe.sinks.x11.settings import X11Settings
from displbe.wire import kbdif

KEY_A, KEY_CAPSLOCK = 30, 58
SIZE = 640, 480
OUTPUT = "screen0"
STOPPED = 1.5


async def typed(
    folder: Path, settings: Settings, user: User, stop: Callable[[], None], go_on: Callable[[], None]
) -> None:
    """Run a guest with a window. Hold a key down for a while; then stop the server, release the key, and let the server go on."""
    async with window_guest(folder, settings, OUTPUT, SIZE, f"K:{OUTPUT}") as guest:
        await show_bars(guest, SIZE)
        heard = guest.input
        await until(lambda: bool(user.windows()))
        user.focus(user.windows()[0])
        await _hold(user, heard)
        await _tap(user, heard, stop, go_on)
        if settings.sink == "x11":
            await _lock(user, heard)


async def _hold(user: User, heard: InputFrontend) -> None:
    """Press the key until the guest gets it: the window is shown some time after the flip."""
    with trio.fail_after(30):
        while heard.pressed != {KEY_A}:
            user.key(KEY_A, False)
            user.key(KEY_A, True)
            await trio.sleep(0.2)
    await until(lambda: len(heard.repeats) > 3, timeout=10)
    user.key(KEY_A, False)
    await until(lambda: not heard.pressed)


async def _tap(user: User, heard: InputFrontend, stop: Callable[[], None], go_on: Callable[[], None]) -> None:
    heard.repeats.clear()
    user.key(KEY_A, True)
    await until(lambda: heard.pressed == {KEY_A})
    stop()
    await trio.sleep(0.1)
    user.test.FakeInput(3, KEY_A + 8, 0, user.root, 0, 0, 0)  # without waiting for the server's answer
    user.connection.flush()
    await trio.sleep(STOPPED)
    go_on()
    await until(lambda: not heard.pressed)
    await trio.sleep(0.3)
    assert heard.repeats == []


async def _lock(user: User, heard: InputFrontend) -> None:
    """Switch Caps Lock on in another window: the guest gets a tap of it with the first key, and no tap when it has the lock already.

    Weston's X11 backend does not come back to the guest's window after that.
    """
    window = int(user.core.GetInputFocus().reply().focus)
    other = user.connection.generate_id()
    values = [1]  # override-redirect
    user.core.CreateWindow(
        0, other, user.root, 0, 0, 1, 1, 0, x.WindowClass.CopyFromParent, 0, x.CW.OverrideRedirect, values
    )
    user.core.MapWindow(other)
    user.focus(other)
    user.key(KEY_CAPSLOCK, True)
    user.key(KEY_CAPSLOCK, False)
    for expected in ([KEY_CAPSLOCK, KEY_A], [KEY_A]):
        user.focus(other)
        await trio.sleep(0.2)
        heard.events.clear()
        user.focus(window)
        await trio.sleep(0.2)
        assert heard.events == [], "nothing is tapped before a key is pressed"
        user.key(KEY_A, True)
        user.key(KEY_A, False)
        await until(lambda: kbdif.Key(0, KEY_A) in heard.events)
        assert [event.keycode for event in heard.events if isinstance(event, kbdif.Key) and event.pressed] == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


async def test_a_weston_that_was_stopped(folder: Path) -> None:
    with Xvfb.running() as server, User.of(server) as user:
        async with weston(folder, display=server.display) as compositor:
            await typed(
                folder,
                on_compositor(compositor.socket),
                user,
                lambda: compositor.send(signal.SIGSTOP),
                lambda: compositor.send(signal.SIGCONT),
            )


async def test_an_x_server_that_was_stopped(tmp_path: Path) -> None:
    with Xvfb.running() as server, User.of(server) as user:
        settings = Settings(sink="x11", x11=X11Settings(display=server.display), control=ControlSettings(socket=""))
        await typed(tmp_path, settings, user, server.hang, server.go_on)
