"""The tables of displbectl: whatever is in them, they fit a terminal and cannot drive it."""

from __future__ import annotations

from typing import Any

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
