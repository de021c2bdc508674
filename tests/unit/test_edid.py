"""EDIDs made for connectors, judged by edid-decode; a monitor's own, cut to what a guest has room for."""

from __future__ import annotations

import subprocess
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from displbe.wire.edid import BLOCK, make_edid, sanitise, sideways

SIZES: Final = (
    (1920, 1080, 60),
    (1280, 720, 60),
    (1024, 768, 60),
    (800, 600, 60),
    (640, 480, 60),
    (1366, 768, 60),
    (3840, 720, 60),
    (1920, 720, 60),
    (1280, 480, 60),
    (720, 1280, 60),
    (1440, 2560, 60),
    (320, 240, 60),
    (64, 48, 60),
    (2560, 1440, 60),
    (2560, 1440, 144),
    (3840, 2160, 30),
    (3840, 2160, 60),
    (4095, 2160, 60),
    (1920, 1080, 240),
    (1920, 1080, 400),
    (1, 1, 60),
    (1, 1, 1),
    (4096, 2160, 60),
    (3840, 2160, 144),
    (5120, 2880, 60),
    (7680, 4320, 60),
    (16384, 100, 60),
    (100, 16384, 60),
    (16384, 16384, 400),
    (4095, 4095, 60),
)
sides = st.integers(1, 16384)


def check(edid: bytes) -> str:
    """What edid-decode says; it must say PASS. It is installed by tests/setup.sh: without it this fails."""
    run = subprocess.run(["edid-decode", "--check"], input=edid, capture_output=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told
    assert "EDID conformity: PASS" in told
    return told


def sums(edid: bytes) -> list[int]:
    """The sum of each block."""
    return [sum(edid[n : n + BLOCK]) & 0xFF for n in range(0, len(edid), BLOCK)]


def first_mode(edid: bytes) -> tuple[int, int, float]:
    """Width, height and refresh rate of the first detailed timing (E-EDID 3.10.2)."""
    d = edid[54:72]
    width, h_blank = d[2] | d[4] >> 4 << 8, d[3] | (d[4] & 15) << 8
    height, v_blank = d[5] | d[7] >> 4 << 8, d[6] | (d[7] & 15) << 8
    h_front, h_sync = d[8] | d[11] >> 6 << 8, d[9] | (d[11] >> 4 & 3) << 8
    v_front, v_sync = d[10] >> 4 | (d[11] >> 2 & 3) << 4, d[10] & 15 | (d[11] & 3) << 4
    assert h_front + h_sync < h_blank
    assert v_front + v_sync < v_blank
    clock = int.from_bytes(d[0:2], "little") * 10_000
    return width, height, clock / (width + h_blank) / (height + v_blank)


def extra_mode(edid: bytes) -> tuple[int, int, float]:
    """The mode of the DisplayID block (type I timing, DisplayID 1.3 section 4.4.1)."""
    block = edid[BLOCK:]
    assert block[0] == 0x70
    at = 5
    while block[at] != 0x03:
        at += 3 + block[at + 2]
    d = block[at + 3 :]
    assert d[3] & 0x80, "it is the preferred mode"
    clock = (int.from_bytes(d[0:3], "little") + 1) * 10_000
    width, h_blank, h_front, h_sync, height, v_blank, v_front, v_sync = (
        (int.from_bytes(d[n : n + 2], "little") & 0x7FFF) + 1 for n in range(4, 20, 2)
    )
    assert h_front + h_sync < h_blank
    assert v_front + v_sync < v_blank
    return width, height, clock / (width + h_blank) / (height + v_blank)


@pytest.mark.parametrize(("width", "height", "refresh"), SIZES)
def test_edid_decode_likes_it(width: int, height: int, refresh: int) -> None:
    told = check(make_edid(width, height, "HDMI-A-1", refresh))
    assert f"{width}x{height} " in told
    assert "Display Product Name: 'HDMI-A-1'" in told


@settings(max_examples=30)
@given(sides, sides, st.integers(1, 400), st.text(max_size=20))
def test_edid_decode_likes_any(width: int, height: int, refresh: int, name: str) -> None:
    check(make_edid(width, height, name, refresh))


@given(sides, sides, st.integers(1, 400), st.text(max_size=20))
def test_the_mode_is_the_connectors(width: int, height: int, refresh: int, name: str) -> None:
    edid = make_edid(width, height, name, refresh)
    assert sums(edid) == [0] * (len(edid) // BLOCK)
    assert edid[126] == len(edid) // BLOCK - 1
    mode = extra_mode(edid) if edid[126] else first_mode(edid)
    assert mode[:2] == (width, height)
    assert 0.985 < mode[2] / refresh < 1.005
    assert first_mode(edid)[2] == pytest.approx(refresh, rel=0.015)


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (3840, 2160), (3840, 720), (1366, 768), (4095, 2160)])
def test_up_to_4k_one_block_is_enough(width: int, height: int) -> None:
    edid = make_edid(width, height, "")
    assert len(edid) == BLOCK
    assert edid[24] & 0x02, "the first timing is the native one"


