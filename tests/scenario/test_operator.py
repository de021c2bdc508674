"""The real displbectl, in a process of its own, queries and controls the daemon while guests are served."""

from __future__ import annotations

import json
import os
import sys
import threading
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from PIL import Image
from scenario.world import World, flip_on, spec, until

from displbe.backend.device import ConnectionState
from displbe.backend.guests import GuestSettings
from displbe.backend.nodes import DeviceNodes
from displbe.backend.quota import Limits
from displbe.commands import Commands
from displbe.ctl.tables import WIDTH
from displbe.display.connector import Connector
from displbe.display.published import read_connectors
from displbe.display.requests import RingState
from displbe.display.screen import ScreenState
from displbe.ops import control
from displbe.ops.status import ConnectorStatus, Status
from displbe.sim.guest import Guest as SimGuest
from displbe.sinks.base import Part, SinkBuffer, SinkError
from displbe.sinks.frame_copy import copy_frame
from displbe.sinks.headless.output import HeadlessOutput
from displbe.wire.displif import FbDetach, PageFlip, UnknownRequest
from displbe.wire.errors import Errno
from displbe.wire.xenbus import State


async def ctl(world: World, *arguments: str, code: int = 0) -> str:
    """Run displbectl; return its output."""
    command = [sys.executable, "-W", "error", "-c", "import sys; from displbe.ctl.main import main; sys.exit(main())"]
    done = await trio.run_process(
        [*command, "--socket", world.settings.control.socket, *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    said, complaint = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, complaint
    assert bool(complaint) == bool(code), complaint
    return complaint or said


async def asked(world: World) -> Any:
    """Return `displbectl status --json`."""
    return json.loads(await ctl(world, "status", "--json"))


async def more(times: list[float], count: int) -> None:
    """Wait until this number of further flips have ended."""
    wanted = len(times) + count
    await until(lambda: len(times) > wanted)


async def connected(guest: SimGuest) -> None:
    """Wait for a guest's display."""
    with trio.fail_after(10):
        await guest.display.connected.wait()


async def ignore(state: State | None) -> None:
    """Stop a frontend from reacting to the backend's state."""


def colour(guest: SimGuest, buffer: memoryview, pixel: bytes) -> None:
    """Fill a buffer of 64x48."""
    buffer[:] = pixel * (64 * 48)


async def test_status_without_guests(world: World) -> None:
    said = await ctl(world, "status")
    assert "no guest has a device here" in said
    assert (await asked(world))["guests"] == []
    assert "serving 0 guests" in await ctl(world, "top", "--count", "1")


@pytest.mark.headless
async def test_status(world: World) -> None:
    async with world.booted(1, spec(), spec("DP-1", 1920, 1080), name="cock\x1b[2Jpit") as guest:
        await connected(guest)
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 20)
            status = await asked(world)
            text = await ctl(world, "status")
            top = await ctl(world, "top", "--count", "1")
    (told,) = status["guests"]
    assert (told["domid"], told["name"]) == (1, "cock\\x1b[2Jpit")
    assert told["quota"]["pages"] == {"used": 6, "limit": 49152}
    assert told["quota"]["framebuffers"] == {"used": 2, "limit": 128}
    (device,) = told["devices"]
    assert (device["backend"], device["frontend"], device["connections"]) == ("connected", "connected", 1)
    assert 0 <= device["backend_age"] < 60
    first, second = device["connectors"]
    assert (first["output"], first["shown"], first["path"]) == ("HDMI-A-1", "64x48 XR24", "copy")
    for connector in (first, second):  # flipped to on one, and ready for both
        assert connector["framebuffers"] == [{"path": "copy", "reason": "there is no screen", "count": 2}]
    assert "buffers   2 copy (there is no screen)" in text  # of the second, which shows nothing
    assert first["flips"]["shown"] > 20
    assert first["flips"]["age"] < 5
    assert 0 < first["flips"]["latency"]["p50"] <= first["flips"]["latency"]["p99"] <= first["flips"]["latency"]["max"]
    assert first["flips"]["fps_60s"] > 0
    assert (second["resolution"], second["shown"], second["flips"]["shown"]) == ("1920x1080", "", 0)
    for said in (text, top):
        assert "cock\\x1b[2Jpit"[:11] in said
        assert all(line.isprintable() and len(line) <= WIDTH for line in said.splitlines())
    assert "shows 64x48 XR24" in text
    assert "switched off by the guest" in text


@pytest.mark.headless
async def test_why_a_screen_is_black(world: World) -> None:
    async with world.guest(1), world.booted(2, spec()):
        await until(lambda: world.error(2))
        status = await asked(world)
        (device,) = status["guests"][1]["devices"]
        assert device["error"] == "output HDMI-A-1 is taken by another guest"
        assert device["backend"] == "init_wait"
        assert device["frontend"] == "initialised"
        assert "output HDMI-A-1 is taken by another guest" in await ctl(world, "status")
        assert "1 of 2 devices connected, 0 flips/s, 1 with an error" in await ctl(world, "top", "--count", "1")


async def test_a_refused_request_is_reported_in_words(world: World) -> None:
    async with world.guest(1) as guest:
        await guest.display.connectors[0].ask(PageFlip(0, 99))
        connector = (await asked(world))["guests"][0]["devices"][0]["connectors"][0]
        assert (connector["requests"], connector["refused"]) == (1, 1)
        assert connector["error"] == "PageFlip: no such framebuffer (ENOENT)"
        assert "no such framebuffer" in await ctl(world, "status")


async def test_what_is_counted(world: World) -> None:
    """The status counts refusals by kind, notifications without a request and delayed events, and shows held resources."""
    async with world.guest(1) as guest:
        connector = guest.display.connectors[0]
        _, fb, _ = await guest.display.create_framebuffer(64, 48)
        for _ in range(2):
            await connector.ask(PageFlip(0, 99))
        await connector.ask(UnknownRequest(0, 0x77))
        for _ in range(3):
            connector.channel.notify()
            await trio.sleep(0.02)
        await guest.display.show(0, fb, 64, 48)
        status = await asked(world)
        told = status["guests"][0]["devices"][0]["connectors"][0]
        kinds = {(one["request"], one["error"]): one["count"] for one in told["refusals"]}
        assert kinds == {("PageFlip", "ENOENT"): 2, ("UnknownRequest", "EOPNOTSUPP"): 1}
        assert told["refused"] == 3
        assert told["spurious"] >= 1
        assert status["held"]["buffers"] == 1
        assert 0 < status["files"]["used"] < status["files"]["limit"]


async def test_a_guest_that_is_held_back(tmp_path: Path) -> None:
    async with (
        World.running(tmp_path, limits=Limits(requests_per_second=20)) as world,
        world.guest(1) as guest,
    ):
        for _ in range(8):
            await guest.display.connectors[0].ask(PageFlip(0, 99))
        told = (await asked(world))["guests"][0]["devices"][0]["connectors"][0]
        assert told["throttled"] > 0
        assert "by its limits" in await ctl(world, "status")


async def test_status_of_many_connectors_gives_the_rings_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop serves other tasks between the status of two connectors."""
    turns = Turns()
    seen: list[int] = []
    status = Connector.status

    def looked_at(connector: Connector) -> ConnectorStatus:
        seen.append(turns.count)
        return status(connector)

    monkeypatch.setattr(Connector, "status", looked_at)
    async with world.guest(1, *(spec(f"DP-{number}") for number in range(8))):
        trio.lowlevel.add_instrument(turns)
        told = await world.daemon.commands.status()
        trio.lowlevel.remove_instrument(turns)
    assert len(told.guests[0].devices[0].connectors) == 8
    assert len(seen) == len(set(seen)) == 8


class Turns(trio.abc.Instrument):
    """Counts the turns of the event loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_shut_off_device_and_its_trace(world: World) -> None:
    async with world.guest(1) as guest:
        connector = guest.display.connectors[0]
        await connector.ask(PageFlip(0, 99))
        guest.display._on_backend = ignore  # type: ignore[method-assign]
        connector.ring_page.store(0, 5000)  # an impossible index
        connector.channel.notify()
        # XenStore has the text a moment before the daemon reads the answer and ends the connection.
        await until(lambda: world.error(1) and world.device(1).connection is not ConnectionState.SERVED)
        assert world.device(1).connection is ConnectionState.NONE
        assert world.device(1).service.connectors[0].requests.state is RingState.STOPPED
        assert "-> ENOENT after" in await ctl(world, "trace", "1")
        device = (await asked(world))["guests"][0]["devices"][0]
        assert device["shut_off"] == 1
        assert "impossible request index" in device["error"]
        del guest.display._on_backend  # the guest goes on only now, because a new connection has a new trace
        guest.display._changed.set()
        with trio.fail_after(10):
            await guest.display.disconnected.wait()
            await connected(guest)
        device = (await asked(world))["guests"][0]["devices"][0]
        assert (device["backend"], device["connections"], device["shut_off"]) == ("connected", 2, 1)


async def test_traces_are_kept_when_devices_are_shut_off(tmp_path: Path) -> None:
    """The file of a kept trace has all connectors of its guest."""
    folder = tmp_path / "traces"
    folder.mkdir()
    async with World.running(tmp_path, traces=str(folder)) as world:
        with structlog.testing.capture_logs() as lines:
            async with world.guest(1, spec(), spec("DP-1")) as guest, world.guest(2, spec("DP-2")) as second:
                await guest.display.connectors[1].ask(PageFlip(0, 99))
                await second.display.connectors[0].ask(PageFlip(0, 98))
                for connector in (guest.display.connectors[0], second.display.connectors[0]):
                    connector.ring_page.store(0, 5000)  # an impossible index
                    connector.channel.notify()
                await until(lambda: sum(name.endswith(".trace") for name in os.listdir(folder)) == 2)
        last = [line["requests"] for line in lines if line["event"] == "last requests"]
        assert sorted(map(len, last)) == [0, 1, 1]
        first, other = sorted(os.listdir(folder))
        text = await ctl(world, "trace", "--file", str(folder / first))
        assert "domain1, HDMI-A-1: shut off: impossible request index" in text
        assert "domain1, DP-1: shut off: impossible request index" in text
        assert "PG_FLIP id=0 fb_cookie=0x63 -> ENOENT after" in text
        assert "fb_cookie=0x62 -> ENOENT after" in await ctl(world, "trace", "--file", str(folder / other))
        assert "this is not a trace" in await ctl(world, "trace", "--file", "/etc/passwd", code=1)
        assert "No such file" in await ctl(world, "trace", "--file", str(folder / "none"), code=1)


async def test_trace(world: World) -> None:
    async with world.guest(1, spec(), spec("DP-1")) as guest:
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 5)
        lines = (await ctl(world, "trace", "1")).splitlines()
        assert [line.split()[1] for line in lines[:5]] == ["DBUF_CREATE", "FB_ATTACH"] * 2 + ["SET_CONFIG"]
        assert sum("PG_FLIP" in line and "-> ok after" in line for line in lines) == len(times)
        assert await ctl(world, "trace", "1", "--connector", "DP-1") == ""
        assert await ctl(world, "trace", "1", "--connector", "1") == ""
        assert "no such connector; there are: HDMI-A-1, DP-1" in await ctl(
            world, "trace", "1", "--connector", "2", code=1
        )


