"""The DRM sink without threads or memory: a request is refused or its screen is dark for a while, and the card is kept."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from copy_account import CopyAccount
from unit.drm_model import Board
from unit.test_drm_model import WHOLE, Screen, _quick, card_of, running, until

from displbe.sinks.base import Part, SinkError
from displbe.sinks.drm.output import ScreenState
from displbe.wire.errors import Errno

__all__ = ["_quick"]

NO_THREAD = "no thread can be started: raise TasksMax= in displbe.service, or give this machine more memory"


async def test_copies_are_charged(tmp_path: Path) -> None:
    """Two frames on the card and one beside it, while the screen is on; a guest that has too many is dark until it may have them."""
    board = Board()
    async with running(board, tmp_path, zero_copy="off", refresh=0) as made:
        screen = Screen(made)
        account = CopyAccount(8)  # three frames of 64x48 are nine pages
        screen.output.copies = account.copies
        await screen.show()
        assert screen.is_dark("limit of 8 copy_pages reached")
        assert account.used == 0
        screen.flip()
        await screen.complete()
        account.limit = 9
        await until(lambda: screen.output.state is ScreenState.LIT)
        assert account.used == 9
        await screen.output.disable()
        assert account.used == 0
        await screen.output.enable(screen.buffers[0], WHOLE)
        await screen.close()
        assert account.used == 0


async def test_the_copies_of_the_mode_before_make_room(tmp_path: Path) -> None:
    """A guest that may have the copies of one mode only can change the mode."""
    board = Board(modes=[(64, 48), (32, 24)])
    async with running(board, tmp_path, zero_copy="off", refresh=0) as made:
        screen = Screen(made)
        account = CopyAccount(9)
        screen.output.copies = account.copies
        await screen.show()
        assert (screen.output.state, account.used) == (ScreenState.LIT, 9)
        await screen.output.enable(screen.buffers[0], Part(0, 0, 32, 24))
        assert (screen.output.state, account.used) == (ScreenState.LIT, 3)
        await screen.output.enable(screen.buffers[0], WHOLE)
        assert (screen.output.state, account.used) == (ScreenState.LIT, 9)
        account.limit = 2
        await screen.output.enable(screen.buffers[0], Part(0, 0, 32, 24))
        assert screen.is_dark("limit of 2 copy_pages reached")
        account.limit = 3
        await until(lambda: screen.output.state is ScreenState.LIT)
        await screen.close()
        assert account.used == 0


async def test_a_frame_that_is_turned_is_charged(tmp_path: Path) -> None:
    """Where frames are turned as they are copied, the upright one is kept beside the other three."""
    board = Board(modes=[(48, 64)])
    async with running(board, tmp_path, zero_copy="off", refresh=0, screens={"rotate": "90"}) as made:
        screen = Screen(made)
        account = CopyAccount(11)
        screen.output.copies = account.copies
        await screen.show()
        assert screen.is_dark("limit of 11 copy_pages reached")
        assert account.used == 0
        account.limit = 12
        await until(lambda: screen.output.state is ScreenState.LIT)
        assert account.used == 12
        await screen.close()
        assert account.used == 0


class NoThreads:
    """Lets no worker thread start, nor any other thread."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refuses = False
        real, start = trio.to_thread.run_sync, threading.Thread.start

        async def run_sync(*arguments: Any, **names: Any) -> Any:
            if self.refuses:
                await trio.lowlevel.checkpoint()
                raise RuntimeError("can't start new thread")
            return await real(*arguments, **names)

        def start_one(thread: threading.Thread) -> None:
            if self.refuses:
                raise RuntimeError("can't start new thread")
            start(thread)

        patch.setattr(trio.to_thread, "run_sync", run_sync)
        patch.setattr(threading.Thread, "start", start_one)


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_copy: str) -> None:
    """Switching on is delayed, the guest's flips go on, what must be given back is given back, and the card stays open."""
    threads = NoThreads(monkeypatch)
    board = Board()
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        await screen.placed()
        screen.buffers = [await screen.output.attach(pages, pages.geometry) for pages in screen.pages]
        card = card_of(made)
        threads.refuses = True
        await screen.output.enable(screen.buffers[0], WHOLE)
        assert screen.is_dark(NO_THREAD)
        if zero_copy == "auto":
            with pytest.raises(SinkError, match="TasksMax") as refused:
                await screen.output.attach(screen.pages[0], screen.pages[0].geometry)
            assert refused.value.code is Errno.ENOMEM
        with pytest.raises(SinkError, match="TasksMax"):
            await screen.output.edid()
        for _ in range(3):
            screen.flip()
            await screen.complete()
        card.look(probe=True)
        await trio.sleep(0.05)
        assert card_of(made) is card
        threads.refuses = False
        await until(lambda: screen.output.state is ScreenState.LIT)
        threads.refuses = True
        screen.flip(0)
        assert board.card is not None
        await until(lambda: board.card is not None and board.card.pending)
        board.card.vblank()
        await screen.complete()
        await screen.output.disable()
        assert board.card.shown() == {}
        await screen.close()
        assert (board.card.fbs, board.card.blobs, board.card.handles) == ({}, {}, {})
        threads.refuses = False
