"""Windows on a real X server: nothing that a guest does maps, raises or focuses one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import xcffib.xproto as x
from hostile.window_attacks import ATTACKS, WINDOW_SIZE, screen
from PIL import Image
from scenario.world import spec, until
from sinks.x11.conftest import Worlds, output_of, reopen, sink_of
from sinks.x11.test_x11 import size_of
from sinks.x11.xvfb import Manager, User, Xvfb

from displbe.backend.quota import Limits
from displbe.sim.guest import Frontend, Guest
from displbe.sinks import window_queue
from displbe.sinks.seat import KeyboardKey, KeyboardLeave, SeatEvent
from displbe.sinks.x11.output import OutputState
from displbe.sinks.x11.painter import WindowWish

LIMITS = Limits(modesets_per_second=10_000.0, reconnects_per_second=1000.0)


def black(user: User) -> bool:
    """Whether the place of a window of the connector's size is black."""
    return user.picture().crop((0, 0, *WINDOW_SIZE)).getcolors() == [(WINDOW_SIZE[0] * WINDOW_SIZE[1], (0, 0, 0))]


def focused_window(user: User, left: int, top: int) -> int:
    """Open another program's window, which has the focus, and listen to changes of windows from now on. Return it."""
    window: int = user.connection.generate_id()
    user.core.CreateWindow(0, window, user.root, left, top, 50, 50, 0, x.WindowClass.InputOutput, 0, 0, [])
    user.core.MapWindow(window)
    user.core.SetInputFocus(x.InputFocus.Parent, window, 0)
    user.core.ChangeWindowAttributes(user.root, x.CW.EventMask, [x.EventMask.SubstructureNotify])
    user.done()
    while user.connection.poll_for_event() is not None:
        pass
    return window


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_guest_moves_no_window(
    worlds: Worlds, xvfb: Xvfb, user: User, attack: Callable[[Guest], Awaitable[None]]
) -> None:
    """The window stays where it is below another one, which keeps the focus."""
    async with (
        worlds(xvfb.display, limits=LIMITS) as world,
        world.guest(1, spec("bad", *WINDOW_SIZE)) as guest,
    ):
        await until(user.windows)
        (window,) = user.windows()
        other = focused_window(user, 0, 0)
        await attack(guest)
        user.done()
        kinds = set()
        while (event := user.connection.poll_for_event()) is not None:
            kinds.add(type(event))
        assert kinds <= {x.ConfigureNotifyEvent}, "only its size may change"
        assert user.windows() == [window, other], "from the lowest to the highest"
        assert user.core.GetInputFocus().reply().focus == other
        user.core.DestroyWindow(other)
        await until(lambda: black(user) or size_of(user, window) != WINDOW_SIZE)


async def never(frontend: Frontend) -> None:
    """Do not connect: the guest's driver is not loaded."""
    await trio.sleep_forever()


