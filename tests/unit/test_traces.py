"""Traces as files: few, whole, and never in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from displbe.ops import traces
from displbe.ops.traces import KEPT, TraceFiles, read_trace


def written() -> None:
    """Wait for the threads that write."""
    for thread in threading.enumerate():
        if thread.name == "trace":
            thread.join(10)


def test_what_is_kept_can_be_read(tmp_path: Path) -> None:
    TraceFiles(str(tmp_path)).keep("domain1-0-0", {"guest": "cockpit", "epoch": 1.5}, b"\n\0\xff")
    written()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("domain1-0-0-")
    assert read_trace(path.read_bytes()) == ({"guest": "cockpit", "epoch": 1.5}, b"\n\0\xff")


def test_the_directory_is_made(tmp_path: Path) -> None:
    TraceFiles(str(tmp_path / "traces")).keep("domain1", {}, b"")
    written()
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_only_so_many_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PAUSE", 0.0)
    files = TraceFiles(str(tmp_path))
    for number in range(KEPT + 5):
        files.keep(f"domain{number}", {}, b"")
        written()
        (new,) = tmp_path.glob(f"domain{number}-*")
        os.utime(new, (number, number))
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {f"domain{n}" for n in range(5, KEPT + 5)}


def test_a_guest_cannot_fill_the_disk_with_them(tmp_path: Path) -> None:
    files = TraceFiles(str(tmp_path))
    for _ in range(10):
        files.keep("domain1", {}, b"")
    written()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    TraceFiles(str(tmp_path / "none" / "none")).keep("domain1", {}, b"")
    TraceFiles("").keep("domain1", {}, b"")
    written()
    assert list(tmp_path.iterdir()) == []
