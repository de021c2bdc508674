"""The DRM sink on a model of the kernel, with orders of events and failures that a real card does not produce at will."""

from __future__ import annotations

import copy
import errno
import mmap
import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_watch import content
from structlog.testing import capture_logs
from unit.drm_model import CONNECTOR, CRTC, PLANE, Board, ModelDevice, Monitor, Pages, no_monitor

from displbe.sinks import flip, frame_copy, redraw
from displbe.sinks.base import OutputUnavailable, Part, SinkBuffer, SinkError
from displbe.sinks.drm import card as card_module
from displbe.sinks.drm import copied_scanout, finder, hotplug, output, sink, uapi
from displbe.sinks.drm.buffer import DrmBuffer
from displbe.sinks.drm.card import Card, CardState, Probing
from displbe.sinks.drm.copied_scanout import CopiedScanout
from displbe.sinks.drm.device import DrmDevice, Mastership
from displbe.sinks.drm.double_buffer import DumbBuffer
from displbe.sinks.drm.errors import DrmError
from displbe.sinks.drm.libseat import FileOpener, Libseat
from displbe.sinks.drm.output import DrmOutput, ScreenState
from displbe.sinks.drm.saved_state import SavedState
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.drm.sink import DrmSink
from displbe.wire.edid import make_edid
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc
from displbe.xen.memory import Memory, PrivateMemory

