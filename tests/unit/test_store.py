"""The XenStore client against the simulated daemon in both flavours, and against a misbehaving one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog
import trio
import trio.testing

from displbe.sim.store import StoreServer
from displbe.wire import xs
from displbe.wire.xs import NUL, Op
from displbe.xen import store as store_module
from displbe.xen.host import Host, NoXen
from displbe.xen.paths import connect, find_store, may_be_store
from displbe.xen.port import NoEntry, StoreError, StoreLost, WatchRefused
from displbe.xen.store import MAX_TRANSACTIONS, XenStore

Flavour = Literal["xenstored", "oxenstored"]


class Setup:
    """A simulated daemon, and domain 0's store connected to it."""

    def __init__(self, server: StoreServer, store: XenStore, nursery: trio.Nursery) -> None:
        self.server = server
        self.store = store
        self.nursery = nursery

    async def of(self, domid: int) -> XenStore:
        """Return the store of another domain."""
        await self.nursery.start(self.server.serve, domid)
        store = XenStore(str(self.server.socket_of(domid)))
        await self.nursery.start(store.run)
        return store

    async def drop(self, *, for_good: bool = False) -> None:
        """Close the connection, and wait until the client has noticed."""
        await self.store.read("/")  # the server has accepted the connection
        connected = self.store._connected
        if for_good:
            self.server.release(0)
        else:
            self.server.disconnect(0)
        with trio.fail_after(5):
            while self.store._connected is connected:
                await trio.sleep(0.001)


@pytest.fixture(params=["xenstored", "oxenstored"])
async def setup(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setup]:
    flavour: Flavour = request.param
    server = StoreServer(tmp_path, flavour)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, 0)
        store = XenStore(str(server.socket_of(0)))
        await nursery.start(store.run)
        with trio.fail_after(20):
            yield Setup(server, store, nursery)
        nursery.cancel_scope.cancel()


# Differences between the two daemons


@pytest.mark.parametrize("count", [0, 1, 60, 300])
async def test_long_listings(setup: Setup, count: int) -> None:
    names = [f"{number:03}-{'x' * 60}" for number in range(count)]
    await setup.store.write("/list", b"")
    for name in names:
        await setup.store.write(f"/list/{name}", b"")
    assert sorted(await setup.store.children("/list")) == names


