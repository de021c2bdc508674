"""The log: text from a guest can neither forge a line nor control a terminal, and no guest can flood it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TextIO, cast

import pytest
import structlog
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from logs import as_in_tests

from displbe.ops import log, writer
from displbe.ops.log import BURST, MAX_KINDS, SPARSE, RateLimit, SparseLog, configure
from displbe.ops.text import MAX_TEXT, escape
from displbe.ops.writer import LineWriter


class Log:
    """The log and its output."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def written(self) -> str:
        """Return the output since the last call."""
        log.flush()
        return self._captured.readouterr().err


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """Undo this module's configuration of the log for other tests."""
    yield Log(capsys)
    as_in_tests()


@given(st.text())
def test_escaped_text_is_printable_ascii_and_short(text: str) -> None:
    safe = escape(text)
    assert safe.removesuffix("…").isascii()
    assert safe.isprintable() or safe == ""
    assert len(safe) <= 10 * MAX_TEXT + 1


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_TEXT))
def test_plain_text_stays(text: str) -> None:
    assert escape(text) == text


def test_escapes() -> None:
    assert escape("a\nb\x1b[2J\0é\u202e\U0001f600") == "a\\nb\\x1b[2J\\x00\\xe9\\u202e\\U0001f600"
    assert escape("x" * 5000) == "x" * MAX_TEXT + "…"


def test_json_lines(configured: Log) -> None:
    configure("json")
    structlog.get_logger().warning("refused", name='evil"\n{"event": "forged"}', raw=b"\xff\n\x1b", number=7)
    (line,) = configured.written().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["number"]) == ("refused", "warning", 7)
    assert entry["name"] == 'evil"\\n{"event": "forged"}'
    assert entry["raw"] == "\\xff\\n\\x1b"
    assert entry["timestamp"].endswith("Z")


def test_exceptions_are_told_without_the_values_of_variables(configured: Log) -> None:
    configure("json")
    secret = "pixels"
    try:
        raise ZeroDivisionError(secret[:0] + "why")
    except ZeroDivisionError:
        structlog.get_logger().exception("device failed")
    (line,) = configured.written().splitlines()
    assert "ZeroDivisionError" in line
    assert "why" in line
    assert "pixels" not in line


def test_console(configured: Log) -> None:
    configure("console")
    structlog.get_logger().info("state", name="a\x1b[2Jb")
    told = configured.written()
    assert "state" in told
    assert "\x1b[2J" not in told


def test_auto_is_json_where_there_is_no_terminal(configured: Log) -> None:
    configure()
    structlog.get_logger().info("state")
    assert json.loads(configured.written())["event"] == "state"


def test_levels(configured: Log) -> None:
    configure("json", "warning")
    logger = structlog.get_logger()
    logger.info("not this")
    logger.warning("this")
    assert [json.loads(line)["event"] for line in configured.written().splitlines()] == ["this"]


class Clock:
    """A clock that the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("displbe.ops.log.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the rate limit."""
    return Clock(monkeypatch)


def passes(limit: RateLimit, **event: object) -> dict[str, object] | None:
    """Return the event; None: it was dropped."""
    try:
        return dict(limit(None, "warning", {"event": "refused", **event}))
    except structlog.DropEvent:
        return None


def test_a_burst_then_a_rate(clock: Clock) -> None:
    limit = RateLimit()
    assert sum(passes(limit, domid=1) is not None for _ in range(100)) == BURST
    clock.now += 1
    assert passes(limit, domid=1) == {"event": "refused", "domid": 1, "suppressed": 100 - BURST}
    assert passes(limit, domid=1) is None
    clock.now += 3600
    first = passes(limit, domid=1)
    assert first is not None
    assert first["suppressed"] == 1
    assert sum(passes(limit, domid=1) is not None for _ in range(100)) == BURST - 1


def test_one_guests_lines_do_not_cost_another_ones(clock: Clock) -> None:
    limit = RateLimit()
    for _ in range(100):
        passes(limit, domid=1, device="vdispl/0")
    assert passes(limit, domid=2, device="vdispl/0")
    assert passes(limit, domid=1, device="vdispl/1")
    assert passes(limit, domid=1, device="vdispl/0", connector="HDMI-A-1")
    assert passes(limit, domid=1, device="vdispl/0") is None