async def test_screenshot(world: World, tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "shot.png"
    os.mkdir(path.parent)
    async with world.guest(1) as guest:
        assert "the connector is off" in await ctl(world, "screenshot", "1", str(path), code=1)
        buffers = [await guest.display.create_framebuffer(64, 48) for _ in range(2)]
        colour(guest, buffers[0][2].pixels, b"\x10\x20\x30\0")
        colour(guest, buffers[1][2].pixels, b"\x40\x50\x60\0")
        await guest.display.show(0, buffers[0][1], 64, 48)
        for wanted, following in (((0x30, 0x20, 0x10), 1), ((0x60, 0x50, 0x40), 0), ((0x30, 0x20, 0x10), 0)):
            assert "64x48" in await ctl(world, "screenshot", "1", "--connector", "HDMI-A-1", str(path))
            with Image.open(path) as image:
                assert image.size == (64, 48)
                assert image.getcolors() == [(64 * 48, wanted)]
            await guest.display.connectors[0].flip(buffers[following][1])
        nowhere = str(tmp_path / "no" / "where.png")
        assert "No such file" in await ctl(world, "screenshot", "1", nowhere, code=1)
        assert sorted(os.listdir(tmp_path / "pictures")) == ["shot.png"]
        await guest.display.connectors[0].order(FbDetach(0, buffers[0][1]))
        assert "no such framebuffer" in await ctl(world, "screenshot", "1", str(path), code=1)


def held_copies(patch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let the copies for pictures wait. Return the event of a copy that has begun, and the one that the copies wait for."""
    copying, resumed = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        copying.set()
        assert resumed.wait(10)
        copy_frame(*arguments)

    patch.setattr("displbe.display.buffers.copy_frame", slow)
    return copying, resumed


async def test_a_screenshot_while_the_connection_ends(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest's pages stay mapped until a picture of them is copied, also when the connection ends meanwhile."""
    copying, resumed = held_copies(monkeypatch)
    path = tmp_path / "shot.png"
    async with world.guest(1) as guest:
        _, framebuffer, buffer = await guest.display.create_framebuffer(64, 48)
        colour(guest, buffer.pixels, b"\x10\x20\x30\0")
        await guest.display.show(0, framebuffer, 64, 48)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctl, world, "screenshot", "1", str(path))
            await trio.to_thread.run_sync(copying.wait, 10)
            world.device(1).kick()
            await trio.sleep(0.5)
            assert world.hypervisor.ledger.buffers == 1
            resumed.set()
        with Image.open(path) as image:
            assert image.getcolors() == [(64 * 48, (0x30, 0x20, 0x10))]
        await until(lambda: world.hypervisor.ledger.buffers == 0)


async def test_a_guest_without_screenshots(tmp_path: Path) -> None:
    guests = {"cluster": GuestSettings(screenshot=False)}
    async with World.running(tmp_path, guests=guests) as world, world.booted(1, spec(), name="cluster") as guest:
        await connected(guest)
        said = await ctl(world, "screenshot", "cluster", str(tmp_path / "shot.png"), code=1)
        assert "the configuration allows no screenshots of this guest" in said
        assert "allows no screenshots" in await ctl(world, "screenshot", "1", str(tmp_path / "shot.png"), code=1)


@pytest.mark.headless
async def test_blank_and_unblank(world: World) -> None:
    async with world.guest(1) as guest:
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 3)
            for _ in range(2):
                await ctl(world, "blank", "1")
                assert world.output()._shown is None
                await more(times, 5)  # the guest does not notice
                assert world.device(1).service.connectors[0].screen.state is ScreenState.BLANKED
                assert world.output()._shown is None
                connector = (await asked(world))["guests"][0]["devices"][0]["connectors"][0]
                assert connector["blanked"]
                assert connector["refused"] == 0
            assert "blanked by the operator" in await ctl(world, "status")
            await ctl(world, "unblank", "1")
            await more(times, 5)
            assert world.output()._shown is not None
            assert world.device(1).service.connectors[0].screen.state is ScreenState.ON
        assert guest.display.connectors[0]._next_event_id == len(times)


