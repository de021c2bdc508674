"""Which connector, CRTC and mode shows a guest, as monitors, docks and cards come, go and refuse, on the model of the kernel."""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from unit.drm_model import CRTC, PLANE, Board, ModelDevice, Monitor, Pages
from unit.test_drm_model import Screen, _quick, card_of, note_at_close, running, until  # noqa: F401

from displbe.sinks.base import OutputUnavailable, Part, SinkError
from displbe.sinks.drm import bus_path, hotplug, output, sink, uapi
from displbe.sinks.drm import card as card_module
from displbe.sinks.drm.binding import Binding
from displbe.sinks.drm.device import DrmDevice, Mode
from displbe.sinks.drm.edid_name import edid_name
from displbe.sinks.drm.fallback_modes import FALLBACK_MODES
from displbe.sinks.drm.libseat import FileOpener
from displbe.sinks.drm.mode_search import ModeSearch
from displbe.sinks.drm.names import canonical
from displbe.sinks.drm.output import CANNOT_TELL, ScreenState
from displbe.sinks.drm.placement import placements, ranked_modes
from displbe.sinks.drm.scanout import ScanoutPipe
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.drm.sink import DrmSink

UNKNOWN = 3
"""DRM_MODE_UNKNOWNCONNECTION"""
DOCK = b"mst:69-1-8"


def edid_of(maker: str, product: int, number: int = 0, text: str = "") -> bytes:
    """Return a monitor's EDID, without the parts that are not read here."""
    letters = sum((ord(letter) - 64) << shift for letter, shift in zip(maker, (10, 5, 0), strict=True))
    data = bytearray(128)
    data[:8] = bytes.fromhex("00ffffffffffff00")
    data[8:10], data[10:12], data[12:16] = (
        letters.to_bytes(2, "big"),
        product.to_bytes(2, "little"),
        number.to_bytes(4, "little"),
    )
    if text:
        data[72:90] = bytes((0, 0, 0, 0xFF, 0)) + f"{text}\n".encode().ljust(13)[:13]
    return bytes(data)


DELL, LG = edid_of("DEL", 0xA0B1, text="3XK9T"), edid_of("GSM", 0x5B09, number=77)


def lit_mode(screen: Screen) -> str:
    """Return the mode of a lit screen."""
    lit = screen.output._lit
    assert lit is not None
    return str(lit.mode.placement.mode)


def lit(screen: Screen) -> bool:
    """Return whether a screen is lit."""
    return screen.output.state is ScreenState.LIT


def connector_of(screen: Screen) -> str:
    """Return the card's and the connector's name of an output; empty: it is on none."""
    pipe = screen.output.pipe
    return f"{pipe.device.name}/{pipe.name}" if pipe is not None else ""


def check_nothing_left(device: ModelDevice | None) -> None:
    """Assert that a card has no framebuffers, handles and blobs of modes."""
    assert device is not None
    modes = [data for data in device.blobs.values() if len(data) == ctypes.sizeof(uapi.drm_mode_modeinfo)]
    assert (device.fbs, device.handles, modes) == ({}, {}, [])


def is_on(screen: Screen, name: str) -> bool:
    """Return whether a screen is lit on this connector."""
    return lit(screen) and connector_of(screen) == name


