"""`protocol/hostile.md` agrees with the results of the tests."""

from __future__ import annotations

import os

from hostile.rows import LAB, PAGE, ROWS, page

WRITE = "DISPLBE_WRITE_HOSTILE"


def test_the_page_is_current(results: dict[str, str]) -> None:
    """The page agrees with the results of the rows that ran. This test runs last (conftest.py)."""
    missing = ROWS.keys() - results.keys()
    if os.environ.get(WRITE) == "1":
        assert not missing, "run the whole folder to write the page"
        PAGE.write_text(page(results), "utf-8")
    expected = page(results | dict.fromkeys(missing, "holds"))
    assert PAGE.read_text("utf-8") == expected, f"regenerate it: {WRITE}=1 python -m pytest -q tests/hostile"


def test_the_labs_rows_have_tests() -> None:
    """Each row for the lab names a test of tests/lab, or says why there is none."""
    tests = "".join(path.read_text("utf-8") for path in (PAGE.parents[1] / "tests" / "lab").glob("test_*.py"))
    for row in LAB:
        assert f"def {row.test}(" in tests if row.test else row.answer.startswith("not run: ")
