"""The environment of a hostile guest: a world with a well-behaved guest that flips throughout."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pytest
import trio
from scenario.cards import Screens, board_of_any_size, card_machine
from scenario.world import World, descriptors, exchange, flip_on, spec, until

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.input.settings import InputSettings
from displbe.sim.guest import DisplayBuffer, FrontConnector, Guest
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.drm.output import DrmOutput
from displbe.wire.displif import DbufCreate, FbAttach, Request, SetConfig, decode_response
from displbe.wire.formats import fourcc
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.port import Ledger

__all__ = [
    "BAD",
    "EVENTS",
    "GOOD",
    "XR24",
    "Stage",
    "attach",
    "config",
    "create",
    "forked",
    "page_of",
    "raw_buffer",
    "status",
]

GIVEN_UP: Final = 3.0
"""Seconds after which Linux gives up a flip (drivers/gpu/drm/xen/xen_drm_front_kms.c: FRAME_DONE_TO_MS)."""
BAD: Final = 1
GOOD: Final = 2
REFRESH: Final = 250.0
XR24: Final = fourcc("XR24")
EVENTS: Final = 4
"""The offset of `in_prod` in the event page."""


class Stage:
    """The environment of a hostile guest."""

    def __init__(self, world: World, good: Guest, times: list[float]) -> None:
        self.world = world
        self.good = good
        self.times = times
        """The duration of each flip of the good guest, in seconds."""
        self.quiet = self.ledger
        """The resources held while only the good guest is there."""

    @classmethod
    @contextlib.asynccontextmanager
    async def set(
        cls,
        folder: Path,
        *,
        limits: Limits | None = None,
        outputs: list[str] | None = None,
        settings: GuestSettings | None = None,
        input: InputSettings | None = None,
        sink: Literal["headless", "drm"] = "headless",
        good_output: str = "good",
        commit: Callable[[int, Any], int] | None = None,
        pump: Literal["auto", "off"] = "auto",
    ) -> AsyncIterator[Stage]:
        """Run a stage. At the end the good guest must still flip, and after it no resource may be held.

        `settings` is the configuration of the hostile guest, whose name is "hostile". The good guest is on `good_output`.
        """
        async with World.running(
            folder,
            refresh=REFRESH,
            limits=limits,
            outputs=outputs,
            input=input,
            sink=sink,
            commit=commit,
            pump=pump,
        ) as world:
            if settings is not None:
                await world.stop_daemon()
                world.settings = msgspec.structs.replace(world.settings, guest={"hostile": settings})
                await world.start_daemon()
            async with world.guest(GOOD, spec(good_output)) as good, flip_on(good) as times:
                await until(lambda: len(times) > 2)
                stage = cls(world, good, times)
                yield stage
                await stage.still_flips()
                await until(lambda: stage.ledger == stage.quiet)

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls,
        screens: Screens,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        settings: GuestSettings | None = None,
        **options: Any,
    ) -> AsyncIterator[Stage]:
        """Run a stage on such screens (`set`). On a card, the good guest's last flips must have been the pump's. Afterwards no further file
        may be open.
        """
        before = descriptors()
        if screens == "headless":
            async with cls.set(folder, settings=settings, **options) as stage:
                yield stage
        else:
            board = board_of_any_size()
            async with (
                card_machine(folder, patch, board, REFRESH),
                cls.set(folder, settings=settings, sink="drm", commit=board.commit, **options) as stage,
            ):
                yield stage
                pumped = board.pumped
                await stage.still_flips(20)
                assert board.pumped > pumped, "the pump serves the good guest's flips"
            board.cards.clear()
        del stage
        assert descriptors() == before

    def shows(self, name: str, *colour: int) -> bool:
        """Return whether an output shows a picture, which has this colour (red, green, blue) near its corner. The model of a card has no
        colours: there, whether the screen is on.
        """
        output = self.world.daemon.sink.claimed(name)
        if isinstance(output, DrmOutput):
            return bool(output._lit or output._dark.covered)
        picture = self.world.output(name).picture()
        return picture is not None and (not colour or picture.getpixel((5, 5)) == colour)

    @property
    def ledger(self) -> Ledger:
        """Return the resources that the daemon holds now."""
        now = self.world.hypervisor.ledger
        return Ledger(now.ports, now.pages, now.buffers, now.buffer_pages)

    @property
    def held(self) -> dict[str, int]:
        """Return the resources that the hostile guest is charged for."""
        return self.world.held(BAD)

    async def still_flips(self, flips: int = 5) -> None:
        """Check that the good guest flips, that a driver would have given up none (Linux: after 3 s), and that each had one event.

        How much a hostile guest slows others down is measured by `make bench`.
        """
        already = len(self.times)
        await until(lambda: len(self.times) >= already + flips)
        connector = self.good.display.connectors[0]
        assert max(self.times) < GIVEN_UP
        assert connector._next_event_id == len(connector.flips_done)
        assert set(self.good.display.history) == {2, 4}, "its connection was never touched"

    @contextlib.asynccontextmanager
    async def booted(self, *connectors: ConnectorSpec, be_alloc: bool = False) -> AsyncIterator[Guest]:
        """Run the hostile guest, whose kernel has not run yet. Afterwards none of its resources may be held."""
        async with self.world.booted(BAD, *(connectors or (spec("bad"),))) as guest:
            tools = self.world.tools
            tools.write(f"/local/domain/{BAD}/name", "hostile", [("n", 0), ("r", BAD)])
            tools.write(f"{tools.front(BAD)}/be-alloc", str(int(be_alloc)))
            yield guest
        await self.gone()

    @contextlib.asynccontextmanager
    async def bad(self, *connectors: ConnectorSpec, be_alloc: bool = False) -> AsyncIterator[Guest]:
        """Run the hostile guest, and wait until it is connected."""
        async with self.booted(*connectors, be_alloc=be_alloc) as guest:
            with trio.fail_after(30):
                await guest.display.connected.wait()
            yield guest

    async def gone(self) -> None:
        """Wait until nothing of the hostile guest is left."""
        await until(lambda: (BAD, 0) not in self.world.daemon.displays.devices)
        assert self.ledger == self.quiet
        assert BAD not in self.world.daemon.quotas.guests

    async def shut_off(self, guest: Guest) -> None:
        """Wait until the hostile guest's device has been shut off and its resources released; its driver must reconnect and work."""
        display = guest.display
        with trio.fail_after(30):
            await display.disconnected.wait()
        assert display.history[-2:] == [5, 6] or display.history[-1] in (1, 2, 6)
        with trio.fail_after(30):
            await display.connected.wait()
        display.disconnected = trio.Event()
        assert self.ledger == Ledger(
            self.quiet.ports + 2 * len(display.connectors),
            self.quiet.pages + 2 * len(display.connectors),
            self.quiet.buffers,
            self.quiet.buffer_pages,
        )
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 2)

    async def refused(self, *reasons: str) -> None:
        """Wait until the hostile guest's device is refused, with this reason in its error node."""
        await until(lambda: self.world.error(BAD))
        error = self.world.error(BAD) or ""
        assert any(reason in error for reason in reasons), error
        assert self.world.state(BAD) == 2
        assert self.ledger == self.quiet