async def test_a_window_is_there_before_its_guest(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is black, in the connector's resolution, and goes with the device."""
    monkeypatch.setattr(Frontend, "_publish", never)
    async with worlds(xvfb.display) as world:
        async with world.booted(1, spec("bad", *WINDOW_SIZE)):
            await until(user.windows)
            assert size_of(user, user.windows()[0]) == WINDOW_SIZE
            await until(lambda: black(user))
            assert sink_of(world).outputs == {}
        await until(lambda: not user.windows())


@pytest.mark.parametrize("how", ["iconify", "detach", "destroy"])
async def test_a_window_that_its_user_has_taken_away_stays_away(worlds: Worlds, how: str) -> None:
    """Under a window manager, whatever the guest does. The operator brings it back, and so does the guest's next device."""
    with Xvfb.running() as server, Manager.of(server) as manager, User.of(server) as user:
        policy = "iconify" if how == "destroy" else how
        async with (
            worlds(server.display, limits=LIMITS, on_close=policy) as world,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(manager.run)
            async with world.guest(1, spec("bad", *WINDOW_SIZE)) as guest:
                await screen(guest)
                await until(lambda: output_of(world, "bad").state is OutputState.SHOWN)
                (window,) = user.windows()
                if how == "destroy":
                    user.core.DestroyWindow(window)
                    user.done()
                else:
                    user.message(window, "WM_DELETE_WINDOW")
                await until(lambda: output_of(world, "bad").state is OutputState.UNSEEN)
                for attack in ATTACKS:
                    await attack(guest)
                    assert user.windows() == []
                if how != "iconify":
                    await until(lambda: sink_of(world).painters["bad"].wish is WindowWish.TAKEN_AWAY)
                await screen(guest)
                assert "displbectl reopen 1" in output_of(world, "bad").reason
                reopen(world)
                await until(lambda: output_of(world, "bad").state is OutputState.SHOWN)
                white = Image.new("RGB", WINDOW_SIZE, (255, 255, 255))
                await until(lambda: user.picture().crop((0, 0, *WINDOW_SIZE)).tobytes() == white.tobytes())
                user.message(user.windows()[0], "WM_DELETE_WINDOW")
                await until(lambda: not user.windows())
            await until(lambda: not world.daemon.displays.devices)
            async with world.booted(1, spec("bad", *WINDOW_SIZE)):
                await until(user.windows)
            nursery.cancel_scope.cancel()


async def test_a_guest_that_reboots_moves_no_window(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """The window stays where it is below another one, which keeps the focus; it is black between the guest's pictures."""
    async with worlds(xvfb.display, limits=LIMITS) as world:
        window = other = 0
        white = Image.new("RGB", WINDOW_SIZE, (255, 255, 255))
        for domid in range(1, 5):
            async with world.booted(domid, spec("bad", *WINDOW_SIZE), name="bad") as guest:
                await until(guest.display.connected.is_set)
                await until(user.windows)
                if not window:
                    (window,) = user.windows()
                    other = focused_window(user, 500, 400)
                await screen(guest)
                await until(lambda: user.picture().crop((0, 0, *WINDOW_SIZE)).tobytes() == white.tobytes())
                assert sink_of(world).painters["bad"]._connector.claimant.domid == domid
            await until(lambda: not world.daemon.displays.devices)
            await until(lambda: black(user))
            assert sink_of(world).outputs == {}
        user.done()
        assert user.connection.poll_for_event() is None, "nothing has happened to any window"
        assert user.windows() == [window, other], "from the lowest to the highest"
        assert user.core.GetInputFocus().reply().focus == other
        user.core.DestroyWindow(other)
        user.done()


async def test_keys_for_a_guest_that_reboots(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    """A key that is down when the guest goes is released for it, and not pressed for its new domain. Nothing gets the keys between."""
    async with worlds(xvfb.display, limits=LIMITS) as world:
        seats = sink_of(world).seats
        heard: dict[int, list[SeatEvent]] = {1: [], 2: []}
        with seats.listening(1, "bad", heard[1].append), seats.listening(2, "bad", heard[2].append):
            async with world.booted(1, spec("bad", *WINDOW_SIZE), name="bad") as guest:
                await until(guest.display.connected.is_set)
                await until(user.windows)
                await until(lambda: sink_of(world).painters["bad"].visible)
                user.focus(user.windows()[0])
                user.key(30, True)
                await until(lambda: KeyboardKey(30, True) in heard[1])
            assert heard[1][-1] == KeyboardLeave()
            heard[1].clear()
            user.key(30, False)
            user.key(31, True)
            user.key(31, False)
            user.key(32, True)
            async with world.booted(2, spec("bad", *WINDOW_SIZE), name="bad") as guest:
                await until(guest.display.connected.is_set)
                user.key(32, False)
                user.key(33, True)
                await until(lambda: KeyboardKey(33, True) in heard[2])
                assert not any(event == KeyboardKey(code, True) for event in heard[2] for code in (30, 31, 32))
                user.key(33, False)
                await until(lambda: heard[2][-1] == KeyboardKey(33, False))
        assert heard[1] == []
        user.focus(1)  # PointerRoot


async def test_a_window_takes_the_size_of_the_new_connector(worlds: Worlds, xvfb: Xvfb, user: User) -> None:
    async with worlds(xvfb.display) as world:
        async with world.booted(1, spec("bad", *WINDOW_SIZE), name="bad"):
            await until(user.windows)
            (window,) = user.windows()
        async with world.booted(2, spec("bad", 100, 50), name="bad"):
            await until(lambda: size_of(user, window) == (100, 50))
            assert user.windows() == [window]


async def test_a_guest_that_does_not_come_back_in_time(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window closes. Another guest's connector of the same name gets the place at once."""
    async with worlds(xvfb.display) as world:
        async with world.booted(1, spec("bad", *WINDOW_SIZE), name="bad"):
            await until(user.windows)
            (window,) = user.windows()
        async with world.booted(2, spec("bad", *WINDOW_SIZE), name="other"):
            await until(lambda: user.windows() not in ([], [window]))
            assert window not in user.windows()
            monkeypatch.setattr(window_queue, "KEPT", 0.1)
        await until(lambda: not user.windows())
        assert sink_of(world).painters == {}


@pytest.mark.parametrize("how", ["detach", "destroy"])
async def test_a_window_that_its_user_has_taken_away_stays_away_over_a_reboot(worlds: Worlds, how: str) -> None:
    with Xvfb.running() as server, User.of(server) as user:
        async with worlds(server.display, limits=LIMITS, on_close="detach") as world:
            async with world.booted(1, spec("bad", *WINDOW_SIZE), name="bad") as guest:
                await until(guest.display.connected.is_set)
                await until(user.windows)
                if how == "destroy":
                    user.core.DestroyWindow(user.windows()[0])
                    user.done()
                else:
                    user.message(user.windows()[0], "WM_DELETE_WINDOW")
                await until(lambda: sink_of(world).painters["bad"].wish is WindowWish.TAKEN_AWAY)
            async with world.booted(2, spec("bad", *WINDOW_SIZE), name="bad") as guest:
                await until(guest.display.connected.is_set)
                await screen(guest)
                assert user.windows() == []
                assert "displbectl reopen bad" in output_of(world, "bad").reason
                reopen(world, 2)
                await until(lambda: output_of(world, "bad").state is OutputState.SHOWN)


async def test_a_window_that_was_closed_stays_closed_on_the_next_server(worlds: Worlds) -> None:
    """A window that is open comes back with the server."""
    with Xvfb.running() as chosen:
        number = chosen.number
    async with (
        worlds(f":{number}", on_close="detach") as world,
        world.guest(1, spec("one", *WINDOW_SIZE)),
        world.guest(2, spec("two", 64, 48)),
    ):
        for turn in range(2):
            with Xvfb.running(number) as server, User.of(server) as user:
                await until(lambda: sink_of(world).desktop.server is not None)
                if turn == 0:
                    await until(lambda: len(user.windows()) == 2)
                    (window,) = (each for each in user.windows() if size_of(user, each) == WINDOW_SIZE)
                    user.message(window, "WM_DELETE_WINDOW")
                await until(lambda: [size_of(user, each) for each in user.windows()] == [(64, 48)])
                await trio.sleep(0.2)
                assert len(user.windows()) == 1
            await until(lambda: sink_of(world).desktop.server is None)
