"""The tables of displbectl: whatever the status contains, they fit a terminal and cannot control it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from unit.statuses import STATUS

from displbe.ctl.tables import WIDTH, status_lines, top_lines
from displbe.ops.status import Status


@pytest.mark.parametrize("lines", [status_lines, top_lines])
@given(status=STATUS)
def test_tables_fit_a_terminal(lines: Any, status: Status) -> None:
    for line in lines(status):
        assert len(line) <= WIDTH
        assert line.isprintable()


def protocols_example() -> str:
    """Return the example in protocol/control.md."""
    text = (Path(__file__).parents[2] / "protocol" / "control.md").read_text("utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    return str(example)


def test_the_protocols_example_is_a_status() -> None:
    """protocol/control.md shows every field of the status."""
    example = protocols_example()
    status = msgspec.json.decode(example, type=Status, strict=True)
    assert json.loads(msgspec.json.encode(status)) == json.loads(example)


def test_the_pump() -> None:
    """A line says whether the pump runs, with the reason if not. A status of an older daemon, without the field, has no line."""
    document = json.loads(protocols_example())
    for pump, line in (
        ({"state": "on", "reason": ""}, "  pump      on"),
        ({"state": "off", "reason": "not wanted"}, "  pump      off: not wanted"),
        ({"state": "missing", "reason": "no file"}, "  pump      missing: no file"),
    ):
        status = msgspec.convert(document | {"pump": pump}, Status)
        assert [each for each in status_lines(status) if "pump" in each] == [line]
    del document["pump"]
    assert not [each for each in status_lines(msgspec.convert(document, Status)) if "pump" in each]
