"""What of a guest's xl configuration concerns its display: `name` and `vdispl` (xl.cfg(5))."""

from __future__ import annotations

import re

import msgspec

__all__ = ["Display", "XlConfig", "read_xl_config"]


class Display(msgspec.Struct, frozen=True):
    """One entry of `vdispl`."""

    be_alloc: bool
    connectors: tuple[tuple[str, int, int], ...]
    """unique-id, width, height."""


class XlConfig(msgspec.Struct, frozen=True):
    """A guest."""

    name: str
    displays: tuple[Display, ...]


_NAME = re.compile(r"""^\s*name\s*=\s*["']([^"'\n]*)["']""", re.MULTILINE)
_VDISPL = re.compile(r"^\s*vdispl\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_STRING = re.compile(r"""(["'])(.*?)\1""", re.DOTALL)
_CONNECTOR = re.compile(r"(.+):(\d{1,5})x(\d{1,5})")


def read_xl_config(text: str) -> XlConfig:
    """The guest of a configuration. Raises ValueError for a vdispl entry that xl would refuse."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    name, entries = _NAME.search(text), _VDISPL.search(text)
    found = [_display(entry) for _, entry in _STRING.findall(entries[1])] if entries is not None else []
    return XlConfig(name[1] if name is not None else "", tuple(found))


def _display(entry: str) -> Display:
    keys = dict(part.strip().partition("=")[::2] for part in entry.split(",") if part.strip())
    connectors = []
    for connector in keys.get("connectors", "").split(";"):
        parts = _CONNECTOR.fullmatch(connector.strip())
        if parts is None:
            raise ValueError(f"vdispl: connector {connector.strip()!r} is not ID:WIDTHxHEIGHT")
        connectors.append((parts[1], int(parts[2]), int(parts[3])))
    return Display(keys.get("be-alloc", "0") == "1", tuple(connectors))
