"""The daemon in a domain that XenStore gives no more rights than a guest."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from scenario.devices import SimDevice, SimNodes
from scenario.world import spec, until

from displbe.backend.guests import GuestSettings
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.input.evdev.capabilities import Capabilities
from displbe.input.event_codes import EV_KEY
from displbe.input.settings import InputSettings
from displbe.ops.control import Answer, CommandError, Request
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import SimHypervisor, Xen
from displbe.sim.toolstack import Toolstack
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.wire.errors import first_leaf
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger, Unavailable

DRIVER = 7
DRIVER_OF_MANY = 100


@asynccontextmanager
async def driver_domain(
    folder: Path, nodes: SimNodes | None = None, guests: dict[str, GuestSettings] | None = None
) -> AsyncIterator[tuple[Xen, SimHypervisor, Daemon]]:
    """Run a machine with the daemon in domain 7. Guests may name all its input devices. At the end no resource may be held."""
    settings = Settings(
        sink="headless",
        headless=HeadlessSettings(refresh=1000),
        input=InputSettings(devices=["/dev/input/*"]),
        control=ControlSettings(socket=str(folder / "control")),
        guest=guests or {},
    )
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        Toolstack(xen.server).create_domain(DRIVER)
        await xen.start_domain(DRIVER)
        hypervisor = xen.hypervisor(DRIVER)
        daemon = Daemon(settings, hypervisor, nodes=nodes or SimNodes())
        await nursery.start(daemon.run)
        yield xen, hypervisor, daemon
        await until(lambda: not daemon.displays.devices and not daemon.inputs.devices)
        assert hypervisor.ledger == Ledger()
        nursery.cancel_scope.cancel()


async def test_guest_of_a_driver_domain(tmp_path: Path) -> None:
    """A guest is shown; when it dies, the toolstack waits for the driver domain to remove its directory."""
    async with driver_domain(tmp_path) as (xen, hypervisor, daemon):
        tools = Toolstack(xen.server)
        for _ in range(2):
            async with Guest.booted(xen, 1, spec(), backend=DRIVER) as guest:
                with trio.fail_after(30):
                    await guest.display.connected.wait()
                fb = (await guest.display.create_framebuffer(64, 48))[1]
                await guest.display.show(0, fb, 64, 48)
                assert daemon.sink.claimed("HDMI-A-1")
                assert hypervisor.ledger.buffers == 1
            assert tools.read(tools.back(1, 0, DRIVER)) is None


async def test_two_devices(tmp_path: Path) -> None:
    """When one of a guest's two devices is detached, the other one's directory stays, and so does that of a device that is online again."""
    async with driver_domain(tmp_path) as (xen, _, daemon):
        tools = Toolstack(xen.server)
        async with Guest.booted(xen, 1, spec(), backend=DRIVER):
            tools.add_display(1, [spec("DP-1")], 3, backend=DRIVER)
            await tools.wait_state(tools.back(1, 3, DRIVER), State.INIT_WAIT)
            await tools.remove_display(1, 3, backend=DRIVER)
            assert tools.read(tools.back(1, 3, DRIVER)) is None
            assert tools.read(tools.back(1, 0, DRIVER)) is not None
            await until(lambda: list(daemon.displays.devices) == [(1, 0)])


async def tell(daemon: Daemon, command: str, guest: str) -> Answer:
    """Execute a command as displbectl does. The body of the answer is gone."""
    answer = await daemon.commands.table()[command](Request(1, command, guest))
    if answer.held is not None:
        await answer.held.aclose()
    return answer


def grant_name(tools: Toolstack, domid: int, name: str) -> None:
    """`xenstore-chmod /local/domain/DOMID/name n0 rDOMID r7`, in Dom0."""
    tools.write(f"/local/domain/{domid}/name", name, [("n", 0), ("r", domid), ("r", DRIVER)])


async def test_names_are_not_known_there(tmp_path: Path) -> None:
    """`[guest.NAME]` applies to a guest from the next connection after Dom0 has let the domain read its name. Until then there are no
    screenshots of the guest, because its section may forbid them.
    """
    guests = {"cockpit": GuestSettings(connectors=["DP-9"]), "cluster": GuestSettings(screenshot=False)}
    with structlog.testing.capture_logs() as lines:
        async with driver_domain(tmp_path, guests=guests) as (xen, _, daemon):
            tools = Toolstack(xen.server)
            async with Guest.booted(xen, 1, spec(), backend=DRIVER, name="cockpit") as guest:
                await shown(guest)
                assert daemon.sink.claimed("HDMI-A-1")
                with pytest.raises(CommandError, match="this one's name is not known here"):
                    await tell(daemon, "screenshot", "1")
                grant_name(tools, 1, "cockpit")
                await tell(daemon, "kick", "1")
                await until(lambda: daemon.sink.claimed("DP-9"))
                await shown(guest)
                assert (await tell(daemon, "screenshot", "cockpit")).facts["width"] == 64
                grant_name(tools, 1, "cluster")
                await tell(daemon, "kick", "1")
                await until(lambda: daemon.sink.claimed("HDMI-A-1"))
                with pytest.raises(CommandError, match="no screenshots of this guest"):
                    await tell(daemon, "screenshot", "1")
    said = [line for line in lines if line["event"].startswith("the guest's name is not known")]
    assert [line["domid"] for line in said] == [1]


async def shown(guest: Guest) -> None:
    """Show a framebuffer."""
    with trio.fail_after(30):
        await guest.display.connected.wait()
    await guest.display.show(0, (await guest.display.create_framebuffer(64, 48))[1], 64, 48)


async def test_input_settings_there(tmp_path: Path) -> None:
    """A guest gets the devices of `[guest.NAME] input` as soon as its name is known."""
    nodes = SimNodes()
    nodes.plug("/dev/input/event0", keyboard := SimDevice("keyboard", Capabilities(keys=frozenset(range(1, 128)))))
    guests = {"cockpit": GuestSettings(input="K:/dev/input/event0")}
    async with driver_domain(tmp_path, nodes, guests) as (xen, _, daemon):
        vkb = {"unique-id": "K:/dev/input/event7"}
        async with Guest.booted(xen, 1, vkb=vkb, backend=DRIVER, name="cockpit") as guest:
            with trio.fail_after(30):
                await guest.input.connected.wait()
            assert not keyboard.readers
            grant_name(Toolstack(xen.server), 1, "cockpit")
            await tell(daemon, "kick", "1")
            await until(lambda: any(reader.grabbed for reader in keyboard.readers))
            await tell(daemon, "focus", "cockpit")
            await until(guest.input.connected.is_set)
            keyboard.emit((EV_KEY, 30, 1))
            await until(lambda: guest.input.pressed == {30})


async def test_thirty_guests_when_the_daemon_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XenStore lets a driver domain have ten transactions at a time. All devices are closed nevertheless."""
    settings = Settings(
        sink="headless",
        headless=HeadlessSettings(refresh=1000),
        control=ControlSettings(socket=str(tmp_path / "control")),
    )
    monkeypatch.setattr("displbe.backend.device.SHUTDOWN_TIMEOUT", 20.0)  # the simulated XenStore is slow
    numbers = range(1, 31)
    async with Xen(tmp_path).running() as xen, contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        tools = Toolstack(xen.server)
        tools.create_domain(DRIVER_OF_MANY)
        await xen.start_domain(DRIVER_OF_MANY)
        daemon = Daemon(settings, xen.hypervisor(DRIVER_OF_MANY), nodes=SimNodes())
        scope = await nursery.start(run_in_scope, daemon)
        for number in numbers:
            guest = Guest.booted(xen, number, spec(f"DP-{number}"), backend=DRIVER_OF_MANY)
            await stack.enter_async_context(guest)
        states = [f"{tools.back(number, 0, DRIVER_OF_MANY)}/state" for number in numbers]
        await until(lambda: all(tools.read(state) == b"4" for state in states))
        with structlog.testing.capture_logs() as lines:
            scope.cancel()
            await until(lambda: not daemon.displays.devices)
        left = [tools.read(state) for state in states]
        await nursery.start(daemon_again, settings, xen)
        await stack.aclose()
        nursery.cancel_scope.cancel()
    assert left == [b"6"] * len(states)
    assert [line for line in lines if line["log_level"] in ("warning", "error")] == []


