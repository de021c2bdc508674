"""A guest that removes the framebuffer on the screen: no mode change, no lock of all screens in the kernel, and the guest's limit."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from memory_watch import content
from unit.drm_model import CONNECTOR, CRTC, PLANE, Board, ModelDevice, Monitor, Pages
from unit.test_drm_model import WHOLE, Screen, _quick, cover_of, running, until  # noqa: F401

from displbe.backend.quota import TokenBucket
from displbe.sinks.base import Part
from displbe.sinks.drm.buffer import DrmBuffer
from displbe.sinks.drm.output import HELD_BACK, REMOVED, ScreenState
from displbe.wire.formats import fourcc

BURST, RATE = 8, 20.0


def device_of(board: Board) -> ModelDevice:
    """Return the board's open device."""
    card = board.card
    assert card is not None
    return card


async def refreshing(board: Board, every: float = 0.002) -> None:
    """Refresh the screens, until cancelled."""
    while True:
        await trio.sleep(every)
        device_of(board).vblank()


def on_plane(board: Board, screen: Screen, index: int) -> bool:
    """Return whether one of the guest's framebuffers is on the plane."""
    buffer = screen.buffers[index]
    assert isinstance(buffer, DrmBuffer)
    return device_of(board).shown().get("FB_ID") == buffer.fb != 0


@pytest.mark.parametrize("part", [WHOLE, Part(16, 8, 32, 16)])
async def test_a_frame_of_ours_takes_its_place(tmp_path: Path, part: Part) -> None:
    """The mode stays. The guest's next flip shows its frame, by a flip."""
    board = Board(modes=[(part.width, part.height)])
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show(part)
        card = device_of(board)
        modesets, plane = card.modesets, dict(card.shown())
        await screen.buffers[0].aclose()
        assert (screen.output.state, screen.output.reason, screen.output.path) == (ScreenState.DARK, REMOVED, "")
        cover = card.shown()
        assert cover["FB_ID"] not in (0, plane["FB_ID"])
        assert (cover["SRC_X"], cover["SRC_Y"], cover["SRC_W"]) == (0, 0, plane["SRC_W"])
        assert (card.fbs[cover["FB_ID"]].pages, card.fbs[cover["FB_ID"]].width) == (0, plane["SRC_W"] >> 16)
        screen.flip(1)
        assert screen.output.state is ScreenState.LIT
        await until(lambda: card.pending)
        assert on_plane(board, screen, 1)
        assert {**card.shown(), "FB_ID": 0} == {**plane, "FB_ID": 0}
        card.vblank()
        await screen.complete()
        assert (screen.output.path, card.modesets, card.removed_shown) == ("zero copy", modesets, 0)
        await screen.close()
        assert (card.fbs, card.blobs, card.handles, card.removed_shown) == ({}, {}, {}, 0)


