"""Old faults of displbe, to prove that the runs find them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

__all__ = ["MUTATIONS", "mutated"]

MUTATIONS: dict[str, object] = {}


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """Put a fault back while the block lasts. An empty name: none."""
    yield
