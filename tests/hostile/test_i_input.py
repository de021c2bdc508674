"""Chapter I: a hostile input frontend (kbdif)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hostile.rows import row
from hostile.stage import BAD, Stage, forked
from scenario.devices import SimDevice
from scenario.world import descriptors, until

from displbe.input.evdev.capabilities import Capabilities
from displbe.input.event_codes import EV_KEY, EV_REL, REL_X
from displbe.input.event_queue import CAPACITY, EventQueue
from displbe.input.settings import InputSettings
from displbe.sim.guest import Guest
from displbe.wire.kbdif import IN_SLOTS
from displbe.wire.xenbus import State

SHARED = "/dev/input/event0"
"""A keyboard that both guests name."""
OWN = "/dev/input/event1"
"""A device with keys and motions that only the hostile guest names."""
A, B, C = 30, 48, 46
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 0, 4, 8, 12


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """The stage with input devices, and a good guest that flips throughout."""
    before = descriptors()
    settings = InputSettings(devices=["/dev/input/*"], focus="good")
    async with Stage.set(tmp_path, input=settings) as stage:
        plug(stage)
        yield stage
    assert descriptors() == before


def plug(stage: Stage) -> None:
    """Plug the devices in."""
    keys = Capabilities(keys=frozenset(range(1, 128)), rel_axes=frozenset((REL_X,)))
    for path in (SHARED, OWN):
        stage.world.nodes.plug(path, SimDevice(path, keys))


def device(stage: Stage, path: str) -> SimDevice:
    """Return a device that is plugged in."""
    return stage.world.nodes.devices[path]


@contextlib.asynccontextmanager
async def hostile(stage: Stage, unique_id: str = f"K:{OWN};P:{OWN}", **nodes: str) -> AsyncIterator[Guest]:
    """Run the hostile guest, with connected input and open devices. Afterwards none of its resources may be left."""
    vkb = {"unique-id": unique_id, **{key.replace("_", "-"): value for key, value in nodes.items()}}
    async with stage.world.booted(BAD, vkb=vkb, name="hostile") as guest:
        with trio.fail_after(5):
            await guest.input.connected.wait()
        await until(lambda: device(stage, OWN).readers or device(stage, SHARED).readers)
        yield guest
    await until(lambda: (BAD, 0) not in stage.world.daemon.inputs.devices)
    assert stage.ledger == stage.quiet


def error(stage: Stage) -> str:
    """Return the device's `error` node."""
    return (stage.world.tools.read(f"{stage.world.tools.vinput(BAD)}/error") or b"").decode()


async def shut_off(stage: Stage, guest: Guest, reason: str) -> None:
    """Wait until the device has been shut off for this reason."""
    await until(lambda: guest.input.history[-4:].count(State.CLOSING) or guest.input.history[-1] is State.CLOSED)
    await until(lambda: reason in error(stage))


@row(
    "the guest never reads an event",
    "512 events wait; then displbe drops motions, then taps; each key that is down for the guest gets its release when there is room",
)
async def test_i1_events_never_taken(stage: Stage) -> None:
    async with hostile(stage) as bad:
        keyboard = device(stage, OWN)
        bad.input.reads = False
        keyboard.emit((EV_KEY, A, 1))
        for number in range(3 * CAPACITY):
            keyboard.emit((EV_KEY, B, 1), (EV_REL, REL_X, 1))
            keyboard.emit((EV_KEY, B, 0))
            if number % 10 == 0:
                await until(lambda: not keyboard.readers[0]._events)
        keyboard.emit((EV_KEY, A, 0))
        guest_input = next(claim.guest_input for claim in stage.world.daemon.focus.claims if claim.guest == "hostile")
        assert guest_input is not None
        await until(lambda: not guest_input.queue.pressed)
        assert 0 < guest_input.queue.waiting <= CAPACITY
        assert guest_input.queue.dropped > CAPACITY
        await stage.still_flips()
        bad.input.reads = True
        bad.input.take()
        await until(lambda: not guest_input.queue.waiting and not bad.input.pressed)
        assert bad.input.moved[0] == 3 * CAPACITY


