"""The log: nothing that a guest wrote can forge a line or drive a terminal, and nobody can fill it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from displbe.ops.log import BURST, MAX_KINDS, RateLimit, configure
from displbe.ops.text import MAX_TEXT, escape


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """What is configured here is not for other tests."""
    yield capsys
    structlog.reset_defaults()


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


def test_json_lines(configured: pytest.CaptureFixture[str]) -> None:
    configure("json")
    structlog.get_logger().warning("refused", name='evil"\n{"event": "forged"}', raw=b"\xff\n\x1b", number=7)
    (line,) = configured.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["number"]) == ("refused", "warning", 7)
    assert entry["name"] == 'evil"\\n{"event": "forged"}'
    assert entry["raw"] == "\\xff\\n\\x1b"
    assert entry["timestamp"].endswith("Z")


def test_exceptions_are_told_without_the_values_of_variables(configured: pytest.CaptureFixture[str]) -> None:
    configure("json")
    secret = "pixels"
    try:
        raise ZeroDivisionError(secret[:0] + "why")
    except ZeroDivisionError:
        structlog.get_logger().exception("device failed")
    (line,) = configured.readouterr().err.splitlines()
    assert "ZeroDivisionError" in line
    assert "why" in line
    assert "pixels" not in line


def test_console(configured: pytest.CaptureFixture[str]) -> None:
    configure("console")
    structlog.get_logger().info("state", name="a\x1b[2Jb")
    told = configured.readouterr().err
    assert "state" in told
    assert "\x1b[2J" not in told


def test_auto_is_json_where_there_is_no_terminal(configured: pytest.CaptureFixture[str]) -> None:
    configure()
    structlog.get_logger().info("state")
    assert json.loads(configured.readouterr().err)["event"] == "state"


def test_levels(configured: pytest.CaptureFixture[str]) -> None:
    configure("json", "warning")
    logger = structlog.get_logger()
    logger.info("not this")
    logger.warning("this")
    assert [json.loads(line)["event"] for line in configured.readouterr().err.splitlines()] == ["this"]


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("displbe.ops.log.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the rate limit."""
    return Clock(monkeypatch)


def passes(limit: RateLimit, **event: object) -> dict[str, object] | None:
    """The event, or None when it was dropped."""
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
