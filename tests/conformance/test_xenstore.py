"""Conformance of port.Store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from conformance.peer import STRANGER
from conformance.world import World

from displbe.xen.port import NoEntry, Store, StoreError


class Watcher:
    """Collects the paths that a watch reports."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._told = trio.Event()

    def __call__(self, path: str) -> None:
        self.paths.append(path)
        self._told.set()

    async def told(self, path: str) -> None:
        """Wait until the watch has reported this path, then forget all paths."""
        with trio.fail_after(5):
            while path not in self.paths:
                self._told = trio.Event()
                await self._told.wait()
        self.paths.clear()


@pytest.fixture
async def store(world: World) -> AsyncIterator[Store]:
    """The store, with an empty home."""
    await world.store.remove(world.home)
    yield world.store
    await world.store.remove(world.home)


async def test_a_written_value_is_read(world: World, store: Store) -> None:
    await store.write(f"{world.home}/a", b"first")
    assert await store.read(f"{world.home}/a") == b"first"
    await store.write(f"{world.home}/a", b"second")
    assert await store.read(f"{world.home}/a") == b"second"


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", b"a\0b\0", b"two\nlines\n", b" ", "Größe €".encode(), bytes(range(256)), b"x" * 2000],
    ids=[
        "empty",
        "nul",
        "nuls",
        "newline",
        "space",
        "utf-8",
        "all bytes",
        "long",
    ],  # oxenstored accepts 2048 bytes at most
)
async def test_a_value_is_any_bytes(world: World, store: Store, value: bytes) -> None:
    await store.write(f"{world.home}/value", value)
    assert await store.read(f"{world.home}/value") == value


async def test_a_missing_node(world: World, store: Store) -> None:
    missing = f"{world.home}/missing"
    with pytest.raises(NoEntry):
        await store.read(missing)
    with pytest.raises(NoEntry):
        await store.children(missing)
    with pytest.raises(NoEntry):
        await store.permissions(missing)
    await store.remove(missing)
    await store.remove(f"{missing}/below/it")


async def test_an_impossible_path(world: World, store: Store) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        await store.read(f"{world.home}/a//b")
    with pytest.raises(StoreError, match="EINVAL"):
        await store.write(f"{world.home}/a b", b"")


async def test_relative_paths_start_at_home(world: World, store: Store) -> None:
    domid = (await store.read("domid")).decode() if await _exists(store, "domid") else "0"
    await store.write(f"{world.home}/a", b"1")
    assert await store.read(f"/local/domain/{domid}/{world.home}/a") == b"1"


async def _exists(store: Store, path: str) -> bool:
    try:
        await store.read(path)
    except NoEntry:
        return False
    return True


async def test_parents_are_created_and_removed_with_their_children(world: World, store: Store) -> None:
    await store.write(f"{world.home}/a/b/c", b"deep")
    assert await store.read(f"{world.home}/a/b") == b""
    assert await store.children(world.home) == ["a"]
    await store.remove(f"{world.home}/a")
    assert not await _exists(store, f"{world.home}/a/b/c")
    assert await store.children(world.home) == []


async def test_children(world: World, store: Store) -> None:
    names = {"0", "1", "state", "multi-touch-width", "a_b", "@x-y"}
    for name in names:
        await store.write(f"{world.home}/{name}", b"")
        await store.write(f"{world.home}/{name}/below", b"")
    listed = await store.children(world.home)
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("count", [60, 68, 69, 137, 300])
async def test_a_directory_longer_than_a_message(world: World, store: Store, count: int) -> None:
    names = [f"{n:03}-{'name' * 14}" for n in range(count)]  # 60 bytes; 61 with their NUL
    for name in names:
        await store.write(f"{world.home}/{name}", b"")
    assert sorted(await store.children(world.home)) == names


async def test_permissions_name_the_owner(world: World, store: Store) -> None:
    await store.write(f"{world.home}/ours", b"")
    assert (await store.permissions(f"{world.home}/ours"))[0][1] == 0
    await store.write(f"{world.home}/theirs", b"")
    await world.peer.give(f"/local/domain/0/{world.home}/theirs", STRANGER)
    assert (await store.permissions(f"{world.home}/theirs"))[0] == ("n", STRANGER)


async def test_a_transaction_takes_effect_as_a_whole(world: World, store: Store) -> None:
    await store.write(f"{world.home}/old", b"")
    async with store.transaction() as transaction:
        await transaction.write(f"{world.home}/a", b"1")
        await transaction.write(f"{world.home}/b", b"2")
        await transaction.remove(f"{world.home}/old")
        assert await transaction.read(f"{world.home}/a") == b"1"
        assert await store.children(world.home) == ["old"]
    assert sorted(await store.children(world.home)) == ["a", "b"]