@asynccontextmanager
async def running_cards(boards: dict[str, Board], devices: Path, **keys: Any) -> AsyncIterator[DrmSink]:
    """Run a sink on several cards, by the names of their nodes."""

    def opened(path: str, opener: FileOpener) -> DrmDevice:
        return boards[Path(path).name].open(path, opener)

    for name in boards:
        (devices / name).touch()
    made = DrmSink(DrmSettings(**keys), opened, devices, lambda: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


# Connected or not


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_a_connector_that_cannot_tell(tmp_path: Path, zero_copy: str) -> None:
    """It is lit if it has modes; without modes it is dark, and the reason says what to do."""
    board = Board()
    board.monitors[0] = Monitor([(64, 48)], DELL, UNKNOWN)
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        assert lit(screen)
        assert await screen.output.edid() == DELL
        assert "cannot tell if a monitor is connected, 1 modes" in next(iter(made.abilities().values()))
        board.monitors[0] = Monitor([], b"", UNKNOWN)
        await until(lambda: screen.is_dark(CANNOT_TELL))
        board.monitors[0] = Monitor([(64, 48)], b"", UNKNOWN)
        await until(lambda: lit(screen))
        await screen.close()


@pytest.mark.parametrize("name", ["Virtual-1", "card0/Virtual-1"])
async def test_always_connected(tmp_path: Path, name: str) -> None:
    """A screen that is always lit gets the kernel's fallback modes, and keeps its modes when its monitor goes."""
    board = Board(connectors=2)
    board.monitors = [None, None]
    async with running(board, tmp_path, screens={name: {"connected": "always"}}, refresh=0) as made:
        screen, other = Screen(made, pages=[Pages(640, 480), Pages(640, 480)]), Screen(made, "Virtual-2")
        await screen.show()
        await other.show()
        assert (lit(screen), lit_mode(screen)) == (True, "640x480@60")
        assert other.is_dark("no monitor is connected")
        board.monitors[0] = Monitor([(640, 480)])
        await until(lambda: lit(screen) and lit_mode(screen) == "640x480@100")
        board.monitors[0] = None
        await trio.sleep(0.1)
        assert (lit(screen), lit_mode(screen)) == (True, "640x480@100")
        await screen.close()
        await other.close()


async def test_connected_without_modes(tmp_path: Path) -> None:
    """A monitor whose modes the kernel does not know is lit in a fallback mode; all screens may be always connected."""
    board = Board()
    board.monitors[0] = Monitor([])
    async with running(board, tmp_path, screens={"connected": "always"}, refresh=0) as made:
        screen = Screen(made, pages=[Pages(800, 600)])
        await screen.show(Part(0, 0, 800, 600))
        assert (lit(screen), lit_mode(screen)) == (True, "800x600@60")
        await screen.close()


def test_fallback_modes() -> None:
    """Each mode has the refresh rate that it says, and totals that are larger than its parts."""
    for mode in FALLBACK_MODES:
        raw = uapi.drm_mode_modeinfo.from_buffer_copy(mode.raw)
        assert round(raw.clock * 1000 / (raw.htotal * raw.vtotal)) == mode.refresh == raw.vrefresh
        assert raw.hdisplay < raw.hsync_start < raw.hsync_end < raw.htotal
        assert raw.vdisplay < raw.vsync_start < raw.vsync_end < raw.vtotal
        assert (raw.hdisplay, raw.vdisplay) == (mode.width, mode.height)


async def test_a_monitor_that_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a screen is dark, the connectors are probed now and then; while all are lit, they are not."""
    monkeypatch.setattr(hotplug, "POLL", 1000.0)
    monkeypatch.setattr(sink, "PROBE", 0.05)
    board = Board()
    board.monitors[0] = None
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        board.monitors[0] = Monitor([(64, 48)])
        await until(lambda: lit(screen))
        board.monitors[0] = Monitor([(64, 48)], DELL)
        await trio.sleep(0.2)
        assert [c.edid_name for card in made._cards.values() for c in card.connectors] == [""]
        await screen.close()


# Modes and CRTCs


def too_fast(limit: int, number: int) -> Any:
    """Return a refusal of modes with more pixels per second than the link carries."""
    return lambda crtc, mode: number if mode.hdisplay * mode.vdisplay * mode.vrefresh > limit else 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EINVAL])
@pytest.mark.parametrize(("zero_copy", "path"), [("auto", "zero copy"), ("require", "zero copy"), ("off", "copy")])
async def test_a_refresh_rate_that_is_refused(tmp_path: Path, number: int, zero_copy: str, path: str) -> None:
    """The next slower rate of the same size is used, without a copy where none is needed; one line and the status say so."""
    board = Board()
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 75), (64, 48, 50), (64, 48, 30), (128, 96, 30)])
    board.refuses = too_fast(64 * 48 * 50, number)
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen = Screen(made)
        with capture_logs() as logs:
            await screen.show()
        assert (lit_mode(screen), screen.output.path) == ("64x48@50", path)
        reason = screen.output.reason
        assert reason.startswith("64x48@60 was refused (Virtual-1: set mode: ")
        assert "64x48@50 is used" in reason
        said = [line["reason"] for line in logs if line["event"] == "the card refused the mode"]
        assert len(said) == 1
        assert reason.startswith(said[0])
        assert board.card is not None
        screen.flip()
        await until(lambda: board.card is not None and board.card.pending)
        board.card.vblank()
        await screen.complete()
        await screen.close()
        check_nothing_left(board.card)


@pytest.mark.parametrize(
    ("modes", "scaling", "used"),
    [
        ([(64, 48, 60), (128, 96, 60), (48, 36, 60), (32, 24, 60)], True, "48x36@60"),
        ([(64, 48, 60), (48, 36, 60, uapi.DRM_MODE_FLAG_INTERLACE), (48, 36, 59)], False, "48x36@59"),
        ([(64, 48, 60), (64, 48, 30, uapi.DRM_MODE_FLAG_INTERLACE), (48, 36, 60)], False, "64x48i@30"),
        ([(64, 48, 60, uapi.DRM_MODE_FLAG_INTERLACE), (96, 72, 20)], False, "96x72@20"),
    ],
)
async def test_a_size_that_is_refused(tmp_path: Path, modes: list[tuple[int, ...]], scaling: bool, used: str) -> None:
    """Another size is used if no rate of the guest's size is possible; progressive modes come before interlaced ones."""
    board = Board()
    board.can_scale = board.can_leave_free = scaling
    board.monitors[0] = Monitor(modes)
    board.refuses = too_fast(64 * 48 * 60 - 1, errno.ENOSPC)
    if used == "96x72@20":
        board.refuses = lambda crtc, mode: errno.EINVAL if mode.flags & uapi.DRM_MODE_FLAG_INTERLACE else 0
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        assert lit_mode(screen) == used
        assert screen.output.path == ("copy" if used == "96x72@20" else "zero copy")
        await screen.close()


@pytest.mark.parametrize(
    ("link", "scaling", "used", "target"),
    [
        ("fast", True, "640x480@60", (0, 0, 640, 480)),
        ("slow", True, "640x480@30", (0, 0, 640, 480)),
        ("fast", False, "80x60@60", (8, 6, 64, 48)),
        ("slow", False, "80x60@60", (8, 6, 64, 48)),
    ],
)
async def test_a_refresh_rate_that_is_refused_to_a_scaled_picture(
    tmp_path: Path, link: str, scaling: bool, used: str, target: tuple[int, ...]
) -> None:
    """The next rate is used if the plane scales, else the mode that is nearest to the picture's size; the status says so."""
    board = Board()
    board.can_scale = board.can_leave_free = scaling
    board.monitors[0] = Monitor([(640, 480, 60), (640, 480, 30), (80, 60, 60), (80, 60, 30)])
    if link == "slow":
        board.refuses = too_fast(640 * 480 * 30, errno.ENOSPC)
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        assert screen.output._lit is not None
        assert (lit_mode(screen), screen.output._lit.mode.placement.target) == (used, target)
        assert screen.output.path == ("zero copy" if scaling else "copy")
        assert screen.output.reason.startswith("640x480@60 was refused (Virtual-1: test mode: ") == (link == "slow")
        assert board.card is not None
        assert board.card.modesets == 1
        await screen.close()
        check_nothing_left(board.card)


async def test_a_mode_that_the_card_has_no_memory_for(tmp_path: Path) -> None:
    """The next mode is tried: it may be smaller."""
    board = Board()
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 50), (64, 48, 30)])
    board.refuses = too_fast(64 * 48 * 50, errno.ENOSPC)
    async with running(board, tmp_path, zero_copy="require", refresh=0) as made:
        screen = Screen(made)
        await screen.placed()
        screen.buffers = [await screen.output.attach(pages, pages.geometry) for pages in screen.pages]
        board.faults["dumb"] = [errno.ENOMEM]
        await screen.output.enable(screen.buffers[0], Part(0, 0, 64, 48))
        assert (lit(screen), lit_mode(screen)) == (True, "64x48@30")
        await screen.close()


