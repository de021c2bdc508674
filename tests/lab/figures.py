"""Figures: what a test has measured. They do not depend on the host's other work, so tests hold them, and the end of the run lists them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["PROPERTY", "Figure", "figure_of"]

Figure = Callable[[str], None]
PROPERTY = "figure"
"""The property of a test's report (pytest's `user_properties`) that has a figure."""


def figure_of(test: pytest.Item) -> Figure:
    """Return a function that takes a figure of this test down."""

    def take(text: str) -> None:
        print(f"\n{text}")
        test.user_properties.append((PROPERTY, text))

    return take
