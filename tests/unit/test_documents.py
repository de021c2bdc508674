"""Every command that the documents tell is run by a test, or is on a list with the reason."""

from __future__ import annotations

import re

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


def test_what_the_lab_takes_is_there() -> None:
    """Each document says what a case of the lab takes from it, which would else be noticed in the lab only."""
    case = (REPOSITORY / "tests/lab/test_x86.py").read_text()
    names = dict(re.findall(r'^([A-Z]+) = "((?:docs/|README)[^"]*)"$', case, re.M))
    taken = re.findall(r'as_told\(\s*(?:"([^"]+)"|([A-Z]+)),\s*"([^"]+)"', case)
    assert len(taken) > 12
    for document, name, words in taken:
        assert words in (REPOSITORY / (document or names[name])).read_text(), words