@row(
    "a page that looks used before, whose events the guest never reads",
    "the releases of all keys wait, and at most twice as many events; an event costs no more time than usual",
)
async def test_i1_used_page_never_taken(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, drop = 0, EventQueue._drop_taps

    def count(queue: EventQueue) -> None:
        nonlocal looks
        looks += 1
        drop(queue)

    monkeypatch.setattr(EventQueue, "_drop_taps", count)
    vkb = {"unique-id": f"K:{OWN}"}
    async with stage.world.booted(BAD, vkb=vkb, name="hostile") as bad:
        switch = bad.input.switch

        async def forge(state: State) -> None:
            if state is State.INITIALISED:
                bad.input.memory.store(IN_CONS, 5)
                bad.input.memory.store(IN_PROD, 5)
                bad.input.reads = False
            await switch(state)

        bad.input.switch = forge  # type: ignore[method-assign]
        with trio.fail_after(5):
            await bad.input.connected.wait()
        guest_input = next(claim.guest_input for claim in stage.world.daemon.focus.claims if claim.guest == "hostile")
        assert guest_input is not None
        assert (releases := guest_input.queue.waiting) > CAPACITY
        keyboard = device(stage, OWN)
        await until(lambda: keyboard.readers)
        for number in range(3 * CAPACITY):
            keyboard.emit((EV_KEY, A if number % 4 < 2 else B, 1 - number % 2))
            if number % 20 == 0:
                await until(lambda: not keyboard.readers[0]._events)
        await until(lambda: not keyboard.readers[0]._events)
        assert guest_input.queue.waiting <= 2 * releases
        assert looks < 10
        await stage.still_flips()
        bad.input.reads = True
        bad.input.take()
        await until(lambda: not guest_input.queue.waiting and not bad.input.pressed)


@row("`in_cons` is ahead of `in_prod`, or far behind it", "shut off")
async def test_i2_impossible_index(stage: Stage) -> None:
    for value in (1, IN_SLOTS + 1, 1 << 31):
        async with hostile(stage) as bad:
            memory = bad.input.memory
            bad.input.reads = False
            memory.store(IN_CONS, memory.load(IN_PROD) + value & 0xFFFFFFFF)
            bad.input.channel.notify()
            await shut_off(stage, bad, "impossible event index")


@row("the guest overwrites `in_prod` and `out_cons`", "displbe never reads them: the next event is in the right slot")
async def test_i2_our_indices_overwritten(stage: Stage) -> None:
    async with hostile(stage) as bad:
        memory = bad.input.memory
        bad.input.reads = False
        for number, garbage in enumerate((7, 1 << 31, 0xFFFFFFFF)):
            memory.store(IN_PROD, garbage)
            memory.store(OUT_CONS, garbage)
            device(stage, OWN).emit((EV_KEY, A, 1 - number % 2))
            await until(lambda: memory.load(IN_PROD) == number + 1)  # noqa: B023 - waited for
            bad.input.take()
            assert len(bad.input.events) == number + 1


@row(
    "the guest moves `in_cons` back and forth with notifications, as fast as a vCPU can",
    "displbe re-arms the port later each time",
)
async def test_i2_index_moved_to_and_fro(stage: Stage) -> None:
    async with hostile(stage) as bad:
        bad.input.reads = False
        for number in range(IN_SLOTS - 1):
            device(stage, OWN).emit((EV_KEY, A, 1 - number % 2))
            await until(lambda: bad.input.memory.load(IN_PROD) == number + 1)  # noqa: B023 - waited for
        peer = bad.domain.peers[bad.input._port]
        assert peer is not None
        channel = stage.world.hypervisor.channels._channels[peer[1]]
        calls, fired = 0, channel.fired

        def count() -> bool:
            nonlocal calls
            calls += 1
            return fired()

        channel.fired = count
        host, memory = stage.world.hypervisor.domain, bad.input.memory

        def flood() -> None:
            for cons in (0, 10, 5, 50):
                memory.store(IN_CONS, cons)
                host.raise_port(channel.port)

        with forked(flood):
            await trio.sleep(0.5)
            await stage.still_flips()
        assert calls < 80
        memory.store(IN_CONS, memory.load(IN_PROD))


@row(
    "`request-…` nodes that are not 1, or that change while connected",
    "count as 0; displbe reads them once for each connection",
)
async def test_i3_garbage_in_requests(stage: Stage) -> None:
    vkb = {"unique-id": f"K:{OWN};P:{OWN};T:{OWN}", "feature-abs-pointer": "1", "feature-raw-pointer": "1"}
    keys = ("request-abs-pointer", "request-multi-touch", "request-raw-pointer")
    for value in (b"\xff\xfe", b"2", b"-1", b"1" * 2000, b""):
        async with stage.world.booted(BAD, vkb=vkb, name="hostile") as bad:
            probe = bad.input._probe

            async def forged(backend: str) -> None:
                await probe(backend)  # noqa: B023 - called within the turn
                for key in keys:
                    await bad.hypervisor.store.write(f"device/vkbd/0/{key}", value)  # noqa: B023

            bad.input._probe = forged  # type: ignore[method-assign]
            with trio.fail_after(5):
                await bad.input.connected.wait()
            guest_input = next(
                claim.guest_input for claim in stage.world.daemon.focus.claims if claim.guest == "hostile"
            )
            assert guest_input is not None
            before = guest_input.features
            assert (before.absolute, before.contacts, before.width) == (False, 0, 800)
            for key in keys:
                await bad.hypervisor.store.write(f"device/vkbd/0/{key}", b"1")
            await trio.sleep(0.02)
            assert guest_input.features is before
    await stage.still_flips()


@row("a `unique-id` that the guest may write, or that another domain owns", "refused")
async def test_i3_forged_unique_id(stage: Stage) -> None:
    tools = stage.world.tools
    for perms in ([("n", BAD)], [("n", 0), ("w", BAD)], [("w", 0)], [("n", 7)]):
        tools.create_domain(BAD)
        await stage.world.xen.start_domain(BAD)
        tools.add_input(BAD, {"unique-id": f"K:{SHARED}"})
        tools.write(f"{tools.vinput(BAD)}/unique-id", f"K:{SHARED}", perms)
        guest = Guest(stage.world.xen, BAD)
        async with trio.open_nursery() as nursery:
            await nursery.start(guest.hypervisor.run)
            nursery.start_soon(guest.input.run)
            await until(lambda: "unique-id" in error(stage))
            assert not device(stage, SHARED).readers
            nursery.cancel_scope.cancel()
        stage.world.xen.stop_domain(BAD)
        await tools.remove_input(BAD)
        tools.destroy_domain(BAD)
        await until(lambda: (BAD, 0) not in stage.world.daemon.inputs.devices)


@row(
    "`unique-id` names a device that the configuration does not allow",
    "displbe does not open it; the guest gets nothing from it",
)
async def test_i3_device_not_allowed(tmp_path: Path) -> None:
    allowed = InputSettings(devices=[OWN, "name=some other*"])
    async with Stage.set(tmp_path, input=allowed) as stage:
        plug(stage)
        async with hostile(stage, f"K:{SHARED};P:{OWN}") as bad:
            assert not device(stage, SHARED).readers
            device(stage, SHARED).emit((EV_KEY, A, 1))
            device(stage, OWN).emit((EV_REL, REL_X, 4))
            await until(lambda: bad.input.moved == [4, 0])
            assert bad.input.pressed == set()


@row(
    "the guest sends events over its own ring, as fast as a vCPU can",
    "displbe consumes them unread, later each time; other guests notice nothing",
)
async def test_i4_flood_of_its_own_events(stage: Stage) -> None:
    async with hostile(stage) as bad:
        memory, host = bad.input.memory, stage.world.hypervisor.domain
        peer = bad.domain.peers[bad.input._port]
        assert peer is not None

        def flood() -> None:
            memory.store(OUT_PROD, memory.load(OUT_CONS) + 25 & 0xFFFFFFFF)
            host.raise_port(peer[1])

        with forked(flood):
            await trio.sleep(0.5)
            await stage.still_flips()
        device(stage, OWN).emit((EV_KEY, A, 1))
        await until(lambda: bad.input.pressed == {A})


@row("`out_prod` is more than 25 ahead", "shut off")
async def test_i4_impossible_index(stage: Stage) -> None:
    async with hostile(stage) as bad:
        bad.input.memory.store(OUT_PROD, 26)
        bad.input.channel.notify()
        await shut_off(stage, bad, "impossible event index")


@row(
    "the guest names a keyboard that another guest has, connects again and again, and waits for the other guest to end",
    "the guest never gets what is typed for the other; when the operator gives it the focus, it gets only keys pressed from then on",
)
async def test_i5_focus(stage: Stage) -> None:
    keyboard, world = device(stage, SHARED), stage.world
    async with (
        world.booted(3, vkb={"unique-id": f"K:{SHARED}"}, name="good") as good,
        hostile(stage, f"K:{SHARED}") as bad,
    ):
        await good.input.connected.wait()
        await until(lambda: any(reader.grabbed for reader in keyboard.readers))
        keyboard.emit((EV_KEY, A, 1))
        await until(lambda: good.input.pressed == {A})
        # The hostile guest reconnects: the focus stays.
        await bad.input.publish()
        await until(lambda: bad.input.history.count(State.CONNECTED) >= 2)
        keyboard.emit((EV_KEY, B, 1))
        await until(lambda: good.input.pressed == {A, B})
        assert bad.input.events == []
        keyboard.emit((EV_KEY, C, 1))  # not read yet when the operator moves the focus:
        keyboard.emit((EV_KEY, C, 0))
        world.daemon.focus.give("hostile")
        await until(lambda: not good.input.pressed)
        assert bad.input.events == []
        assert [event.keycode for event in good.input.events][-4:-2] == [C, C]  # type: ignore[union-attr]
        keyboard.emit((EV_KEY, A, 2))
        keyboard.emit((EV_KEY, A, 0))
        keyboard.emit((EV_KEY, C, 1))
        await until(lambda: bad.input.pressed == {C})
        assert [event.keycode for event in bad.input.events] == [C]  # type: ignore[union-attr]
        world.daemon.focus.give("good")
        await until(lambda: not bad.input.pressed)
        keyboard.emit((EV_KEY, C, 0))
        # The good guest has gone and may return: events are discarded.
        await good.input.switch(State.CLOSED)
        await until(lambda: not any(claim.guest_input for claim in world.daemon.focus.claims if claim.guest == "good"))
        keyboard.emit((EV_KEY, A, 1))
        keyboard.emit((EV_KEY, A, 0))
        await trio.sleep(0.05)
        assert len(bad.input.events) == 2
