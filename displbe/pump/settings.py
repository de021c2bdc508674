"""`[daemon]` of the configuration."""

from __future__ import annotations

from typing import Literal

from displbe.settings import Table

__all__ = ["DaemonSettings"]


class DaemonSettings(Table, frozen=True):
    """The table `[daemon]`."""

    pump: Literal["auto", "off"] = "auto"
