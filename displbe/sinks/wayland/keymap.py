"""Reads the keymap of a wl_keyboard (xkb_v1: the text that xkb_keymap_get_as_string of libxkbcommon makes).

displbe passes key codes on and does not need the keymap, unless the codes are not Linux's: a virtual keyboard (zwp_virtual_keyboard_v1) may
number its keys as it likes. `read_keymap` tells both apart by the names of the keys in the alphanumeric block.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from .us_layout import ALPHANUMERIC

__all__ = ["Keymap", "KeymapKey", "read_keymap"]

MAX_SIZE: Final = 1 << 18
"""Bytes. A keymap of four layouts has about 100 KiB."""
MAX_TOKENS: Final = 50_000
"""Words and punctuation marks in a section. The symbols of a keymap with four layouts have about 20,000."""
CODE_OFFSET: Final = 8
"""A code of XKB is Linux's code plus 8 (wl_keyboard.keymap_format)."""
MAX_CODE: Final = 0x2FF + CODE_OFFSET
"""KEY_MAX as a code of XKB."""
F_GET_SEALS: Final = 1034
"""fcntl.h. Only files in the kernel's memory have seals."""
_TOKEN: Final = re.compile(
    r"""//[^\n]*|\#[^\n]*|"(?:[^"\\\n]|\\.){0,400}"|<([^<>\s]{1,16})>|(\w+(?:\+\w+)?)|([{}\[\];=,"])""", re.ASCII
)
"""A comment, a string, a key's name, a word or number, or a punctuation mark; a quotation mark where no string begins."""
_SECTION: Final = re.compile(r"\bxkb_(keycodes|symbols)\b[^{]{0,300}\{")


class KeymapKey(msgspec.Struct, frozen=True):
    """A key of a keymap: its name, and for each layout (group) the keysym at each level."""

    name: str
    layouts: tuple[tuple[str, ...], ...]


class Keymap(msgspec.Struct, frozen=True):
    """A keymap whose codes are not Linux's, by the codes of wl_keyboard.key."""

    keys: dict[int, KeymapKey]


def read_keymap(fd: int, size: int) -> Keymap | None:
    """Return a keymap that the compositor has sent in a file of `size` bytes; None if its codes are Linux's.

    Raises ValueError when it cannot be understood.
    """
    return _parse(_content(fd, size))


def _content(fd: int, size: int) -> bytes:
    """Return the file's content. It is not mapped, since the compositor could truncate it (SIGBUS). Raises ValueError."""
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"it has {size} bytes")
    try:
        fcntl.fcntl(fd, F_GET_SEALS)  # a file of another kind might be on a network, and block the daemon
        found = b""
        while len(found) < size and (part := os.pread(fd, size - len(found), len(found))):
            found += part
    except OSError as error:
        what = "it is not in shared memory" if error.errno == errno.EINVAL else str(error.strerror)
        raise ValueError(what) from error
    return found


@functools.lru_cache(maxsize=16)
def _parse(content: bytes) -> Keymap | None:
    """Return the keymap, as `read_keymap` does. A compositor may send two in turns, one for each of two keyboards that are used."""
    text = content.rstrip(b"\0").decode("utf-8", "replace")
    sections = {found[1]: found.end() for found in _SECTION.finditer(text)}
    if "keycodes" not in sections:
        raise ValueError("it has no key codes")
    codes = _keycodes(text, sections["keycodes"])
    if not codes:
        raise ValueError("it has no key codes")
    if all(codes.get(name) == code + CODE_OFFSET for name, code in ALPHANUMERIC.items()):
        return None
    symbols = _symbols(text, sections["symbols"]) if "symbols" in sections else {}
    return Keymap({code - CODE_OFFSET: KeymapKey(name, symbols.get(name, ())) for name, code in codes.items()})


def _statements(text: str, start: int) -> Iterator[list[str]]:
    """Return the statements of a section that begins at `start`, as tokens without the closing semicolon. Names of keys are `<NAME>`.

    Raises ValueError when the section is too long, or has a string without an end.
    """
    depth = 0
    statement: list[str] = []
    for count, found in enumerate(_TOKEN.finditer(text, start)):
        if count > MAX_TOKENS:
            raise ValueError("it is too long")
        token = f"<{found[1]}>" if found[1] else found[2] or found[3]
        if token is None:
            continue  # a comment or a string
        if token == '"':  # the next ones would be searched for their ends as long
            raise ValueError("it has a string without an end")
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return
        if token == ";" and depth == 0:
            yield statement
            statement = []
        else:
            statement.append(token)


def _keycodes(text: str, start: int) -> dict[str, int]:
    """Return the codes of the keys by name, in XKB's numbers."""
    found: dict[str, int] = {}
    for statement in _statements(text, start):
        match statement:
            case [name, "=", number] if name.startswith("<") and number.isdecimal() and len(number) < 5:
                if CODE_OFFSET <= int(number) <= MAX_CODE:
                    found[name[1:-1]] = int(number)
    return found


def _symbols(text: str, start: int) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the keysyms of the keys by name, for each layout and level."""
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for statement in _statements(text, start):
        match statement:
            case ["key", name, "{", *body, "}"] if name.startswith("<"):
                found[name[1:-1]] = tuple(_layouts(body))
    return found


def _layouts(body: list[str]) -> Iterator[tuple[str, ...]]:
    """Return the keysyms of each layout of a key: the lists in brackets that are not an index, and not those of actions."""
    before: list[str] = []
    place = 0
    while place < len(body):
        if body[place] != "[":
            before.append(body[place])
            place += 1
            continue
        try:
            end = body.index("]", place)
        except ValueError:
            return
        inside = body[place + 1 : end]
        place = end + 1
        if place < len(body) and body[place] == "=":
            continue  # symbols[Group1]= …
        if "actions" not in before:
            yield tuple(_levels(inside))
        before = []


def _levels(tokens: list[str]) -> Iterator[str]:
    """Return the keysym of each level. Of a level with several keysyms in braces, the first counts."""
    depth, level = 0, ""
    for token in (*tokens, ","):
        depth += (token == "{") - (token == "}")
        if token == "," and depth <= 0:
            yield level
            level = ""
        elif token not in "{},":
            level = level or token
