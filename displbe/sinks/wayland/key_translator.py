"""Translates the key codes of a wl_keyboard into Linux's.

Most keyboards have Linux's codes, which are passed on. The codes of a virtual keyboard with a keymap of its own are translated through
that keymap: code and modifiers give a keysym, and the keysym gives the key, with or without Shift, that makes it on a US keyboard, which
is the layout that a guest has to have for these keys. Control, Alt and Super are pressed with the key if the keyboard says that they are
down, since such a keyboard may have no keys for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from .keymap import Keymap, KeymapKey
from .us_layout import KEY_NAMES, Stroke, stroke

__all__ = ["KeyTranslator"]

KeyEvents: TypeAlias = Iterator[tuple[int, bool]]
"""Linux's code of a key, and whether it goes down."""

SHIFT: Final = 1 << 0
LOCK: Final = 1 << 1
CONTROL: Final = 1 << 2
ALT: Final = 1 << 3
SUPER: Final = 1 << 6
NUM: Final = 1 << 4
LEVEL3: Final = 1 << 7
"""The bits of X's modifiers Shift, Lock, Control, Mod1, Mod4, Mod2 and Mod5, which are the first eight of each keymap."""
SHIFT_KEYS: Final = frozenset((42, 54))
MODIFIERS: Final = ((SHIFT, 42, SHIFT_KEYS), (CONTROL, 29, {29, 97}), (ALT, 56, {56}), (SUPER, 125, {125, 126}))
"""The bit of a modifier, the key that is pressed for it, and the keys that make it."""
MODIFIER_KEYS: Final = frozenset((29, 42, 54, 56, 58, 69, 70, 97, 100, 125, 126))


class KeyTranslator:
    """The keys of one wl_keyboard. `ignored` is called with the keysym of a key that is on no US keyboard."""

    def __init__(self, ignored: Callable[[str], None]) -> None:
        self._ignored = ignored
        self._keymap: Keymap | None = None
        """The keymap; None: codes are Linux's."""
        self._modifiers = self._locked = 0
        """The modifiers that are down, and those that are locked."""
        self._knows_locks = False
        """Whether the compositor has said which modifiers are locked."""
        self._layout = 0
        self._passed: set[int] = set()
        """Keys that are down, and whose codes were Linux's."""
        self._translated: dict[int, int] = {}
        """Keys that are down through the keymap: the keyboard's code -> Linux's code."""
        self._added: set[int] = set()
        """Modifier keys that were pressed with another key."""
        self._lifted: set[int] = set()
        """Shift keys that are down, and were released for a key that needs them up."""

    def set_keymap(self, keymap: Keymap | None) -> KeyEvents:
        """Use another keymap, because another keyboard of the seat is used. Release what is down through the old one."""
        if keymap is not self._keymap:
            yield from self._release_translated()
        self._keymap = keymap

    def set_modifiers(self, down: int, locked: int, layout: int) -> None:
        """Handle wl_keyboard.modifiers: bits of modifiers that are down (or latched), of those that are locked, and the layout."""
        self._modifiers, self._locked, self._layout, self._knows_locks = down, locked, layout, True

    @property
    def locks(self) -> tuple[bool, bool] | None:
        """Whether Caps Lock and Num Lock are on; None if that is not known, or the keyboard's own keymap takes account of them."""
        is_known = self._knows_locks and self._keymap is None
        return (bool(self._locked & LOCK), bool(self._locked & NUM)) if is_known else None

    def forget(self) -> None:
        """Forget what is down: the keyboard has left the surface."""
        self._passed.clear()
        self._translated.clear()
        self._added.clear()
        self._lifted.clear()

    def key(self, code: int, down: bool) -> KeyEvents:
        """Translate a press or release."""
        if down and self._keymap is not None:
            yield from self._press(code, self._keymap.keys.get(code))
        elif down:
            self._passed.add(code)
            yield code, True
        elif code in self._translated:
            yield from self._release(code)
        elif code in self._passed or self._keymap is None:
            yield from self._release_passed(code)

    def _press(self, code: int, key: KeymapKey | None) -> KeyEvents:
        if code in self._translated:
            yield from self._release(code)  # a press without a release; the symbol may be another one now
        keysym = self._keysym(key) if key is not None else ""
        found = stroke(keysym) or (
            Stroke(KEY_NAMES[key.name], None) if key is not None and key.name in KEY_NAMES else None
        )
        if found is None:
            self._ignored(keysym or f"code {code}")
            return
        yield from self._release_for_another(found.code)
        if found.code not in MODIFIER_KEYS:
            yield from self._hold(found.shift)
        self._translated[code] = found.code
        yield found.code, True

    def _release_for_another(self, pressed: int) -> KeyEvents:
        """Release a key of Linux's code `pressed` if it is down, because another key with that code is about to be pressed."""
        for code, held in list(self._translated.items()):
            if held == pressed:
                yield from self._release(code)
        if pressed in self._passed:
            yield from self._release_passed(pressed)

    def _release_passed(self, code: int) -> KeyEvents:
        """Release a key whose code is Linux's. It is not pressed again for a key that needed it up."""
        self._passed.discard(code)
        if code in self._lifted:
            self._lifted.discard(code)
        else:
            yield code, False

    def _keysym(self, key: KeymapKey) -> str:
        """Return the keysym of a key with the modifiers that are down: level 1, 2 with Shift, 3 and 4 with ISO_Level3_Shift."""
        levels = key.layouts[self._layout % len(key.layouts)] if key.layouts else ()
        if not levels:
            return ""
        upper = bool(self._modifiers & SHIFT)
        if self._locked & LOCK and len(levels) > 1 and levels[0].lower() == levels[1].lower():
            upper = not upper  # a letter
        level = upper + 2 * bool((self._modifiers | self._locked) & LEVEL3)
        return next((levels[at] for at in (level, level & 1, 0) if at < len(levels)), "")

    def _hold(self, shift: bool | None) -> KeyEvents:
        """Press the modifiers that the next key needs, and release those that it must not have. `shift` None: as it is on the keyboard."""
        wanted = self._modifiers & ~SHIFT | SHIFT * (bool(self._modifiers & SHIFT) if shift is None else shift)
        keys = self._passed | set(self._translated.values())
        for bit, added, makers in MODIFIERS:
            if wanted & bit:
                yield from self._restore(makers)
                if not makers & (keys | self._added):
                    self._added.add(added)
                    yield added, True
            else:
                for code in sorted(makers & self._added):
                    self._added.discard(code)
                    yield code, False
        if not wanted & SHIFT:
            for code in sorted(SHIFT_KEYS & keys - self._lifted):
                self._lifted.add(code)
                yield code, False

    def _restore(self, keys: frozenset[int] | set[int]) -> KeyEvents:
        """Press Shift keys again that were released for another key."""
        for code in sorted(self._lifted & keys):
            self._lifted.discard(code)
            yield code, True

    def _release(self, code: int) -> KeyEvents:
        released = self._translated.pop(code)
        if released in self._lifted:
            self._lifted.discard(released)
        else:
            yield released, False
        if not set(self._translated.values()) - MODIFIER_KEYS:
            yield from self._let_go()

    def _let_go(self) -> KeyEvents:
        """Release the modifiers that were pressed for keys, and press those again that were released: no key needs that any more."""
        for code in sorted(self._added):
            yield code, False
        self._added.clear()
        yield from self._restore(SHIFT_KEYS)

    def _release_translated(self) -> KeyEvents:
        for code in list(self._translated):
            yield from self._release(code)
        yield from self._let_go()
