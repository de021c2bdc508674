"""The picture on the panel, pixel by pixel, for all formats of guests and planes, for each way of blending, and for turned panels.

A simple model of the hardware draws what the plane's state says; another one draws what the guest's picture must look like on the panel.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from memory_watch import content
from structlog.testing import capture_logs
from unit.drm_model import CONNECTOR, CRTC, PLANE, Board, Described, ModelDevice, Monitor, Pages
from unit.test_convert_formats import LAYOUTS, colours, size_of, unpack
from unit.test_drm_model import Screen, _quick, copies, cover_of, note_at_close, running, until

from displbe.sinks.base import Part, SinkError
from displbe.sinks.drm import uapi
from displbe.sinks.drm.edid_name import edid_name
from displbe.sinks.drm.output import ScreenState
from displbe.sinks.drm.properties import linear_formats
from displbe.sinks.drm.settings import ScreenSettings
from displbe.sinks.turn import Turn
from displbe.wire.edid import make_edid, sideways
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc, fourcc_name

__all__ = ["_quick"]

Colour: TypeAlias = tuple[float, float, float]
Picture: TypeAlias = list[list[Colour]]
WIDTH, HEIGHT = 16, 12
BLACK: Final = (0.0, 0.0, 0.0)
GUESTS: Final = sorted(fourcc_name(code) for code in FORMATS)
QUICKLY: Final = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)
"""Without looking for a smaller example: a picture that does not come takes ten seconds."""
BLENDING: Final = {
    "all": ("Pre-multiplied", "Coverage", "None"),
    "always": ("Pre-multiplied",),
    "coverage": ("Coverage",),
    "unknown": (),
}
"""The modes of the property; empty: the driver has no such property, and blends by coverage, which is the worst that it can do."""


def turned(picture: Picture, degrees: int) -> Picture:
    """Turn a picture counter-clockwise."""
    for _ in range(degrees // 90):
        picture = [[row[x] for row in picture] for x in reversed(range(len(picture[0])))]
    return picture


def scaled(picture: Picture, width: int, height: int) -> Picture:
    across, down = len(picture[0]), len(picture)
    return [[picture[y * down // height][x * across // width] for x in range(width)] for y in range(height)]


def placed(picture: Picture, left: int, top: int, width: int, height: int) -> Picture:
    """Return a black screen with a picture on it."""
    screen = [[BLACK] * width for _ in range(height)]
    for y, row in enumerate(picture):
        screen[top + y][left : left + len(row)] = row
    return screen


def guest_picture(pages: Pages, part: Part) -> Picture:
    """Return what the guest has drawn into a part, without alpha."""
    shape = pages.geometry
    size = size_of(fourcc_name(shape.fourcc))
    rows = []
    for y in range(part.y, part.y + part.height):
        at = shape.offset + y * shape.stride + part.x * size
        rows.append(colours(fourcc_name(shape.fourcc), bytes(pages.memory[at : at + part.width * size])))
    return rows


def panel_picture(board: Board, card: ModelDevice, screen: Screen) -> Picture:
    """Return what the hardware shows on the panel."""
    plane = card.shown()
    fb = card.fbs[plane["FB_ID"]]
    if fb.pages:
        pixels = next(bytes(pages.memory) for pages in screen.pages if pages.inode == fb.pages)
    else:
        pixels = content(copies(screen).buffers.front.memory)
    name = fourcc_name(fb.code)
    size = size_of(name)
    left, top, across, down = (plane[key] >> 16 for key in ("SRC_X", "SRC_Y", "SRC_W", "SRC_H"))
    rows = []
    for y in range(top, top + down):
        line = pixels[y * fb.pitch + left * size : y * fb.pitch + (left + across) * size]
        rows.append([blended(board, plane, name, line, x, size, c) for x, c in enumerate(colours(name, line))])
    rows = turned(rows, 90 * (plane["rotation"].bit_length() - 1))
    mode = uapi.drm_mode_modeinfo.from_buffer_copy(card.blobs[card.objects[CRTC]["MODE_ID"]])
    rows = scaled(rows, plane["CRTC_W"], plane["CRTC_H"])
    return placed(rows, plane["CRTC_X"], plane["CRTC_Y"], mode.hdisplay, mode.vdisplay)


def blended(board: Board, plane: dict[str, int], name: str, line: bytes, x: int, size: int, colour: Colour) -> Colour:
    """Return a pixel's colour over black (drm_plane_create_blend_mode_property in drm_blend.c)."""
    if name == "YUYV" or "a" not in LAYOUTS[name] or board.driver == "zynqmp-dpsub":
        return colour
    value, bits = unpack(name, line[x * size : (x + 1) * size])["a"]
    known = board.described["plane"].get("pixel blend mode")
    mode = known.names[plane["pixel blend mode"]] if known is not None else "Coverage"
    alpha = value / ((1 << bits) - 1) if mode == "Coverage" else 1.0
    return colour[0] * alpha, colour[1] * alpha, colour[2] * alpha