async def test_a_mode_that_is_possible_again(tmp_path: Path) -> None:
    """A guest that sets its mode again gets the best one that is possible then."""
    board = Board()
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 30)])
    board.refuses = too_fast(64 * 48 * 30, errno.ENOSPC)
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        assert lit_mode(screen) == "64x48@30"
        board.refuses = too_fast(64 * 48 * 60, errno.ENOSPC)
        await screen.output.enable(screen.buffers[1], Part(0, 0, 64, 48))
        assert (lit_mode(screen), screen.output.reason) == ("64x48@60", "")
        await screen.close()


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_better_mode_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """A screen in a lesser mode gets the wanted one when that is possible. A test that was wrong is not made again and again."""
    monkeypatch.setattr(output, "BETTER", 0.05)
    board = Board()
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 30)])
    board.refuses = too_fast(64 * 48 * 30, errno.ENOSPC)
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        modesets = card.modesets
        await trio.sleep(0.3)
        assert (lit_mode(screen), card.modesets) == ("64x48@30", modesets)
        if wrong:
            monkeypatch.setattr(ModeSearch, "passes", lambda self, pipe, mode: True)
            await until(lambda: card.modesets > modesets)
            modesets = card.modesets
            await trio.sleep(0.3)
            assert (lit_mode(screen), card.modesets, lit(screen)) == ("64x48@30", modesets, True)
        else:
            board.refuses = lambda crtc, mode: 0
            await until(lambda: lit(screen) and lit_mode(screen) == "64x48@60")
            assert (screen.output.reason, card.modesets) == ("", modesets + 1)
        screen.flip()
        card.vblank()
        await screen.complete()
        await screen.close()
        check_nothing_left(card)


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_a_better_mode_while_the_guest_flips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_copy: str
) -> None:
    """No framebuffer of the lesser mode is freed while a flip shows it."""
    monkeypatch.setattr(output, "BETTER", 0.05)
    free = ScanoutPipe._free

    def free_later(self: ScanoutPipe) -> None:
        if not trio.lowlevel.in_trio_run():
            time.sleep(0.05)  # flips go on meanwhile
        free(self)

    monkeypatch.setattr(ScanoutPipe, "_free", free_later)
    board = Board()
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 30)])
    board.refuses = too_fast(64 * 48 * 30, errno.ENOSPC)
    async with running(board, tmp_path, zero_copy=zero_copy) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        board.refuses = lambda crtc, mode: 0
        with trio.fail_after(10):
            while not (lit(screen) and lit_mode(screen) == "64x48@60"):
                if not screen.waiting:
                    screen.flip(screen.accepted % 2)
                await trio.sleep(0.002)
                card.vblank()
        await screen.complete()
        assert card.removed_shown == 0
        await screen.close()


