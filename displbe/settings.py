"""The base of the configuration's tables. Each table is a struct next to the code that uses it; `config` assembles them."""

from __future__ import annotations

import msgspec

__all__ = ["Table"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the TOML file. An unknown key is an error."""
