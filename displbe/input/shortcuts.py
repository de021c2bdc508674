"""Key combinations that the operator has configured: they move the input focus, and their last key reaches no guest."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from .event_codes import EV_KEY, EV_SYN, SYN_DROPPED, SYN_REPORT
from .key_names import KEY_CODES

__all__ = ["Action", "Shortcut", "ShortcutKeys", "parse_keys"]

MAX_KEYS: Final = 6


class Action(enum.Enum):
    """The effect of a combination."""

    NEXT_GUEST = "next guest"
    """The next guest that names the device gets the focus."""
    RELEASE = "release"
    """The host gets its input devices back; pressed again, the guests get them."""


class Shortcut(msgspec.Struct, frozen=True):
    """A combination: keys that are held together on one device."""

    keys: frozenset[int]
    action: Action


def parse_keys(text: str) -> frozenset[int]:
    """Return the codes of a combination such as `leftctrl+leftalt+right`; empty for an empty text. Raises ValueError."""
    if not text.strip():
        return frozenset()
    names = [name.strip().lower().removeprefix("key_") for name in text.split("+")]
    unknown = [name for name in names if name not in KEY_CODES]
    if unknown:
        raise ValueError(
            f"{unknown[0][:32]!r} is no key: names are those of input-event-codes.h, for example leftctrl+leftalt+right"
        )
    if len(set(names)) != len(names) or len(names) > MAX_KEYS:
        raise ValueError(f"a combination has 1 to {MAX_KEYS} different keys")
    return frozenset(KEY_CODES[name] for name in names)


class ShortcutKeys:
    """Looks for combinations in the events of one device. `act` is called when one is complete."""

    def __init__(
        self, shortcuts: tuple[Shortcut, ...] = (), act: Callable[[Action], None] = lambda action: None
    ) -> None:
        self._shortcuts = shortcuts
        self._act = act
        self._down: set[int] = set()
        """Keys that are down on the device."""
        self._kept: set[int] = set()
        """Last keys of combinations, whose events are passed on to no guest until they are released."""
        self._pending: Action | None = None
        """The action of a combination whose frame has not ended."""

    @property
    def is_any_down(self) -> bool:
        """Whether a key or button is down on the device."""
        return bool(self._down)

    def begin(self, down: frozenset[int]) -> frozenset[int]:
        """Continue from the device's present state. Return those of its keys that guests may know."""
        self._pending = None
        self._down = set(down)
        self._kept &= down
        return down - self._kept

    def split(self, events: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
        """Return the events for guests, in parts: after each frame that completes a combination, the rest is another part.

        `act` is called between two parts: the events before it were typed for the guest that had the focus before it. SYN_DROPPED ends the
        last part, because `begin` must come before any other event.
        """
        part: list[tuple[int, int, int]] = []
        for event in events:
            kind, code, value = event
            if kind != EV_KEY or not self._keeps(code, value):
                part.append(event)
            if kind == EV_SYN and code == SYN_DROPPED:
                break
            if self._pending is not None and kind == EV_SYN and code == SYN_REPORT:
                yield part
                part = []
                action, self._pending = self._pending, None
                self._act(action)
        if part:
            yield part

    def _keeps(self, code: int, value: int) -> bool:
        """Note a key event. Return True if guests do not get it."""
        if value == 1:
            self._down.add(code)
            for shortcut in self._shortcuts:
                if code in shortcut.keys and shortcut.keys <= self._down:
                    self._pending = shortcut.action
                    self._kept.add(code)
        keeps = code in self._kept
        if value == 0:
            self._down.discard(code)
            self._kept.discard(code)
        return keeps
