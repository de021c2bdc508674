"""Devices whose XenStore nodes are wrong. They wait at state 2, an `error` node and a line in the log give the reason, and they connect
once the cause is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from scenario.world import World, flip_on, spec, until
from structlog.testing import capture_logs

from displbe.sim.guest import Guest
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger

Tamper = Callable[[World, Guest], None]


@asynccontextmanager
async def tampered(world: World, tamper: Tamper) -> AsyncIterator[Guest]:
    """Run guest 1, with a change made after it has published its rings and before it changes its state."""
    async with world.booted(1, spec()) as guest:
        switch = guest.display._switch

        async def wrapped(state: State) -> None:
            if state is State.INITIALISED:
                tamper(world, guest)
            await switch(state)

        guest.display._switch = wrapped  # type: ignore[method-assign]
        yield guest


async def refused(world: World, reason: str, logs: list[dict[str, object]]) -> None:
    """Wait until the device is refused for this reason, in the node and in the log, with no resource held."""
    await until(lambda: world.error(1))
    assert reason in (world.error(1) or "")
    assert world.state(1) is State.INIT_WAIT
    assert world.hypervisor.ledger == Ledger()
    assert world.held(1) == {}
    lines = [line for line in logs if line["event"] == "cannot connect"]
    assert [line["reason"] for line in lines] == [world.error(1)]
    assert (lines[0]["domid"], lines[0]["log_level"]) == (1, "error")


async def connects(world: World, guest: Guest) -> None:
    """Wait until the device connects; its error must be gone, and it must work."""
    with trio.fail_after(3):
        await guest.display.connected.wait()
    assert world.error(1) is None
    async with flip_on(guest) as times:
        await until(lambda: len(times) > 2)


def key(name: str) -> str:
    """Return the path of a node of connector 0."""
    return f"/local/domain/1/device/vdispl/0/0/{name}"


def _write(name: str, value: bytes) -> Tamper:
    return lambda world, guest: world.tools.write(key(name), value)


def _remove(name: str) -> Tamper:
    return lambda world, guest: world.tools.remove(key(name))


def _forge(name: str, value: str) -> Tamper:
    """Replace a node as a guest can: it may not remove the toolstack's node, but it may remove the directory around it."""

    def forge(world: World, guest: Guest) -> None:
        tree, connector = world.xen.server.tree, "/local/domain/1/device/vdispl/0/0"
        found = tree.find(connector)
        assert found is not None
        values = {child: node.value for child, node in found.children.items()}
        tree.remove(1, connector)
        for child, old in values.items():
            if child in ("unique-id", "resolution") and child != name:
                tree.write(0, f"{connector}/{child}", old)
                tree.set_perms(0, f"{connector}/{child}", [("n", 0), ("r", 1)])
            else:
                tree.write(1, f"{connector}/{child}", value.encode() if child == name else old)

    return forge


CASES: dict[str, tuple[Tamper, str]] = {
    "no unique-id": (_remove("unique-id"), "unique-id is missing"),
    "unique-id of the guest's": (_forge("unique-id", "HDMI-A-1"), "unique-id was written by the guest"),
    "empty unique-id": (_write("unique-id", b""), "unique-id is no name"),
    "long unique-id": (_write("unique-id", b"x" * 65), "unique-id is no name"),
    "unique-id with an escape": (_write("unique-id", b"\x1b[2J"), "unique-id is no name"),
    "unknown unique-id": (_write("unique-id", b"VGA-9"), "no output VGA-9"),
    "no resolution": (_remove("resolution"), "resolution is missing"),
    "resolution of the guest's": (_forge("resolution", "64x48"), "resolution was written by the guest"),
    "resolution of nothing": (_write("resolution", b"0x48"), "resolution is not WIDTHxHEIGHT"),
    "resolution with a leading zero": (_write("resolution", b"064x48"), "resolution is not WIDTHxHEIGHT"),
    "resolution in words": (_write("resolution", b"large"), "resolution is not WIDTHxHEIGHT"),
    "ring-ref in words": (_write("req-ring-ref", b"abc"), "req-ring-ref is no number"),
    "ring-ref with a leading zero": (_write("req-ring-ref", b"08"), "req-ring-ref is no number"),
    "empty ring-ref": (_write("req-ring-ref", b""), "req-ring-ref is no number"),
    "negative ring-ref": (_write("evt-ring-ref", b"-1"), "evt-ring-ref is no number"),
    "ring-ref of 33 bits": (_write("req-ring-ref", b"4294967296"), "req-ring-ref is no number"),
    "ring-ref of 2000 digits": (_write("req-ring-ref", b"9" * 2000), "req-ring-ref is no number"),
    "ring-ref with a NUL": (_write("req-ring-ref", b"8\0"), "req-ring-ref is no number"),
    "bad grant": (_write("req-ring-ref", b"999999"), "domain 1"),
    "bad grant for events": (_write("evt-ring-ref", b"4294967295"), "domain 1"),
    "bad port": (_write("req-event-channel", b"900"), "event channel 900 of domain 1"),
    "bad port for events": (_write("evt-event-channel", b"4294967295"), "event channel 4294967295 of domain 1"),
    "no port": (_remove("evt-event-channel"), "evt-event-channel"),
    "no connector": (_remove("req-ring-ref"), "no connector"),
}


