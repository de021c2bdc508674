"""Reads the parts of a guest's xl configuration that concern displbe: `name`, `vdispl` and `vkb` (xl.cfg(5))."""

from __future__ import annotations

import re

import msgspec

__all__ = ["Display", "Keyboard", "XlConfig", "read_xl_config"]


class Display(msgspec.Struct, frozen=True):
    """One entry of `vdispl`."""

    backend: str
    """The name or domid of the domain that serves it; empty: Dom0."""
    be_alloc: bool
    connectors: tuple[tuple[str, int, int], ...]
    """The unique-id of each connector, and its width and height in pixels."""


class Keyboard(msgspec.Struct, frozen=True):
    """One entry of `vkb` that displbe serves (`backend-type=linux`): keyboard, pointer, touch screen."""

    backend: str
    unique_id: str


class XlConfig(msgspec.Struct, frozen=True):
    """A guest's configuration."""

    name: str
    displays: tuple[Display, ...]
    keyboards: tuple[Keyboard, ...]


_NAME = re.compile(r"""^\s*name\s*=\s*["']([^"'\n]*)["']""", re.MULTILINE)
_LIST = r"^\s*{}\s*=\s*\[(.*?)\]"
_STRING = re.compile(r"""(["'])(.*?)\1""", re.DOTALL)
_CONNECTOR = re.compile(r"(.+):(\d{1,5})x(\d{1,5})")


def read_xl_config(text: str) -> XlConfig:
    """Parse a configuration. Raises ValueError for an entry that xl would refuse."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    name = _NAME.search(text)
    displays = [_display(keys) for keys in _entries(text, "vdispl")]
    keyboards = [_keyboard(keys) for keys in _entries(text, "vkb") if _is_ours(keys)]
    return XlConfig(name[1] if name is not None else "", tuple(displays), tuple(keyboards))


def _entries(text: str, name: str) -> list[dict[str, str]]:
    """Return the keys and values of each string of the list with this name."""
    found = re.search(_LIST.format(name), text, re.MULTILINE | re.DOTALL)
    entries = [entry for _, entry in _STRING.findall(found[1])] if found is not None else []
    return [dict(part.strip().partition("=")[::2] for part in entry.split(",") if part.strip()) for entry in entries]


def _is_ours(keys: dict[str, str]) -> bool:
    if keys.get("backend-type") not in ("linux", "qemu"):
        raise ValueError("vkb: backend-type must be linux (displbe) or qemu")
    return keys["backend-type"] == "linux"


def _keyboard(keys: dict[str, str]) -> Keyboard:
    return Keyboard(keys.get("backend", ""), keys.get("unique-id", ""))


def _display(keys: dict[str, str]) -> Display:
    connectors = []
    for connector in keys.get("connectors", "").split(";"):
        parts = _CONNECTOR.fullmatch(connector.strip())
        if parts is not None and ":" in parts[1]:  # libxl splits at the first colon
            name = parts[1].replace(":", "_")
            raise ValueError(f"vdispl: xl ends the name of connector {parts[1]!r} at its first colon: write {name}")
        if parts is None:
            raise ValueError(f"vdispl: connector {connector.strip()!r} is not ID:WIDTHxHEIGHT")
        connectors.append((parts[1], int(parts[2]), int(parts[3])))
    return Display(keys.get("backend", ""), keys.get("be-alloc", "0") == "1", tuple(connectors))
