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
    "I": "Input",
    "K": "XenStore",
}


class Row(msgspec.Struct, frozen=True):
    """One hostile input, what displbe does, and the test that shows it."""

    number: str
    input: str
    answer: str
    test: str = ""

    @property
    def order(self) -> tuple[str, int]:
        """The row's place in the table."""
        return self.number[0], int(self.number[1:])


ROWS: Final[dict[str, Row]] = {}
"""The rows by the name of the test."""

Test = TypeVar("Test", bound=Callable[..., Any])


def row(input: str, answer: str) -> Callable[[Test], Test]:
    """Mark a test function as a row of the table. The row's number is in the function's name: test_a1_…"""

    def mark(test: Test) -> Test:
        name = test.__name__
        found = re.match(r"test_([abcdik])(\d+)_", name)
        assert found, f"{name} names no row"
        assert name not in ROWS, f"{name} exists twice"
        ROWS[name] = Row(f"{found[1].upper()}{found[2]}", input, answer, name)
        return test

    return mark


LAB: Final = (
    Row(
        "A8",
        "the domain dies while it connects and leaves, between any two hypercalls of displbe",
        "displbe releases everything and serves the next guest",
        "test_destroyed_while_connecting",
    ),
    Row(
        "A8",
        "Xen's SILO policy forbids event channels between the guest and displbe in a driver domain",
        "not run: Xen already refuses the guest's own kernel, which then has no port to publish; Dom0 is exempt from the policy",
    ),
    Row(
        "B4",
        "a grant for receiving a page (transfer), in the directory and as the directory; a free grant",
        "EINVAL",
        "test_wrong_grants",
    ),
    Row(
        "B4",
        "a grant for copying only",
        "not run: only version 2 of Xen's grant tables has such grants, and Xen on Arm, as in the lab, does not offer it",
    ),
    Row(
        "C13",
        "a framebuffer that the graphics card of the lab cannot scan out",
        "EINVAL, with the reason in the log; displbe serves a valid one",
        "test_shapes_that_the_card_cannot_show",
    ),
    Row(
        "D12",
        "`xl pause` of a guest that flips",
        "the screen keeps the last frame; after `xl unpause`, the guest goes on",
        "test_paused",
    ),
    Row(
        "K3",
        "the guest's `backend` names the directory of another guest, with xenstored",
        "refused, with a line in the log; the other guest's flips go on",
        "test_beside_a_good_guest",
    ),
    Row(
        "K4",
        "the guest forges `unique-id` and `resolution`, one of them or both, with xenstored",
        "refused, with a line in the log",
        "test_beside_a_good_guest",
    ),
    Row("K4", "the same with oxenstored", "refused", "test_forged"),
)
"""Rows that need a real hypervisor, a real store or a real screen."""

_HEAD: Final = """\
# Hostile inputs

This page lists what a hostile guest can send to displbe, and what displbe does then. Each row is a test of the whole
daemon on the simulated Xen (`tests/hostile`), with a second guest beside the hostile one. "holds" in the last column
means: displbe gave the answer of this row, the second guest kept flipping all the time, and afterwards displbe held
nothing of either guest: no page, no port, no buffer, no file.

The numbers are those of the project's table of malicious frontends. *Shut off* means: the device goes to states 5 and
6, and displbe releases everything of it; the guest may connect again. *Refused* means: the device stays at state 2, and
its `error` node gives the reason. The error numbers are in [errors.md](errors.md).

The tests write this page: `DISPLBE_WRITE_HOSTILE=1 python -m pytest -q tests/hostile`. They fail when the page is out of date.
"""


def page(results: dict[str, str]) -> str:
    """Return the page. `results` has the result of each row, by the name of its test."""
    lines = [_HEAD]
    for letter, title in CHAPTERS.items():
        lines += [f"## {letter}: {title}", "", "| # | Input | Answer | Result |", "|---|---|---|---|"]
        rows = sorted((row for row in ROWS.values() if row.number[0] == letter), key=lambda row: row.order)
        lines += [f"| {row.number} | {row.input} | {row.answer} | {results[row.test]} |" for row in rows]
        lines += [""]
    lines += ["## In the lab", "", "These need a real Xen, a real store or a real screen (`tests/lab`).", ""]
    lines += ["| # | Input | Answer | Test |", "|---|---|---|---|"]
    lines += [f"| {row.number} | {row.input} | {row.answer} | {row.test and f'`{row.test}`'} |" for row in LAB]
    return "\n".join(lines) + "\n"