@pytest.mark.parametrize("case", CASES)
async def test_refused_and_repaired(tmp_path: Path, case: str) -> None:
    tamper, reason = CASES[case]
    right: dict[str, tuple[bytes, list[tuple[str, int]]]] = {}

    def remember_and_tamper(world: World, guest: Guest) -> None:
        connector = world.xen.server.tree.find("/local/domain/1/device/vdispl/0/0")
        assert connector is not None
        right.update({name: (node.value, node.perms) for name, node in connector.children.items()})
        tamper(world, guest)

    with capture_logs() as logs:
        async with (
            World.running(tmp_path, outputs=["HDMI-A-1"]) as world,
            tampered(world, remember_and_tamper) as guest,
        ):
            await refused(world, reason, logs)  # type: ignore[arg-type]
            for name, (value, perms) in right.items():
                if world.tools.read(key(name)) != value or "of the guest's" in case:
                    world.tools.write(key(name), value, perms)
            await connects(world, guest)


@pytest.mark.headless
async def test_a_connector_that_another_guest_has(world: World) -> None:
    async with world.guest(2) as other:
        with capture_logs() as logs:
            async with world.booted(1, spec()) as guest:
                await until(lambda: world.error(1))
                assert world.error(1) == "output HDMI-A-1 is taken by another guest"
                assert [line["domid"] for line in logs if line["event"] == "cannot connect"] == [1]
                async with flip_on(other) as times:
                    await until(lambda: len(times) > 2)
                assert world.state(1) is State.INIT_WAIT
                await other.display.close()
                await connects(world, guest)


async def test_a_frontend_of_another_place(world: World) -> None:
    """A `frontend` node that names another guest is not followed: the path of a device determines its guest."""
    async with world.booted(1, spec()) as guest:
        world.tools.write(f"{world.tools.back(1)}/frontend", "/local/domain/7/device/vdispl/0")
        await until(lambda: world.error(1))
        assert "frontend is" in (world.error(1) or "")
        world.tools.write(f"{world.tools.back(1)}/frontend", world.tools.front(1))
        await connects(world, guest)


async def test_a_guests_backend_node_leads_nowhere(world: World) -> None:
    """The guest's `backend` node is not followed, because the guest may write it. The backend directory stays as found (see XSA-175)."""
    async with world.guest(2, spec("DP-1")) as victim, world.guest(1) as guest:
        await guest.hypervisor.store.write("device/vdispl/0/backend", world.tools.back(2).encode())
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 2)
        await world.stop_daemon()
        await world.start_daemon()
        await until(lambda: world.error(1))
        assert "backend node" in (world.error(1) or "")
        assert world.error(2) is None
        await guest.hypervisor.store.write("device/vdispl/0/backend", world.tools.back(1).encode())
        await connects(world, guest)
        async with flip_on(victim) as times:
            await until(lambda: len(times) > 2)


async def test_a_reason_is_written_once(world: World) -> None:
    with capture_logs() as logs:
        async with tampered(world, _write("req-ring-ref", b"abc")):
            await until(lambda: world.error(1))
            await trio.sleep(2.3)
    assert len([line for line in logs if line["event"] == "cannot connect"]) == 1


async def test_what_the_guest_wrote_is_escaped_in_the_error_node(world: World) -> None:
    async with tampered(world, _write("req-ring-ref", b"1\n\x1b[31mforged \xff")):
        await until(lambda: world.error(1))
        error = world.error(1) or ""
        assert error.isascii()
        assert error.isprintable()
        assert "forged" in error