T = TypeVar("T")
WHOLE = Part(0, 0, 64, 48)
QUICK = {
    (card_module, "PERIOD"): 0.02,
    (card_module, "PAUSE"): 0.001,
    (card_module, "TAKEN_AWAY"): 0.1,
    (card_module, "KEPT"): 0.1,
    (flip, "LATE_CHECK"): 0.01,
    (sink, "SEARCH"): 0.02,
    (output, "LATE"): 0.1,
    (copied_scanout, "LATE"): 0.1,
    (redraw, "STILL"): 0.02,
    (hotplug, "POLL"): 0.02,
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Any:
    """Shorten all times."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in QUICK.items():
            patch.setattr(module, name, value)
        patch.setattr(hotplug, "_monitor", no_monitor)
        yield


@asynccontextmanager
async def running(board: Board, devices: Path, seat: Libseat | None = None, **keys: Any) -> AsyncIterator[DrmSink]:
    """Run a sink on the board."""
    (devices / "card0").touch()
    made = DrmSink(DrmSettings(**keys), board.open, devices, lambda: seat)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


def copies(screen: Screen) -> CopiedScanout:
    """Return the scanout that copies an output's frames."""
    lit = screen.output._lit
    assert lit is not None
    assert isinstance(lit.scanout, CopiedScanout)
    return lit.scanout


def cover_of(screen: Screen) -> DumbBuffer:
    """Return the framebuffer that covers an output's screen since its guest removed its own."""
    link = screen.output._link
    assert link is not None
    assert link.scanout._cover is not None
    return link.scanout._cover


def card_of(made: DrmSink) -> Card:
    """Return the sink's one card."""
    (found,) = made._cards.values()
    return found


def note_at_close(card: ModelDevice, look: Callable[[], T], states: list[T]) -> None:
    """Add what `look` returns to `states` just before the card is closed."""
    close = card.close

    def closing() -> None:
        states.append(look())
        close()

    card.close = closing  # type: ignore[method-assign]


class Screen:
    """An output with a guest's two framebuffers, of which the first is shown, and the flips that have ended."""

    def __init__(self, made: DrmSink, name: str = "Virtual-1", pages: list[Pages] | None = None) -> None:
        claimed = made.claim(name, 64, 48)
        assert isinstance(claimed, DrmOutput)
        self.output = claimed
        self.pages = pages or [Pages(), Pages()]
        self.buffers: list[SinkBuffer] = []
        self.done: list[int] = []
        self.output.flipped = self.done.append
        self.accepted = 0

    def is_dark(self, reason: str) -> bool:
        """Return whether the screen is dark for this reason."""
        return (self.output.state, self.output.reason) == (ScreenState.DARK, reason)

    def check_state(self, *, on: bool) -> None:
        """Assert that the output's attributes agree; `on`: the guest has switched it on."""
        shown = self.output
        assert (shown.state is not ScreenState.OFF) == on
        assert (shown.state is ScreenState.LIT) == (shown._lit is not None) == bool(shown.path)
        assert shown.reason or shown.state is ScreenState.LIT

    async def show(self, part: Part = WHOLE) -> None:
        """Attach the framebuffers and switch on."""
        self.buffers = [await self.output.attach(pages, pages.geometry) for pages in self.pages]
        await self.output.enable(self.buffers[0], part)

    async def placed(self) -> None:
        """Wait until the output is on a card, or no card can be opened for it."""
        await until(lambda: self.output.pipe or self.output._dark.opened is None)

    @property
    def waiting(self) -> bool:
        """Whether a flip is under way, so that the next one has to wait."""
        return len(self.done) < self.accepted

    def flip(self, index: int = 1) -> None:
        """Flip, with the next token."""
        self.output.flip(self.buffers[index], self.accepted)
        self.accepted += 1

    async def replace(self, index: int) -> None:
        """Destroy a framebuffer and make it again; try until that succeeds."""
        await self.buffers[index].aclose()
        made: SinkBuffer | None = None
        while made is None:
            with suppress(SinkError):
                made = await self.output.attach(self.pages[index], self.pages[index].geometry)
        self.buffers[index] = made

    async def complete(self) -> None:
        """Wait for the end of the last flip, and assert that each flip has ended once."""
        with trio.fail_after(10):
            while self.waiting:
                await trio.sleep(0.001)
        assert self.done == list(range(self.accepted))

    async def close(self) -> None:
        """Release everything, as a device does when it closes."""
        for buffer in self.buffers:
            await buffer.aclose()
        await self.output.release()
        for pages in self.pages:
            await pages.aclose()


async def until(what: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(10):
        while not what():
            await trio.sleep(0.001)


async def test_zero_copy(tmp_path: Path) -> None:
    """The guest's own framebuffers are on the plane, the card's event ends a flip, and at the end nothing is left."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        assert (screen.output.path, card.shown()["SRC_W"]) == ("zero copy", 64 << 16)
        first = card.shown()["FB_ID"]
        screen.flip()
        await trio.lowlevel.checkpoint()
        assert screen.waiting
        assert card.shown()["FB_ID"] != first
        card.vblank()
        await screen.complete()
        await screen.close()
        assert (card.shown(), card.fbs, card.blobs, card.handles) == ({}, {}, {}, {})


async def test_a_guest_is_served_while_its_card_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and the EDID wait for the card, whether or not it opens. A card whose driver hangs does not keep the guest for ever."""
    may_open = threading.Event()
    board = Board()
    edid = make_edid(1024, 768, "one")
    board.monitors[0] = Monitor([(1024, 768)], edid)
    async with running(board, tmp_path) as made:
        wake = ModelDevice.wake

        def waking(device: ModelDevice) -> None:
            assert may_open.wait(10)
            wake(device)

        monkeypatch.setattr(ModelDevice, "wake", waking)
        monkeypatch.setattr(output, "OPENED", 0.02)
        screen = Screen(made)
        assert await screen.output.edid() is None
        with pytest.raises(SinkError, match="the card is being opened"):
            await screen.output.allocate(1)
        monkeypatch.setattr(output, "OPENED", 10)
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await screen.output.edid())
            allocation = await screen.output.allocate(2)
            answers.append(os.fstat(allocation.fd).st_size)
            assert allocation.close()
            answers.append((await screen.output.attach(screen.pages[0], screen.pages[0].geometry)).path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.05)
            assert answers == []
            may_open.set()
        assert answers == [edid, 2 * mmap.PAGESIZE, "zero copy"]
        await screen.close()


async def test_a_released_output_does_not_touch_the_screen(tmp_path: Path) -> None:
    """After its guest has given it back, another guest has the connector and its CRTC."""
    board = Board()
    async with running(board, tmp_path) as made:
        old = Screen(made)
        await old.show()
        await old.close()
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        shown, commits = card.shown(), card.commits
        await old.output.disable()
        with pytest.raises(SinkError, match="given back"):
            await old.output.enable(screen.buffers[0], WHOLE)
        with pytest.raises(SinkError):
            old.output.flip(screen.buffers[1], 0)
        assert (card.shown(), card.commits) == (shown, commits)
        assert screen.output.state is ScreenState.LIT
        await screen.close()


async def test_copy(tmp_path: Path) -> None:
    """Each frame is copied into the buffer that is not on the screen."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=0) as made:
        screen = Screen(made)
        screen.pages[0].memory[:] = b"a" * screen.pages[0].size
        screen.pages[1].memory[:] = b"b" * screen.pages[1].size
        await screen.show()
        card = board.card
        assert card is not None
        buffers = copies(screen).buffers
        for index, letter in ((1, b"b"), (0, b"a"), (1, b"b")):
            screen.flip(index)
            await until(lambda: card.pending and card.shown()["FB_ID"] == buffers.front.fb)
            assert content(buffers.front.memory, 0, screen.pages[0].size) == letter * screen.pages[0].size
            card.vblank()
            await screen.complete()
        await screen.close()
        assert (card.fbs, card.blobs, card.handles) == ({}, {}, {})


async def test_drawn_without_flipping(tmp_path: Path) -> None:
    """Drawing into the frame on the screen is shown; while the guest draws nothing, nothing is committed."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=100) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        await until(lambda: copies(screen).refreshed)  # the first look takes the private copy
        commits = card.commits
        await trio.sleep(0.3)
        assert card.commits == commits
        for value in (b"x", b"y"):
            screen.pages[0].memory[1000:1001] = value
            await until(
                partial(
                    lambda buffers, value: content(buffers.front.memory, 1000, 1) == value,
                    copies(screen).buffers,
                    value,
                )
            )
        assert card.commits == commits + 2
        screen.flip()
        await until(lambda: card.pending)
        card.vblank()
        await screen.complete()
        await screen.close()


def on_screen(screen: Screen, at: int = 0) -> bytes:
    """Return a byte of the copy on the screen."""
    return content(copies(screen).buffers.front.memory, at, 1)


async def test_drawn_back_without_flipping(tmp_path: Path) -> None:
    """Pixels that the guest draws into its new frame are shown, even if they are those that were last seen in the old frame."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=100) as made:
        screen = Screen(made)
        for pages, letter in zip(screen.pages, (b"x", b"y"), strict=True):
            pages.memory[:] = letter * pages.size
        await screen.show()
        await until(lambda: copies(screen).refreshed)
        screen.flip()
        assert board.card is not None
        await until(lambda: board.card is not None and board.card.pending)
        screen.pages[1].memory[:] = screen.pages[0].memory
        board.card.vblank()
        await screen.complete()
        await until(lambda: on_screen(screen) == b"x")
        await screen.close()


async def test_drawn_without_flipping_after_what_was_shown_is_removed(tmp_path: Path) -> None:
    """When the guest destroys the framebuffer on the screen and flips to another, that one is watched too."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=100) as made:
        screen = Screen(made)
        await screen.show()
        await screen.buffers[0].aclose()
        screen.flip()
        assert board.card is not None
        await until(lambda: board.card is not None and board.card.pending)
        board.card.vblank()
        await screen.complete()
        screen.pages[1].memory[:1] = b"z"
        await until(lambda: on_screen(screen) == b"z")
        await screen.close()


async def test_guests_that_flip_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that flips costs one copy and one commit per flip, in the copying thread, and its frames are not looked at."""
    monkeypatch.setattr(redraw, "STILL", 1000.0)
    board = Board()
    threads = set()
    copy_frame = frame_copy.copy_frame

    def noted(*arguments: Any, **options: Any) -> None:
        threads.add(threading.current_thread().name)
        copy_frame(*arguments, **options)

    async with running(board, tmp_path, zero_copy="off", refresh=100) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        await until(lambda: copies(screen).refreshed)
        monkeypatch.setattr(copied_scanout, "copy_frame", noted)
        commits, refreshed = card.commits, copies(screen).refreshed
        for turn in range(1, 6):
            screen.pages[turn % 2].memory[:1] = bytes([turn])
            screen.flip(turn % 2)
            await until(lambda: card.pending)
            card.vblank()
            await screen.complete()
            await trio.sleep(0.03)
        assert (card.commits - commits, copies(screen).refreshed - refreshed) == (5, 0)
        assert threads == {"copy Virtual-1"}
        await screen.close()


@pytest.mark.parametrize("must_be_told", [True, False])
async def test_drawn_without_flipping_or_copying(tmp_path: Path, must_be_told: bool) -> None:
    """Zero copy: a card that must be told of drawing is told while the guest does not flip; any other card is never told."""
    board = Board()
    board.must_be_told = must_be_told
    async with running(board, tmp_path, refresh=100) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        frame, commits = card.shown()["FB_ID"], card.commits
        if must_be_told:
            await until(lambda: card.commits > commits + 3)
        else:
            await trio.sleep(0.1)
            assert card.commits == commits
        assert card.shown()["FB_ID"] == frame
        for index in (1, 0):
            screen.flip(index)
            await until(lambda: card.pending)
            card.vblank()
            await screen.complete()
        await screen.output.enable(screen.buffers[1], WHOLE)
        other, commits = card.shown()["FB_ID"], card.commits
        assert other != frame
        if must_be_told:
            await until(lambda: card.commits > commits + 3)
        assert card.shown()["FB_ID"] == other
        await screen.output.disable()
        commits = card.commits
        await trio.sleep(0.1)
        assert card.commits == commits
        await screen.close()


async def test_paths(tmp_path: Path) -> None:
    """An output reports the path of frames to its screen and the reason; the log reports each change once."""
    board = Board()
    with capture_logs() as logs:
        async with running(board, tmp_path) as made:
            screen = Screen(made)
            await screen.show()
            assert (screen.output.path, screen.output.reason) == ("zero copy", "")
            await trio.sleep(0.1)
            board.monitors[0] = None
            await until(lambda: screen.output.path == "")
            assert screen.output.reason == "no monitor is connected"
            board.can_import = False
            board.monitors[0] = Monitor([(64, 48)])
            await until(lambda: screen.output.path)
            late = await screen.output.attach(Pages(), screen.pages[0].geometry)
            board.faults["flip"] = [errno.EINVAL]
            screen.flip()
            await until(lambda: screen.output.path == "copy")
            assert screen.output.reason == "Virtual-1: flip: Invalid argument"
            await screen.complete()
            board.can_import = True
            for buffer in (*screen.buffers, late):
                await buffer.aclose()
            allocation = await screen.output.allocate(3)
            ours = Pages()
            os.close(ours._fd)
            ours._fd = allocation.fd
            screen.buffers = [await screen.output.attach(ours, ours.geometry)]
            assert screen.buffers[0].path == "be-alloc"
            await screen.output.enable(screen.buffers[0], WHOLE)
            assert (screen.output.path, screen.output.reason) == ("be-alloc", "")
            await screen.buffers[0].aclose()
            assert screen.output.reason == "the guest has removed what it showed"
            screen.buffers.clear()
            await screen.close()
            assert (screen.output.path, screen.output.reason) == ("", "off")
            await trio.to_thread.run_sync(allocation.close)
    said = [
        line["path"] if line["event"] == "output on" else "" for line in logs if str(line["event"])[:7] == "output "
    ]
    assert said == ["zero copy", "", "zero copy", "", "copy", "be-alloc", ""]


async def test_flipped_while_what_was_shown_is_removed(tmp_path: Path) -> None:
    """A flip during the removal of the framebuffer on the screen is shown after the removal."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        removing, go_on, remove = threading.Event(), threading.Event(), card.remove_framebuffer

        def slowly(fb: int) -> None:
            removing.set()
            assert go_on.wait(10)
            remove(fb)

        card.remove_framebuffer = slowly  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(screen.buffers[0].aclose)
            await until(removing.is_set)
            assert screen.is_dark("the guest has removed what it showed")
            screen.flip(1)
            go_on.set()
        await screen.complete()
        await until(lambda: screen.output.state is ScreenState.LIT)
        second = screen.buffers[1]
        assert isinstance(second, DrmBuffer)
        assert card.shown()["FB_ID"] == second.fb
        await screen.close()


async def test_import_refused(tmp_path: Path) -> None:
    """Frames are copied if the card does not import; with `require`, the buffer is refused and nothing is held."""
    board = Board()
    board.can_import = False
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        assert screen.output.path == "copy"
        for buffer in screen.buffers:
            assert (buffer.path, "import dma-buf" in buffer.reason) == ("copy", True)
        await screen.close()
    async with running(board, tmp_path, zero_copy="require") as made:
        screen = Screen(made)
        with pytest.raises(SinkError, match="no zero copy: Virtual-1: import dma-buf"):
            await screen.show()
        await screen.close()


async def test_import_that_is_not_whole(tmp_path: Path) -> None:
    """A framebuffer is removed when a later step of its import fails."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.placed()
        board.faults["close"] = [errno.EINVAL]
        buffer = await screen.output.attach(screen.pages[0], screen.pages[0].geometry)
        assert board.card is not None
        assert (buffer.path, board.card.fbs) == ("copy", {})
        await buffer.aclose()
        await screen.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSPC, errno.ERANGE])
async def test_scanout_refused(tmp_path: Path, number: int) -> None:
    """Frames are copied if the card imports a buffer but does not show it."""
    board = Board()
    board.faults["test"] = [number]
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        assert screen.output.path == "copy"
        assert board.card is not None
        assert len(board.card.fbs) == 3  # the two for copies, and the other buffer's
        await screen.close()
        assert board.card.fbs == {}


async def test_edid(tmp_path: Path) -> None:
    """The EDID is the monitor's, in whole blocks, also of a monitor that replaces another; None if it sends none."""
    first, second = bytes(range(128)), bytes(range(255, -1, -1))
    board = Board()
    board.monitors[0] = Monitor([(64, 48)], first)
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        assert await screen.output.edid() == first
        for edid, wanted in ((second + b"cut", second), (b"", None), (first[:127], None), (first, first)):
            board.monitors[0] = None
            await until(lambda: screen.output.state is ScreenState.DARK)
            assert await screen.output.edid() is None
            board.monitors[0] = Monitor([(64, 48)], edid)
            await until(lambda: screen.output.path)
            assert await screen.output.edid() == wanted
        await screen.close()


async def test_refusals_name_the_connector(tmp_path: Path) -> None:
    """The error for a refused picture names the operation and the connector."""
    board = Board(connectors=2)
    async with running(board, tmp_path, zero_copy="require") as made:
        screen = Screen(made, "Virtual-2")
        await screen.placed()
        for kind, operation in (("import", "import dma-buf"), ("test", "test zero copy")):
            board.faults[kind] = [errno.EINVAL]
            with pytest.raises(SinkError, match="no zero copy") as refused:
                await screen.output.attach(screen.pages[0], screen.pages[0].geometry)
            cause = refused.value.__cause__
            assert isinstance(cause, DrmError)
            assert (cause.connector, cause.operation, cause.number) == ("Virtual-2", operation, errno.EINVAL)
        await screen.show()
        board.faults["modeset"] = [errno.EIO]
        await screen.output.enable(screen.buffers[1], WHOLE)
        assert screen.is_dark("Virtual-2: set mode: Input/output error")
        board.faults["dumb"] = [errno.ENOSPC]
        with pytest.raises(SinkError, match="Virtual-2: create dumb buffer: No space left"):
            await screen.output.allocate(1)
        await screen.close()


async def test_allocated_memory_on_the_cards_other_output(tmp_path: Path) -> None:
    """Memory of the card is be-alloc on each of the card's outputs."""
    async with running(Board(connectors=2), tmp_path) as made:
        screens = [Screen(made), Screen(made, "Virtual-2")]
        allocation = await screens[0].output.allocate(3)
        pages = Pages()
        await pages.aclose()
        pages._fd = allocation.fd
        for screen in screens:
            screen.buffers = [await screen.output.attach(pages, pages.geometry)]
            await screen.output.enable(screen.buffers[0], WHOLE)
            assert (screen.buffers[0].path, screen.output.path) == ("be-alloc", "be-alloc")
        for screen in screens:
            await screen.close()
        await trio.to_thread.run_sync(allocation.close)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize(("zero_copy", "path"), [("auto", "zero copy"), ("require", "zero copy"), ("off", "copy")])
async def test_failed_mode(tmp_path: Path, number: int, zero_copy: str, path: str) -> None:
    """A screen that cannot be switched on now is tried again. The guest gets no error, and its buffer is not refused."""
    board = Board()
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        board.faults["modeset"] = [number] * 3
        await screen.show()
        screen.flip()
        await until(lambda: screen.output.path or screen.done)
        assert board.card is not None
        board.card.vblank()
        await screen.complete()
        await until(lambda: screen.output.path)
        await screen.output.disable()
        await screen.output.enable(screen.buffers[0], WHOLE)
        await until(lambda: screen.output.path)
        assert screen.output.path == path
        await screen.close()


@pytest.mark.parametrize("zero_copy", ["auto", "require"])
async def test_attached_in_the_moment_of_an_unbind(tmp_path: Path, zero_copy: str) -> None:
    """A buffer that is attached before displbe has noticed that the card is gone is imported when the card is back."""
    board = Board()
    async with running(board, tmp_path, zero_copy=zero_copy) as made:
        screen = Screen(made)
        board.unbind()
        await screen.show()
        assert screen.output.state is ScreenState.DARK
        board.present = True
        await until(lambda: screen.output.path)
        assert screen.output.path == "zero copy"
        await screen.close()


async def test_a_screen_that_is_off_stays_so_without_its_card(tmp_path: Path) -> None:
    """A screen that the guest has switched off is OFF, not DARK, while its card is gone; it can be switched on afterwards."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        await screen.output.disable()
        assert (screen.output.state, screen.output.reason) == (ScreenState.OFF, "off")
        with capture_logs() as logs:
            board.unbind()
            await until(lambda: screen.output.pipe is None)
        assert (screen.output.state, screen.output.reason) == (ScreenState.OFF, "off")
        assert [line["event"] for line in logs if line["event"] == "output dark"] == []
        board.present = True
        await until(lambda: screen.output.pipe)
        await screen.output.enable(screen.buffers[0], WHOLE)
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.close()


async def test_copied_until_the_card_comes_back(tmp_path: Path) -> None:
    """A buffer that a card's driver has refused is shown without a copy when the card comes back with a driver that imports it."""
    board = Board()
    board.can_import = False
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        assert screen.output.path == "copy"
        board.unbind()
        await until(lambda: not screen.output.path)
        board.present = board.can_import = True
        await until(lambda: screen.output.path)
        assert screen.output.path == "zero copy"
        await screen.close()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES, errno.ENODEV, errno.EINVAL, errno.ENOMEM])
