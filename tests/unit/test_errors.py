"""The first of the exceptions in a group."""

from __future__ import annotations

from displbe.wire.errors import first_leaf


def test_the_first_leaf() -> None:
    first, second = ValueError("first"), ValueError("second")
    assert first_leaf(first) is first
    assert first_leaf(ExceptionGroup("all", [ExceptionGroup("some", [first]), second])) is first
