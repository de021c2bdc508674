"""Every command that the documents tell is run by a test, or is on a list with the reason."""

from __future__ import annotations

from lab.documents import ELSEWHERE, IN_A_GUEST, REPOSITORY, commands


def test_lists_are_current() -> None:
    """No command is listed that no document tells any more, and where a file is named, there it is, with its case."""
    assert commands() >= {*ELSEWHERE, *IN_A_GUEST}
    for where in ELSEWHERE.values():
        file, _, case = where.partition(": ")
        if file.startswith("tests/") and file.endswith(".py"):
            assert f"def {case}" in (REPOSITORY / file).read_text(), where


def test_commands_are_found() -> None:
    """Commands in sentences, in tables and on lines of their own are found, without their comments."""
    found = commands()
    assert {
        "fuser -v /dev/dri/card*",
        "dmesg | grep -i xen",
        "apt install python3-xcffib",
        "displbectl status",
    } <= found
    assert not any("#" in command for command in found)