@pytest.mark.parametrize("zero_copy", ["require", "off"])
async def test_failed_flip(tmp_path: Path, number: int, zero_copy: str) -> None:
    """A flip that the kernel refuses ends like any other, and the frame is shown in another way."""
    board = Board()
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        board.faults["flip"] = [number]
        before = card.shown()["FB_ID"]
        screen.flip()
        await until(lambda: card.pending or screen.done)
        card.vblank()
        await screen.complete()
        await until(lambda: card.shown() and card.shown()["FB_ID"] != before and screen.output.state is ScreenState.LIT)
        await screen.close()


async def test_monitor_unplugged(tmp_path: Path) -> None:
    """Flips go on without a monitor, at the mode's rate; the monitor that comes back shows the current frame."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        board.monitors[0] = None
        await until(lambda: screen.output.state is ScreenState.DARK)
        assert screen.is_dark("no monitor is connected")
        await until(lambda: card.shown() == {})
        began = trio.current_time()
        for _ in range(20):
            screen.flip()
            await screen.complete()
        assert trio.current_time() - began > 0.15  # at 100 Hz
        assert await screen.output.edid() is None
        board.monitors[0] = Monitor([(128, 96), (64, 48)])
        await until(card.shown)
        assert card.fbs[card.shown()["FB_ID"]].width == 64
        await screen.close()


async def test_guest_before_its_monitor(tmp_path: Path) -> None:
    """An output without a monitor can be claimed, switched on and flipped; unknown and taken names cannot be claimed."""
    board = Board()
    board.monitors[0] = None
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        screen.flip()
        await screen.complete()
        with pytest.raises(OutputUnavailable, match="no connector DP-7; there are: Virtual-1"):
            made.claim("DP-7", 64, 48)
        with pytest.raises(OutputUnavailable, match="taken"):
            made.claim("card0/Virtual-1", 64, 48)
        board.monitors[0] = Monitor([(64, 48)])
        await until(lambda: screen.output.state is ScreenState.LIT)
        assert screen.output.path == "zero copy"
        await screen.close()


async def test_master(tmp_path: Path) -> None:
    """The screen is dark while another program is DRM master, at the start and later, and lit when that program ends."""
    board = Board()
    board.other_master = True
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        for _ in range(2):
            assert screen.output.state is ScreenState.DARK
            screen.flip()
            await screen.complete()
            board.other_master = False
            await until(card.shown)
            await until(lambda: screen.output.state is ScreenState.LIT)
            assert card_of(made).mastership is Mastership.MASTER
            card.take_master()
            await until(lambda: screen.is_dark("another program is DRM master"))
            assert card_of(made).mastership is Mastership.OTHER_PROGRAM
        await screen.close()


@pytest.mark.parametrize("privileged", [True, False])
async def test_left_to_others(tmp_path: Path, privileged: bool) -> None:
    """displbe is DRM master only while an output is claimed. Then the screen shows again what it showed before."""
    board = Board()
    board.privileged = privileged
    async with running(board, tmp_path) as made:
        card = board.card
        assert card is not None
        for turn in range(3):
            card.light(0, 900 + turn, 0)
            before, blobs = card.shown().copy(), set(card.blobs)
            assert (card.master, card.fd) == (False, -1)  # a file that is open would keep the console from coming back
            screen = Screen(made)
            await screen.show()
            assert card.master
            assert screen.output.path
            assert card.shown() != before
            await screen.close()
            await until(lambda: not card.master)
            assert card_of(made).mastership is Mastership.RESTING
            assert (card.shown(), set(card.blobs), card.handles) == (before, blobs, {})
        board.other_master = True  # a compositor starts, and the next guest waits for its end
        screen = Screen(made)
        await screen.show()
        assert screen.is_dark("another program is DRM master")
        board.other_master = False
        await until(lambda: screen.output.path)
        await screen.close()


async def test_two_cards_of_which_one_is_used(tmp_path: Path) -> None:
    """displbe opens only the card that a guest's connector is on."""
    board = Board()
    (tmp_path / "card1").touch()
    async with running(board, tmp_path) as made:
        screen = Screen(made, "card1/Virtual-1")
        await screen.show()
        await until(lambda: screen.output.path)
        assert {card.device.name: card.is_resting for card in made._cards.values()} == {"card0": True, "card1": False}
        assert sorted(card.name for card in board.cards if card.fd >= 0) == ["card1"]
        await screen.close()