async def run_in_scope(daemon: Daemon, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Run a daemon. The caller gets the scope whose cancellation ends it as SIGTERM does."""
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        task_status.started(nursery.cancel_scope)


async def daemon_again(settings: Settings, xen: Xen, *, task_status: trio.TaskStatus[None]) -> None:
    """Run the next daemon of the driver domain, which removes the directories of its guests when they end."""
    await Daemon(settings, xen.hypervisor(DRIVER_OF_MANY), nodes=SimNodes()).run(task_status=task_status)


async def test_no_watch_at_all(tmp_path: Path) -> None:
    """A daemon that cannot watch for devices ends, with a message for the operator."""
    async with Xen(tmp_path).running() as xen:
        Toolstack(xen.server).create_domain(DRIVER)
        await xen.start_domain(DRIVER)
        xen.server.max_watches = 1
        daemon = Daemon(Settings(sink="headless", control=ControlSettings(socket="")), xen.hypervisor(DRIVER))
        with pytest.raises(BaseExceptionGroup) as ended:
            await daemon.run()
        lacking, others = ended.value.split(Unavailable)
        assert lacking is not None
        assert others is None
        assert "refuses to watch backend/vinput" in str(first_leaf(lacking))


async def test_watches_that_are_used_up(tmp_path: Path) -> None:
    """A device that cannot be watched waits, with the reason in `error`, until watches are free again. It goes when it is removed."""
    async with driver_domain(tmp_path) as (xen, _, daemon):
        tools = Toolstack(xen.server)
        async with Guest.booted(xen, 1, spec(), backend=DRIVER):
            xen.server.max_watches = xen.server.watches_of(DRIVER)
            for number in (3, 4):
                tools.add_display(1, [spec(f"DP-{number}")], number, backend=DRIVER)
            back = tools.back(1, 3, DRIVER)
            await until(lambda: b"quota" in (tools.read(f"{back}/error") or b""))
            tools.remove(tools.back(1, 4, DRIVER))
            await until(lambda: sorted(daemon.displays.devices) == [(1, 0), (1, 3)])
            assert tools.read(f"{back}/state") == b"1"
            xen.server.max_watches += 1
            await tools.wait_state(back, State.INIT_WAIT)
            assert tools.read(f"{back}/error") is None
            await tools.remove_display(1, 3, backend=DRIVER)


async def test_input_of_a_driver_domain(tmp_path: Path) -> None:
    """A guest has its keyboard again after a reboot. Its name cannot be read here, so no place is reserved for it."""
    nodes = SimNodes()
    keyboard = nodes.plug("/dev/input/event0", SimDevice("keyboard", Capabilities(keys=frozenset(range(1, 128)))))
    async with driver_domain(tmp_path, nodes) as (xen, _, daemon):
        for domid in (1, 2):
            vkb = {"unique-id": "K:/dev/input/event0"}
            async with Guest.booted(xen, domid, backend=DRIVER, vkb=vkb, name="guest") as guest:
                with trio.fail_after(30):
                    await guest.input.connected.wait()
                await until(lambda: any(device.guest_input for device in daemon.evdev.devices.values()), timeout=10)
                keyboard.emit((EV_KEY, 30, 1))
                await until(lambda: guest.input.pressed == {30})
                keyboard.emit((EV_KEY, 30, 0))
            await until(lambda: daemon.focus.claims == [])
        # Where the toolstack lets the driver domain read the name, the place is reserved as in Dom0.
        tools = Toolstack(xen.server)
        tools.create_domain(3)
        await xen.start_domain(3)
        tools.write("/local/domain/3/name", "guest", [("n", 0), ("r", 3), ("r", DRIVER)])
        tools.add_input(3, {"unique-id": "K:/dev/input/event0"}, backend=DRIVER)
        await until(lambda: [claim.guest for claim in daemon.focus.claims] == ["guest"])
        await tools.remove_input(3, backend=DRIVER)
        await until(lambda: daemon.focus.claims[0].gone_since is not None)
        tools.destroy_domain(3)