@pytest.mark.parametrize(("name", "black"), [("XR24", b"\0\0\0\0"), ("YUYV", b"\x10\x80\x10\x80")])
async def test_a_frame_of_ours_is_black(tmp_path: Path, name: str, black: bytes) -> None:
    """In the format of the guest's frame: the plane need not change it."""
    board = Board()
    board.formats = [fourcc(name)]
    async with running(board, tmp_path) as made:
        screen = Screen(made, pages=[Pages(code=fourcc(name)), Pages(code=fourcc(name))])
        await screen.show()
        assert screen.output.path == "zero copy"
        await screen.buffers[0].aclose()
        cover = cover_of(screen)
        assert cover.fb == device_of(board).shown()["FB_ID"]
        size = screen.pages[0].size
        assert content(cover.memory, 0, size) == black * (size // len(black))
        await screen.close()


@pytest.mark.parametrize("failing", [["dumb"], ["dumb", "modeset"]])
async def test_no_frame_of_ours(tmp_path: Path, failing: list[str]) -> None:
    """If the screen cannot be covered, it is switched off, and the guest's next frame lights it: two mode changes are charged."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = device_of(board)
        charges: list[int] = []
        screen.output.charge = lambda: charges.append(1) or 0.0  # type: ignore[func-returns-value]
        for kind in failing:
            board.faults[kind] = [errno.ENOMEM]
        await screen.buffers[0].aclose()
        assert len(charges) == 2
        assert card.shown() == {} or failing[-1] == "modeset"
        assert card.removed_shown == (failing[-1] == "modeset")  # nothing more can be done
        assert screen.is_dark(REMOVED)
        screen.flip(1)
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.complete()
        await screen.close()


async def test_removed_before_its_successor_is_shown(tmp_path: Path) -> None:
    """The framebuffer that a flip under way replaces is removed when the flip has ended."""
    board = Board()
    async with running(board, tmp_path) as made, trio.open_nursery() as nursery:
        screen = Screen(made)
        await screen.show()
        card = device_of(board)
        screen.flip(1)
        assert card.leaving
        nursery.start_soon(screen.buffers[0].aclose)
        await trio.sleep(0.05)
        first = screen.buffers[0]
        assert isinstance(first, DrmBuffer)
        assert first.fb in card.fbs
        card.vblank()
        await screen.complete()
        await until(lambda: first.fb == 0)
        assert (screen.output.state, card.removed_shown) == (ScreenState.LIT, 0)
        await screen.close()


async def test_removed_while_dark(tmp_path: Path) -> None:
    """A framebuffer that stayed on the plane after a failed flip is taken off it, too."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = device_of(board)
        board.faults["flip"] = [errno.EIO]
        board.faults["modeset"] = [errno.EBUSY] * 50
        screen.flip(1)
        await screen.complete()
        assert screen.output.state is ScreenState.DARK
        assert on_plane(board, screen, 0)
        board.faults["modeset"].clear()
        await screen.buffers[0].aclose()
        assert card.removed_shown == 0
        await until(lambda: on_plane(board, screen, 1))
        await screen.close()
        assert card.removed_shown == 0


async def test_the_monitor_goes_while_covered(tmp_path: Path) -> None:
    """The screen is switched off, and lit again in the monitor's mode."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        await screen.buffers[0].aclose()
        screen.flip(1)
        device_of(board).vblank()
        await screen.complete()
        await screen.buffers[1].aclose()
        board.monitors[0] = None
        await until(lambda: not any(c.modes for card in made._cards.values() for c in card.connectors))
        screen.buffers[0] = await screen.output.attach(screen.pages[0], screen.pages[0].geometry)
        screen.flip(0)
        await until(lambda: screen.is_dark("no monitor is connected"))
        await until(lambda: device_of(board).shown() == {})
        board.monitors[0] = Monitor([(64, 48, 50)])
        # The commit is made in a thread; the output knows of it a moment later.
        await until(lambda: on_plane(board, screen, 0) and screen.output.state is ScreenState.LIT)
        await screen.complete()
        await screen.close()
        assert device_of(board).removed_shown == 0


@pytest.mark.parametrize("briefly", [False, True])
async def test_another_program_has_the_screen_while_it_is_covered(tmp_path: Path, briefly: bool) -> None:
    """Nothing is left of the covered mode. The guest's next frame is shown by a new mode, without a copy."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        await screen.buffers[0].aclose()
        card = device_of(board)
        if not briefly:
            card.take_master()
            await until(lambda: next(iter(made._cards.values())).why_not_master())
        card.objects[PLANE].update(FB_ID=0, CRTC_ID=0)
        card.objects[CRTC].update(ACTIVE=0, MODE_ID=0)
        card.objects[CONNECTOR]["CRTC_ID"] = 0
        board.other_master = False
        await until(lambda: screen.output._dark.covered is None)
        await until(lambda: not next(iter(made._cards.values())).why_not_master())
        assert screen.is_dark(REMOVED)
        screen.flip(1)
        await until(lambda: on_plane(board, screen, 1) and screen.output.state is ScreenState.LIT)
        await screen.complete()
        assert (screen.output.state, screen.output.path, card.removed_shown) == (ScreenState.LIT, "zero copy", 0)
        await screen.close()


async def test_another_monitor_while_covered(tmp_path: Path) -> None:
    """The guest's next frame is shown in a mode of the monitor that is there now."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        await screen.buffers[0].aclose()
        board.monitors[0] = Monitor([(64, 48, 50)])
        await until(lambda: screen.output._dark.covered is None)
        screen.flip(1)
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.complete()
        assert screen.output._lit is not None
        assert screen.output._lit.mode.placement.mode.refresh == 50
        await screen.close()


async def test_the_monitor_goes_for_good_while_covered(tmp_path: Path) -> None:
    """The screen is switched off, although the guest does nothing."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        await screen.buffers[0].aclose()
        board.monitors[0] = None
        await until(lambda: device_of(board).shown() == {})
        assert screen.is_dark(REMOVED)
        await screen.close()


async def test_the_last_frame_is_kept(tmp_path: Path) -> None:
    """With `on-exit = "keep"`, a copy of the removed frame stays on the screen, and stays there after the guest's end."""
    board = Board()
    async with running(board, tmp_path, on_exit="keep") as made:
        screen = Screen(made)
        screen.pages[0].memory[:] = b"k" * screen.pages[0].size
        await screen.show()
        card = device_of(board)
        modesets = card.modesets
        await screen.buffers[0].aclose()
        cover = cover_of(screen)
        assert content(cover.memory, 0, screen.pages[0].size) == bytes(screen.pages[0].memory)
        shown = card.shown()["FB_ID"]
        assert shown == cover.fb
        await screen.close()
        assert (card.shown()["FB_ID"], card.modesets, card.removed_shown) == (shown, modesets, 0)


async def _detach_what_is_shown(screen: Screen, index: int) -> None:
    """Attach, flip, detach: the framebuffer that is shown is removed."""
    screen.flip(index)
    await screen.complete()
    await screen.replace(index)


async def _destroy_and_flip_at_once(screen: Screen, index: int) -> None:
    """Flip to one framebuffer, remove the other before the flip has ended, and make it again."""
    screen.flip(index)
    await screen.replace(1 - index)
    await screen.complete()


@pytest.mark.parametrize("attack", [_detach_what_is_shown, _destroy_and_flip_at_once])
@pytest.mark.parametrize("on_exit", ["restore", "keep"])
async def test_removing_at_any_rate(tmp_path: Path, attack: Callable[..., object], on_exit: str) -> None:
    """Attach, flip, detach in a loop: no framebuffer is removed while it is shown, and mode changes keep to the limit."""
    board = Board()
    async with running(board, tmp_path, on_exit=on_exit) as made, trio.open_nursery() as nursery:
        screen = Screen(made)
        screen.output.charge = TokenBucket(BURST, RATE, trio.current_time).take
        await screen.show()
        card = device_of(board)
        nursery.start_soon(refreshing, board)
        modesets, began, shown = card.modesets, trio.current_time(), screen.output._flip.shown
        for turn in range(60):
            await attack(screen, turn % 2)  # type: ignore[misc]
        took = trio.current_time() - began
        assert card.removed_shown == 0
        allowed = BURST + math.ceil(RATE * took) + 1
        assert card.modesets - modesets <= allowed
        if attack is _detach_what_is_shown:
            assert screen.output._flip.shown - shown <= allowed
        screen.output.charge = lambda: 0.0
        screen.flip(0)
        await screen.complete()
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.close()
        assert card.removed_shown == 0
        nursery.cancel_scope.cancel()


async def test_held_back(tmp_path: Path) -> None:
    """A guest that owes a mode change is dark until its turn; its flips go on; then its newest frame is shown."""
    board = Board()
    async with running(board, tmp_path) as made, trio.open_nursery() as nursery:
        nursery.start_soon(refreshing, board)
        screen = Screen(made)
        await screen.show()
        screen.output.charge = lambda: 0.3
        began = trio.current_time()
        await screen.replace(0)
        assert screen.is_dark(HELD_BACK)
        for index in (1, 0, 1):
            screen.flip(index)
            await screen.complete()
            assert screen.is_dark(HELD_BACK)
        modesets = device_of(board).modesets
        await until(lambda: on_plane(board, screen, 1) and screen.output.state is ScreenState.LIT)
        assert trio.current_time() - began >= 0.3
        assert (screen.output.state, screen.output.path) == (ScreenState.LIT, "zero copy")
        assert device_of(board).modesets == modesets
        await screen.close()
        nursery.cancel_scope.cancel()


async def test_held_back_after_failed_flips(tmp_path: Path) -> None:
    """The reason is the card's error, not the guest's: the card may refuse the flips of any guest."""
    board = Board()
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        screen.output.charge = lambda: 0.2
        board.faults["flip"] = [errno.EIO]
        screen.flip(1)
        await screen.complete()
        assert screen.is_dark("Virtual-1: flip: Input/output error")
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.close()


async def test_alternating_between_copies_and_zero_copy(tmp_path: Path) -> None:
    """A guest whose frames need a mode change for each flip, because the card refuses some of them, keeps to the limit."""
    board = Board()
    odd = Pages()
    refused = os.fstat(odd._fd).st_ino
    async with running(board, tmp_path, refresh=0) as made, trio.open_nursery() as nursery:
        nursery.start_soon(refreshing, board)
        screen = Screen(made)
        screen.output.charge = TokenBucket(BURST, RATE, trio.current_time).take
        await screen.show()
        card = device_of(board)
        imported = card._prime_fd_to_handle

        def refusing(ask: object) -> int:
            return errno.EINVAL if os.fstat(ask.fd).st_ino == refused else imported(ask)  # type: ignore[attr-defined]

        card._handlers[next(n for n, h in card._handlers.items() if h == imported)] = refusing
        modesets, began = card.modesets, trio.current_time()
        for _ in range(60):
            fresh = Pages()
            for pages in (odd, fresh):
                buffer = await screen.output.attach(pages, pages.geometry)
                screen.output.flip(buffer, screen.accepted)
                screen.accepted += 1
                await screen.complete()
                await trio.sleep(0.01)
                await buffer.aclose()
            await fresh.aclose()
        took = trio.current_time() - began
        assert card.removed_shown == 0
        assert BURST < card.modesets - modesets <= BURST + math.ceil(RATE * took) + 1
        await screen.close()
        await odd.aclose()
        nursery.cancel_scope.cancel()