async def test_kept_for_a_guest_that_reboots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is claimed again soon finds the card as the guest has left it: displbe has been DRM master all the time."""
    board = Board()
    monkeypatch.setattr(card_module, "KEPT", 60)
    async with running(board, tmp_path) as made:
        for _ in range(3):
            screen = Screen(made)
            await screen.show()
            await screen.close()
            await trio.sleep(0.1)
            assert card_of(made).mastership is Mastership.MASTER


async def test_claimed_while_the_card_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is claimed while the former picture is being restored is shown."""
    board = Board()
    async with running(board, tmp_path) as made:
        screens: list[Screen] = []
        restore = SavedState.restore

        def restore_slowly(saved: SavedState) -> None:
            trio.from_thread.run_sync(lambda: screens.append(Screen(made)))
            restore(saved)

        monkeypatch.setattr(SavedState, "restore", restore_slowly)
        first = Screen(made)
        await first.show()
        await first.close()
        await until(lambda: screens)
        monkeypatch.setattr(SavedState, "restore", restore)
        await screens[0].show()
        await until(lambda: screens[0].output.path)
        assert card_of(made).mastership is Mastership.MASTER
        await screens[0].close()


async def test_master_without_a_privilege(tmp_path: Path) -> None:
    """A file that never was DRM master may not ask to be; the first file opened while there is none becomes master."""
    board = Board()
    board.privileged, board.other_master = False, True
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        first = board.card
        assert first is not None
        await until(lambda: card_of(made).mastership is Mastership.CANNOT_ASK)
        screen.flip()
        await screen.complete()
        await trio.sleep(0.1)
        assert first.fd >= 0
        assert screen.is_dark("another program is DRM master")
        board.other_master = False
        await until(lambda: screen.output.state is ScreenState.LIT)
        card = board.card
        assert card is not None
        assert (card is not first, first.fd, card.master) == (True, -1, True)
        assert screen.output.path == "zero copy"
        for _ in range(2):  # it has been master now, and may ask again
            card.take_master()
            await until(lambda: screen.output.state is ScreenState.DARK)
            board.other_master = False
            await until(lambda: screen.output.state is ScreenState.LIT)
            assert board.card is card
        await screen.close()
        assert [one.fd for one in board.cards if one is not card] == [-1] * (len(board.cards) - 1)


class Manager(Libseat):
    """The model's session manager."""

    def __init__(self, board: Board, *, ours: bool = True) -> None:
        self.active = ours
        self.board = board
        self.files: set[int] = set()
        self.stale: set[int] = set()
        self.path = ""
        """The path of the card in use."""
        board.opened = self._opened
        self.left = False
        self._changed = trio.Event()

    def manages(self, fd: int) -> bool:
        return fd in self.files or fd in self.stale

    def is_outdated(self, path: str, fd: int) -> bool:
        return self.active and path == self.path and fd not in self.files

    def could_ask(self, path: str) -> bool:
        return path != self.path

    def use(self, path: str) -> bool:
        self.path = path
        return True

    def used(self) -> None:
        self._changed.set()

    def leave(self, path: str) -> None:
        self.path = ""

    def keep(self, paths: Collection[str]) -> None:
        if self.path not in paths:
            self.path = ""

    def _opened(self, fd: int, opener: FileOpener) -> None:
        if opener is self and self.path:
            (self.files if self.active else self.stale).add(fd)
            for card in self.board.cards if not self.active else ():
                card.master = False

    def close(self, fd: int) -> None:
        self.files.discard(fd)
        self.stale.discard(fd)
        os.close(fd)

    def give_back(self) -> None:
        self.left = True

    async def run(self, changed: Callable[[], None]) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            changed()

    def turn(self, *, ours: bool) -> None:
        """Give the seat to displbe's session or to another."""
        self.active = ours
        self.board.other_master = not ours
        for card in self.board.cards:
            if card.fd in self.files:
                card.master = ours
        self._changed.set()