def tolerance(name: str) -> float:
    """Return how far a colour may be off in a format of the plane: one step of the colour with the fewest bits, and roundings."""
    if name == "YUYV":
        return 1.1
    bits = min(int(part[1:]) for part in LAYOUTS[name].split() if part[0] in "rgb")
    return 2.2 + (255 / ((1 << bits) - 1) if bits < 8 else 0)


def same(found: Picture, wanted: Picture, off: float) -> bool:
    return (len(found), len(found[0])) == (len(wanted), len(wanted[0])) and all(
        abs(a - b) <= off
        for found_row, wanted_row in zip(found, wanted, strict=True)
        for one, other in zip(found_row, wanted_row, strict=True)
        for a, b in zip(one, other, strict=True)
    )


class Case:
    """A board, what the guest draws, and the screen that it must be on."""

    def __init__(self, board: Board, code: str, degrees: int, zero_copy: str) -> None:
        self.board = board
        self.degrees = degrees
        self.zero_copy = zero_copy
        self.part = Part(0, 0, WIDTH, HEIGHT)
        self.pages = [Pages(WIDTH, HEIGHT, fourcc(code)) for _ in range(2)]

    def wanted(self, pages: Pages) -> Picture:
        """Return the picture that must be on the panel."""
        picture = guest_picture(pages, self.part)
        monitor = self.board.monitors[0]
        assert monitor is not None
        panel = monitor.modes[0]
        width, height = panel[::-1] if self.degrees in (90, 270) else panel
        if (width, height) == (WIDTH, HEIGHT):
            return turned(picture, self.degrees)
        across, down = min(width, WIDTH), min(height, HEIGHT)
        if self.board.can_scale and self.board.can_leave_free:
            across, down = min(width, WIDTH * height // HEIGHT), min(height, HEIGHT * width // WIDTH)
        else:
            picture = guest_picture(
                pages, Part(0, 0, across, down)
            )  # the last pixel of a row of YUYV may lose its partner
        # The hardware turns, then scales. The picture's place on the panel is that of a white rectangle.
        rectangle: Picture = [[(1.0, 1.0, 1.0)] * across] * down
        screen = placed(rectangle, (width - across) // 2, (height - down) // 2, width, height)
        places = [(x, y) for y, row in enumerate(turned(screen, self.degrees)) for x, c in enumerate(row) if c != BLACK]
        size = (across, down) if self.degrees in (0, 180) else (down, across)
        return placed(scaled(turned(picture, self.degrees), *size), *min(places), *panel)

    async def check(self, *, path: str = "") -> None:
        """Show both framebuffers, and assert what is on the panel after the mode set and after a flip."""
        with tempfile.TemporaryDirectory() as folder:
            keys: dict[str, Any] = {"zero_copy": self.zero_copy, "refresh": 0}
            keys["screens"] = {"Virtual-1": {"rotate": str(self.degrees)}}
            async with running(self.board, Path(folder), **keys) as made:
                screen = Screen(made, pages=self.pages)
                await screen.show(self.part)
                assert screen.output.state is ScreenState.LIT
                assert not path or screen.output.path == path
                card = self.board.card
                assert card is not None
                off = tolerance(fourcc_name(card.fbs[card.shown()["FB_ID"]].code))
                assert same(panel_picture(self.board, card, screen), self.wanted(self.pages[0]), off)
                screen.flip()
                await until(lambda: card.pending)
                card.vblank()
                await screen.complete()
                await until(lambda: same(panel_picture(self.board, card, screen), self.wanted(self.pages[1]), off))
                await screen.close()
                assert (card.fbs, card.blobs, card.handles) == ({}, {}, {})


@pytest.mark.parametrize("code", GUESTS)
@given(data=st.data())
@QUICKLY
def test_each_picture(code: str, data: st.DataObject) -> None:
    """Whatever the plane offers, the panel shows the guest's picture, upright."""
    degrees = data.draw(st.sampled_from((0, 90, 180, 270)))
    shape = data.draw(st.sampled_from(((WIDTH, HEIGHT), (24, 20), (9, 30), (10, 8))))
    board = Board(modes=[shape[::-1] if degrees in (90, 270) and data.draw(st.booleans()) else shape])
    formats = data.draw(st.lists(st.sampled_from([*LAYOUTS, "YUYV"]), min_size=1, max_size=3, unique=True))
    board.formats = [fourcc(name) for name in formats]
    board.rotations = data.draw(st.sampled_from(((0,), (0, 180), (0, 90, 180, 270))))
    board.can_scale = data.draw(st.booleans())
    board.can_leave_free = data.draw(st.booleans())
    board.driver = data.draw(st.sampled_from(("model", "zynqmp-dpsub")))
    names = BLENDING[data.draw(st.sampled_from(sorted(BLENDING)))]
    if names:
        left = data.draw(st.integers(0, len(names) - 1))  # what the last program has left
        board.described["plane"]["pixel blend mode"] = Described(left, names)
    case = Case(board, code, degrees, data.draw(st.sampled_from(("auto", "off"))))
    for pages in case.pages:
        pages.memory[:] = data.draw(st.binary(min_size=pages.size, max_size=pages.size))
    if formats == ["YUYV"] and (code != "YUYV" or degrees):
        # Frames are converted to RGB only, and only those are turned.
        with pytest.raises(ExceptionGroup) as refused:
            trio.run(case.check)
        assert refused.group_contains(SinkError)
    else:
        trio.run(case.check)


@pytest.mark.parametrize("blending", ["zynqmp-dpsub", "all", "always", "coverage", "unknown"])
@pytest.mark.parametrize("zero_copy", ["auto", "require", "off"])
async def test_a_plane_with_alpha_only(blending: str, zero_copy: str, tmp_path: Path) -> None:
    """XR24 whose X is 0, on a plane that has AR24: no copy where alpha is ignored; else alpha is filled; nothing becomes black."""
    board = Board(modes=[(WIDTH, HEIGHT)])
    board.formats = [fourcc("AR24"), fourcc("RG16")]
    if blending == "zynqmp-dpsub":
        board.driver = blending
    elif BLENDING[blending]:
        board.described["plane"]["pixel blend mode"] = Described(0, BLENDING[blending])
    case = Case(board, "XR24", 0, zero_copy)
    for pages in case.pages:
        pages.memory[:] = bytes((10, 200, 90, 0)) * (WIDTH * HEIGHT)
    ignored = blending in ("zynqmp-dpsub", "all", "always")
    if ignored or zero_copy != "require":
        await case.check(path="zero copy" if ignored and zero_copy != "off" else "copy")
        return
    async with running(board, tmp_path, zero_copy=zero_copy) as made:
        screen = Screen(made, pages=case.pages)
        with pytest.raises(SinkError) as refused:
            await screen.show(case.part)
        assert refused.value.code is Errno.EINVAL
        assert str(refused.value) == (
            "Virtual-1 cannot show XR24 except as AR24, which may be blended by alpha that the guest has not drawn;"
            ' zero-copy = "auto" lets displbe convert it'
        )
        await screen.close()


@pytest.mark.parametrize("code", GUESTS)
@pytest.mark.parametrize("zero_copy", ["auto", "off"])
async def test_borders_are_black(code: str, zero_copy: str) -> None:
    """In every format: a pixel of zeros is green in YUYV."""
    board = Board(modes=[(24, 20)])
    board.formats = [fourcc(code)]
    case = Case(board, code, 0, zero_copy)
    for number, pages in enumerate(case.pages):
        pages.memory[:] = bytes((number + 3 * at) & 0xFF for at in range(pages.size))
    await case.check(path="copy" if code == "YUYV" or zero_copy == "off" else "")


async def test_borders_of_an_odd_width(tmp_path: Path) -> None:
    """Two pixels of YUYV share their colour, so the left border has an even width."""
    board = Board(modes=[(23, HEIGHT)])
    board.formats = [fourcc("YUYV")]
    async with running(board, tmp_path, refresh=0) as made:
        screen = Screen(made, pages=[Pages(WIDTH, HEIGHT, fourcc("YUYV")) for _ in range(2)])
        first, part = screen.pages[0], Part(0, 0, WIDTH, HEIGHT)
        first.memory[:] = bytes(7 * at & 0xFF for at in range(first.size))
        await screen.show(part)
        assert board.card is not None
        wanted = placed(guest_picture(first, part), 2, 0, 23, HEIGHT)
        assert same(panel_picture(board, board.card, screen), wanted, 0.01)
        await screen.close()


async def test_borders_beside_a_part_of_a_framebuffer_as_wide_as_the_screen(tmp_path: Path) -> None:
    """What the framebuffer has beside the part, another screen's picture, is not copied into the borders."""
    board = Board(modes=[(WIDTH, HEIGHT)])
    board.can_scale = False
    async with running(board, tmp_path, refresh=0, zero_copy="off") as made:
        screen = Screen(made, pages=[Pages(WIDTH, HEIGHT, fourcc("XR24")) for _ in range(2)])
        first, part = screen.pages[0], Part(0, 0, WIDTH - 4, HEIGHT - 2)
        first.memory[:] = bytes(7 * at & 0xFF for at in range(first.size))
        await screen.show(part)
        assert board.card is not None
        wanted = placed(guest_picture(first, part), 2, 1, WIDTH, HEIGHT)
        assert same(panel_picture(board, board.card, screen), wanted, 0.01)
        await screen.close()


@pytest.mark.parametrize("code", ["XR24", "YUYV"])
async def test_the_frame_that_covers_is_black(tmp_path: Path, code: str) -> None:
    """A removed frame is followed by black, in the format of the frame."""
    board = Board(modes=[(WIDTH, HEIGHT)])
    board.formats = [fourcc(code)]
    async with running(board, tmp_path) as made:
        screen = Screen(made, pages=[Pages(WIDTH, HEIGHT, fourcc(code)) for _ in range(2)])
        for pages in screen.pages:
            pages.memory[:] = b"\xc8" * pages.size
        await screen.show(Part(0, 0, WIDTH, HEIGHT))
        assert screen.output.path == "zero copy"
        await screen.buffers[0].aclose()
        row = content(cover_of(screen).memory, 0, WIDTH * size_of(code))
        assert same([colours(code, row)], [[BLACK] * WIDTH], 0.01)
        await screen.close()


async def test_no_format_to_convert_to(tmp_path: Path) -> None:
    """The refusal says what the plane has."""
    board = Board()
    board.formats = [fourcc("NV12"), fourcc("YUYV")]
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        with pytest.raises(SinkError, match="nor any format that displbe converts to; it shows NV12, YUYV"):
            await screen.show()
        await screen.close()


def modifiers(formats: list[int], *tables: tuple[int, int]) -> bytes:
    """Return an IN_FORMATS blob with a mask of formats for each modifier."""
    size = 24 + 4 * len(formats)
    head = [1, 0, len(formats), 24, len(tables), size]
    blob = b"".join(number.to_bytes(4, "little") for number in (*head, *formats))
    return blob + b"".join(
        mask.to_bytes(8, "little") + bytes(8) + modifier.to_bytes(8, "little") for mask, modifier in tables
    )


@pytest.mark.parametrize(
    ("tables", "used"),
    [
        ([(0b11, 0)], "XR24"),
        ([(0b10, 0), (0b01, 1 << 56 | 1)], "XB24"),
        ([(0b01, 1 << 56 | 1)], "XR24"),
        ([], "XR24"),
    ],
)
async def test_formats_that_are_only_tiled(tmp_path: Path, tables: list[tuple[int, int]], used: str) -> None:
    """A format that the plane has in a tiled layout only is not used: guests' frames are linear."""
    board = Board()
    board.formats = [fourcc("XR24"), fourcc("XB24")]
    board.in_formats = modifiers(board.formats, *tables)
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        assert fourcc_name(card.fbs[card.shown()["FB_ID"]].code) == used
        await screen.close()


@given(data=st.binary(max_size=200), head=st.lists(st.integers(0, 2**32 - 1), max_size=6))
def test_any_bytes_of_in_formats(data: bytes, head: list[int]) -> None:
    """An odd list of modifiers takes no format away, or leaves at least one."""
    formats = frozenset((fourcc("XR24"), fourcc("RG16")))
    blob = b"".join(number.to_bytes(4, "little") for number in head) + data
    assert linear_formats(blob, formats) <= formats
    assert linear_formats(blob, formats)


@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (0,)])
@pytest.mark.parametrize("orientation", ["Normal", "Upside Down", "Left Side Up", "Right Side Up"])
async def test_the_kernel_knows_how_the_panel_is_mounted(
    tmp_path: Path, orientation: str, rotations: tuple[int, ...]
) -> None:
    """`panel orientation` is followed: the console of the kernel turns by the same degrees (drm_client_rotation())."""
    degrees = {"Normal": 0, "Upside Down": 180, "Left Side Up": 90, "Right Side Up": 270}[orientation]
    names = ("Normal", "Upside Down", "Left Side Up", "Right Side Up")
    board = Board(modes=[(48, 64) if degrees in (90, 270) else (64, 48)])
    board.rotations = rotations
    board.described["connector"]["panel orientation"] = Described(names.index(orientation), names, immutable=True)
    async with running(board, tmp_path) as made:
        screen = Screen(made)
        await screen.show()
        card = board.card
        assert card is not None
        by_plane = degrees in rotations
        assert screen.output.path == ("zero copy" if by_plane else "copy")
        if not by_plane:
            assert screen.output.reason == f"Virtual-1: turn the plane by {degrees} degrees: Operation not supported"
        assert card.shown()["rotation"] == (1 << degrees // 90 if by_plane else 1)
        await screen.close()


async def test_a_turn_that_needs_a_copy_is_refused_where_copies_are(tmp_path: Path) -> None:
    board = Board(modes=[(48, 64)])
    async with running(board, tmp_path, zero_copy="require", screens={"rotate": "90"}) as made:
        screen = Screen(made)
        with pytest.raises(SinkError, match="no zero copy: Virtual-1: turn the plane by 90 degrees") as refused:
            await screen.show()
        assert refused.value.code is Errno.EINVAL
        await screen.close()


async def test_a_plane_that_refuses_to_turn_copies(tmp_path: Path) -> None:
    """A driver may turn tiled framebuffers only (i915): each frame is then turned as it is copied, and drawing without flips too."""
    board = Board(modes=[(48, 64)])
    board.rotations = (0, 90)
    async with running(board, tmp_path, refresh=100, screens={"rotate": "90"}) as made:
        card = board.card
        assert card is not None
        apply = card._check_plane

        def tiled_only(after: dict[int, dict[str, int]], plane: dict[str, int]) -> int:
            return errno.EINVAL if plane["FB_ID"] and plane["rotation"] != 1 else apply(after, plane)

        card._check_plane = tiled_only  # type: ignore[method-assign]
        screen = Screen(made)
        await screen.show()
        assert screen.output.path == "copy"
        await until(lambda: copies(screen).refreshed)
        first = screen.pages[0]
        first.memory[:4] = b"\x01\x02\x03\xff"  # the upper left pixel is in the lower left corner of the panel
        at = 63 * 48 * 4
        await until(lambda: content(copies(screen).buffers.front.memory, at, 4) == b"\x01\x02\x03\xff")
        await screen.close()


LEFT: Final = {
    "connector": {
        "HDR_OUTPUT_METADATA": Described(6),
        "Colorspace": Described(2, ("Default", "SMPTE_170M_YCC", "BT2020_RGB")),
        "underscan": Described(1, ("off", "on", "auto")),
        "underscan hborder": Described(20, limits=(0, 128)),
        "underscan vborder": Described(10, limits=(0, 128)),
        "max bpc": Described(6, limits=(6, 12)),
        "Broadcast RGB": Described(2, ("Automatic", "Full", "Limited 16:235")),
        "content type": Described(1, ("No Data", "Graphics")),
    },
    "crtc": {
        "DEGAMMA_LUT": Described(6),
        "CTM": Described(6),
        "VRR_ENABLED": Described(1, limits=(0, 1)),
        "SCALING_FILTER": Described(1, ("Default", "Nearest Neighbor")),
        "SHARPNESS_STRENGTH": Described(100, limits=(0, 255)),
        "BACKGROUND_COLOR": Described(0xFFFF_FFFF_0000_0000, limits=(0, 2**64 - 1)),
    },
    "plane": {
        "alpha": Described(0x4000, limits=(0, 0xFFFF)),
        "pixel blend mode": Described(1, ("Pre-multiplied", "Coverage", "None")),
        "zpos": Described(3, limits=(1, 3)),
        "COLOR_ENCODING": Described(1, ("ITU-R BT.601 YCbCr", "ITU-R BT.709 YCbCr")),
        "COLOR_RANGE": Described(1, ("YCbCr limited range", "YCbCr full range")),
    },
}
"""What the last program left."""
NEUTRAL: Final = {
    **dict.fromkeys(("HDR_OUTPUT_METADATA", "Colorspace", "underscan", "underscan hborder", "underscan vborder"), 0),
    **dict.fromkeys(("Broadcast RGB", "content type", "DEGAMMA_LUT", "CTM", "VRR_ENABLED", "SCALING_FILTER"), 0),
    **dict.fromkeys(("SHARPNESS_STRENGTH", "COLOR_ENCODING", "COLOR_RANGE"), 0),
    "max bpc": 8,
    "alpha": 0xFFFF,
    "pixel blend mode": 2,
    "zpos": 1,
    "BACKGROUND_COLOR": 0xFFFF_0000_0000_0000,
}
OBJECTS: Final = {"connector": CONNECTOR, "crtc": CRTC, "plane": PLANE}


def found(card: ModelDevice) -> None:
    """A desktop with a picture, and blobs in its properties."""
    card.light(0, 7, 0)
    card.blobs[6] = b"a table or metadata"


def values(card: ModelDevice) -> dict[str, int]:
    return {name: card.objects[OBJECTS[kind]][name] for kind, known in LEFT.items() for name in known}


def board_of_the_last_program() -> Board:
    board = Board()
    board.began = found
    board.described = {
        kind: {name: Described(**_fields(known)) for name, known in of.items()} for kind, of in LEFT.items()
    }
    return board


def _fields(known: Described) -> dict[str, Any]:
    return {field: getattr(known, field) for field in known.__struct_fields__}


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
@pytest.mark.parametrize("on_exit", ["restore", "keep"])
async def test_what_the_last_program_left(tmp_path: Path, zero_copy: str, on_exit: str) -> None:
    """It is neutral while guests are shown, and is put back at the end; blobs have the same bytes, under a new id."""
    board = board_of_the_last_program()
    states: list[dict[str, int]] = []
    async with running(board, tmp_path, zero_copy=zero_copy, on_exit=on_exit) as made:
        card = board.card
        assert card is not None
        before = values(card)
        assert before == {name: known.value for of in LEFT.values() for name, known in of.items()}
        screen = Screen(made)
        await screen.show()
        assert values(card) == NEUTRAL
        await screen.close()
        note_at_close(card, lambda: values(card), states)
        card.blobs.pop(6)  # the program that made it has ended
    (after,) = states
    if on_exit == "keep":
        assert after == NEUTRAL
        return
    for name, value in before.items():
        if value == 6 and name != "max bpc":
            assert card.blob(after[name]) == b"a table or metadata"
        else:
            assert after[name] == value


@given(data=st.data())
@QUICKLY
def test_refused_properties_do_not_cost_the_screen(data: st.DataObject) -> None:
    """A property that the driver refuses to change stays as it is, and the log says so once. All others are neutral."""
    board = board_of_the_last_program()
    every = [(kind, name) for kind, of in LEFT.items() for name in of]
    refused = data.draw(st.sets(st.sampled_from(every), max_size=4))
    immutable = data.draw(st.sets(st.sampled_from(every), max_size=2)) - refused
    for kind, name in refused:
        board.described[kind][name].refused = True
    for kind, name in immutable:
        board.described[kind][name].immutable = True

    async def show() -> None:
        with tempfile.TemporaryDirectory() as folder, capture_logs() as logs:
            async with running(board, Path(folder)) as made:
                screen = Screen(made)
                await screen.show()
                assert screen.output.state is ScreenState.LIT
                await screen.output.disable()
                await screen.output.enable(screen.buffers[0], Part(0, 0, 64, 48))
                assert screen.output.path == "zero copy"
                card = board.card
                assert card is not None
                kept = {name for _, name in refused | immutable}
                for kind, of in LEFT.items():
                    for name, known in of.items():
                        wanted = known.value if (kind, name) in refused | immutable else NEUTRAL[name]
                        assert card.objects[OBJECTS[kind]][name] == wanted, (name, kept)
                await screen.close()
        said = [line["property"] for line in logs if "neutral value" in str(line["event"])]
        assert sorted(said) == sorted(name for _, name in refused)

    trio.run(show)


async def test_a_refused_mode_is_not_blamed_on_properties(tmp_path: Path) -> None:
    """If the mode itself is refused, the error is the mode's, and no property is left alone for it."""
    board = board_of_the_last_program()
    with capture_logs() as logs:
        async with running(board, tmp_path, zero_copy="off") as made:
            screen = Screen(made)
            board.faults["modeset"], board.faults["test"] = [errno.ENOSPC] * 3, [errno.EINVAL] * 3
            with pytest.raises(SinkError, match="set mode: No space left"):
                await screen.show()
            board.faults.clear()
            await screen.output.enable(screen.buffers[0], Part(0, 0, 64, 48))
            card = board.card
            assert card is not None
            assert values(card) == NEUTRAL
            await screen.close()
    assert not [line for line in logs if "neutral value" in str(line["event"])]


def test_rotate() -> None:
    """The setting overrides what the kernel knows."""
    assert ScreenSettings().turn("Left Side Up") is Turn.LEFT
    assert ScreenSettings().turn("") is ScreenSettings().turn("Normal") is Turn.NONE
    assert ScreenSettings(rotate="0").turn("Left Side Up") is Turn.NONE
    assert ScreenSettings(rotate="270").turn("") is Turn.RIGHT


@pytest.mark.parametrize("rotate", ["0", "90", "180"])
async def test_the_edid_of_a_turned_panel(tmp_path: Path, rotate: str) -> None:
    """A panel that is mounted sideways is a monitor of the size that is seen; upside down, it is itself."""
    board = Board(modes=[(800, 1280)])
    own = make_edid(800, 1280, "AUO Panel")
    board.monitors = [Monitor([(800, 1280)], own)]
    async with running(board, tmp_path, screens={"Virtual-1": {"rotate": rotate}}) as made:
        screen = Screen(made)
        edid = await screen.output.edid()
        assert edid is not None
        assert edid == (own if rotate != "90" else sideways(own, 1280, 800, 100))
        assert made.turn_of("Virtual-1") is made.turn_of("card0/Virtual-1") is Turn(int(rotate))
        assert made.turn_of("Virtual-2") is Turn.NONE
        await screen.close()


async def test_a_turned_panel_by_its_monitors_name(tmp_path: Path) -> None:
    """The configuration may write the name as it is, although xl ends a guest's name at a colon."""
    board = Board(modes=[(800, 1280)])
    own = make_edid(800, 1280, "AUO Panel")
    board.monitors = [Monitor([(800, 1280)], own)]
    name = edid_name(own)
    async with running(board, tmp_path, screens={name: {"rotate": "90"}}) as made:
        screen = Screen(made, name.replace(":", "_"))
        await until(lambda: screen.output.pipe)
        assert made.turn_of(name) is screen.output.turn is Turn.LEFT
        await screen.close()