async def test_an_exception_aborts_the_transaction(world: World, store: Store) -> None:
    async def fail() -> None:
        async with store.transaction() as transaction:
            await transaction.write(f"{world.home}/a", b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not await _exists(store, f"{world.home}/a")


async def test_a_cancelled_transaction_is_aborted(world: World, store: Store) -> None:
    with trio.CancelScope() as scope:
        async with store.transaction() as transaction:
            await transaction.write(f"{world.home}/a", b"1")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not await _exists(store, f"{world.home}/a")


async def test_a_missing_node_within_a_transaction(world: World, store: Store) -> None:
    async def look() -> None:
        async with store.transaction() as transaction:
            await transaction.write(f"{world.home}/a", b"1")
            await transaction.read(f"{world.home}/missing")

    with pytest.raises(NoEntry):
        await look()
    assert not await _exists(store, f"{world.home}/a")


async def test_a_conflict(world: World, store: Store) -> None:
    await store.write(f"{world.home}/state", b"1")

    async def switch() -> None:
        async with store.transaction() as transaction:
            assert await transaction.read(f"{world.home}/state") == b"1"
            await store.write(f"{world.home}/state", b"5")
            await transaction.write(f"{world.home}/state", b"2")

    with pytest.raises(StoreError, match="EAGAIN"):
        await switch()
    assert await store.read(f"{world.home}/state") == b"5"


async def test_a_removal_is_a_conflict(world: World, store: Store) -> None:
    await store.write(f"{world.home}/device/state", b"1")

    async def switch() -> None:
        async with store.transaction() as transaction:
            await transaction.read(f"{world.home}/device/state")
            await store.remove(f"{world.home}/device")
            await transaction.write(f"{world.home}/device/state", b"2")

    with pytest.raises(StoreError, match="EAGAIN"):
        await switch()
    assert not await _exists(store, f"{world.home}/device")


async def test_a_watch_is_called_at_the_start_and_for_changes_below(world: World, store: Store) -> None:
    watcher = Watcher()
    async with store.watch(world.home, watcher):
        await watcher.told(world.home)
        await store.write(f"{world.home}/a/b", b"1")
        await watcher.told(f"{world.home}/a/b")
        await store.write(f"{world.home}/a/b", b"2")
        await watcher.told(f"{world.home}/a/b")
        await store.remove(f"{world.home}/a")
        await watcher.told(f"{world.home}/a")
    await store.write(f"{world.home}/a/b", b"3")
    await store.read(f"{world.home}/a/b")
    assert watcher.paths == []


async def test_a_watch_reports_paths_as_it_was_set(world: World, store: Store) -> None:
    absolute = f"/local/domain/0/{world.home}"
    watcher = Watcher()
    async with store.watch(absolute, watcher):
        await watcher.told(absolute)
        await store.write(f"{world.home}/a", b"")
        await watcher.told(f"{absolute}/a")


async def test_a_watch_below_a_removed_node(world: World, store: Store) -> None:
    await store.write(f"{world.home}/device/0/state", b"1")
    watcher = Watcher()
    async with store.watch(f"{world.home}/device/0/state", watcher):
        await watcher.told(f"{world.home}/device/0/state")
        await store.remove(f"{world.home}/device")
        with trio.fail_after(5):
            while not watcher.paths:
                await trio.sleep(0.01)


async def test_a_transaction_fires_watches_when_it_ends(world: World, store: Store) -> None:
    for name in ("a", "other"):  # creating a node would change its parent, and be a conflict
        await store.write(f"{world.home}/{name}", b"")
    watcher = Watcher()
    async with store.watch(f"{world.home}/a", watcher):
        await watcher.told(f"{world.home}/a")
        async with store.transaction() as transaction:
            await transaction.write(f"{world.home}/a", b"1")
            await store.write(f"{world.home}/other", b"")
            assert watcher.paths == []
        await watcher.told(f"{world.home}/a")


async def test_several_watches_of_one_node(world: World, store: Store) -> None:
    one, other = Watcher(), Watcher()
    async with store.watch(world.home, one):
        async with store.watch(world.home, other):
            await one.told(world.home)
            await other.told(world.home)
        await store.write(f"{world.home}/a", b"")
        await one.told(f"{world.home}/a")
        assert other.paths == []


async def test_a_cancelled_request_leaves_the_stream_intact(world: World, store: Store) -> None:
    await store.write(f"{world.home}/a", b"1")
    for checkpoints in range(8):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(store.read, f"{world.home}/a")
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await store.write(f"{world.home}/a", b"%d" % checkpoints)
        assert await store.read(f"{world.home}/a") == b"%d" % checkpoints


async def test_many_requests_at_once(world: World, store: Store) -> None:
    async def use(number: int) -> None:
        path, value = f"{world.home}/{number}", b"%d" % number * 100
        await store.write(path, value)
        assert await store.read(path) == value
        if number % 3 == 0:
            await store.remove(path)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(use, number)
    assert len(await store.children(world.home)) == 133
