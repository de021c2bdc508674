"""XenStore driven by pyxs, a client that shares no code with displbe's: what one writes the other reads, in both directions.

pyxs blocks, so its calls run in a worker thread. It has no time limits either: each call has one here. It accepts paths and values of
printable ASCII only, and never an empty value.
"""

from __future__ import annotations

import errno
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pyxs
import trio
from conformance.peer import STRANGER
from conformance.world import World

from displbe.xen.port import NoEntry, Store, StoreError


class Other:
    """A pyxs client with paths below the world's home."""

    def __init__(self, world: World) -> None:
        self.root = f"/local/domain/0/{world.home}"
        self.client = pyxs.Client(unix_socket_path=world.store_path)

    def path(self, name: str = "") -> bytes:
        """The absolute path of a node below home."""
        return f"{self.root}/{name}".rstrip("/").encode()

    async def call(self, method: Callable[..., Any], *arguments: object) -> Any:
        """Call a blocking method in a thread. Raises trio.TooSlowError after 5 s; the thread is left behind then."""
        with trio.fail_after(5):
            return await trio.to_thread.run_sync(lambda: method(*arguments), abandon_on_cancel=True)

    async def read(self, name: str) -> Any:
        return await self.call(self.client.read, self.path(name))

    async def write(self, name: str, value: bytes) -> None:
        await self.call(self.client.write, self.path(name), value)

    async def list(self, name: str = "") -> Any:
        return await self.call(self.client.list, self.path(name))


@pytest.fixture
async def other(world: World) -> AsyncIterator[Other]:
    """A connected client, with nothing but an empty home in the store."""
    await world.store.remove(world.home)
    await world.store.write(world.home, b"")
    client = Other(world)
    await client.call(client.client.connect)
    yield client
    await client.call(client.client.close)
    await world.store.remove(world.home)


async def refused(other: Other, number: int, method: Callable[..., Any], *arguments: object) -> None:
    """The call fails with this errno."""
    with pytest.raises(pyxs.PyXSError) as raised:
        await other.call(method, *arguments)
    assert raised.value.args[0] == number


async def test_values_in_both_directions(world: World, other: Other) -> None:
    await other.write("theirs", b"written by pyxs")
    assert await world.store.read(f"{world.home}/theirs") == b"written by pyxs"
    await world.store.write(f"{world.home}/ours", b"written by displbe")
    assert await other.read("ours") == b"written by displbe"
    await other.write("ours", b"x" * 2000)
    assert await world.store.read(f"{world.home}/ours") == b"x" * 2000


async def test_relative_paths_start_at_home(world: World, other: Other) -> None:
    await other.call(other.client.write, f"{world.home}/a".encode(), b"1")
    assert await other.read("a") == await world.store.read(f"{world.home}/a") == b"1"
    assert await other.call(other.client.get_domain_path, 7) == b"/local/domain/7"


async def test_directories(world: World, other: Other) -> None:
    await other.call(other.client.mkdir, other.path("a/b"))
    assert await world.store.children(f"{world.home}/a") == ["b"]
    assert await world.store.read(f"{world.home}/a/b") == b""
    names = {"0", "state", "multi-touch-width", "a_b", "@x-y"}
    for name in names:
        await world.store.write(f"{world.home}/list/{name}/below", b"")
    assert {name.decode() for name in await other.list("list")} == names
    assert await other.list("list/state/below") == []


async def test_removal_in_both_directions(world: World, other: Other) -> None:
    await other.write("a/b/c", b"deep")
    await world.store.remove(f"{world.home}/a")
    assert not await other.call(other.client.exists, other.path("a/b/c"))
    await world.store.write(f"{world.home}/a/b/c", b"deep")
    await other.call(other.client.delete, other.path("a"))
    with pytest.raises(NoEntry):
        await world.store.read(f"{world.home}/a/b/c")


async def test_errors(world: World, other: Other) -> None:
    """An error has the right errno, and the connection works afterwards."""
    for method in (other.client.read, other.client.list, other.client.get_perms):
        await refused(other, errno.ENOENT, method, other.path("missing"))
    await refused(other, errno.EEXIST, _watch_twice, other.client, other.path("a"))
    await other.write("a", b"1")
    assert await other.read("a") == b"1"


def _watch_twice(client: Any, path: bytes) -> None:
    with client.monitor() as monitor:
        monitor.watch(path, b"token")
        client.monitor().watch(path, b"token")


async def test_permissions(world: World, other: Other) -> None:
    path = other.path("a")
    await other.write("a", b"1")
    await other.call(other.client.set_perms, path, [b"b%d" % STRANGER, b"r0"])
    assert await other.call(other.client.get_perms, path) == [b"b%d" % STRANGER, b"r0"]
    assert await world.store.permissions(f"{world.home}/a") == [("b", STRANGER), ("r", 0)]
    await other.call(other.client.set_perms, path, [b"n0"])
    assert await world.store.permissions(f"{world.home}/a") == [("n", 0)]


