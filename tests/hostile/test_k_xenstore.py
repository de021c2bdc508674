"""Table K: XenStore."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from hostile.rows import row
from hostile.stage import BAD, GOOD, Stage, attach, create, raw_buffer, status
from scenario.world import World, flip_on, spec, until

from displbe.backend import changes, supervisor
from displbe.backend import device as backend_device
from displbe.backend.quota import Limits
from displbe.ops import log as ops_log
from displbe.ops.text import MAX_TEXT
from displbe.sim.guest import FrontConnector, Guest
from displbe.sim.store import Connection, Node, StoreFailure, Tree
from displbe.sim.toolstack import ConnectorSpec
from displbe.wire import xs
from displbe.wire.xenbus import State

FRONT = "device/vdispl/0"
KEYS = ("req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel")


@asynccontextmanager
async def publishing(
    stage: Stage, forge: Callable[[Guest], Awaitable[None]], *connectors: ConnectorSpec
) -> AsyncIterator[Guest]:
    """Run a hostile guest that does `forge` after it has published its rings and before it changes its state."""
    async with stage.booted(*connectors) as bad:
        switch = bad.display._switch

        async def forged(state: State) -> None:
            if state is State.INITIALISED:
                await forge(bad)
            await switch(state)

        bad.display._switch = forged  # type: ignore[method-assign]
        yield bad


async def honest(stage: Stage, bad: Guest) -> None:
    """Wait until the guest, which still waits at 3, is served: its nodes are right again."""
    with trio.fail_after(30):
        await bad.display.connected.wait()
    assert stage.world.error(BAD) is None
    async with flip_on(bad) as times:
        await until(lambda: len(times) > 2)


@row(
    "ring references and ports that are not valid numbers: abc, -1, 08, 4294967296, 4000 digits, a NUL inside, missing",
    "refused; valid ones are served later",
)
async def test_k1_wrong_numbers(stage: Stage) -> None:
    async def nothing(bad: Guest) -> None:
        await bad.hypervisor.store.remove(f"{FRONT}/0/req-ring-ref")

    async with publishing(stage, nothing) as bad:
        await stage.refused("no connector")
        store = bad.hypervisor.store
        right = {key: getattr(bad.display.connectors[0], key.split("-")[0] + suffix(key)) for key in KEYS}
        values = (
            b"abc",
            b"-1",
            b"+1",
            b" 1",
            b"1 ",
            b"0x8",
            b"4294967296",
            b"08",
            b"9" * 4000,
            b"8\x009",
            b"",
            b"\xff\xfe",
            "٣".encode(),
        )
        for key in KEYS:
            for value in values if key == "req-ring-ref" else values[:3]:
                for other, number in right.items():
                    await store.write(f"{FRONT}/0/{other}", b"%d" % number if other != key else value)
                shown = repr(value[:64])
                await until(lambda: shown in (stage.world.error(BAD) or ""))  # noqa: B023 - waited for
                assert key in (stage.world.error(BAD) or "")
                assert stage.ledger == stage.quiet
        for key, number in right.items():
            await store.write(f"{FRONT}/0/{key}", b"%d" % number)
        await honest(stage, bad)


def suffix(key: str) -> str:
    """Return the end of the name of FrontConnector's attribute for a key."""
    return "_ref" if key.endswith("ref") else "_port"


@row(
    "500 directories of connectors that the toolstack did not write",
    "refused: outputs and sizes must come from the toolstack",
)
async def test_k2_500_connectors(stage: Stage) -> None:
    async def many(bad: Guest) -> None:
        async with bad.hypervisor.store.transaction() as transaction:
            for index in range(1, 500):
                for key in (*KEYS, "unique-id"):
                    await transaction.write(f"{FRONT}/{index}/{key}", b"9")

    async with publishing(stage, many) as bad:
        await stage.refused("1/unique-id was written by the guest")
        for index in range(1, 500):
            await bad.hypervisor.store.remove(f"{FRONT}/{index}")
        await honest(stage, bad)


