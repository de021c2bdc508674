"""Failures on the host, and buffers that other programs keep: the responses to the guest and the messages for the operator."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from scenario.cards import Screens
from scenario.world import World, spec, until

from displbe.backend.guests import GuestSettings
from displbe.display.requests import RingState
from displbe.sim.guest import DisplayBuffer, Guest, GuestFailure
from displbe.sim.hypervisor import SimBuffer
from displbe.wire.displif import REQ_ALLOC, DbufCreate, DbufDestroy, GetEdid, Request
from displbe.wire.errors import Errno
from displbe.wire.xenbus import State
from displbe.xen.port import HypervisorError, Ledger, NotOffered

FAILURES = [
    (lambda: HypervisorError(errno.ENOMEM, "no memory"), Errno.ENOMEM),
    (lambda: HypervisorError(errno.ENOSPC, "no maptrack entry"), Errno.ENOSPC),
    (lambda: HypervisorError(errno.EMFILE, "no file"), Errno.EIO),
    (lambda: HypervisorError(errno.EINVAL, "no grant"), Errno.EINVAL),
    (lambda: NotOffered(errno.ENOTTY, "no such ioctl"), Errno.EOPNOTSUPP),
]


@pytest.mark.parametrize(("failure", "answer"), FAILURES)
@pytest.mark.parametrize("call", ["map_buffer", "map_page", "share_dmabuf"])
async def test_a_call_that_the_host_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: Callable[[], HypervisorError], answer: Errno
) -> None:
    """The guest gets the error number of the same name, and is not shut off."""
    allowed = {"cluster": GuestSettings(be_alloc=True)}
    async with World.running(tmp_path, guests=allowed) as world, world.booted(1, spec(), name="cluster") as guest:
        world.tools.write(f"{world.tools.front(1)}/be-alloc", "1")
        with trio.fail_after(30):
            await guest.display.connected.wait()
        connector = guest.display.connectors[0]
        ours, theirs = [DisplayBuffer(guest.domain, 64 * 48 * 4) for _ in range(2)]

        def refuse(*_: Any, **__: Any) -> Any:
            raise failure()

        with monkeypatch.context() as patch:
            patch.setattr(world.hypervisor, call, refuse)
            requests: dict[str, list[Request]] = {
                "map_buffer": [DbufCreate(0, 1, 64, 48, 32, ours.size, 0, ours.directory, 0)],
                "map_page": [
                    DbufCreate(0, 1, 64, 48, 32, ours.size, 0, ours.directory, 0),
                    GetEdid(0, 128, ours.directory),
                ],
                "share_dmabuf": [DbufCreate(0, 1, 64, 48, 32, theirs.size, REQ_ALLOC, theirs.directory, 0)],
            }
            for request in requests[call]:
                assert (await connector.ask(request)).status == -answer
        assert world.held(1) == {"connectors": 1}
        await connector.order(DbufCreate(0, 1, 64, 48, 32, ours.size, 0, ours.directory, 0))


class Importer:
    """A program that keeps the dma-bufs of a guest's buffers. The release of the buffers waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gone = trio.Event()
        close = SimBuffer.aclose

        async def aclose(buffer: SimBuffer) -> None:
            try:
                await self.gone.wait()
            finally:  # as the kernel does when the daemon's files are closed
                with trio.CancelScope(shield=True):
                    await close(buffer)

        monkeypatch.setattr(SimBuffer, "aclose", aclose)


async def shown(guest: Guest) -> tuple[int, int, DisplayBuffer]:
    """Show a framebuffer."""
    made = await guest.display.create_framebuffer(64, 48)
    await guest.display.show(0, made[1], 64, 48)
    return made


async def test_a_destroyed_buffer_that_is_still_in_use(
    world: World, screens: Screens, monkeypatch: pytest.MonkeyPatch, importer: Importer
) -> None:
    """DBUF_DESTROY is answered when the program has closed the dma-bufs. Meanwhile the status and the log report that."""
    monkeypatch.setattr("displbe.display.buffers.OVERDUE", 0.05)
    cover = {} if screens == "headless" else {"copy_pages": 3}  # a card shows a black frame of displbe's then
    async with world.guest(1) as guest:
        made = await shown(guest)
        connector = world.device(1).service.connectors[0]
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.display.destroy_framebuffer, *made)
                await until(lambda: "still uses the buffer" in connector.status().error)
                assert connector.requests.state is RingState.BUSY
                assert world.held(1) == {"connectors": 1, "buffers": 1, "pages": 3} | cover
                importer.gone.set()
        assert connector.status().error == ""
        await until(lambda: connector.requests.state is RingState.IDLE)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "a destroyed buffer is still used by the compositor or the card"
        ]
        assert world.held(1) == {"connectors": 1} | cover


async def test_a_device_ends_although_a_buffer_is_in_use(
    world: World, monkeypatch: pytest.MonkeyPatch, importer: Importer
) -> None:
    """The toolstack gets displbe's state 6 in time. The pages are charged to the guest until they are released."""
    monkeypatch.setattr("displbe.display.buffers.CLOSE_WAIT", 0.1)
    async with world.guest(1) as guest:
        made = await shown(guest)
        world.device(1).kick()
        with trio.fail_after(5):
            await guest.display.disconnected.wait()
            await guest.display.connected.wait()
        assert world.held(1) == {"connectors": 1, "buffers": 1, "pages": 3}
        total = world.daemon.quotas.total
        async with trio.open_nursery() as nursery:
            second = await shown(guest)
            nursery.start_soon(destroy, guest, second[0])
            await until(lambda: world.hypervisor.ledger.buffers == 2 and world.held(1).get("framebuffers") is None)
            with trio.fail_after(5):
                await world.tools.remove_display(1)
            await until(lambda: (1, 0) not in world.daemon.displays.devices)
            assert total.pages == 6
            nursery.cancel_scope.cancel()
        importer.gone.set()
        await until(lambda: world.hypervisor.ledger == Ledger())
        assert total.pages == 0
        made[2].free()
        assert guest.display.state is not State.CONNECTED


async def destroy(guest: Guest, cookie: int) -> None:
    """Destroy a buffer with a driver that waits as long as Linux does."""
    try:
        await guest.display.connectors[0].order(DbufDestroy(0, cookie))
    except (GuestFailure, trio.TooSlowError):
        pass


async def test_the_daemon_ends_although_a_buffer_is_in_use(
    world: World, monkeypatch: pytest.MonkeyPatch, importer: Importer
) -> None:
    monkeypatch.setattr("displbe.display.buffers.CLOSE_WAIT", 0.1)
    async with world.guest(1) as guest:
        await shown(guest)
        await world.stop_daemon()
        assert world.state(1) is State.CLOSED
        assert world.daemon.quotas.total.pages == 0
        importer.gone.set()
        await world.start_daemon()


@pytest.fixture
def importer(monkeypatch: pytest.MonkeyPatch) -> Importer:
    return Importer(monkeypatch)
