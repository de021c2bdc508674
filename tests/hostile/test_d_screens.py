"""Table D on the model of a card: mode changes, and framebuffers that are removed while they are shown."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import trio
from hostile.rows import row
from hostile.stage import REFRESH, Stage, attach, config, create, raw_buffer, status
from scenario.cards import card_machine
from scenario.world import spec, until
from unit.drm_model import Board, ModelDevice

from displbe.sim.guest import Guest
from displbe.wire.displif import FbDetach, PageFlip
from displbe.wire.xenbus import State

BURST, RATE = 8, 2.0
"""The default of `modesets-per-second`, and its burst."""
BAD, GOOD = "Virtual-1", "Virtual-2"
FBS = 0x2000, 0x2040


@contextlib.asynccontextmanager
async def card_stage(
    folder: Path, patch: pytest.MonkeyPatch, pump: Literal["auto", "off"]
) -> AsyncIterator[tuple[Stage, ModelDevice]]:
    """Run a stage on the model of a card, which scans out guests' pages."""
    board = Board(connectors=2)
    async with (
        card_machine(folder, patch, board, REFRESH),
        Stage.set(folder, sink="drm", good_output=GOOD, commit=board.commit, pump=pump) as stage,
    ):
        card = board.card
        assert card is not None
        assert stage.world.daemon.sink.claimed(GOOD).path == "zero copy"  # type: ignore[union-attr]
        yield stage, card
        assert card.removed_shown == 0


async def _lit(bad: Guest) -> None:
    """Create a buffer with two framebuffers, and show the first."""
    connector = bad.display.connectors[0]
    for request in (create(raw_buffer(bad)), attach(FBS[0]), attach(FBS[1]), config(FBS[0])):
        assert await status(connector, request) == 0


@pytest.mark.parametrize("pump", ["auto", "off"])
@row(
    "FB_ATTACH, PG_FLIP and FB_DETACH of what is shown, on a card, again as soon as the response comes",
    "0, and each flip has its event; displbe covers the screen before it removes a frame, so that the kernel locks no other screen for"
    " that; the guest's next frame is shown eight times at once, then two times a second",
)
async def test_d9_removing_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Literal["auto", "off"]) -> None:
    async with card_stage(tmp_path, monkeypatch, pump) as (stage, card), stage.bad(spec(BAD)) as bad:
        connector, output = bad.display.connectors[0], stage.world.daemon.sink.claimed(BAD)
        await _lit(bad)
        modesets, begun, lit = card.modesets, trio.current_time(), 0
        for turn in range(1, 61):
            fb = FBS[turn % 2]
            assert await status(connector, PageFlip(0, fb)) == 0
            await until(lambda: len(connector.flips_done) == turn)  # noqa: B023 - waited for
            assert output is not None
            lit += bool(output.path)
            assert await status(connector, FbDetach(0, fb)) == 0
            assert not output.path
            assert await status(connector, attach(fb)) == 0
        allowed = BURST + math.ceil(RATE * (trio.current_time() - begun)) + 1
        assert allowed < 50
        assert card.modesets - modesets <= allowed
        assert lit <= allowed
        await stage.still_flips(20)


@pytest.mark.parametrize("pump", ["auto", "off"])
@row(
    "the guest connects, shows a frame and closes, on a card, again as soon as it may",
    "what it shows, and the end of each connection, count in the same limit: two mode changes a second",
)
async def test_d9_connecting_storm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Literal["auto", "off"]
) -> None:
    async with card_stage(tmp_path, monkeypatch, pump) as (stage, card), stage.bad(spec(BAD)) as bad:
        modesets, begun = card.modesets, trio.current_time()
        for _ in range(5):
            await _lit(bad)
            assert await status(bad.display.connectors[0], config(FBS[1])) == 0
            await bad.display.close()
            await bad.display._switch(State.INITIALISING)
            bad.display._changed.set()
            with trio.fail_after(30):
                await bad.display.connected.wait()
        took = trio.current_time() - begun
        assert took > 1, "more than eight mode changes"
        assert card.modesets - modesets <= BURST + math.ceil(RATE * took) + 1
        await stage.still_flips(20)