async def test_a_transaction_of_theirs(world: World, other: Other) -> None:
    """It takes effect as a whole when it is committed, and not at all when it is rolled back."""
    await world.store.write(f"{world.home}/a", b"0")
    assert await other.call(other.client.transaction) > 0
    await other.write("a", b"1")
    await other.write("b", b"2")
    assert await other.read("a") == b"1"
    assert await world.store.read(f"{world.home}/a") == b"0"
    assert await other.call(other.client.commit) is True
    assert [await world.store.read(f"{world.home}/{name}") for name in "ab"] == [b"1", b"2"]
    await other.call(other.client.transaction)
    await other.write("a", b"3")
    await other.call(other.client.rollback)
    assert await other.read("a") == await world.store.read(f"{world.home}/a") == b"1"


async def test_a_transaction_of_ours(world: World, other: Other) -> None:
    await other.write("a", b"0")
    async with world.store.transaction() as transaction:
        assert await transaction.read(f"{world.home}/a") == b"0"
        await transaction.write(f"{world.home}/a", b"1")
        assert await other.read("a") == b"0"
    assert await other.read("a") == b"1"


async def test_conflicts(world: World, other: Other) -> None:
    """A transaction fails if the other client has written a node that it read."""
    await world.store.write(f"{world.home}/state", b"1")
    await other.call(other.client.transaction)
    assert await other.read("state") == b"1"
    await world.store.write(f"{world.home}/state", b"5")
    await other.write("state", b"2")
    assert await other.call(other.client.commit) is False
    assert await world.store.read(f"{world.home}/state") == b"5"

    async def switch(store: Store) -> None:
        async with store.transaction() as transaction:
            assert await transaction.read(f"{world.home}/state") == b"5"
            await other.write("state", b"6")
            await transaction.write(f"{world.home}/state", b"2")

    with pytest.raises(StoreError, match="EAGAIN"):
        await switch(world.store)
    assert await other.read("state") == b"6"


class Events:
    """The events of a pyxs Monitor, taken from its queue: its own iterator has no time limit, and hangs after `unwatch`."""

    def __init__(self, other: Other, monitor: Any) -> None:
        self._other = other
        self._events: queue.Queue[tuple[bytes, bytes]] = monitor.events

    async def next(self) -> tuple[bytes, bytes]:
        """The next path and its token. Raises queue.Empty after 4 s."""
        event: tuple[bytes, bytes] = await self._other.call(self._events.get, True, 4)
        return event

    def none(self) -> bool:
        """Whether there is none."""
        return self._events.empty()


async def test_watches_of_theirs(world: World, other: Other) -> None:
    """An event at the start, one for each change of ours below, one for a transaction's end; none after `unwatch`."""
    await world.store.write(f"{world.home}/a", b"0")
    monitor = other.client.monitor()
    events = Events(other, monitor)
    await other.call(monitor.watch, other.path(), b"token")
    assert await events.next() == (other.path(), b"token")
    await world.store.write(f"{world.home}/a", b"1")
    assert await events.next() == (other.path("a"), b"token")
    await world.store.write(f"{world.home}/a/b", b"1")
    assert await events.next() == (other.path("a/b"), b"token")
    async with world.store.transaction() as transaction:
        await transaction.write(f"{world.home}/a", b"2")
        await other.read("a")
        assert events.none()
    assert await events.next() == (other.path("a"), b"token")
    await world.store.remove(f"{world.home}/a")
    assert await events.next() == (other.path("a"), b"token")
    await other.call(monitor.unwatch, other.path(), b"token")
    await world.store.write(f"{world.home}/a", b"3")
    await other.read("a")
    assert events.none()


async def test_relative_watches_of_theirs(world: World, other: Other) -> None:
    monitor = other.client.monitor()
    events = Events(other, monitor)
    path = world.home.encode()
    await other.call(monitor.watch, path, b"relative")
    assert await events.next() == (path, b"relative")
    await world.store.write(f"{world.home}/a", b"1")
    assert await events.next() == (path + b"/a", b"relative")
    await other.call(monitor.close)


async def test_watches_of_ours(world: World, other: Other) -> None:
    paths: list[str] = []

    async def wait_for(path: str) -> None:
        with trio.fail_after(5):
            while path not in paths:
                await trio.sleep(0.005)
        paths.clear()

    await other.write("a", b"0")
    async with world.store.watch(world.home, paths.append):
        await wait_for(world.home)
        await other.write("a/b", b"1")
        await wait_for(f"{world.home}/a/b")
        await other.call(other.client.transaction)
        await other.write("a/b", b"2")
        await world.store.read(world.home)
        assert paths == []
        await other.call(other.client.commit)
        await wait_for(f"{world.home}/a/b")
        await other.call(other.client.delete, other.path("a"))
        await wait_for(f"{world.home}/a")
