"""README.md's table of what was tried: each row is written by a test that has seen it.

A test says what it has shown, and how; the rest of the row is what the machine says of itself. At the end of a run the rows must be those
of the table: all of them after a run of the whole lab. Versions may differ, because Debian's packages change; the run says so then.
`DISPLBE_WRITE_TRIED=1 make lab` writes the table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from lab.vm import Machine

__all__ = [
    "EXACT",
    "PROPERTY",
    "SHARED",
    "Row",
    "Tried",
    "compare",
    "read",
    "taker_of",
    "wanted_in_writing",
    "weston_sink",
    "write",
]

PROPERTY: Final = "tried"
"""The property of a test's report that has a row."""
README: Final = Path(__file__).resolve().parents[2] / "README.md"
BEGIN: Final = "<!-- Written by DISPLBE_WRITE_TRIED=1 make lab -->\n"
END: Final = "<!-- end -->\n"
TABLE_RE: Final = re.compile(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", re.S)
ASK: Final = r"""
xl info | sed -n 's/^\(xen_major\|xen_minor\|machine\) *: //p' | tr '\n' ' '; echo
uname -r
sed -n 's/^type="\(.*\)"$/\1/p' /root/guests/{guest}.cfg
card=$(echo /sys/class/drm/card*-{connector})
card=${{card#*card}}
cut -d' ' -f1 "/sys/kernel/debug/dri/${{card%%-*}}/name" 2>/dev/null || echo none
"""
EXACT: Final = "every pixel is right"
"""A result."""
SHARED: Final = "zero copy: shared pages"
"""The way in which a compositor maps the guest's pages itself."""


class Row(NamedTuple):
    """A row of the table. The fields' names are its head."""

    hypervisor: str
    architecture: str
    kernel: str
    """Dom0's and the guest's."""
    guest: str
    """The domain's type."""
    card: str
    """The driver."""
    sink: str
    way: str
    result: str


Tried = Callable[..., None]
"""`tried(machine, guest, connector, sink, way, result)`: a guest of this name, and a connector of Dom0, or of no card."""


def taker_of(test: pytest.Item) -> Tried:
    """Return a function that takes a row of this test down."""

    def take(machine: Machine, guest: str, connector: str, sink: str, way: str, result: str) -> None:
        row = row_of(machine, guest, connector, sink, way, result)
        test.user_properties.append((PROPERTY, list(row)))

    return take


def row_of(machine: Machine, guest: str, connector: str, sink: str, way: str, result: str) -> Row:
    """Return the row of a guest that shows something on a connector of Dom0."""
    xen, kernel, kind, driver = machine.check(ASK.format(guest=guest, connector=connector)).splitlines()
    architecture, major, minor = xen.split()
    (version,) = re.findall(r"^\d+\.\d+", kernel)
    return Row(f"Xen {major}.{minor}", architecture, f"Linux {version}", kind.upper(), driver, sink, way, result)


def weston_sink(machine: Machine, how: str) -> str:
    """Return the sink of a row: Weston in Dom0, used in this way."""
    (version,) = re.findall(r"^weston (\d+\.\d+)", machine.check("weston --version"))
    return f"Wayland: Weston {version}, {how}"


def read() -> set[Row]:
    """Return the rows of README.md's table."""
    (table,) = TABLE_RE.findall(README.read_text())
    lines = table.splitlines()[2:]
    return {Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines}


def text(rows: Iterable[Row]) -> str:
    """Return a table."""
    lines: list[Sequence[str]] = [Row._fields, ["---"] * len(Row._fields), *sorted(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def wanted_in_writing() -> bool:
    """Return whether the run is to write the table."""
    return "DISPLBE_WRITE_TRIED" in os.environ


def write(rows: Iterable[Row]) -> None:
    """Write README.md's table."""
    readme = README.read_text()
    README.write_text(TABLE_RE.sub(lambda _: f"{BEGIN}{text(rows)}{END}", readme))


def without_versions(row: Row) -> Row:
    """Return a row without the numbers of versions."""
    return Row(*(re.sub(r"\d+(\.\d+)+", "", cell) for cell in row))


def lacking(rows: set[Row], table: set[Row]) -> list[str]:
    """Return the rows that a table does not have, for people; versions may differ."""
    known = {without_versions(row) for row in table}
    return [" | ".join(row) for row in sorted(rows) if without_versions(row) not in known]


def compare(seen: set[Row], *, is_whole: bool) -> tuple[list[str], list[str]]:
    """Compare what a run has seen with README.md's table; `is_whole`: the run was one of the whole lab. Return errors and remarks."""
    table = read()
    errors = [f"README.md's table of what was tried lacks: {row}" for row in lacking(seen, table)]
    if is_whole:
        errors += [f"README.md's table has what no test has tried: {row}" for row in lacking(table, seen)]
    if errors:
        return errors, []
    return [], [f"README.md's table has another version of: {' | '.join(row)}" for row in sorted(seen - table)]