@pytest.mark.parametrize("number", [1, 2])
async def test_the_seat_is_held_only_for_a_guest(tmp_path: Path, number: int) -> None:
    """The session manager opens a card when its first output is claimed. When its last one has gone, it is opened like any file again."""
    board = Board(number)
    manager = Manager(board)
    async with running(board, tmp_path, manager) as made:
        for _ in range(2):
            assert manager.files == set()
            assert card_of(made).mastership is Mastership.RESTING
            screens = [Screen(made, f"Virtual-{index + 1}") for index in range(number)]
            for screen in screens:
                await screen.show()
                await until(lambda screen=screen: screen.output.path)  # type: ignore[misc]
            assert board.card is not None
            assert manager.files == {board.card.fd}
            for screen in screens:
                await until(lambda: manager.path)
                await screen.close()
            await until(lambda: not manager.path and made._cards and card_of(made).mastership is Mastership.RESTING)
            assert not any(card.master for card in board.cards)


@pytest.mark.parametrize("zero_copy", ["require", "off"])
async def test_seat(tmp_path: Path, zero_copy: str) -> None:
    """While another session has the seat, the screen is dark, displbe does not use the card, and flips go on. Then it is lit again."""
    board = Board()
    manager = Manager(board)
    async with running(board, tmp_path, manager, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        await until(lambda: screen.output.path)
        card = board.card
        assert card is not None
        for _ in range(3):
            screen.flip()
            manager.turn(ours=False)
            card.vblank()
            await screen.complete()
            await until(lambda: screen.is_dark("another session has the seat"))
            board.other_master = False  # the other session may not be master at once
            screen.flip(0)
            await screen.complete()
            await trio.sleep(0.05)
            assert not card.master
            manager.turn(ours=True)
            await until(lambda: screen.output.path)
            assert board.card is card
            screen.flip()
            await until(lambda: card.pending)
            card.vblank()
            await screen.complete()
        await screen.close()
    assert manager.left
    assert manager.files == set()


async def test_a_seat_taken_before_it_is_reported(tmp_path: Path) -> None:
    """displbe does not take a card that a session manager has taken away but has not reported yet."""
    board = Board()
    manager = Manager(board)
    async with running(board, tmp_path, manager) as made:
        screen = Screen(made)
        await screen.show()
        await until(lambda: screen.output.path)
        card = board.card
        assert card is not None
        for _ in range(3):
            card.master = False
            await until(lambda: screen.output.state is ScreenState.DARK)
            manager.turn(ours=False)
            board.other_master = False
            await trio.sleep(0.2)
            assert (board.card, card.master) == (card, False)
            assert card_of(made).mastership is Mastership.OTHER_SESSION
            manager.turn(ours=True)
            await until(lambda: screen.output.path)
        await screen.close()


async def test_own_seat_with_another_master(tmp_path: Path) -> None:
    """A card is opened anew through the session manager once no program is DRM master: the manager asks only when it opens a card."""
    board = Board()
    board.privileged, board.other_master = False, True
    manager = Manager(board)
    async with running(board, tmp_path, manager) as made:
        screen = Screen(made)
        await screen.show()
        await trio.sleep(0.1)
        first = board.card
        assert first is not None
        assert not manager.path
        assert screen.is_dark("another program is DRM master")
        assert first.fd >= 0
        board.other_master = False
        await until(lambda: screen.output.path)
        assert board.card is not None
        assert board.card.is_managed
        assert manager.files == {board.card.fd}
        await screen.close()


async def test_seat_that_comes_late(tmp_path: Path) -> None:
    """A card opened while another session has the seat is not used. It is opened anew when displbe gets the seat."""
    board = Board()
    manager = Manager(board, ours=False)
    async with running(board, tmp_path, manager) as made:
        screen = Screen(made)
        await screen.show()
        first = board.card
        assert first is not None
        await trio.sleep(0.2)
        assert screen.is_dark("another session has the seat")
        assert (first.is_managed, first.master) == (True, False)
        assert card_of(made).mastership is Mastership.OTHER_SESSION
        manager.turn(ours=True)
        await until(lambda: board.card is not first and screen.output.path)
        assert board.card is not None
        assert (board.card.is_managed, first.fd) == (True, -1)
        await screen.close()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENODEV])
async def test_revoked(tmp_path: Path, number: int) -> None:
    """A revoked file makes the screen dark; the card is opened anew as soon as possible, and the picture returns."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        board.present = card.master = False
        card.try_ioctl = lambda *_: number  # type: ignore[method-assign]
        screen.flip()
        await screen.complete()
        await until(lambda: screen.output.state is ScreenState.DARK)
        board.present = True
        await until(lambda: screen.output.path)
        assert board.card is not card
        await screen.close()


async def test_another_picture(tmp_path: Path) -> None:
    """Another program's picture on the plane is noticed and replaced, even if mastership was lost and came back between two looks."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        ours = card.shown()["FB_ID"]
        card.shown()["FB_ID"] = 7
        await until(lambda: card.shown()["FB_ID"] == ours)
        await screen.close()


@pytest.mark.parametrize("zero_copy", ["require", "off"])
async def test_card_unbound(tmp_path: Path, zero_copy: str) -> None:
    """When a card goes and comes back under another number, the guest's buffers are on it again."""
    board = Board()
    async with running(board, tmp_path, zero_copy=zero_copy) as made:
        screen = Screen(made)
        await screen.show()
        old = board.card
        assert old is not None
        board.unbind()
        old_card = card_of(made)
        assert old_card.state is CardState.OPEN
        screen.flip()
        await screen.complete()
        await until(lambda: old.fd < 0)
        assert (old_card.state, old_card.outputs) == (CardState.GONE, {})
        (tmp_path / "card0").unlink()
        assert screen.output.pipe is None
        assert [(buffer.path, buffer.reason) for buffer in screen.buffers] == [("", "")] * 2
        screen.flip(0)
        await screen.complete()
        with pytest.raises(SinkError, match="the card is gone"):
            await screen.output.allocate(1)
        late = await screen.output.attach(Pages(), screen.pages[0].geometry)
        board.present = True
        (tmp_path / "card1").touch()
        await until(lambda: screen.output.state is ScreenState.LIT)
        assert board.card is not old
        way = ("zero copy", "") if zero_copy == "require" else ("copy", "zero-copy is off")
        assert (screen.output.path, screen.output.reason) == way
        assert [(buffer.path, buffer.reason) for buffer in (*screen.buffers, late)] == [way] * 3
        await late.aclose()
        await screen.close()


