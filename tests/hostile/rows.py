"""The rows of the table of hostile inputs (`protocol/hostile.md`): each is a test, named by its number."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["CHAPTERS", "LAB", "PAGE", "ROWS", "Row", "page", "row"]

PAGE: Final = Path(__file__).parents[2] / "protocol" / "hostile.md"

CHAPTERS: Final = {
    "A": "Ring and event channel",
    "B": "Page directory",
    "C": "Geometry of buffers",
    "D": "Lifetime",
    "K": "XenStore",
}


class Row(msgspec.Struct, frozen=True):
    """One hostile input: what it is, what displbe does, and the test that shows it."""

    number: str
    input: str
    answer: str
    test: str = ""

    @property
    def order(self) -> tuple[str, int]:
        """Where it stands in the table."""
        return self.number[0], int(self.number[1:])


ROWS: Final[dict[str, Row]] = {}
"""By the test's name."""

Test = TypeVar("Test", bound=Callable[..., Any])


def row(input: str, answer: str) -> Callable[[Test], Test]:
    """Mark a test function as a row of the table; its number is in its name: test_a1_…"""

    def mark(test: Test) -> Test:
        name = test.__name__
        found = re.match(r"test_([abcdk])(\d+)_", name)
        assert found, f"{name} names no row"
        assert name not in ROWS, f"{name} is there twice"
        ROWS[name] = Row(f"{found[1].upper()}{found[2]}", input, answer, name)
        return test

    return mark


LAB: Final = (
    Row(
        "A8",
        "Xen itself refuses the channel (SILO), or the domain dies between two hypercalls",
        "as on the simulated Xen",
    ),
    Row(
        "B4",
        "a grant that the guest has given away by transfer, or set up for copying only",
        "EINVAL, as for a free one",
    ),
    Row(
        "C13",
        "a framebuffer that this very graphics card cannot scan out",
        "EINVAL, with the driver's reason in the log",
    ),
    Row("D12", "`xl pause` of a guest that flips", "the screen keeps the last frame; unpaused, the guest goes on"),
    Row("K4", "the same with xenstored and with oxenstored", "as on the simulated XenStore"),
)
"""What only a real hypervisor, a real store or a real screen can show."""

_HEAD: Final = """\
# Hostile inputs

What a guest can do to displbe, and what displbe does then. Each row is a test of the whole daemon on the simulated
Xen (`tests/hostile`), with a second guest beside the hostile one. A row holds when the answer is the one that stands
here, the second guest's flips went on all the while, and afterwards nothing was held of either guest: no page, no
port, no buffer, no file.

Numbers are those of the project's table of malicious frontends. *Shut off* means: the device goes to states 5 and 6 and
lets go of everything; the guest may connect again. *Refused* means: the device stays at state 2, and its `error` node
says why. The error numbers are in [errors.md](errors.md).

This page is written by the tests: `DISPLBE_WRITE_HOSTILE=1 python -m pytest -q tests/hostile`. They fail when it is not
current.
"""


def page(results: dict[str, str]) -> str:
    """The page. `results`: of each test, by its name."""
    lines = [_HEAD]
    for letter, title in CHAPTERS.items():
        lines += [f"## {letter}: {title}", "", "| # | Input | Answer | Result |", "|---|---|---|---|"]
        rows = sorted((row for row in ROWS.values() if row.number[0] == letter), key=lambda row: row.order)
        lines += [f"| {row.number} | {row.input} | {row.answer} | {results[row.test]} |" for row in rows]
        lines += [""]
    lines += ["## For the lab", "", "These need a real Xen, a real store or a real screen (`tests/lab`).", ""]
    lines += ["| # | Input | Answer |", "|---|---|---|"]
    lines += [f"| {row.number} | {row.input} | {row.answer} |" for row in LAB]
    return "\n".join(lines) + "\n"