async def test_a_listing_that_changes_while_it_is_read(setup: Setup) -> None:
    for number in range(150):
        await setup.store.write(f"/list/{number:03}-{'x' * 60}", b"")
    listed: list[str] = []

    async def read() -> None:
        listed.extend(await setup.store.children("/list"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for number in range(150, 170):
            await setup.store.write(f"/list/{number:03}-{'x' * 60}", b"")
    assert len(listed) == len(set(listed))
    assert len(listed) >= 150
    assert all(len(name) == 64 for name in listed)


# Permissions


async def test_another_domain_is_refused(setup: Setup) -> None:
    await setup.store.write("/secret", b"1")
    guest = await setup.of(1)
    with pytest.raises(StoreError, match="EACCES"):
        await guest.read("/secret")
    with pytest.raises(StoreError, match="EACCES"):
        await guest.write("/secret", b"2")
    with pytest.raises(StoreError, match="EACCES"):
        await guest.remove("/secret")
    assert await setup.store.read("/secret") == b"1"


async def test_no_events_for_nodes_that_a_domain_may_not_read(setup: Setup) -> None:
    await setup.store.write("/local/domain/1", b"")
    setup.server.tree.set_perms(0, "/local/domain/1", [("n", 1)])
    guest, told = await setup.of(1), list[str]()
    async with guest.watch("/", told.append):
        await setup.store.write("/secret", b"1")
        await setup.store.write("/local/domain/1/public", b"1")
        assert await guest.read("/local/domain/1/public") == b"1"
        assert told == ["/", "/local/domain/1/public"]


# A lost connection


async def test_the_quota_of_watches(setup: Setup) -> None:
    """The quota counts all connections of a domain. Removing a watch makes room. Dom0 has no quota."""
    setup.server.max_watches = 3
    guest, name = await setup.of(5), "E2BIG" if setup.server.flavour == "xenstored" else "EQUOTA"
    async with contextlib.AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(guest.watch(f"/{number}", ignore))
        with pytest.raises(WatchRefused, match=rf"watch /3 \({name}\).* quota"):
            await stack.enter_async_context(guest.watch("/3", ignore))
        for number in range(5):
            await stack.enter_async_context(setup.store.watch(f"/{number}", ignore))
    async with guest.watch("/3", ignore):
        assert setup.server.watches_of(5) == 1


async def test_a_watch_that_is_refused_on_the_next_connection_is_set_when_there_is_room(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the domain may have taken the place meanwhile. Without the watch, the daemon would not see devices any more."""
    monkeypatch.setattr(store_module, "_WATCH_PAUSE", 0.02)
    guest = await setup.of(5)
    told: list[str] = []
    async with guest.watch("/0", told.append), guest.watch("/1", told.append):
        with trio.fail_after(5):
            while sorted(told) != ["/0", "/1"]:
                await trio.sleep(0.001)
        told.clear()
        setup.server.max_watches = 1
        setup.server.disconnect(5)
        await trio.sleep(0.3)
        assert told == ["/0"]
        setup.server.max_watches = 2
        with trio.fail_after(5):
            while told != ["/0", "/1"]:
                await trio.sleep(0.001)


def ignore(path: str) -> None:
    """A watch's callback that does nothing."""


async def test_requests_wait_for_the_next_connection(setup: Setup) -> None:
    await setup.store.write("/a", b"1")
    await setup.drop()
    assert await setup.store.read("/a") == b"1"


async def test_a_lost_connection_fails_every_request_under_way(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    outcomes: list[str] = []
    store = XenStore(path)

    async def ask(number: int) -> None:
        try:
            await store.read(f"/{number}")
            outcomes.append("answered")
        except StoreLost:
            outcomes.append("lost")

    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            client, _ = await listener.accept()
            async with trio.open_nursery() as asking:
                for number in range(50):
                    asking.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
                client.close()
            nursery.cancel_scope.cancel()
    assert outcomes == ["lost"] * 50


async def test_a_message_that_is_half_written_when_the_connection_is_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    lost = 0
    store = XenStore(path)

    async def ask() -> None:
        nonlocal lost
        try:
            await store.write("/a", b"x" * 4000)
        except StoreLost:
            lost += 1

    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            client, _ = await listener.accept()
            async with trio.open_nursery() as asking:
                for _ in range(200):  # more than the socket holds
                    asking.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                client.close()
                with trio.fail_after(5):
                    again, _ = await listener.accept()
            # The rest of the old requests is not sent on the new connection.
            with trio.move_on_after(0.05):
                assert not await again.recv(100)
            again.close()
            nursery.cancel_scope.cancel()
    assert lost == 200


async def test_watches_are_set_again_and_called(setup: Setup) -> None:
    one, other = list[str](), list[str]()
    async with setup.store.watch("/one", one.append), setup.store.watch("other", other.append):
        await setup.store.read("/")
        assert (one, other) == (["/one"], ["other"])
        await setup.drop()
        with trio.fail_after(5):
            while len(one) < 2 or len(other) < 2:
                await trio.sleep(0.001)
        await setup.store.write("/one/below", b"")
        await setup.store.read("/")
        assert (one, other) == (["/one", "/one", "/one/below"], ["other", "other"])


async def test_a_watch_that_is_set_while_there_is_no_connection(setup: Setup) -> None:
    """Both the new connection and `watch` set it then; xenstored accepts it once."""
    for _ in range(5):
        told = list[str]()
        await setup.drop()
        async with setup.store.watch("/a", told.append):
            await setup.store.write("/a", b"")
            await setup.store.read("/a")
            assert told[0] == "/a"
            assert len(told) in (2, 3)


async def test_a_watch_that_is_removed_while_there_is_no_connection(setup: Setup) -> None:
    told = list[str]()
    async with setup.store.watch("/a", told.append):
        await setup.store.read("/")
        await setup.drop()
    told.clear()
    await setup.store.write("/a", b"")
    await setup.store.read("/a")
    assert told == []


async def test_a_transaction_ends_with_its_connection(setup: Setup) -> None:
    """On the next connection, its id may belong to another transaction."""
    await setup.store.write("/a", b"1")

    async def lost() -> None:
        async with setup.store.transaction() as transaction:
            await transaction.read("/a")
            await setup.drop()
            async with setup.store.transaction() as another:
                await another.write("/b", b"another's")
                with pytest.raises(StoreLost):
                    await transaction.write("/b", b"lost")
                with pytest.raises(StoreLost):
                    await transaction.read("/a")
            await transaction.write("/a", b"2")

    with pytest.raises(StoreLost):
        await lost()
    assert (await setup.store.read("/a"), await setup.store.read("/b")) == (b"1", b"another's")


async def test_a_commit_after_the_connection_was_lost(setup: Setup) -> None:
    async def lost() -> None:
        async with setup.store.transaction() as transaction:
            await transaction.write("/a", b"1")
            await setup.drop()

    with pytest.raises(StoreLost):
        await lost()
    with pytest.raises(NoEntry):
        await setup.store.read("/a")


async def test_a_cancelled_transaction_does_not_wait_for_the_next_connection(setup: Setup) -> None:
    with trio.CancelScope() as scope:
        async with setup.store.transaction() as transaction:
            await transaction.write("/a", b"1")
            await setup.drop(for_good=True)
            scope.cancel()
            with trio.fail_after(0.5):
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


# The number of transactions


async def test_open_transactions_are_limited(setup: Setup) -> None:
    """No transaction is refused by XenStore, and at most MAX_TRANSACTIONS are open at a time. None waits for those that came after it."""
    store, begun, most = await setup.of(1), list[int](), 0
    setup.server.tree.write(0, "/local/domain/1/count", b"0")
    setup.server.tree.set_perms(0, "/local/domain/1/count", [("n", 1)])

    async def use(number: int) -> None:
        nonlocal most
        async with store.transaction() as transaction:
            begun.append(number)
            most = max(most, setup.server.transactions_of(1))
            await transaction.read("count")
            await trio.sleep(0.03)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(use, number)
            await trio.testing.wait_all_tasks_blocked()
    assert most == MAX_TRANSACTIONS
    # They get their places in order. Those that have one at the same time may begin in any order.
    assert all(abs(number - place) <= 2 * MAX_TRANSACTIONS for place, number in enumerate(begun))
    assert setup.server.transactions_of(1) == 0


async def test_another_program_of_the_domain_uses_the_quota_up(setup: Setup) -> None:
    """A transaction that XenStore refuses for now waits, and can be cancelled; it is started when the other program has ended one."""
    store, done = await setup.of(1), trio.Event()
    setup.server.max_transactions = 2
    other = XenStore(str(setup.server.socket_of(1)))
    await setup.nursery.start(other.run)

    async def use() -> None:
        async with store.transaction() as transaction:
            await transaction.write("/local/domain/1/a", b"1")
        done.set()

    setup.server.tree.write(0, "/local/domain/1", b"")
    setup.server.tree.set_perms(0, "/local/domain/1", [("n", 1)])
    with structlog.testing.capture_logs() as lines:
        async with other.transaction(), trio.open_nursery() as nursery:
            async with other.transaction():
                with trio.move_on_after(0.1) as patience:
                    await use()
                assert patience.cancelled_caught
                nursery.start_soon(use)
                await trio.sleep(0.1)
                assert not done.is_set()
            with trio.fail_after(5):
                await done.wait()
    assert await store.read("/local/domain/1/a") == b"1"
    assert [line["event"].partition(":")[0] for line in lines] == ["XenStore refuses a transaction"] * 2


async def test_cancelled_transactions_give_their_place_back(setup: Setup) -> None:
    """Wherever a transaction is cancelled, no place and no transaction of XenStore stays taken."""
    store = await setup.of(1)
    for checkpoints in range(40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(2 * MAX_TRANSACTIONS):
                    nursery.start_soon(_empty_transaction, store)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert store._transactions.value == MAX_TRANSACTIONS
    with trio.fail_after(5):
        while setup.server.transactions_of(1):
            await trio.sleep(0.001)
    for _ in range(2 * MAX_TRANSACTIONS):
        await _empty_transaction(store)


async def _empty_transaction(store: XenStore) -> None:
    async with store.transaction():
        await trio.lowlevel.checkpoint()


async def test_a_lost_connection_gives_the_places_back(setup: Setup) -> None:
    """Transactions of a lost connection fail at once; those that wait for a place are started on the next connection."""
    ended = list[bool]()

    async def use(number: int) -> None:
        try:
            async with setup.store.transaction() as transaction:
                if number < MAX_TRANSACTIONS:
                    await dropped.wait()
                await transaction.write(f"/{number}", b"1")
        except StoreLost:
            ended.append(False)
        else:
            ended.append(True)

    for number in range(3 * MAX_TRANSACTIONS):  # a new node would be a conflict with its siblings
        await setup.store.write(f"/{number}", b"0")
    dropped = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(3 * MAX_TRANSACTIONS):
            nursery.start_soon(use, number)
            await trio.testing.wait_all_tasks_blocked()
        await setup.drop()
        dropped.set()
    assert sorted(ended) == [False] * MAX_TRANSACTIONS + [True] * 2 * MAX_TRANSACTIONS
    assert setup.store._transactions.value == MAX_TRANSACTIONS


async def test_the_first_connection_must_succeed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        await XenStore(str(tmp_path / "nowhere")).run()


async def test_it_connects_again_when_the_daemon_is_back(tmp_path: Path) -> None:
    server = StoreServer(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, 0)
        store = XenStore(str(server.socket_of(0)))
        await nursery.start(store.run)
        await store.write("/a", b"1")
        server.disconnect(0)
        server.release(0)
        await trio.sleep(0.2)
        assert not server.socket_of(0).exists()
        await nursery.start(server.serve, 0)
        with trio.fail_after(5):
            assert await store.read("/a") == b"1"
        nursery.cancel_scope.cancel()


# A daemon that does not speak XenStore


async def test_an_impossible_length_ends_the_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    store = XenStore(path)
    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            client, _ = await listener.accept()
            await client.send(b"\xff" * 64)
            with trio.fail_after(5):
                again, _ = await listener.accept()
            client.close()
            again.close()
            nursery.cancel_scope.cancel()


async def test_unexpected_replies_and_events_are_dropped(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    store = XenStore(path)
    values: list[bytes] = []

    async def read() -> None:
        values.append(await store.read("/a"))

    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            client, _ = await listener.accept()
            await client.send(xs.encode(Op.READ, 12345, 0, b"never asked for"))
            await client.send(xs.encode(Op.WATCH_EVENT, 0xDEAD, 7, b"/a\0no such token\0"))
            await client.send(xs.encode(Op.WATCH_EVENT, 0, 0, b""))
            async with trio.open_nursery() as asking:
                asking.start_soon(read)
                (request,) = xs.Decoder().feed(await client.recv(100))
                assert (request.op, request.payload) == (Op.READ, b"/a" + NUL)
                answer = xs.encode(Op.READ, request.request_id, 0, b"value")
                for byte in answer:  # in pieces of one byte
                    await client.send(bytes([byte]))
            client.close()
            nursery.cancel_scope.cancel()
    assert values == [b"value"]


# The kernel's device


async def test_the_device_gets_one_request_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's xenbus thread deadlocks when a watch is set before an earlier request was answered."""
    path = str(tmp_path / "socket")
    store = XenStore(path)
    monkeypatch.setattr("displbe.xen.store.is_device", lambda fd: True)
    seen: list[tuple[int, bytes]] = []
    values: list[bytes] = []

    async def kernel(client: trio.socket.SocketType) -> None:
        decoder = xs.Decoder()
        while True:
            requests = list(decoder.feed(await client.recv(4096)))
            if not requests:
                continue
            await trio.sleep(0.02)
            (request,) = requests  # never more than one
            assert not await more(client)
            seen.append((request.op, bytes(request.payload)))
            await client.send(xs.encode(request.op, request.request_id, 0, b"reply"))

    async def more(client: trio.socket.SocketType) -> bool:
        with trio.move_on_after(0.02):
            await trio.lowlevel.wait_readable(client)
            return True
        return False

    async def read(number: int) -> None:
        values.append(await store.read(f"/{number}"))

    async def watch() -> None:
        async with store.watch("/w", lambda _: None):
            pass

    async def impatient() -> None:
        with trio.move_on_after(0.01):
            await store.read("/never mind")

    with _listening(path) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            client, _ = await listener.accept()
            nursery.start_soon(kernel, client)
            async with trio.open_nursery() as asking:
                asking.start_soon(impatient)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(3):
                    asking.start_soon(read, number)
                asking.start_soon(watch)
            nursery.cancel_scope.cancel()
            client.close()
    assert values == [b"reply"] * 3
    ops = sorted(op for op, _ in seen)
    assert ops == sorted([Op.READ] * 4 + [Op.WATCH, Op.UNWATCH])


@pytest.mark.parametrize("number", [errno.E2BIG, errno.EINVAL])
async def test_the_device_refuses_a_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Linux's xenbus device reports it as an error of write(), and sends no reply (xenbus_write_watch)."""
    path = str(tmp_path / "socket")
    store = XenStore(path)
    monkeypatch.setattr("displbe.xen.store.is_device", lambda fd: True)

    def write(fd: int, message: bytes) -> None:
        os.close(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("displbe.xen.store._write_and_close", write)
    with _listening(path), trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            with pytest.raises(WatchRefused, match=errno.errorcode[number]):
                async with store.watch("/w", ignore):
                    pass
            nursery.cancel_scope.cancel()


# Paths


def test_the_first_path_that_exists(tmp_path: Path) -> None:
    paths = tuple(str(tmp_path / name) for name in ("one", "two"))
    assert find_store(paths) is None
    (tmp_path / "two").touch()
    assert find_store(paths) == paths[1]
    (tmp_path / "one").touch()
    assert find_store(paths) == paths[0]


def test_a_path_that_is_not_xenstore(tmp_path: Path) -> None:
    """Reading /dev/zero as XenStore would not end, and reading a plain file would be tried for ever."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "xenbus")
    (tmp_path / "link").symlink_to(tmp_path / "xenbus")
    refused = ["/dev/zero", "/dev/null", str(tmp_path), str(tmp_path / "file"), str(tmp_path / "fifo")]
    assert not any(map(may_be_store, refused))
    assert all(may_be_store(str(tmp_path / name)) for name in ("xenbus", "link", "nowhere"))
    with pytest.raises(NoXen, match=r"store in \[xen\]: /dev/zero is neither xenstored's socket nor a xenbus device"):
        Host("/dev/zero")


def test_a_path_that_is_no_socket_is_opened_as_a_device(tmp_path: Path) -> None:
    path = tmp_path / "xenbus"
    os.mkfifo(path)
    fd = connect(str(path))
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    os.close(fd)


@contextlib.contextmanager
def _listening(path: str) -> Iterator[trio.socket.SocketType]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.bind(path)
        plain.listen()
        plain.setblocking(False)
        yield trio.socket.from_stdlib_socket(plain)
