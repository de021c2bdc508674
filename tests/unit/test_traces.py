"""Trace files: limited in number, complete, and written without delaying the loop."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from displbe.ctl import main as ctl
from displbe.display.trace import Trace
from displbe.ops import traces
from displbe.ops.traces import MAGIC, MAX_FILES, MAX_GUEST_FILES, TraceFiles, TraceHeader, directory_of, read_traces
from displbe.wire.displif import PageFlip, encode_request


def piece(connector: str = "HDMI-A-1", guest: str = "cockpit") -> TraceHeader:
    """Return the header of a connector's records."""
    return TraceHeader(guest, connector, 1.5, "why")


def written() -> None:
    """Wait for the writing threads."""
    for thread in threading.enumerate():
        if thread.name == "trace":
            thread.join(10)


def guests_of(folder: Path) -> Counter[str]:
    """Return the number of files of each guest."""
    return Counter(path.name.partition("-")[0] for path in folder.iterdir())


def test_all_connectors_of_a_device_are_kept(tmp_path: Path) -> None:
    pieces = [(piece("HDMI-A-1"), b"\n\0\xff"), (piece("DP-1"), b""), (piece("DP-2"), b"{}\n")]
    TraceFiles(str(tmp_path)).keep("cock/../pit-2", 1, pieces)
    written()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("cock_.._pit_2-1-")
    assert read_traces(path.read_bytes()) == pieces


def test_the_directory_is_made(tmp_path: Path) -> None:
    TraceFiles(str(tmp_path / "traces")).keep("cockpit", 0, [])
    written()
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_where_traces_go() -> None:
    assert directory_of("auto", {"STATE_DIRECTORY": "/var/lib/displbe"}) == "/var/lib/displbe/traces"
    assert directory_of("auto", {"STATE_DIRECTORY": "/var/lib/displbe:/var/lib/more"}) == "/var/lib/displbe/traces"
    assert directory_of("auto", {}) == ""
    assert directory_of("", {"STATE_DIRECTORY": "/var/lib/displbe"}) == ""
    assert directory_of("/tmp/x", {"STATE_DIRECTORY": "/var/lib/displbe"}) == "/tmp/x"


def test_one_guest_silences_no_other(tmp_path: Path) -> None:
    """A guest that is shut off again and again does not fill the disk: traces that follow too soon are counted, neither made nor kept."""

    def too_dear() -> Iterator[tuple[TraceHeader, bytes]]:
        raise AssertionError
        yield

    files = TraceFiles(str(tmp_path))
    files.keep("noisy", 0, [(piece(), b"")])
    for _ in range(10):
        files.keep("noisy", 0, too_dear())
    files.keep("quiet", 0, [(piece(), b"")])
    written()
    assert guests_of(tmp_path) == {"noisy": 1, "quiet": 1}
    assert files.dropped == 10


def test_each_guest_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's new file displaces its own oldest one; with many guests, the oldest of the guest that has most."""
    monkeypatch.setattr(traces, "MIN_INTERVAL", 0.0)
    files = TraceFiles(str(tmp_path))
    time = 0

    def keep(guest: str) -> str:
        nonlocal time
        before = set(os.listdir(tmp_path))
        files.keep(guest, 0, [])
        written()
        (new,) = set(os.listdir(tmp_path)) - before
        time += 1
        os.utime(tmp_path / new, (time, time))
        return new

    first = keep("quiet")
    noisy = [keep("noisy") for _ in range(3 * MAX_GUEST_FILES)]
    assert set(os.listdir(tmp_path)) == {first, *noisy[-MAX_GUEST_FILES:]}
    for number in range(MAX_FILES - 2):
        keep(f"other{number}")
    assert first in os.listdir(tmp_path)
    assert len(os.listdir(tmp_path)) == MAX_FILES
    assert guests_of(tmp_path)["noisy"] == 1


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    TraceFiles(str(tmp_path / "none" / "none")).keep("cockpit", 0, [])
    TraceFiles("").keep("cockpit", 0, [])
    written()
    assert list(tmp_path.iterdir()) == []


def whole() -> bytes:
    """Return a trace file."""
    trace = Trace()
    trace.request(encode_request(PageFlip(1, 0x63)))
    trace.answer(0, 0)
    return MAGIC + b"".join(traces._encode(piece(name), trace.records()) for name in ("HDMI-A-1", "DP-1"))


HEAD = b'{"guest":"g","connector":"c","epoch":%b,"reason":"r","octets":%d}\n'
FORGED = MAGIC + HEAD % (b"1e300", 88) + b"\x01" * 88
NO_RECORD = MAGIC + HEAD % (b"0", 3) + b"abc"


@given(st.integers(0, len(whole())).map(lambda end: whole()[:end]) | st.binary().map(MAGIC.__add__))
@example(FORGED)
@example(NO_RECORD)
@example(whole())
def test_any_file_is_printed_or_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Cut, forged, or a trace."""
    path = tmp_path_factory.getbasetemp() / "cut.trace"
    path.write_bytes(content)
    code = ctl.main(["trace", "--file", str(path)])
    if content == whole():
        assert code == 0
    elif content in (FORGED, NO_RECORD):
        assert code == 1
    else:
        assert code in (0, 1)
