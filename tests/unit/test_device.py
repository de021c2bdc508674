"""What the handshake of a device is made of: when it looks at the store, its `error` node, the pauses after spurious events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from displbe.backend.changes import LOOKS, Changes
from displbe.backend.error_node import MAX_SIZE, ErrorNode
from displbe.backend.guests import Guests, GuestSettings
from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.backend.spurious_events import LAST, TOLERATED, SpuriousEvents
from displbe.display.blanked_by_operator import BlankedScreens
from displbe.xen.port import NoEntry, Store, StoreError, StoreLost

FRONT = "/local/domain/1/device/vdispl/0"


async def looks(changes: Changes, seconds: float) -> list[float]:
    """When looks were due in so many seconds."""
    begun, found = trio.current_time(), []
    with trio.move_on_after(seconds):
        while True:
            changes.begin_look()
            await changes.wait(1000)
            found.append(trio.current_time() - begun)
    return found


async def test_a_look_for_each_change(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """At once, but after a pause for what the guest writes as fast as it can."""
    changes = Changes()

    async def write() -> None:
        for _ in range(1000):
            changes.mark_guest()
            await trio.sleep(0.001)

    nursery.start_soon(write)
    found = await looks(changes, 1.0)
    assert found[0] == 0
    assert len(found) == pytest.approx(1 / LOOKS, abs=2)


async def test_urgent_changes_do_not_wait_for_the_guests(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    changes = Changes()

    async def write() -> None:
        for _ in range(4):
            changes.mark_guest()
            await trio.sleep(0.01)
        changes.mark()

    nursery.start_soon(write)
    assert await looks(changes, 1.0) == pytest.approx([0, 0.04])


async def test_a_look_without_a_change(autojump_clock: MockClock) -> None:
    changes = Changes()
    changes.mark()
    changes.begin_look()
    begun = trio.current_time()
    await changes.wait(3)
    assert trio.current_time() == begun + 3


@given(st.lists(st.booleans(), max_size=60))
def test_pauses_after_spurious_events(events: list[bool]) -> None:
    """None for the first ones in a row, then longer each time, up to a second."""
    port, row = SpuriousEvents(), 0
    for spurious in events:
        if spurious:
            row += 1
            pause = port.add()
            assert pause == (min(0.001 * 2 ** (row - TOLERATED), LAST) if row > TOLERATED else 0)
        else:
            row = 0
            port.reset()
        assert port.in_a_row == row
    assert port.total == sum(events)


class FakeStore:
    """A store of some nodes; `fails` is raised by the next transaction."""

    def __init__(self, nodes: dict[str, bytes]) -> None:
        self.nodes = nodes
        self.owner = 0
        self.fails: Exception | None = None

    async def read(self, path: str) -> bytes:
        """port.Store.read"""
        if path not in self.nodes:
            raise NoEntry("ENOENT")
        return self.nodes[path]

    async def permissions(self, path: str) -> list[tuple[str, int]]:
        """port.Store.permissions"""
        return [("n", self.owner)]

    async def write(self, path: str, value: bytes) -> None:
        """port.Transaction.write"""
        self.nodes[path] = value

    async def remove(self, path: str) -> None:
        """port.Transaction.remove"""
        await self.read(path)
        del self.nodes[path]

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[FakeStore]:
        """port.Store.transaction"""
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        yield self


def fake(**nodes: bytes) -> tuple[FakeStore, DeviceNodes]:
    """Device 0 of domain 1 with some nodes in our directory."""
    store = FakeStore({f"backend/vdispl/1/0/{key.replace('_', '-')}": value for key, value in nodes.items()})
    return store, DeviceNodes(cast("Store", store), "vdispl", "vdispl", 1, 0)


async def test_the_error_node() -> None:
    store, nodes = fake(state=b"2")
    node = ErrorNode(nodes)
    assert node.is_written
    await node.write()
    assert "backend/vdispl/1/0/error" not in store.nodes
    assert node.set("bad\n" + 1000 * "ü")
    assert not node.set("bad\n" + 1000 * "ü")
    for failure in (StoreError("ENOSPC"), StoreLost()):
        store.fails = failure
        await node.write()
        assert not node.is_written
    await node.write()
    text = store.nodes["backend/vdispl/1/0/error"]
    assert len(text) == MAX_SIZE
    assert text.startswith(b"bad\n\\xfc")
    assert node.is_written
    assert node.set("")
    await node.write()
    assert "backend/vdispl/1/0/error" not in store.nodes
    assert node.reason.startswith("bad")


async def test_no_error_node_in_a_directory_that_goes() -> None:
    store, nodes = fake()
    node = ErrorNode(nodes)
    node.set("bad")
    await node.write()
    assert (store.nodes, node.is_written) == ({}, True)


async def test_a_device_is_the_guests_that_its_place_names() -> None:
    store, nodes = fake(frontend_id=b"1", frontend=FRONT.encode())
    await nodes.verify()
    store.nodes[f"{FRONT}/backend"] = b"/local/domain/0/backend/vbd/1/0"
    with pytest.raises(DeviceRefused, match="backend node is"):
        await nodes.verify()
    store.nodes["backend/vdispl/1/0/frontend-id"] = b"2"
    with pytest.raises(DeviceRefused, match="frontend-id is b'2', not b'1'"):
        await nodes.verify()


@pytest.mark.parametrize(("owner", "who"), [(0, ""), (1, "the guest"), (2, "domain 2")])
async def test_whose_nodes_are_believed(owner: int, who: str) -> None:
    store, nodes = fake()
    store.nodes["domid"] = b"0"
    store.nodes[f"{FRONT}/be-alloc"] = b"1"
    store.owner = owner
    assert await nodes.read_trusted(f"{FRONT}/none", "none") is None
    if not who:
        assert await nodes.read_trusted(f"{FRONT}/be-alloc", "be-alloc") == (b"1", [("n", 0)])
    else:
        with pytest.raises(DeviceRefused, match=f"be-alloc was written by {who}"):
            await nodes.read_trusted(f"{FRONT}/be-alloc", "be-alloc")


def test_pictures_of_guests() -> None:
    guests = Guests({"secret": GuestSettings(screenshot=False)})
    assert [guests.allows_pictures(name) for name in ("secret", "other", "")] == [False, True, False]
    guests.replace({})
    assert not guests
    assert [guests.allows_pictures(name) for name in ("secret", "other", "")] == [True] * 3


def test_a_domains_number_is_another_guests_one_day() -> None:
    blanked = BlankedScreens()
    for screen in ((3, 0, 0), (3, 0, 1), (4, 0, 0), ("cockpit", 0, 0)):
        blanked.add(screen)
    blanked.discard((4, 0, 0))
    blanked.forget_domain(3)
    assert [screen in blanked for screen in ((3, 0, 0), (3, 0, 1), (4, 0, 0), ("cockpit", 0, 0))] == [False] * 3 + [
        True
    ]