async def status(connector: FrontConnector, request: Request | bytes) -> int:
    """Send a request. Return the status of its response; check the rest: 64 bytes, the same operation, zeros elsewhere."""
    slot = await exchange(connector, request)
    answer = decode_response(slot)
    sent = request[2] if isinstance(request, bytes) else request.operation
    assert answer.operation == sent
    assert slot[3:4] + slot[12:] == bytes(53)
    return answer.status


def raw_buffer(guest: Guest, size: int = 64 * 48 * 4) -> DisplayBuffer:
    """Return granted pages with a page directory."""
    return DisplayBuffer(guest.domain, size)


def create(buffer: DisplayBuffer, cookie: int = 0x1000, **changes: int) -> DbufCreate:
    """Return a valid DBUF_CREATE of 64x48, with changes."""
    fields = {
        "id": 0,
        "dbuf_cookie": cookie,
        "width": 64,
        "height": 48,
        "bpp": 32,
        "buffer_sz": buffer.size,
        "flags": 0,
        "gref_directory": buffer.directory,
        "data_ofs": 0,
    }
    return DbufCreate(**fields | changes)


def attach(fb: int, dbuf: int = 0x1000, width: int = 64, height: int = 48, code: int = XR24) -> FbAttach:
    """Return an FB_ATTACH."""
    return FbAttach(0, dbuf, fb, width, height, code)


def config(fb: int, x: int = 0, y: int = 0, width: int = 64, height: int = 48, bpp: int = 32) -> SetConfig:
    """Return a SET_CONFIG."""
    return SetConfig(0, fb, x, y, width, height, bpp)


def page_of(guest: Guest, ref: int) -> memoryview:
    """Return the memory of a grant, as the guest sees it."""
    view = guest.domain.pages(guest.domain.grants[ref].page, 1)
    assert len(view) == PAGE_SIZE
    return view


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[None]:
    """Run `work` again and again in a second process: another vCPU of the guest."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12: this process has threads; the child needs none
        child = os.fork()
    if child == 0:
        try:
            while os.getppid() != 1:
                for _ in range(1000):
                    work()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