async def test_reopen(world: World) -> None:
    """Only sinks of windows have something to open. The guest need not be connected."""
    async with world.booted(1, spec(), spec("DP-1")):
        assert "DP-1: this sink shows guests on whole screens, not in windows" in await ctl(
            world, "reopen", "1", code=1
        )
        unknown = await ctl(world, "reopen", "1", "--connector", "2", code=1)
        assert "no such connector; there are: HDMI-A-1, DP-1" in unknown
        assert "no guest nobody" in await ctl(world, "reopen", "nobody", code=1)
        opened: list[str] = []
        world.daemon.sink.reopen = lambda connector: opened.append(connector.name)  # type: ignore[method-assign]
        await ctl(world, "reopen", "1")
        await ctl(world, "reopen", "1", "--connector", "DP-1")
        assert opened == ["HDMI-A-1", "DP-1", "DP-1"]


@pytest.mark.headless
async def test_blanked_while_the_guest_changes_its_mind(world: World) -> None:
    """While a screen is blanked, the guest may set modes, switch the screen off and detach framebuffers."""
    async with world.guest(1) as guest:
        display = guest.display
        small = await display.create_framebuffer(32, 32)
        large = await display.create_framebuffer(64, 48)
        await ctl(world, "blank", "1")
        await display.show(0, small[1], 32, 32)
        assert world.output()._shown is None
        await display.connectors[0].flip(large[1])
        await ctl(world, "unblank", "1")
        shown = world.output().picture()
        assert shown is not None
        assert shown.size == (64, 48)
        await ctl(world, "blank", "1")
        await display.connectors[0].order(FbDetach(0, large[1]))
        await ctl(world, "unblank", "1")
        assert world.output()._shown is None
        await display.connectors[0].flip(small[1])
        await until(lambda: world.output()._shown is not None)
        await ctl(world, "blank", "1")
        await display.hide(0)
        await ctl(world, "unblank", "1")
        assert world.output()._shown is None
        await display.show(0, small[1], 32, 32)
        assert world.output()._shown is not None


