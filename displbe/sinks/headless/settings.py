"""`[headless]` of the configuration."""

from __future__ import annotations

from displbe.settings import Table

__all__ = ["HeadlessSettings"]


class HeadlessSettings(Table, frozen=True):
    """`[headless]`"""

    refresh: float = 60.0
    """Refreshes per second, 1 to 1000."""
    directory: str = ""
    """The directory where an output writes its last frame as NAME.png when it is switched off; empty: it writes none."""
    outputs: list[str] = []
    """The names of the outputs; empty: an output exists for each name that is claimed."""

    def __post_init__(self) -> None:
        if not 1 <= self.refresh <= 1000:
            raise ValueError("refresh is a number of refreshes per second, 1 to 1000")