async def test_the_same_pages_on_two_outputs(tmp_path: Path) -> None:
    """No framebuffer gets wrong pages when a card comes back and all outputs import at once, two of them the same dma-bufs each."""
    board = Board(connectors=4)
    board.slow = 0.001
    async with running(board, tmp_path) as made:
        guests = [[Pages(), Pages()], [Pages(), Pages()]]
        screens = [Screen(made, f"Virtual-{index + 1}", guests[index // 2]) for index in range(4)]
        for screen in screens:
            await screen.show()
        for _ in range(3):
            board.unbind()
            await until(lambda: not any(screen.output.path for screen in screens))
            board.present = True
            await until(lambda: all(screen.output.path for screen in screens))
            assert [screen.output.path for screen in screens] == ["zero copy"] * 4
            card = board.card
            assert card is not None
            for screen in screens:
                for pages, buffer in zip(screen.pages, screen.buffers, strict=True):
                    assert isinstance(buffer, DrmBuffer)
                    assert card.fbs[buffer.fb].pages == pages.inode
        for screen in screens:
            await screen.close()
        assert card is not None
        assert (card.fbs, card.blobs, card.handles) == ({}, {}, {})


@pytest.mark.parametrize(
    ("device", "name"), [("auto", "Virtual-1"), ("auto", "card0/Virtual-1"), ("card0", "Virtual-1")]
)
async def test_card_with_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, name: str
) -> None:
    """A card that comes back under another number is known by its sysfs path, and its connectors by all their names."""
    monkeypatch.setattr(finder, "sysfs_path_of", lambda node: "/sys/devices/model")
    board = Board()
    async with running(board, tmp_path, device=device) as made:
        screen = Screen(made, name)
        await screen.show()
        card = board.card
        assert card is not None
        close = card.close

        def slowly() -> None:
            time.sleep(0.05)
            close()

        card.close = slowly  # type: ignore[method-assign]
        board.unbind()
        await until(lambda: screen.output.pipe is None)
        await screen.close()
        (tmp_path / "card0").unlink()
        screen = Screen(made, name)  # a guest may come while its card is away
        await screen.show()
        board.present = True
        (tmp_path / "card7").touch()
        await until(lambda: screen.output.path)
        assert screen.output.path == "zero copy"
        await screen.close()


async def test_failed_probe(tmp_path: Path) -> None:
    """A probe that fails when a monitor goes is tried again."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        with capture_logs() as logs:
            board.faults["probe"] = [errno.EIO] * 5
            board.monitors[0] = None
            await until(lambda: card_of(made)._probing is Probing.FAILED)
            await until(lambda: screen.is_dark("no monitor is connected"))
            assert card_of(made)._probing is not Probing.FAILED
        assert [line["reason"] for line in logs if line["event"] == "cannot look at the connectors"] == [
            "probe connector: Input/output error"
        ]
        await screen.close()


async def test_events_of_other_kinds(tmp_path: Path) -> None:
    """They are skipped by their length, which may be less than that of a flip's event."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card, other = card_of(made), struct.pack("=II4x", 0x80000000, 12)
        (device,) = board.cards
        for odd in (other, other + uapi.drm_event_vblank.pack(uapi.DRM_EVENT_FLIP_COMPLETE, 32, 1, 0, 0, 0, 0), b"abc"):
            os.write(device.event_end, odd)
        for _ in range(3):
            screen.flip()
            device.vblank()
            await screen.complete()
        assert card_of(made) is card
        assert screen.output._flip.late == 0
        await screen.close()


@pytest.mark.parametrize("length", [0, 7])
async def test_an_event_without_length(tmp_path: Path, length: int) -> None:
    """The card is closed, because what follows cannot be found, and is opened again."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = card_of(made)
        os.write(board.cards[0].event_end, struct.pack("=II24x", 0x80000000, length))
        await until(lambda: card.state is CardState.GONE)
        await until(lambda: screen.output.state is ScreenState.LIT and card_of(made) is not card)
        screen.flip()
        await screen.complete()
        await screen.close()


async def test_a_flip_whose_end_fails_is_one_flip(tmp_path: Path) -> None:
    """The card goes on, and the clock ends the flip."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card, shown = card_of(made), screen.output.on_shown
        failed: list[int] = []

        def fail(serial: int) -> None:
            if failed:
                shown(serial)
            else:
                failed.append(serial)
                raise ValueError("a mistake")

        with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
            patch.setattr(screen.output, "on_shown", fail)
            for _ in range(3):
                screen.flip()
                board.cards[0].vblank()
                await screen.complete()
        assert card_of(made) is card
        assert len(failed) == 1
        assert [line["reason"] for line in logs if line["event"] == "cannot end a flip"] == ["Virtual-1: ValueError"]
        await screen.close()


async def test_an_odd_card_does_not_end_the_search(tmp_path: Path) -> None:
    """A card whose answers cannot be understood is tried again; its traceback is written once."""
    board = Board()
    (tmp_path / "card1").touch()
    mistakes = [IndexError("a mode")] * 2
    opened = board.open

    def fail(path: str, opener: FileOpener) -> DrmDevice:
        if path.endswith("card1") and mistakes:
            raise mistakes.pop()
        return opened(path, opener)

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(board, "open", fail)
        async with running(board, tmp_path) as made:
            await until(lambda: len(made._cards) == 2)
    (line,) = [line for line in logs if line["event"] == "card not used"]
    assert line["exc_info"]


async def test_failed_first_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card whose first probe fails is tried again; one without atomic mode setting is not."""
    board = Board()
    monkeypatch.setattr(sink, "POLLS", 1_000_000)  # cards that rest are not opened meanwhile
    (tmp_path / "card1").touch()
    board.faults["probe"] = [errno.EIO]
    with capture_logs() as logs:
        async with running(board, tmp_path) as made:
            await until(lambda: len(made._cards) == 2)
            board.faults["atomic"] = [errno.EOPNOTSUPP] * 2
            (tmp_path / "card2").touch()
            await until(lambda: len(board.faults["atomic"]) < 2)
            await trio.sleep(0.1)  # some more searches
            assert board.faults["atomic"] == [errno.EOPNOTSUPP]
    assert [line["reason"] for line in logs if line["event"] == "card not used"] == [
        "probe connector: Input/output error",
        "atomic mode setting: Operation not supported",
    ]


async def test_connector_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    """When the connectors of a DisplayPort hub vanish with the hub, the other connectors are still probed."""
    board = Board(connectors=2)
    async with running(board, tmp_path) as made:
        screen = Screen(made, "Virtual-2")
        await screen.show()
        board.vanished, board.monitors[1] = {0}, None
        await until(lambda: screen.is_dark("no monitor is connected"))
        await screen.close()


async def test_two_connectors_on_one_crtc(tmp_path: Path) -> None:
    """Each output gets a CRTC of its own, although another program had let one CRTC drive both connectors."""
    board = Board(connectors=2)
    board.began = lambda card: card.light(0, 7, 0, 1)
    async with running(board, tmp_path) as made:
        screens = [Screen(made), Screen(made, "Virtual-2")]
        for screen in reversed(screens):
            await screen.show()
            assert screen.output.path == "zero copy"
        card = board.card
        assert card is not None
        assert {card.objects[CONNECTOR + index]["CRTC_ID"] for index in (0, 1)} == {CRTC, CRTC + 1}
        for screen in screens:
            await screen.close()


NIGHT, UPSIDE_DOWN = b"night light", 4


def lived_in(card: ModelDevice) -> None:
    """Set the state that a desktop leaves: two pictures, an overlay, a rotation, a colour table, a failed link."""
    card.light(0, 7, 0)
    card.light(1, 8, 1)
    card.fbs[9] = card.fbs[8]
    card.objects[PLANE + 2].update(card.objects[PLANE + 1], type=0, FB_ID=9)
    card.blobs[6] = NIGHT
    card.objects[CRTC]["GAMMA_LUT"], card.objects[CONNECTOR]["link-status"] = 6, 1
    card.objects[PLANE]["rotation"] = UPSIDE_DOWN


@pytest.mark.parametrize("gone", [0, 7, 8, 9])
async def test_the_previous_picture_is_restored(tmp_path: Path, gone: int) -> None:
    """A desktop's state is not in a guest's picture, and is restored at the end, except on CRTCs whose framebuffer is gone."""
    board = Board(connectors=2)
    board.planes, board.began = 3, lived_in
    states: list[Any] = []
    async with running(board, tmp_path) as made:
        screens = [Screen(made), Screen(made, "Virtual-2")]
        card = board.card
        assert card is not None
        before = copy.deepcopy(card.objects)
        for screen in screens:
            await screen.show()
        assert card.objects[CRTC]["GAMMA_LUT"] == card.objects[CONNECTOR]["link-status"] == 0
        assert card.objects[PLANE]["rotation"] == 1
        assert card.objects[PLANE + 2]["FB_ID"] == 0
        for screen in screens:
            await screen.close()
        card.fbs.pop(gone, None)
        note_at_close(card, lambda: card.objects, states)
    (after,) = states
    for index, framebuffers in enumerate(({7}, {8, 9})):
        whole = gone not in framebuffers
        assert after[CRTC + index]["ACTIVE"] == whole
        assert after[CONNECTOR + index]["CRTC_ID"] == (CRTC + index if whole else 0)
        for plane in (PLANE + index, PLANE + 2)[: len(framebuffers)]:
            assert after[plane]["FB_ID"] == (before[plane]["FB_ID"] if whole else 0)
    if gone != 7:
        assert card.blob(after[CRTC]["GAMMA_LUT"]) == NIGHT
        assert after[PLANE]["rotation"] == UPSIDE_DOWN


async def test_link_that_fails(tmp_path: Path) -> None:
    """When a DisplayPort link has failed, the mode is set again, once."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        for _ in range(2):
            card.objects[CONNECTOR]["link-status"] = 1
            await until(lambda: not card.objects[CONNECTOR]["link-status"] and screen.output.path)
            commits = card.commits
            await trio.sleep(0.1)
            assert card.commits == commits
        await screen.close()


@pytest.mark.parametrize(
    ("able", "scale", "target"),
    [
        ("scale", "fit", (24, 0, 80, 60)),
        ("scale", "stretch", (0, 0, 128, 60)),
        ("nothing", "fit", (18, 6, 64, 48)),
        ("leave free", "fit", (18, 6, 64, 48)),
        ("scale", "none", (18, 6, 64, 48)),
    ],
)
async def test_sizes(tmp_path: Path, able: str, scale: str, target: tuple[int, int, int, int]) -> None:
    """A guest's picture whose size is none of the monitor's modes is scaled, has borders, or is cropped."""
    board = Board(modes=[(128, 60), (100, 60)])
    board.can_scale = able == "scale"
    board.can_leave_free = able != "nothing" and (able, scale) != ("scale", "none")
    async with running(board, tmp_path, scale=scale, refresh=0) as made:
        screen = Screen(made)
        screen.pages[0].memory[:] = b"a" * screen.pages[0].size
        await screen.show()
        card = board.card
        assert card is not None
        lit = screen.output._lit
        assert lit is not None
        assert lit.mode.placement.target == target
        if board.can_leave_free:
            assert screen.output.path == "zero copy"
            assert tuple(card.shown()[name] for name in ("CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H")) == target
        else:
            assert screen.output.path == "copy"
            assert lit.mode.copy is not None
            view, pitch = content(lit.mode.copy.buffers.front.memory), lit.mode.copy.buffers.front.pitch
            rows = [view[row * pitch : (row + 1) * pitch] for row in range(60)]
            assert set(rows[:6] + rows[54:]) == {bytes(400)}
            assert set(rows[6:54]) == {bytes(18 * 4) + b"a" * 256 + bytes(18 * 4)}
        screen.flip()
        await until(lambda: card.pending)
        card.vblank()
        await screen.complete()
        await screen.close()


async def test_part_of_a_framebuffer(tmp_path: Path) -> None:
    """Copy mode copies the part of the framebuffer that is shown."""
    board = Board(modes=[(32, 16)])
    async with running(board, tmp_path, zero_copy="off", refresh=0) as made:
        screen = Screen(made)
        memory = screen.pages[0].memory
        for row in range(48):
            memory[row * 256 : (row + 1) * 256] = bytes([row] * 128 + [row + 100] * 128)
        await screen.show(Part(16, 8, 32, 16))
        lit = screen.output._lit
        assert lit is not None
        assert lit.mode.copy is not None
        shown = content(lit.mode.copy.buffers.front.memory, 0, 128 * 16)
        assert shown == b"".join(bytes([row] * 64 + [row + 100] * 64) for row in range(8, 24))
        await screen.close()


RED: dict[str, bytes] = {
    "RG24": b"\x00\x00\xff",
    "RG16": b"\x00\xf8",
    "XR15": b"\x00\x7c",
    "AR15": b"\x00\xfc",
    "XR12": b"\x00\x0f",
    "AR12": b"\x00\xff",
}
"""A red pixel."""


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
@pytest.mark.parametrize("modes", [[(64, 48)], [(128, 96)], [(32, 16)]])
@pytest.mark.parametrize("name", RED)
async def test_formats_that_the_card_does_not_show(
    tmp_path: Path, zero_copy: str, modes: list[tuple[int, int]], name: str
) -> None:
    """Frames are converted as they are copied, with and without borders, and also when drawn without flipping."""
    board = Board(modes=modes)
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=100) as made:
        screen = Screen(made, pages=[Pages(code=fourcc(name)), Pages(code=fourcc(name))])
        first, second = screen.pages
        red = RED[name]
        first.memory[:] = red * (64 * 48)
        await screen.show()
        assert screen.output.path == "copy"
        assert screen.output.reason == (f"Virtual-1 cannot show {name}")
        width, height = modes[0]
        shown = min(64, width), min(48, height)
        border = bytes(4 * ((width - shown[0]) // 2))
        rows = [border + b"\0\0\xff\xff" * shown[0] + border] * shown[1]
        rows = [bytes(4 * width)] * ((height - shown[1]) // 2) + rows + [bytes(4 * width)] * ((height - shown[1]) // 2)

        def picture() -> bytes:
            return content(copies(screen).buffers.front.memory, 0, 4 * width * height)

        assert picture() == b"".join(rows)
        screen.flip()
        assert board.card is not None
        await until(lambda: board.card is not None and board.card.pending)
        board.card.vblank()
        await screen.complete()
        await until(lambda: b"\xff\xff" not in picture())  # the copier has swapped its buffers
        second.memory[:] = first.memory
        await until(lambda: picture() == b"".join(rows))
        await screen.close()


@pytest.mark.parametrize("name", ["RG16", "YUYV"])
async def test_formats_that_are_refused(tmp_path: Path, name: str) -> None:
    async with running(Board(), tmp_path, zero_copy="require") as made:
        screen = Screen(made, pages=[Pages(code=fourcc(name))])
        with pytest.raises(SinkError, match=f"Virtual-1 cannot show {name}") as refused:
            await screen.show()
        assert refused.value.code is Errno.EINVAL
        await screen.close()


@pytest.mark.parametrize("modes", [[(64, 48)], [(32, 16)]])
@pytest.mark.parametrize("on_exit", ["restore", "keep", "blank"])
async def test_on_exit(tmp_path: Path, on_exit: str, modes: list[tuple[int, int]]) -> None:
    """When guest and sink have ended, the screen is as `on-exit` says, also if the guest is larger than any mode."""
    board = Board(connectors=2, modes=modes)
    states: list[Any] = []
    async with running(board, tmp_path, on_exit=on_exit) as made:
        card = board.card
        assert card is not None
        screen = Screen(made)
        await screen.show()
        last = card.shown()["FB_ID"]
        await screen.close()
        states.append(card.shown())
        note_at_close(card, card.shown, states)
    if on_exit == "keep":
        assert states[0]["FB_ID"] not in (0, last)
        assert states[1] == states[0]
    else:
        assert states == [{}, {}]


async def test_connectors_find_their_crtcs(tmp_path: Path) -> None:
    """Two guests on one card each get a CRTC, although another program had used a CRTC for the other's connector."""
    board = Board(connectors=2)
    async with running(board, tmp_path) as made:
        first, second = Screen(made, "Virtual-2"), Screen(made)
        card = board.card
        assert card is not None
        card.objects[11]["CRTC_ID"], card.objects[CRTC]["ACTIVE"] = CRTC + 1, 0
        await first.show()
        await second.show()
        assert card.shown(0)
        assert card.shown(1)
        for screen in (first, second):
            screen.flip()
        card.vblank()
        await first.complete()
        await second.complete()
        await first.close()
        assert len([index for index in (0, 1) if card.shown(index)]) == 1
        await second.close()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
async def test_crtcs_for_those_that_have_no_other(tmp_path: Path, order: list[int]) -> None:
    """A connector that can use several CRTCs takes the one that the fewest others can use."""
    board = Board(connectors=3)
    board.reach = [0b011, 0b001, 0b111]
    async with running(board, tmp_path) as made:
        screens = {index: Screen(made, f"Virtual-{index + 1}") for index in order}
        for screen in screens.values():
            await screen.show()
        pipes = {index: screen.output.pipe for index, screen in screens.items()}
        assert {index: pipe.crtc - CRTC for index, pipe in pipes.items() if pipe is not None} == {0: 1, 1: 0, 2: 2}
        for screen in screens.values():
            await screen.close()


WHICH = st.integers(0, 1)
ACTIONS = st.tuples(
    st.one_of(
        st.tuples(st.just("flip"), WHICH),
        st.tuples(st.just("vblank"), st.just(0)),
        st.tuples(st.sampled_from(["plug", "master", "card", "remove", "enable", "off", "pause"]), WHICH),
        st.tuples(
            st.sampled_from(["flip fails", "modeset fails", "test fails", "rmfb fails", "import fails", "probe fails"]),
            st.sampled_from([errno.EBUSY, errno.EACCES, errno.ENODEV, errno.EINVAL, errno.ENOMEM, errno.ENOSPC]),
        ),
    ),
    WHICH,
)
"""An action with its value, and which of two outputs it is for."""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, max_size=25), st.sampled_from(["auto", "off", "require"]), st.booleans(), st.booleans())
async def test_every_flip_completes_once(
    tmp_path: Path, actions: list[tuple[tuple[str, int], int]], zero_copy: str, must_be_told: bool, privileged: bool
) -> None:
    """With failures in any order, every accepted flip ends exactly once, and at the end nothing is held.

    Two outputs show the same guest's pages.
    """
    board = Board(connectors=2)
    board.must_be_told, board.privileged = must_be_told, privileged
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=100) as made:
        pages = [Pages(), Pages()]
        screens = [Screen(made, "Virtual-1", pages), Screen(made, "Virtual-2", pages)]
        for screen in screens:
            await screen.show()
        on, codes = {0, 1}, set()
        for (action, value), index in actions:
            card, screen = board.card, screens[index]
            assert card is not None
            match action:
                case "flip" if index in on and not screen.waiting:
                    screen.flip(value)
                case "vblank":
                    card.vblank()
                case "plug":
                    board.monitors[index] = Monitor([(64, 48)]) if value else None
                case "master" if value:
                    board.other_master = False
                case "master":
                    card.take_master()
                case "card" if value:
                    board.present = True
                case "card":
                    board.unbind()
                case "remove":
                    await screen.replace(value)
                case "enable":
                    try:
                        await screen.output.enable(screen.buffers[value], WHOLE)
                    except SinkError as error:
                        codes.add(error.code)
                        continue
                    on.add(index)
                case "off":
                    await screen.output.disable()
                    on.discard(index)
                case "pause":
                    await trio.sleep(0.03 * value)
                case _ if action.endswith("fails"):
                    board.faults.setdefault(action.removesuffix(" fails"), []).append(value)
            await trio.lowlevel.checkpoint()
            for number, screen in enumerate(screens):
                assert screen.done == list(range(len(screen.done)))
                screen.check_state(on=number in on)
        for screen in screens:
            await screen.complete()
        board.faults.clear()
        for screen in screens:
            await screen.close()
        await trio.sleep(0.01)
        for screen in screens:
            assert screen.done == list(range(screen.accepted))
        assert codes <= {Errno.EINVAL, Errno.ENOSPC}  # failures of the screen are not reported to the guest
        if board.card is not None and not board.card.unplugged and board.card.fd >= 0:
            assert (board.card.fbs, board.card.blobs, board.card.handles) == ({}, {}, {})


async def test_description_of_a_card(tmp_path: Path) -> None:
    board = Board()
    async with running(board, tmp_path) as made:

        def said() -> str:
            (text,) = made.abilities().values()
            return text

        assert said().startswith("no guest uses it; no dma-buf has been imported yet; Virtual-1 connected, ")
        screen = Screen(made)
        await screen.placed()
        assert said().startswith("DRM master; no dma-buf has been imported yet; Virtual-1 connected, ")
        board.faults["import"] = [errno.EINVAL]
        await screen.output.attach(screen.pages[0], screen.pages[0].geometry)
        assert "; the driver has refused to import a dma-buf; " in said()
        await screen.show()
        assert "; dma-bufs can be imported; " in said()
        await screen.close()


async def test_pages_are_taken_back_while_they_are_copied_and_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In copy mode, frames are copied and compared all the time; after a buffer is closed, nothing borrows its pages."""
    monkeypatch.setattr(redraw, "STILL", 0.0)
    shown_again: list[Memory] = []
    show_again = CopiedScanout._show_again

    def counted(self: CopiedScanout, memory: Memory) -> None:
        shown_again.append(memory)
        show_again(self, memory)

    monkeypatch.setattr(CopiedScanout, "_show_again", counted)
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=120) as made:
        screen = Screen(made)
        await screen.show()
        for turn in range(30):
            pages = Pages()
            buffer = await screen.output.attach(pages, pages.geometry)
            pages.memory[:] = bytes([turn]) * pages.size
            screen.buffers.append(buffer)
            screen.flip(2)
            await trio.sleep(0.01 * (turn % 3))
            pages.memory[:] = bytes([turn + 100]) * pages.size
            await screen.buffers.pop().aclose()
            await pages.aclose()  # asserts that nothing borrows them
            if board.card is not None:
                board.card.vblank()
            await screen.complete()
            await screen.output.enable(screen.buffers[turn % 2], WHOLE)
        await screen.close()
    assert len(shown_again) > 5


async def test_a_copy_of_pages_that_are_gone(tmp_path: Path) -> None:
    """A frame whose memory has been given back makes the screen dark; it ends nothing, and the next frame lights the screen again."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        gone = screen.buffers[1]
        assert isinstance(gone, DrmBuffer)
        assert gone.memory is not None
        kept, gone.memory = gone.memory, PrivateMemory(screen.pages[1].size)
        gone.memory.close()
        screen.flip(1)
        await until(lambda: screen.output.reason.endswith("Bad address"))
        assert screen.output.state is ScreenState.DARK
        assert "copy a frame whose memory has been given back" in screen.output.reason
        gone.memory = kept
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.complete()
        await screen.close()