@pytest.mark.headless
async def test_a_guest_cannot_undo_a_blank(world: World) -> None:
    """A blanked screen stays blanked when the guest reconnects or reboots, and while the guest is away."""
    output = "HDMI-A-1"

    async def dark(guest: SimGuest, *, blanked: bool) -> None:
        await connected(guest)
        fb = await guest.display.create_framebuffer(64, 48)
        await guest.display.show(0, fb[1], 64, 48)
        await guest.display.connectors[0].flip(fb[1])
        assert (world.output(output)._shown is None) == blanked
        connector = (await asked(world))["guests"][0]["devices"][0]["connectors"][0]
        assert connector["blanked"] == blanked

    async with world.booted(1, spec(), name="cockpit") as guest:
        await connected(guest)
        await ctl(world, "blank", "cockpit")
        await ctl(world, "kick", "cockpit")
        with trio.fail_after(10):
            await guest.display.disconnected.wait()
        await dark(guest, blanked=True)
    await world.settled()
    async with world.booted(2, spec(), name="cockpit") as guest:
        await dark(guest, blanked=True)
        guest.display._on_backend = ignore  # type: ignore[method-assign]
        connector = guest.display.connectors[0]
        connector.ring_page.store(0, 5000)  # an impossible index: the device is shut off
        connector.channel.notify()
        await until(lambda: world.error(2))
        await ctl(world, "unblank", "cockpit")
        await ctl(world, "blank", "cockpit")
        await ctl(world, "unblank", "cockpit")
        del guest.display._on_backend
        guest.display._changed.set()
        with trio.fail_after(10):
            await guest.display.disconnected.wait()
        await dark(guest, blanked=False)
    await world.settled()
    async with world.guest(3) as guest:  # whose name is not known
        await ctl(world, "blank", "3")
        await ctl(world, "kick", "3")
        with trio.fail_after(10):
            await guest.display.disconnected.wait()
        await dark(guest, blanked=True)
    await world.settled()
    async with world.guest(3) as guest:
        await dark(guest, blanked=False)