async def test_refused_in_every_mode(tmp_path: Path) -> None:
    """A screen that no mode lights is tried again slowly, and at once when a monitor comes."""
    board = Board()
    board.monitors[0] = None
    board.refuses = lambda crtc, mode: errno.EINVAL
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made)
        await screen.show()
        board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 30)])
        await until(lambda: screen.is_dark("Virtual-1: set mode: Invalid argument"))
        assert board.card is not None
        before = dict(board.card.objects)
        asked: list[int] = []
        board.refuses = lambda crtc, mode: asked.append(crtc) or errno.EINVAL  # type: ignore[func-returns-value]
        await trio.sleep(0.2)  # ten looks
        assert asked == []
        assert board.card.objects == before
        screen.flip()
        await screen.complete()
        board.refuses = lambda crtc, mode: 0
        board.monitors[0] = Monitor([(64, 48, 50)])
        await until(lambda: lit(screen))
        await screen.close()
        check_nothing_left(board.card)


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_a_crtc_that_is_too_slow(tmp_path: Path, zero_copy: str) -> None:
    """A mode that the first CRTC refuses is set on another. A connector that comes later gets a CRTC that is free."""
    board = Board(connectors=3)
    board.monitors[0] = Monitor([(64, 48, 60), (64, 48, 30)])
    board.refuses = lambda crtc, mode: errno.EINVAL if (crtc, mode.vrefresh) == (0, 60) else 0
    async with running(board, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screen, second = Screen(made), Screen(made, "Virtual-2")
        with capture_logs() as logs:
            await screen.show()
        assert (lit_mode(screen), screen.output.path) == ("64x48@60", "copy" if zero_copy == "off" else "zero copy")
        pipe = screen.output.pipe
        assert pipe is not None
        assert pipe.crtc == CRTC + 2
        assert [
            line["reason"].endswith("another CRTC is used")
            for line in logs
            if line["event"] == "the card refused the mode"
        ]
        third = Screen(made, "Virtual-3")
        for each in (second, third):
            await each.show()
            assert lit(each)
        assert board.card is not None
        for each in (screen, second, third):
            each.flip()
        await until(lambda: board.card is not None and len(board.card.pending) == 3)
        board.card.vblank()
        for each in (screen, second, third):
            await each.complete()
            await each.close()
        check_nothing_left(board.card)


SIZES = st.sampled_from([(64, 48), (96, 72), (128, 96), (48, 36)])
MODES = st.lists(
    st.builds(
        lambda size, refresh, preferred, interlaced: Mode(size[0], size[1], refresh, preferred, b"", interlaced),
        SIZES,
        st.sampled_from([24, 30, 50, 60, 75]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)


@given(MODES, SIZES, st.sampled_from(["fit", "stretch", "none"]))
def test_every_mode_is_ranked_once(modes: list[Mode], size: tuple[int, int], scale: str) -> None:
    """The wanted modes come first, then the rest of the first one's size, slower ones first, progressive before interlaced."""
    ranked = ranked_modes(modes, *size, scale)
    assert sorted(map(repr, ranked)) == sorted(map(repr, set(modes)))
    wanted = list(dict.fromkeys(way.mode for way in placements(modes, *size, scale)))
    assert ranked[: len(wanted)] == wanted
    rest = ranked[len(wanted) :]
    if rest:
        same = [mode for mode in rest if (mode.width, mode.height) == (wanted[0].width, wanted[0].height)]
        assert rest[: len(same)] == same
        assert [mode.interlaced for mode in same] == sorted(mode.interlaced for mode in same)
        slower = [mode.refresh for mode in same if not mode.interlaced and mode.refresh <= wanted[0].refresh]
        assert slower == sorted(slower, reverse=True)


# Docks and monitors


def test_names_of_monitors() -> None:
    """The text of the serial number's descriptor comes before the number; a monitor may have neither."""
    assert edid_name(DELL) == "edid:DEL-A0B1-3XK9T"
    assert edid_name(LG) == "edid:GSM-5B09-77"
    assert edid_name(edid_of("AAA", 1)) == "edid:AAA-0001"
    assert edid_name(b"") == edid_name(bytes(128)) == edid_name(DELL[:127]) == ""
    odd = edid_name(edid_of("AAA", 1, text="a/b\tc;\x7f"))
    assert odd.isprintable()
    assert odd.isascii()


@given(st.binary(min_size=120, max_size=140))
def test_names_of_monitors_are_printable(tail: bytes) -> None:
    """Whatever a monitor sends, its name can be written."""
    name = edid_name(DELL[:8] + tail)
    assert name.isprintable()
    assert name.isascii()


@pytest.mark.parametrize(
    ("name", "card", "connector"),
    [
        ("HDMI-A-1", "", "HDMI-A-1"),
        ("card1/HDMI-A-1", "card1", "HDMI-A-1"),
        ("pci-0000:00:02.0/DP-1", "pci-0000_00_02.0", "DP-1"),
        ("pci-0000_00_02.0/path_mst_69-1-8", "pci-0000_00_02.0", "path_mst_69-1-8"),
        ("edid:DEL-A0B1-a/b", "", "edid_DEL-A0B1-a_b"),
        ("path:mst:69-1-8", "", "path_mst_69-1-8"),
    ],
)
def test_names_of_outputs(name: str, card: str, connector: str) -> None:
    binding = Binding(name)
    assert (binding.card, binding.connector) == (card, connector)
    again = Binding(canonical(name) if "/" not in name or name.startswith("edid") else name.replace(":", "_"))
    assert (again.card, again.connector) == (card, connector)


def docked() -> Board:
    """Return a card with one connector, and a dock with another on which the Dell is."""
    board = Board(connectors=2)
    board.monitors[1] = Monitor([(64, 48)], DELL)
    board.paths[1] = DOCK
    return board


@pytest.mark.parametrize(
    "name",
    ["Virtual-2", "path:mst:69-1-8", "path_mst_69-1-8", "edid:DEL-A0B1-3XK9T", "edid_DEL-A0B1", "card0/Virtual-2"],
)
@pytest.mark.parametrize("number", [2, 7])
async def test_a_dock_that_comes_back(tmp_path: Path, name: str, number: int) -> None:
    """Its connector is a new object, perhaps with another name; the guest is shown there, and nothing of the old one is left."""
    board = docked()
    async with running(board, tmp_path) as made:
        first, screen = Screen(made), Screen(made, name)
        await first.show()
        await screen.show()
        assert lit(screen)
        for _ in range(2):
            board.unplug(1)
            await until(lambda: not connector_of(screen))
            assert screen.output.state is ScreenState.DARK
            assert screen.output.reason
            screen.flip()
            await screen.complete()
            assert lit(first)
            board.replug(1, number=number, monitor=Monitor([(64, 48)], DELL))
            await until(lambda: lit(screen))
            assert connector_of(screen) == f"card0/Virtual-{number}"
            assert board.card is not None
            screen.flip()
            first.flip()
            board.card.vblank()
            await screen.complete()
            await first.complete()
        await screen.close()
        await first.close()
        check_nothing_left(board.card)


async def test_a_guest_that_comes_again(tmp_path: Path) -> None:
    """It finds the connector of its dock, which has another name now; while the dock is away, it waits."""
    board = docked()
    board.object_ids[1] = 0
    async with running(board, tmp_path) as made:
        with pytest.raises(OutputUnavailable, match="no connector Virtual-2"):
            made.claim("Virtual-2", 64, 48)
        board.replug(1, number=2, monitor=Monitor([(64, 48)], DELL))
        await until(lambda: len(next(iter(made._cards.values())).connectors) == 2)
        screen = Screen(made, "Virtual-2")
        await screen.show()
        assert lit(screen)
        board.unplug(1)
        await until(lambda: not connector_of(screen))
        await screen.close()
        again = Screen(made, "Virtual-2")
        await again.show()
        assert again.is_dark("there is no connector Virtual-2 now: is the dock plugged in?")
        board.replug(1, number=7, monitor=Monitor([(64, 48)], DELL))
        await until(lambda: lit(again))
        await again.close()
        once_more = Screen(made, "Virtual-2")
        await once_more.show()
        assert (lit(once_more), connector_of(once_more)) == (True, "card0/Virtual-7")
        await once_more.close()


@pytest.mark.parametrize("gone", [True, False])
async def test_what_was_shown_before_is_restored_with_another_dock(tmp_path: Path, gone: bool) -> None:
    """The connectors that displbe found have their picture back, although one has gone with its dock, or has come anew."""
    board = docked()
    board.began = lambda card: card.light(0, 7, 0)
    states: list[dict[int, dict[str, int]]] = []
    async with running(board, tmp_path) as made:
        screens = [Screen(made), Screen(made, "edid:DEL-A0B1")]
        for screen in screens:
            await screen.show()
        board.unplug(1)
        await until(lambda: not connector_of(screens[1]))
        if not gone:
            board.replug(1, number=8, monitor=Monitor([(64, 48)], DELL))
            await until(lambda: lit(screens[1]))
        card = board.card
        assert card is not None
        note_at_close(card, lambda: card.objects, states)
    (after,) = states
    assert (after[PLANE]["FB_ID"], after[CRTC]["ACTIVE"], after[CRTC + 1]["ACTIVE"]) == (7, 1, 0)
    assert {values["CRTC_ID"] for identity, values in after.items() if identity < CRTC} == (
        {CRTC} if gone else {CRTC, 0}
    )


async def test_another_monitor_on_the_dock(tmp_path: Path) -> None:
    """A guest that names a place on the dock is shown on any monitor there."""
    board = docked()
    async with running(board, tmp_path) as made:
        screen = Screen(made, "path:mst:69-1-8")
        await screen.show()
        board.monitors[1] = Monitor([(64, 48)], LG)
        await trio.sleep(0.1)
        assert lit(screen)
        await screen.close()


async def test_another_monitor(tmp_path: Path) -> None:
    """A guest that names a monitor is not shown on another one. It follows its monitor to another connector."""
    board = docked()
    async with running(board, tmp_path) as made:
        screen = Screen(made, "edid:DEL-A0B1-3XK9T")
        await screen.show()
        await until(lambda: lit(screen))
        board.monitors[1] = Monitor([(64, 48)], LG)
        await until(lambda: screen.output.state is ScreenState.DARK)
        await until(lambda: screen.output.reason.startswith("no connector has edid_DEL-A0B1-3XK9T"))
        board.monitors[0] = Monitor([(64, 48)], DELL)
        await until(lambda: lit(screen))
        assert connector_of(screen) == "card0/Virtual-1"
        await screen.close()


@pytest.mark.parametrize("name", ["Virtual-1", "edid:DEL-A0B1"])
async def test_a_monitor_that_is_plugged_in_while_the_card_rests(tmp_path: Path, name: str) -> None:
    """The kernel does not ask the monitor for a program that is not DRM master. displbe asks it when a guest comes."""
    board = Board()
    board.monitors[0] = None
    async with running(board, tmp_path) as made:
        await trio.sleep(0.1)
        board.monitors[0] = Monitor([(64, 48)], DELL)
        await trio.sleep(0.3)
        assert card_of(made).is_resting
        screen = Screen(made, name)
        await screen.show()
        await until(lambda: screen.output.path)
        await screen.close()


async def test_a_monitor_that_is_not_there_yet(tmp_path: Path) -> None:
    """Names of monitors, docks and places in the machine can be claimed before they are there; unknown connectors cannot."""
    board = Board()
    async with running(board, tmp_path) as made:
        with pytest.raises(OutputUnavailable, match="no connector card5/Virtual-1; there are: Virtual-1"):
            made.claim("card5/Virtual-1", 64, 48)
        screen = Screen(made, "edid:GSM-5B09-77")
        place = made.claim("pci-0000:99:00.0/HDMI-A-1", 64, 48)
        dock = made.claim("path:mst:1-2", 64, 48)
        await screen.show()
        assert screen.is_dark("no connector has edid_GSM-5B09-77: displbectl check lists the names that there are")
        await screen.output.disable()
        assert screen.output.reason == "off"
        await screen.output.enable(screen.buffers[0], Part(0, 0, 64, 48))
        board.monitors[0] = Monitor([(64, 48)], LG)
        await until(lambda: lit(screen))
        for each in (place, dock):
            await each.release()
        await screen.close()


async def test_two_guests_for_one_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second guest that names a monitor's connector waits, dark, and says why; it is shown when the first one goes."""
    board = Board()
    board.monitors[0] = Monitor([(64, 48)], DELL)
    async with running(board, tmp_path) as made:
        first = Screen(made)
        await first.placed()
        with pytest.raises(OutputUnavailable, match="connector Virtual-1 is taken by another guest"):
            made.claim("edid:DEL-A0B1", 64, 48)
        board.monitors[0] = None
        await until(lambda: not any(c.edid_name for card in made._cards.values() for c in card.connectors))
        second = Screen(made, "edid:DEL-A0B1")
        await first.show()
        await second.show()
        board.monitors[0] = Monitor([(64, 48)], DELL)
        await until(lambda: second.is_dark("connector Virtual-1 is taken by another guest"))
        await until(lambda: lit(first))
        monkeypatch.setattr(hotplug, "POLL", 1000.0)
        monkeypatch.setattr(card_module, "THOROUGH", 1000)
        await trio.sleep(0.2)  # the card has nothing to do, and is looked at no more
        await first.close()
        await until(lambda: lit(second))
        await second.close()


# Cards


def monitor_and_other_card() -> dict[str, Board]:
    """Return a card with a monitor, and another one whose connector, Virtual-5, has none."""
    boards = {"card0": Board(), "card1": Board()}
    boards["card0"].monitors[0] = Monitor([(64, 48)], DELL)
    boards["card1"].monitors[0], boards["card1"].numbers[0] = None, 5
    boards["card1"].sysfs_path = "/sys/devices/other"
    return boards


async def test_a_monitor_on_the_other_card(tmp_path: Path) -> None:
    """A guest follows its monitor to another card and back. A guest that names the connector there has precedence."""
    boards = monitor_and_other_card()
    async with running_cards(boards, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        for _ in range(2):
            for card, other, name in (("card1", "card0", "card1/Virtual-5"), ("card0", "card1", "card0/Virtual-1")):
                boards[other].monitors[0], boards[card].monitors[0] = None, Monitor([(64, 48)], DELL)
                await until(partial(is_on, screen, name))
                device = boards[other].card
                assert device is not None
                assert device.shown() == {}
                check_nothing_left(device)
                screen.flip()
                card_now = boards[card].card
                assert card_now is not None
                await until(partial(getattr, card_now, "pending"))
                card_now.vblank()
                await screen.complete()
        boards["card0"].monitors[0], boards["card1"].monitors[0] = None, Monitor([(64, 48)], DELL)
        await until(lambda: lit(screen))
        rival = Screen(made, "Virtual-5")
        await rival.show()
        await until(lambda: lit(rival))
        await until(lambda: screen.is_dark("no monitor is connected"))
        assert (connector_of(rival), connector_of(screen)) == ("card1/Virtual-5", "card0/Virtual-1")
        await screen.close()
        await rival.close()


async def test_a_guest_that_names_the_connector_of_a_follower(tmp_path: Path) -> None:
    """It gets the connector, also on the follower's card. The follower goes back to its own connector, and stays there."""
    board = Board(connectors=2)
    board.monitors = [Monitor([(64, 48)], DELL), None]
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        board.monitors = [None, Monitor([(64, 48)], DELL)]
        await until(partial(is_on, screen, "card0/Virtual-2"))
        rival = Screen(made, "Virtual-2")
        await rival.show()
        await until(partial(is_on, rival, "card0/Virtual-2"))
        await until(lambda: screen.is_dark("no monitor is connected"))
        assert connector_of(screen) == "card0/Virtual-1"
        assert board.card is not None
        modesets = board.card.modesets
        await trio.sleep(0.1)
        assert board.card.modesets == modesets
        await screen.close()
        await rival.close()


async def test_a_follower_goes_home(tmp_path: Path) -> None:
    """A guest follows its monitor only while the connector that it names has none."""
    board = Board(connectors=2)
    board.monitors = [Monitor([(64, 48)], DELL), None]
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        board.monitors = [None, Monitor([(64, 48)], DELL)]
        await until(partial(is_on, screen, "card0/Virtual-2"))
        board.monitors[0] = Monitor([(64, 48)], LG)
        await until(partial(is_on, screen, "card0/Virtual-1"))
        assert board.card is not None
        modesets = board.card.modesets
        await trio.sleep(0.1)
        assert board.card.modesets == modesets
        await screen.close()


async def test_a_follower_goes_home_to_another_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves a card that has nothing else to do, although only the other card has noticed the monitor."""
    boards = monitor_and_other_card()
    async with running_cards(boards, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        boards["card0"].monitors[0], boards["card1"].monitors[0] = None, Monitor([(64, 48)], DELL)
        await until(partial(is_on, screen, "card1/Virtual-5"))
        monkeypatch.setattr(hotplug, "POLL", 1000.0)
        monkeypatch.setattr(card_module, "THOROUGH", 1000)
        await trio.sleep(0.2)  # both cards have nothing to do
        boards["card0"].monitors[0] = Monitor([(64, 48)], LG)
        next(card for card in made._cards.values() if card.device.name == "card0").look(probe=True)
        await until(partial(is_on, screen, "card0/Virtual-1"))
        await screen.close()


async def test_one_of_two_cards_goes(tmp_path: Path) -> None:
    """A guest whose card is gone is told so, although another card is there; it is shown when the card is back."""
    boards = {"card0": Board(), "card1": Board()}
    boards["card1"].sysfs_path, boards["card1"].numbers[0] = "/sys/devices/other", 9
    async with running_cards(boards, tmp_path) as made:
        screen, other = Screen(made, "Virtual-9"), Screen(made)
        await screen.show()
        await other.show()
        boards["card1"].unbind()
        await until(lambda: not connector_of(screen))
        await trio.sleep(0.1)
        assert screen.is_dark("the card is gone")
        assert lit(other)
        boards["card1"].present = True
        await until(lambda: lit(screen))
        await screen.close()
        await other.close()


async def test_the_same_name_on_two_cards(tmp_path: Path) -> None:
    """The connector that has a monitor is used, also when the monitor moves to the other one; `CARD/` says which one."""
    boards = {"card0": Board(), "card1": Board()}
    boards["card1"].sysfs_path, boards["card1"].bus_path = "/sys/devices/other", "pci-0000:03:00.0"
    boards["card0"].monitors[0] = None
    async with running_cards(boards, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        assert connector_of(screen) == "card1/Virtual-1"
        boards["card1"].monitors[0], boards["card0"].monitors[0] = None, Monitor([(64, 48)])
        await until(lambda: lit(screen) and connector_of(screen) == "card0/Virtual-1")
        named = Screen(made, "pci-0000:03:00.0/Virtual-1")
        await named.show()
        assert named.is_dark("no monitor is connected")
        boards["card1"].monitors[0] = Monitor([(64, 48)])
        await until(lambda: lit(named))
        assert connector_of(named) == "card1/Virtual-1"
        await named.close()
        await screen.close()


@pytest.mark.parametrize("name", ["pci-0000:03:00.0/Virtual-1", "pci-0000_03_00.0/Virtual-1"])
async def test_a_card_by_its_place(tmp_path: Path, name: str) -> None:
    """A card that comes later or back with another number is known by its place."""
    boards = {"card0": Board()}
    async with running_cards(boards, tmp_path) as made:
        screen = Screen(made, name)
        await screen.show()
        assert screen.is_dark("there is no card pci-0000_03_00.0 now")
        for number in ("card1", "card4"):
            board = boards[number] = Board()
            board.sysfs_path, board.bus_path = "/sys/devices/other", "pci-0000:03:00.0"
            (tmp_path / number).touch()
            await until(lambda: lit(screen))
            assert connector_of(screen) == f"{number}/Virtual-1"
            (tmp_path / number).unlink()
            board.unbind()
            await until(lambda: screen.output.state is ScreenState.DARK and not connector_of(screen))
        await screen.close()


@pytest.mark.parametrize(
    "device", ["pci-0000:03:00.0", "pci-0000_03_00.0", "/dev/dri/by-path/pci-0000:03:00.0-card", "card1"]
)
async def test_one_card_by_its_place(tmp_path: Path, device: str) -> None:
    """`[drm] device` names a card by its place; other cards are not opened."""
    boards = {"card0": Board(), "card1": Board()}
    (tmp_path / "by-path").mkdir()
    (tmp_path / "by-path" / "pci-0000:03:00.0-card").symlink_to("../card1")
    (tmp_path / "by-path" / "pci-0000:03:00.0-render").symlink_to("../renderD128")
    async with running_cards(boards, tmp_path, device=device) as made:
        assert [card.device.name for card in made._cards.values()] == ["card1"]
    assert boards["card0"].cards == []


def test_places_without_udev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PCI the last device counts; a device on the platform bus is named after it; other buses have no name."""
    devices = tmp_path / "devices"
    card = devices / "pci0000:00" / "0000:00:01.0" / "0000:03:00.0"
    soc = devices / "platform" / "soc" / "fd4a0000.display"
    virtio = devices / "pci0000:00" / "0000:00:02.0" / "virtio0"
    for path, bus in (
        (card, "pci"),
        (card.parent, "pci"),
        (soc, "platform"),
        (virtio, "virtio"),
        (virtio.parent, "pci"),
    ):
        path.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bus" / bus).mkdir(parents=True, exist_ok=True)
        (path / "subsystem").symlink_to(tmp_path / "bus" / bus)
    node = tmp_path / "card0"
    assert bus_path.bus_path(node, str(card)) == "pci-0000:03:00.0"
    assert bus_path.bus_path(node, str(soc)) == "platform-fd4a0000.display"
    assert bus_path.bus_path(node, str(virtio)) == "pci-0000:00:02.0"
    assert bus_path.bus_path(node, str(devices)) == bus_path.bus_path(node, "") == ""


WHAT = st.sampled_from([0, 1, 2])
COMMON = "flip", "vblank", "remove", "enable", "off", "pause"
ODD = "monitor", "no monitor", "dock", "no dock", "card", "no card", "slow", "fast", "crtc"
ACTIONS = st.tuples(st.sampled_from(COMMON) | st.sampled_from(ODD), WHAT)
"""An action, and which of the guests or connectors it is for."""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, max_size=30), st.sampled_from(["auto", "off"]))
async def test_everything_comes_and_goes(tmp_path: Path, actions: list[tuple[str, int]], zero_copy: str) -> None:
    """Two cards and a dock, three guests: each flip ends once, no two guests share a screen, no frame is removed while it is shown.

    In the end all monitors are there, and each guest is shown on a screen that its name stands for.
    """
    boards = {"card0": docked(), "card1": Board()}
    boards["card1"].sysfs_path, boards["card1"].numbers[0] = "/sys/devices/other", 9
    boards["card1"].monitors[0] = Monitor([(64, 48)], LG)
    for board in boards.values():
        for monitor in board.monitors:
            assert monitor is not None
            monitor.modes = [(64, 48, 60), (64, 48, 30)]
    async with running_cards(boards, tmp_path, zero_copy=zero_copy, refresh=0) as made:
        screens = [Screen(made, name) for name in ("Virtual-1", "edid:DEL-A0B1-3XK9T", "edid:GSM-5B09-77")]
        on = set()
        for index, screen in enumerate(screens):
            await screen.show()
            on.add(index)
        monitors = {("card0", 0): b"", ("card0", 1): DELL, ("card1", 0): LG}
        for action, value in actions:
            screen, (name, port) = screens[value], list(monitors)[value]
            board = boards[name]
            match action:
                case "flip" if value in on and not screen.waiting:
                    screen.flip(screen.accepted % 2)
                case "vblank":
                    for each in boards.values():
                        assert each.card is not None
                        each.card.vblank()
                case "remove":
                    await screen.replace(value % 2)
                case "enable":
                    with suppress(SinkError):
                        await screen.output.enable(screen.buffers[value % 2], Part(0, 0, 64, 48))
                        on.add(value)
                case "off":
                    await screen.output.disable()
                    on.discard(value)
                case "pause":
                    await trio.sleep(0.03)
                case "monitor" if board.object_ids[port]:
                    board.monitors[port] = Monitor([(64, 48, 60), (64, 48, 30)], monitors[name, port])
                case "no monitor":
                    board.monitors[port] = None
                case "no dock" if boards["card0"].object_ids[1]:
                    boards["card0"].unplug(1)
                case "dock" if not boards["card0"].object_ids[1] and max(boards["card0"].object_ids) < CRTC - 2:
                    boards["card0"].replug(1, number=2 + value, monitor=Monitor([(64, 48, 60)], DELL))
                case "no card":
                    board.unbind()
                case "card":
                    board.present = True
                case "slow":
                    board.refuses = too_fast(64 * 48 * 30, errno.ENOSPC)
                case "crtc":
                    board.refuses = lambda crtc, mode: errno.EINVAL if crtc == 0 else 0
                case "fast":
                    board.refuses = lambda crtc, mode: 0
            await trio.lowlevel.checkpoint()
            for number, each_screen in enumerate(screens):
                assert each_screen.done == list(range(len(each_screen.done)))
                each_screen.check_state(on=number in on)
            pipes = [each_screen.output.pipe for each_screen in screens]
            used = [(pipe.device.name, pipe.crtc) for pipe in pipes if pipe is not None]
            assert len(set(used)) == len(used)
            used = [(pipe.device.name, pipe.connector) for pipe in pipes if pipe is not None]
            assert len(set(used)) == len(used)
        for screen in screens:
            await screen.complete()
        for name, board in boards.items():
            board.refuses, board.present = lambda crtc, mode: 0, True
            if not board.object_ids[-1]:
                board.replug(1, number=2, monitor=None)
            for port in range(len(board.monitors)):
                board.monitors[port] = Monitor([(64, 48, 50)], monitors[name, port])
        for screen in screens:
            await screen.output.enable(screen.buffers[0], Part(0, 0, 64, 48))
        await until(lambda: all(map(lit, screens)))
        assert [connector_of(screen).split("/")[0] for screen in screens[1:]] == ["card0", "card1"]
        for screen in screens:
            await screen.close()
        for board in boards.values():
            check_nothing_left(board.card)
            assert [card.removed_shown for card in board.cards if not card.unplugged] == [0] * sum(
                not card.unplugged for card in board.cards
            )