def test_it_remembers_no_more_than_so_many(clock: Clock) -> None:
    limit = RateLimit()
    for domid in range(3 * MAX_KINDS):
        assert passes(limit, domid=domid)
    assert len(limit._buckets) <= MAX_KINDS + 1


def test_a_level_changes_for_loggers_that_are_there(configured: Log) -> None:
    configure("json", "warning")
    early, bound = structlog.get_logger("a"), structlog.get_logger("b").bind(domid=1)
    early.info("not this")
    bound.info("nor this")
    log.set_level("debug")
    early.debug("this")
    bound.debug("and this")
    log.set_level("error")
    early.warning("but not this")
    assert [json.loads(line)["event"] for line in configured.written().splitlines()] == ["this", "and this"]


class Pipe:
    """A pipe with a slow reader, as a stream."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()

    def fileno(self) -> int:
        """The file descriptor to write to."""
        return self.fd

    def read(self) -> list[str]:
        """Return all lines that are written within a short time."""
        os.set_blocking(self.reader, False)
        data = b""
        quiet = 0
        while quiet < 20:
            try:
                data += os.read(self.reader, 1 << 20)
                quiet = 0
            except BlockingIOError:
                time.sleep(0.01)
                quiet += 1
        return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe that is not read."""
    made = Pipe()
    yield made
    os.close(made.reader)  # a thread that still writes gets EPIPE, which it survives
    os.close(made.fd)


def test_a_reader_that_stalls_costs_lines_and_no_time(pipe: Pipe) -> None:
    lines = LineWriter(cast("TextIO", pipe), lambda count: f"lost {count}")
    wanted = 10 * writer.MAX_WAITING
    for number in range(wanted):
        lines.msg(f"{number} " + "x" * 100)  # would block forever
    assert 0 < lines.dropped < wanted
    assert not lines.flush(0.05)
    told = pipe.read()
    assert lines.flush(10)
    told += pipe.read()
    numbers = [int(line.split()[0]) for line in told if not line.startswith("lost")]
    assert numbers == sorted(numbers)
    assert len(numbers) == wanted - lines.dropped
    assert sum(int(line.split()[1]) for line in told if line.startswith("lost")) == lines.dropped


def test_a_reader_that_is_gone_costs_lines(pipe: Pipe) -> None:
    os.close(pipe.reader)
    lines = LineWriter(cast("TextIO", pipe), str)
    for _ in range(10):
        lines.msg("x")
        assert lines.flush(10)
    pipe.reader = os.open("/dev/null", os.O_RDONLY)


def test_a_file_that_does_not_block(pipe: Pipe) -> None:
    os.set_blocking(pipe.fd, False)
    lines = LineWriter(cast("TextIO", pipe), str)
    for _ in range(500):
        lines.msg("x" * 999)
    told: list[str] = []
    while len(told) < 500:
        told += pipe.read()
    assert told == ["x" * 999] * 500


def test_what_waits_is_written_at_the_end() -> None:
    code = """
import structlog
import structlog.testing
from displbe.ops import log
log.configure("json")
for number in range(1000):
    structlog.get_logger().info("line %d" % number)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [
        f"line {number}" for number in range(1000)
    ]


def test_a_stalled_reader_does_not_keep_the_process() -> None:
    code = """
import structlog
import structlog.testing
from displbe.ops import log
log.configure("json")
for number in range(5000):
    structlog.get_logger().info("line", number=number, domid=number, text="x" * 400)
"""
    reader, end = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", code], stderr=end, timeout=60, check=False)
        assert done.returncode == 0
    finally:
        os.close(reader)
        os.close(end)


def test_a_sparse_log_writes_equal_lines_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("displbe.ops.log.time.monotonic", lambda: now)
    with structlog.testing.capture_logs() as lines:
        say = SparseLog(structlog.get_logger())
        for _ in range(3):
            say("output dark", "no monitor")
        say("output dark", "the card is gone", level="info", card="card0")
        now += SPARSE
        say("output dark", "no monitor")
    assert [(line["log_level"], line["reason"]) for line in lines] == [
        ("warning", "no monitor"),
        ("info", "the card is gone"),
        ("warning", "no monitor"),
    ]
    assert lines[1]["card"] == "card0"