@row(
    "nine connectors, all from the toolstack",
    "refused, even if the guest's quota is higher; displbe serves none of them",
)
async def test_k2_nine_connectors(tmp_path: Path) -> None:
    async with (
        Stage.set(tmp_path, limits=Limits(connectors=20)) as stage,
        stage.booted(*[spec(f"bad-{n}") for n in range(9)]) as bad,
    ):
        await stage.refused("more than 8 connectors")
        stage.world.tools.remove(f"{stage.world.tools.front(BAD)}/8")
        bad.display.connectors.pop().free()
        await honest(stage, bad)
        assert stage.held == {"connectors": 8}


@row("more connectors than the guest's quota", "refused; displbe serves none of them")
async def test_k2_over_the_limit(tmp_path: Path) -> None:
    async with (
        Stage.set(tmp_path, limits=Limits(connectors=2)) as stage,
        stage.booted(*[spec(f"bad-{n}") for n in range(3)]),
    ):
        await stage.refused("limit of 2 connectors")


@row(
    "the guest's `backend` names the directory of another guest; displbe restarts, and the guest connects and leaves",
    "displbe never follows it and writes nothing there because of it; it serves the other guest as before; the log and `error` name it",
)
async def test_k3_backend_forged(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        await backend_forged(tmp_path, lines)
    assert_harmless(lines)


async def backend_forged(tmp_path: Path, lines: list[structlog.typing.EventDict]) -> None:
    async with World.running(tmp_path) as world, world.guest(GOOD, spec("good")) as good:
        victim = world.tools.back(GOOD)
        async with world.booted(BAD, spec("bad")) as bad:
            with trio.fail_after(30):
                await bad.display.connected.wait()
            bad.display._on_backend = ignore  # type: ignore[method-assign]
            store = bad.hypervisor.store
            await world.kill_daemon()
            await store.write(f"{FRONT}/backend", victim.encode())
            await world.start_daemon()
            with trio.fail_after(30):
                await good.display.disconnected.wait()
                await good.display.connected.wait()
            async with flip_on(good) as times:
                before, generation = len(good.display.history), node_generation(world, f"{victim}/state")
                await until(lambda: world.state(BAD) is State.CLOSED)
                # Whatever the guest's state does now, displbe writes its own state only in that guest's backend directory.
                for state in (b"1", b"3", b"5", b"6", b"1"):
                    await store.write(f"{FRONT}/state", state)
                    await trio.sleep(0.12)
                already = len(times)
                await until(lambda: len(times) > already + 5)
                assert node_generation(world, f"{victim}/state") == generation, "displbe has not written it"
                await until(lambda: world.error(BAD))
                assert "the guest's backend node is" in (world.error(BAD) or "")
                assert [line["domid"] for line in lines if line["event"] == "cannot connect"] == [BAD]
                assert len(good.display.history) == before
                assert (world.state(GOOD), world.error(GOOD)) == (State.CONNECTED, None)


def node_generation(world: World, path: str) -> int:
    """Return a number that changes with each write of a node."""
    node = world.xen.server.tree.find(path)
    assert node is not None
    return node.generation


async def ignore(state: State | None) -> None:
    """Replaces Frontend._on_backend: the driver does nothing."""
    await trio.lowlevel.checkpoint()


@row(
    "the guest removes `unique-id` and `resolution` with their directory and creates them again, with the output of another guest",
    "refused",
)
async def test_k4_identity_forged(stage: Stage) -> None:
    async def forge(bad: Guest) -> None:
        store, connector = bad.hypervisor.store, bad.display.connectors[0]
        await store.remove(f"{FRONT}/0")
        await store.write(f"{FRONT}/0/unique-id", b"good")
        await store.write(f"{FRONT}/0/resolution", b"4096x4096")
        for key in KEYS:
            await store.write(f"{FRONT}/0/{key}", b"%d" % getattr(connector, key.split("-")[0] + suffix(key)))

    async with publishing(stage, forge):
        await stage.refused("0/unique-id was written by the guest")
        assert set(stage.world.daemon.sink.outputs) == {"good"}  # type: ignore[attr-defined]


@row(
    "the guest removes only `resolution`, or `be-alloc`, and creates it again",
    "refused, if xenstored lets the guest do it at all",
)
async def test_k4_resolution_forged(stage: Stage) -> None:
    async def forge(bad: Guest) -> None:
        store, connector = bad.hypervisor.store, bad.display.connectors[0]
        with pytest.raises(Exception, match="EACCES"):
            await store.write(f"{FRONT}/0/resolution", b"1x1")
        with pytest.raises(Exception, match="EACCES"):
            await store.write(f"{FRONT}/be-alloc", b"1")
        await store.remove(f"{FRONT}/0")
        for key in KEYS:
            await store.write(f"{FRONT}/0/{key}", b"%d" % getattr(connector, key.split("-")[0] + suffix(key)))

    async with publishing(stage, forge):
        await stage.refused("0/unique-id is missing")


@row(
    "a `unique-id`, `resolution` or `be-alloc` that a third domain owns",
    "refused: displbe trusts only nodes of Dom0 and of its own domain",
)
@pytest.mark.parametrize("key", ["0/unique-id", "0/resolution", "be-alloc"])
async def test_k4_owned_by_a_third_domain(stage: Stage, key: str) -> None:
    tools = stage.world.tools
    path = f"{tools.front(BAD)}/{key}"

    async def forge(bad: Guest) -> None:
        tools.write(path, tools.read(path) or b"", [("n", GOOD), ("r", 0), ("r", BAD)])

    async with publishing(stage, forge) as bad:
        await stage.refused(f"{key} was written by domain {GOOD}")
        tools.write(path, tools.read(path) or b"", [("n", 0), ("r", BAD)])
        await honest(stage, bad)


@row(
    "a node gets another owner after displbe has read its value and before it reads its owner",
    "refused; displbe uses a value only with its own owner",
)
@pytest.mark.parametrize("order", ["the toolstack's, then the guest's", "the guest's, then the toolstack's"])
async def test_k4_changes_hands(stage: Stage, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """A value is used only with its own owner. In the second order, the toolstack writes at that moment, and its value counts."""
    tools = stage.world.tools
    path = f"{tools.front(BAD)}/0/unique-id"
    ours, theirs = (b"bad", [("n", 0), ("r", BAD)]), (b"spare", [("n", BAD), ("r", 0)])
    before, after = (ours, theirs) if order.startswith("the toolstack's") else (theirs, ours)
    get, changed = Tree.get, False

    def change_hands(self: Tree, domid: int, wanted: str, right: str = "r") -> Node:
        nonlocal changed
        node = get(self, domid, wanted, right)
        if wanted == path and domid == 0 and node.value == before[0] and armed and not changed:
            changed, seen = True, node.copy()
            tools.write(path, *after)
            return seen
        return node

    armed = False

    async def forge(bad: Guest) -> None:
        nonlocal armed
        tools.write(path, *before)
        armed = True

    monkeypatch.setattr(Tree, "get", change_hands)
    async with publishing(stage, forge) as bad:
        await until(lambda: stage.world.error(BAD))
        assert changed
        assert stage.world.state(BAD) == State.INIT_WAIT
        armed = False
        tools.write(path, *ours)
        await honest(stage, bad)
        assert set(stage.world.daemon.sink.outputs) == {"good", "bad"}  # type: ignore[attr-defined]


@row("the toolstack's own nodes name an output that another guest has", "refused")
async def test_k4_anothers_output(stage: Stage) -> None:
    async with stage.booted(spec("good")):
        await stage.refused("taken")


@row(
    "states 1, 3, 4, 6 in a loop, with new rings each time",
    "displbe slows connections down to one a second; a regular start works afterwards",
)
async def test_k5_state_storm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 0
    bind = stage.world.hypervisor.bind

    def count(domid: int, port: int, fired: Callable[[], bool]) -> object:
        nonlocal bound
        bound += domid == BAD
        return bind(domid, port, fired)

    monkeypatch.setattr(stage.world.hypervisor, "bind", count)
    async with stage.bad() as bad:
        bad.display._on_backend = ignore  # type: ignore[method-assign]
        connector: FrontConnector = bad.display.connectors[0]
        begun = time.monotonic()
        while time.monotonic() - begun < 2:
            for state in (b"1", b"3", b"4", b"6"):
                connector.ring_page.write(0, bytes(4096))
                await bad.hypervisor.store.write(f"{FRONT}/state", state)
                await trio.sleep(0.12 if state == b"3" else 0.04)
        assert bound <= 2 * (5 + 3)
        await bad.hypervisor.store.write(f"{FRONT}/state", b"1")
        for _ in range(2):  # a connection that was under way may follow the first
            await until(lambda: stage.world.state(BAD) is State.INIT_WAIT)
            await trio.sleep(0.5)
        bad.display.free_rings()
        bad.display.state = State.INITIALISING
        bad.display.connected = trio.Event()
        del bad.display._on_backend
        bad.display._changed.set()
        with trio.fail_after(30):
            await bad.display.connected.wait()


@row(
    "the toolstack removes the device of a guest that has connected too often and must wait for its next connection",
    "the device is gone at once",
)
async def test_k5_detached_while_it_waits(tmp_path: Path) -> None:
    limits = Limits(reconnects_per_second=0.05)
    async with Stage.set(tmp_path, limits=limits) as stage, stage.bad() as bad:
        device = stage.world.device(BAD)
        for _ in range(backend_device.RECONNECT_BURST + 1):
            bad.display.disconnected = trio.Event()
            device.kick()
            await bad.display.disconnected.wait()
            with trio.move_on_after(2):
                await bad.display.connected.wait()
        assert (await device.status()).connections == backend_device.RECONNECT_BURST + 1
        assert bad.display.state is State.INITIALISED
        with trio.fail_after(2):
            await stage.world.tools.remove_display(BAD)
            await stage.gone()


@row(
    "eight connectors; the guest writes as fast as XenStore accepts it: nodes without meaning, the state, a port, the directory",
    "displbe looks at them at most 20 times a second, and not at all at nodes without meaning, so that XenStore can serve others",
)
async def test_k5_writes_without_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = 0
    serve = Connection._serve

    def count(self: Connection, packet: xs.Packet) -> None:
        nonlocal requests
        requests += self.domid == 0
        serve(self, packet)

    monkeypatch.setattr(Connection, "_serve", count)
    async with stage.bad(*[spec(f"bad-{n}") for n in range(8)]) as bad:
        store = bad.hypervisor.store
        port = b"%d" % bad.display.connectors[7].evt_port
        # The requests of one look: the backend's state, `online`, the frontend's state, and the names of all its rings.
        for path, value, cost in (
            ("junk", b"junk", 0),
            ("0/junk", b"junk", 0),
            ("state", b"4", 3),
            ("7/evt-event-channel", port, 3 + 8 * 4),
            ("", b"", 3 + 8 * 4),
        ):
            requests = 1
            while requests:  # what displbe looks at because of the writes before
                requests = 0
                await trio.sleep(0.2)
            writes, begun = 0, trio.current_time()
            while trio.current_time() < begun + 0.5 or writes < 50:
                await store.write(f"{FRONT}/{path}".rstrip("/"), value)
                writes += 1
            looks = (trio.current_time() - begun) / changes.LOOKS + 2
            assert requests <= cost * looks, path
            assert (requests > 0) == (cost > 0), path
        assert stage.world.state(BAD) is State.CONNECTED
        assert (await stage.world.device(BAD).status()).connections == 1


@row("states that are none (99, `4 `, empty, 4000 bytes), or come out of order", "ignored")
async def test_k6_no_states(stage: Stage) -> None:
    async with stage.booted() as bad:
        store = bad.hypervisor.store
        bad.display._on_backend = ignore  # type: ignore[method-assign]
        await trio.sleep(0.02)
        for value in (
            b"99",
            b"4 ",
            b" 3",
            b"",
            b"9",
            b"-1",
            b"\x003",
            b"3\0",
            b"\xff",
            b"3" * 4000,
            b"4",
            b"7",
            b"0",
            b"2",
        ):
            await store.write(f"{FRONT}/state", value)
            await trio.sleep(0.015)
            assert stage.ledger == stage.quiet
        await until(lambda: stage.world.state(BAD) is State.INIT_WAIT)
        del bad.display._on_backend
        await bad.display._switch(State.INITIALISING)
        bad.display._changed.set()
        with trio.fail_after(30):
            await bad.display.connected.wait()
        for value in (b"99", b"", b"3" * 4000):
            await store.write(f"{FRONT}/state", value)
        await trio.sleep(0.05)
        assert stage.world.state(BAD) is State.CONNECTED, "the rings still work"


@row(
    "the guest changes a ring reference or a port to another number while connected",
    "the connection ends: states 5, 6, 2, as at a restart",
)
@pytest.mark.parametrize("key", KEYS)
async def test_k7_keys_changed(stage: Stage, key: str) -> None:
    async with stage.bad() as bad:
        seen = bad.display.history
        already = len(seen)
        await bad.hypervisor.store.write(f"{FRONT}/0/{key}", b"4000")
        await until(lambda: stage.world.state(BAD) is not State.CONNECTED)
        await until(lambda: State.INIT_WAIT in seen[already:])
        assert State.CONNECTED not in seen[already : seen.index(State.INIT_WAIT, already)]
        with trio.fail_after(30):
            await bad.display.connected.wait()


@row(
    "the same, but to a value that is not a number; or it removes the node", "ignored: displbe keeps serving the rings"
)
async def test_k7_keys_spoilt(stage: Stage) -> None:
    async with stage.bad() as bad, flip_on(bad) as times:
        for key in KEYS:
            await bad.hypervisor.store.write(f"{FRONT}/0/{key}", b"rubbish")
            await trio.sleep(2 * changes.LOOKS)
        await bad.hypervisor.store.remove(f"{FRONT}/0/req-ring-ref")
        await trio.sleep(2 * changes.LOOKS)
        already = len(times)
        await until(lambda: len(times) > already + 10)
        assert stage.world.state(BAD) is State.CONNECTED
        assert (await stage.world.device(BAD).status()).connections == 1


@row(
    "values of 4000 bytes that are no text, in every node that the guest can write",
    "refused or ignored; logs and the error node hold printable ASCII, cut",
)
async def test_k8_values_that_are_no_text(stage: Stage) -> None:
    junk = bytes(range(256)) * 15

    async def forge(bad: Guest) -> None:
        for path in ("version", "0/req-ring-ref", "junk", "0/junk"):
            await bad.hypervisor.store.write(f"{FRONT}/{path}", junk)

    with structlog.testing.capture_logs() as lines:
        async with publishing(stage, forge):
            await stage.refused("req-ring-ref is no number")
            error = stage.world.error(BAD) or ""
            assert error.isascii()
            assert error.isprintable()
            assert len(error) <= 512
    assert_harmless(lines)


def assert_harmless(lines: list[structlog.typing.EventDict]) -> None:
    """Check that, as the log writes them, no value of a line can affect a terminal or forge another line."""
    assert lines
    for line in lines:
        for value in ops_log._escape_values(None, "", dict(line)).values():
            if isinstance(value, str):
                assert value.isprintable()
                assert len(value) <= MAX_TEXT + 1


@row(
    "the domain dies, and a new domain gets its domid at once",
    "displbe releases everything of the old domain before it serves the new one",
)
async def test_k9_the_same_number(stage: Stage) -> None:
    world = stage.world
    world.tools.create_domain(BAD)
    await world.xen.start_domain(BAD)
    world.tools.add_display(BAD, [spec("bad")])
    async with trio.open_nursery() as nursery:
        old = Guest(world.xen, BAD)
        await nursery.start(old.hypervisor.run)
        nursery.start_soon(old.display.run)
        with trio.fail_after(30):
            await old.display.connected.wait()
        buffer = raw_buffer(old)
        assert await status(old.display.connectors[0], create(buffer)) == 0
        assert await status(old.display.connectors[0], attach(0x2000)) == 0
        nursery.cancel_scope.cancel()
    grants = list(old.domain.grants.values())
    assert sum(grant.mapped for grant in grants) == 5
    world.xen.stop_domain(BAD)
    for path in (world.tools.back(BAD), world.tools.front(BAD)):
        world.tools.remove(path)
    world.tools.destroy_domain(BAD)
    async with stage.bad() as new:
        assert not any(grant.mapped for grant in grants)
        assert stage.held == {"connectors": 1}
        async with flip_on(new) as times:
            await until(lambda: len(times) > 2)


@row(
    "newlines and escape sequences in `unique-id`, `resolution`, ring references",
    "refused; escaped in the log and in `error`",
)
async def test_k10_forged_log_lines(stage: Stage) -> None:
    evil = 'x\n{"event": "ready"}\x1b[2J\x1b]0;gone\x07\r'
    with structlog.testing.capture_logs() as lines:
        async with stage.booted(spec(evil)) as bad:
            await stage.refused("unique-id is no name")
            error = stage.world.error(BAD) or ""
            assert error.isprintable()
            assert "\\n" in error
            tools = stage.world.tools
            tools.write(f"{tools.front(BAD)}/0/unique-id", "bad")
            tools.write(f"{tools.front(BAD)}/0/resolution", "64x48" + evil)
            await until(lambda: "resolution" in (stage.world.error(BAD) or ""))
            tools.write(f"{tools.front(BAD)}/0/resolution", "64x48")
            await bad.hypervisor.store.write(f"{FRONT}/0/req-ring-ref", evil.encode())
            await until(lambda: "req-ring-ref" in (stage.world.error(BAD) or ""))
            assert (stage.world.error(BAD) or "").isprintable()
    assert_harmless(lines)


@row(
    "XenStore refuses displbe's own writes for some time: ENOSPC, E2BIG, EAGAIN",
    "displbe tries again until they succeed; other guests notice nothing",
)
async def test_k11_our_writes_fail(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART", 0.2)
    home = stage.world.tools.back(BAD)
    failures = {
        key: ["EAGAIN", "ENOSPC", "E2BIG"] for key in ("versions", "state 2", "state 4", "error", "no error", "state 5")
    }
    write, remove = Tree.write, Tree.remove

    def full(self: Tree, domid: int, path: str, value: bytes) -> None:
        key = path.removeprefix(f"{home}/")
        fail(f"{key} {value.decode()}" if key == "state" else key)
        write(self, domid, path, value)

    def stuck(self: Tree, domid: int, path: str) -> None:
        fail("no error" if path == f"{home}/error" else "")
        remove(self, domid, path)

    def fail(key: str) -> None:
        if armed and failures.get(key):
            raise StoreFailure(failures[key].pop())

    monkeypatch.setattr(Tree, "write", full)
    monkeypatch.setattr(Tree, "remove", stuck)
    armed = True

    async def wrong(bad: Guest) -> None:
        if failures["error"]:
            await bad.hypervisor.store.write(f"{FRONT}/0/req-ring-ref", b"rubbish")

    async with publishing(stage, wrong) as bad:
        await stage.refused("req-ring-ref is no number")
        assert not failures["error"]
        await bad.hypervisor.store.write(f"{FRONT}/0/req-ring-ref", b"%d" % bad.display.connectors[0].req_ref)
        with trio.fail_after(30):
            await bad.display.connected.wait()
        async with flip_on(bad) as times:
            await until(lambda: len(times) > 2)
        await until(lambda: stage.world.error(BAD) is None)
        stage.world.device(BAD).kick()
        with trio.fail_after(30):
            await bad.display.disconnected.wait()
            await bad.display.connected.wait()
        assert not any(failures.values()), failures
        armed = False
