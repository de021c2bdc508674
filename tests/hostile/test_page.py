"""`protocol/hostile.md` says what the tests showed."""

from __future__ import annotations

import os

from hostile.rows import PAGE, ROWS, page

WRITE = "DISPLBE_WRITE_HOSTILE"


def test_the_page_is_current(results: dict[str, str]) -> None:
    """Compared are the rows that ran. It runs last (conftest.py)."""
    missing = ROWS.keys() - results.keys()
    if os.environ.get(WRITE) == "1":
        assert not missing, "run the whole folder to write the page"
        PAGE.write_text(page(results), "utf-8")
    expected = page(results | dict.fromkeys(missing, "holds"))
    assert PAGE.read_text("utf-8") == expected, f"regenerate it: {WRITE}=1 python -m pytest -q tests/hostile"