def test_cvt() -> None:
    """VESA's own figures for 1920x1080 and 3840x2160 with reduced blanking: 138.50 and 533.25 MHz."""
    for width, height, clock, rows in ((1920, 1080, 13850, 1111), (3840, 2160, 53325, 2222)):
        edid = make_edid(width, height, "")
        assert int.from_bytes(edid[54:56], "little") == clock
        assert first_mode(edid)[2] == pytest.approx(clock * 10_000 / (width + 160) / rows)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", b"Xen\n         "),
        ("HDMI-A-1", b"HDMI-A-1\n    "),
        ("thirteen char", b"thirteen char"),
        ("more than thirteen", b"more than thi"),
        ("a\x1b[2J\nb\x00ü", b"a[2Jb\n       "),
        ("   ", b"Xen\n         "),
    ],
)
def test_names(name: str, shown: bytes) -> None:
    edid = make_edid(800, 600, name)
    assert edid[72:90] == b"\0\0\0\xfc\0" + shown


@pytest.mark.parametrize(
    ("width", "height", "refresh"), [(0, 1, 60), (1, 0, 60), (16385, 1, 60), (1, 1, 0), (1, 1, 401)]
)
def test_impossible_modes(width: int, height: int, refresh: int) -> None:
    with pytest.raises(ValueError, match="no mode"):
        make_edid(width, height, "", refresh)


def monitor(extensions: int, override: int | None = None) -> bytes:
    """A monitor's EDID with CTA blocks; the first may override how many there are, as HDMI 2.1 monitors do."""
    base = bytearray(make_edid(1920, 1080, "monitor"))
    base[126] = extensions if override is None else 1
    blocks = [base]
    for number in range(extensions):
        block = bytearray((2, 3, 4, 0)).ljust(BLOCK, b"\0")
        if number == 0 and override is not None:
            block[2:7] = bytes((7, 0, 0xE2, 0x78, override))
        blocks.append(block)
    for block in blocks:
        block[127] = -sum(block[:127]) & 0xFF
    return b"".join(blocks)


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("extensions", [0, 1, 3])
def test_a_monitors_edid_is_cut_to_whole_blocks(extensions: int, override: bool) -> None:
    whole = monitor(extensions, extensions if override and extensions else None)
    for room in (0, 1, 127):
        assert sanitise(whole, room) == b""
    for room in (128, 255, 256, 300, 512, 4096, 32768):
        edid = sanitise(whole, room)
        kept = min(room // BLOCK, 1 + extensions)
        assert len(edid) == kept * BLOCK
        assert sums(edid) == [0] * kept
        assert edid[126] == min(kept - 1, 1 if override and extensions else extensions)
        if kept == 1 + extensions:
            assert edid == whole
        elif override and kept > 1:
            assert edid[BLOCK + 6] == kept - 1
        assert edid[:126] == whole[:126]


def test_a_monitors_edid_is_shorter_or_longer_than_it_says() -> None:
    edid = sanitise(monitor(3)[: 2 * BLOCK + 7], 4096)
    assert (len(edid), edid[126], sums(edid)) == (2 * BLOCK, 1, [0, 0])
    edid = sanitise(monitor(0) + bytes(BLOCK), 4096)
    assert edid == monitor(0)


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 128, b"\xff" * 256, make_edid(64, 48, "")[:127]])
def test_no_edid_at_all(rubbish: bytes) -> None:
    assert sanitise(rubbish, 4096) == b""


def test_a_wrong_checksum_is_corrected() -> None:
    whole = monitor(1)
    assert sanitise(whole[:127] + b"\0" + whole[128:-1] + b"\0", 4096) == whole


@given(st.binary(max_size=1024), st.integers(0, 40000))
def test_any_bytes(content: bytes, room: int) -> None:
    for data in (content, monitor(0)[:8] + content):
        edid = sanitise(data, room)
        assert len(edid) <= room
        assert len(edid) % BLOCK == 0
        assert sums(edid) == [0] * (len(edid) // BLOCK)
        assert sanitise(edid, room) == edid
        assert not edid or edid[126] < len(edid) // BLOCK or edid[BLOCK : BLOCK + 1] == b"\x02"


PANEL: Final = (800, 1280)


def test_a_panel_that_is_mounted_sideways() -> None:
    """Its mode and its physical size are those that are seen; it is still the same monitor."""
    own = bytearray(make_edid(*PANEL, "AUO Panel"))
    own[8:18] = b"\x06\xaf\x3d\x61\x01\x02\x03\x04\x0c\x1d"
    own[25] ^= 0xFF  # colours that are not those of sRGB
    own[24] &= ~4
    seen = sideways(bytes(own), *PANEL[::-1], 60)
    told = check(seen)
    assert "1280x800" in told
    assert "800x1280" not in told
    assert "AUO Panel" in told
    assert seen[8:18] == own[8:18]
    assert seen[23] == own[23]
    assert seen[25:35] == own[25:35]
    assert (seen[21], seen[22]) == (own[22], own[21])
    assert "Image Size: 339 mm x 212 mm" in " ".join(told.split()) or "339 mm x 212 mm" in told
    assert sums(seen) == [0]


@given(content=st.binary(max_size=3 * BLOCK), valid=st.booleans())
def test_any_bytes_of_a_panel(content: bytes, valid: bool) -> None:
    """The panel may send anything; the EDID for the guest has the mode that it must have, and right checksums."""
    if valid:
        content = bytes((0, 255, 255, 255, 255, 255, 255, 0)) + content.ljust(BLOCK, b"\0")
    seen = sideways(content, 1280, 800, 60)
    if not valid and not content.startswith(bytes((0, 255, 255, 255, 255, 255, 255, 0))):
        assert seen == b""
    if valid:
        assert sums(seen) == [0]
        made = make_edid(1280, 800, "x")
        assert seen[54:66] == made[54:66]
        assert sanitise(seen, 1024) == seen