async def test_lines_of_the_log_name_the_guest(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        async with world.booted(1, spec(), name="cockpit") as guest:
            await connected(guest)
            await guest.display.connectors[0].ask(PageFlip(0, 99))
        await world.settled()
    about = [line for line in lines if line.get("domid") == 1 and line["event"] != "device found"]
    assert {line["event"] for line in about} >= {"state", "request refused", "device gone"}
    assert all(line["guest"] == "cockpit" for line in about)


async def test_a_flip_in_the_dark_keeps_its_event(world: World) -> None:
    """The event still belongs to the flip if a mode is set while the flip waits."""
    async with world.guest(1) as guest:
        display = guest.display
        one, two, three = [await display.create_framebuffer(64, 48) for _ in range(3)]
        await display.show(0, one[1], 64, 48)
        await ctl(world, "blank", "1")
        connector = display.connectors[0]
        await after_a_refresh()
        await connector.order(PageFlip(0, two[1]))
        await display.show(0, three[1], 64, 48)
        assert connector.flips_done == []
        await until(lambda: connector.flips_done)
        assert connector.flips_done == [two[1]]


async def after_a_refresh() -> None:
    """Wait until just after a refresh of a dark screen: its flips end at multiples of 1/60 s."""
    period = 1 / 60
    await trio.sleep_until((trio.current_time() // period + 1) * period)


@pytest.mark.headless
@pytest.mark.parametrize("gone", [False, True])
async def test_a_flip_while_the_screen_is_switched_on(
    world: World, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """The output accepts no flips before it is on. The flip is served and shown, and has its event."""
    async with world.guest(1) as guest:
        display, output = guest.display, world.output()
        one, two = [await display.create_framebuffer(64, 48) for _ in range(2)]
        await display.show(0, one[1], 64, 48)
        await ctl(world, "blank", "1")
        enable, flip, go_on, on = output.enable, output.flip, trio.Event(), False

        async def slow(buffer: SinkBuffer, part: Part) -> None:
            nonlocal on
            await go_on.wait()
            await enable(buffer, part)
            on = True

        def early(buffer: SinkBuffer, token: int) -> None:
            if not on:
                raise SinkError(Errno.EINVAL, "off")
            flip(buffer, token)

        monkeypatch.setattr(output, "enable", slow)
        monkeypatch.setattr(output, "flip", early)
        connector, screen = display.connectors[0], world.device(1).service.connectors[0].screen
        assert screen.state is ScreenState.BLANKED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctl, world, "unblank", "1")
            await until(lambda: screen.state is ScreenState.UNBLANKING)
            await connector.order(PageFlip(0, two[1]))
            await trio.sleep(0.05)
            assert connector.flips_done == [], "nothing is shown yet"
            if gone:
                await connector.order(FbDetach(0, two[1]))
            go_on.set()
        await until(lambda: connector.flips_done)
        assert connector.flips_done == [two[1]]
        await connector.flip(one[1])
        if not gone:
            await connector.flip(two[1])
        assert len(connector.flips_done) == 3 - gone
        assert output._shown is not None


async def test_kick(world: World) -> None:
    async with world.guest(1) as guest, world.guest(2, spec("DP-1")) as other, flip_on(other) as times:
        assert [world.device(domid).connection for domid in (1, 2)] == [ConnectionState.SERVED] * 2
        await ctl(world, "kick", "1")
        with trio.fail_after(10):
            await guest.display.disconnected.wait()
            await connected(guest)
        await more(times, 5)
        assert (await asked(world))["guests"][0]["devices"][0]["connections"] == 2
        assert (await asked(world))["guests"][1]["devices"][0]["connections"] == 1
        assert "the guest is not connected" not in await ctl(world, "blank", "1")


async def test_kick_while_connecting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kick also ends a connection that is being made, since it may be made with a name or settings that no longer hold."""
    reading, kicked = trio.Event(), trio.Event()

    async def slow(*arguments: Any) -> Any:
        found = await read_connectors(*arguments)
        reading.set()
        await kicked.wait()
        return found

    monkeypatch.setattr("displbe.display.device.read_connectors", slow)

    async def kick() -> None:
        await reading.wait()
        assert world.device(1).connection is ConnectionState.NONE
        world.device(1).kick()
        assert world.device(1).is_kicked
        kicked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kick)
        async with world.guest(1):
            with trio.fail_after(10):
                while (await world.device(1).status()).connections < 2:
                    await trio.sleep(0.01)


@pytest.mark.headless
async def test_a_refused_connection_does_not_act_on_the_screen_of_the_next_guest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connectors of a connection that is refused after they were made end with it: the operator's commands do not use their output,
    which another guest has claimed since.
    """
    calls: list[HeadlessOutput] = []

    async def changed(nodes: DeviceNodes, guest: GuestSettings) -> Any:
        found = await read_connectors(nodes, guest)
        return [*found, *found] if nodes.domid == 1 and world.device(1).service.connectors else found

    monkeypatch.setattr("displbe.display.device.read_connectors", changed)
    async with world.booted(1, spec()):
        await until(lambda: world.error(1) == "the frontend has published other rings meanwhile")
        (old,) = world.device(1).service.connectors
        assert old.requests.state is RingState.STOPPED
        assert not old.is_served
        assert old.screen.state is ScreenState.CLOSED
        async with world.booted(2, spec()) as guest, flip_on(await shown_once(world, guest)) as times:
            output, disable = world.output(), HeadlessOutput.disable
            assert output is not old.screen.output

            async def seen(which: HeadlessOutput) -> None:
                calls.append(which)
                await disable(which)

            monkeypatch.setattr(HeadlessOutput, "disable", seen)
            await ctl(world, "blank", "1")
            await old.screen.blank()
            assert old.screen.state is ScreenState.CLOSED
            await more(times, 5)
            assert "the guest is not connected" in await ctl(world, "screenshot", "1", "shot.png", code=1)
            await ctl(world, "unblank", "1")
            assert calls == []
            assert output._shown is not None
            monkeypatch.setattr(HeadlessOutput, "disable", disable)


async def shown_once(world: World, guest: SimGuest) -> SimGuest:
    """Return a guest when its display is connected; until then, other guests may have its output."""
    await connected(guest)
    return guest


async def test_top_goes_on_after_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top` goes on after a pause that is longer than the daemon keeps a silent client."""
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 0.05)
    assert (await ctl(world, "top", "--count", "2", "--interval", "0.5")).count("serving 0 guests") == 2


async def test_a_whole_guest_has_no_connector(world: World) -> None:
    async with world.guest(1):
        for command in ("kick", "focus"):
            assert "unrecognized arguments: --connector" in await ctl(world, command, "1", "--connector", "0", code=2)
            async with await trio.open_unix_socket(world.settings.control.socket) as client:
                await client.send_all(
                    json.dumps({"version": 1, "command": command, "guest": "1", "connector": "0"}).encode() + b"\n"
                )
                assert b"is for a whole guest" in await client.receive_some()
        assert (await asked(world))["guests"][0]["devices"][0]["connections"] == 1


async def test_focus(world: World) -> None:
    async with world.guest(1), world.guest(2, spec("DP-1")):
        await ctl(world, "focus", "2")
        assert world.daemon.focus.preferred == "2"
        assert "shared input devices go to 2" in await ctl(world, "status")


async def test_names_of_guests(world: World) -> None:
    assert "no guest cockpit; there is none" in await ctl(world, "kick", "cockpit", code=1)
    async with world.booted(1, spec(), name="twin") as guest, world.booted(2, spec("DP-1"), name="twin") as second:
        await connected(guest)
        await connected(second)
        async with world.booted(3, spec("DP-1")):
            await until(lambda: world.error(3))
            assert "more than one guest is called twin" in await ctl(world, "kick", "twin", code=1)
            assert "no guest cockpit; there are: 3, twin" in await ctl(world, "kick", "cockpit", code=1)
            assert "never been connected" in await ctl(world, "trace", "3", code=1)
            assert "no guest ; there are" in await ctl(world, "kick", "", code=1)
            await ctl(world, "blank", "2", "--connector", "0")


async def test_no_daemon(world: World, tmp_path: Path) -> None:
    code = "import sys; from displbe.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--socket", str(tmp_path / "nowhere"), "status"]
    done = await trio.run_process(command, capture_stderr=True, check=False)
    assert done.returncode == 1
    assert b"displbe does not run here" in done.stderr


@pytest.mark.headless
async def test_clients_that_flood_wait_for_the_guests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients send requests without end and do not read. All together get no more answers than allowed, and there is about one
    flip for each answer.
    """
    looks: list[tuple[float, int]] = []
    status = Commands.status

    async def seen(commands: Commands) -> Status:
        looks.append((trio.current_time(), len(times)))
        return await status(commands)

    async def flood() -> None:
        async with await trio.open_unix_socket(world.settings.control.socket) as client:
            with trio.move_on_after(1):
                try:
                    while True:
                        await client.send_all(b'{"version":1,"command":"status"}\n' * 100)
                except trio.BrokenResourceError:
                    pass

    monkeypatch.setattr(Commands, "status", seen)
    async with world.guest(1) as guest, flip_on(guest) as times:
        await more(times, 3)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(flood)
        (begun, _), (ended, _) = looks[0], looks[-1]
        assert 5 < len(looks) <= (ended - begun) / control.COMMAND_INTERVAL + 2
        # A busy machine sometimes delays both, so they are counted over the whole flood.
        assert looks[-1][1] - looks[0][1] >= 0.8 * (len(looks) - 1)
        longest = max(len(list(group)) for _, group in groupby(flips for _, flips in looks))
        assert longest <= max(5, len(looks) // 3), "answers in a row without a flip"
        assert guest.display.connectors[0]._next_event_id == len(guest.display.connectors[0].flips_done)
        with trio.fail_after(30):
            while True:  # the floods' connections may take a moment to be noticed as gone
                try:
                    await asked(world)
                    break
                except AssertionError:
                    await trio.sleep(0.1)
