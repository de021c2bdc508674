"""The keys of a US keyboard: which key, with or without Shift, makes a keysym, and where xkeyboard-config's key names lie.

Key codes are those of input-event-codes.h. Keysym names are those of keysymdef.h and XF86keysym.h, key names those of xkeyboard-config's
keycodes/evdev.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["ALPHANUMERIC", "KEY_NAMES", "Stroke", "stroke"]


class Stroke(NamedTuple):
    """A key, and whether Shift is held with it. None: Shift makes no difference."""

    code: int
    shift: bool | None


_ROWS: Final = (
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (57, " ", ""),
)
"""The first code of a row of consecutive codes, and its characters without and with Shift."""
_CHARACTERS: Final = {
    character: Stroke(first + place, shift)
    for first, *levels in _ROWS
    for shift, characters in zip((False, True), levels, strict=True)
    for place, character in enumerate(characters)
}
_CHARACTER_NAMES: Final = {
    "space": " ", "exclam": "!", "quotedbl": '"', "numbersign": "#", "dollar": "$", "percent": "%", "ampersand": "&",
    "apostrophe": "'", "quoteright": "'", "parenleft": "(", "parenright": ")", "asterisk": "*", "plus": "+", "comma": ",",
    "minus": "-", "period": ".", "slash": "/", "colon": ":", "semicolon": ";", "less": "<", "equal": "=", "greater": ">",
    "question": "?", "at": "@", "bracketleft": "[", "backslash": "\\", "bracketright": "]", "asciicircum": "^",
    "underscore": "_", "grave": "`", "quoteleft": "`", "braceleft": "{", "bar": "|", "braceright": "}", "asciitilde": "~",
}  # fmt: skip
_KEYS: Final = {
    "Escape": 1, "BackSpace": 14, "Tab": 15, "Return": 28, "Control_L": 29, "Shift_L": 42, "Shift_R": 54, "KP_Multiply": 55,
    "Alt_L": 56, "Meta_L": 56, "Caps_Lock": 58, "Num_Lock": 69, "Scroll_Lock": 70, "KP_Subtract": 74, "KP_Add": 78,
    "KP_Decimal": 83, "KP_Enter": 96, "Control_R": 97, "KP_Divide": 98, "Print": 99, "Sys_Req": 99, "Alt_R": 100,
    "Meta_R": 100, "ISO_Level3_Shift": 100, "Linefeed": 101, "Home": 102, "Up": 103, "Prior": 104, "Page_Up": 104,
    "Left": 105, "Right": 106, "End": 107, "Down": 108, "Next": 109, "Page_Down": 109, "Insert": 110, "Delete": 111,
    "XF86AudioMute": 113, "XF86AudioLowerVolume": 114, "XF86AudioRaiseVolume": 115, "XF86PowerOff": 116, "KP_Equal": 117,
    "Pause": 119, "KP_Separator": 121, "Super_L": 125, "Super_R": 126, "Menu": 127, "Cancel": 128, "Redo": 129,
    "SunProps": 130, "Undo": 131, "SunFront": 132, "XF86Copy": 133, "XF86Open": 134, "XF86Paste": 135, "Find": 136,
    "XF86Cut": 137, "Help": 138, "XF86Calculator": 140, "XF86Sleep": 142, "XF86WakeUp": 143, "XF86Mail": 155,
    "XF86Back": 158, "XF86Forward": 159, "XF86Eject": 161, "XF86AudioNext": 163, "XF86AudioPlay": 164,
    "XF86AudioPrev": 165, "XF86AudioStop": 166, "XF86HomePage": 172, "XF86Reload": 173, "XF86Search": 217,
    "XF86MonBrightnessDown": 224, "XF86MonBrightnessUp": 225,
    **{f"F{number}": 58 + number for number in range(1, 11)},
    "F11": 87, "F12": 88,
    **{f"F{number}": 170 + number for number in range(13, 25)},
    **{f"KP_{digit}": code for digit, code in enumerate((82, 79, 80, 81, 75, 76, 77, 71, 72, 73))},
    **dict(zip(
        ("KP_Insert", "KP_End", "KP_Down", "KP_Next", "KP_Page_Down", "KP_Left", "KP_Begin", "KP_Right", "KP_Home", "KP_Up",
         "KP_Prior", "KP_Page_Up", "KP_Delete"),
        (82, 79, 80, 81, 81, 75, 76, 77, 71, 72, 73, 73, 83),
        strict=True,
    )),
}  # fmt: skip
_STROKES: Final = {
    **{name: _CHARACTERS[character] for name, character in _CHARACTER_NAMES.items()},
    **{name: Stroke(code, None) for name, code in _KEYS.items()},
    "ISO_Left_Tab": Stroke(15, True),
}
_NUMERIC: Final = re.compile(r"U\+?([0-9A-Fa-f]{2,6})|0x([0-9A-Fa-f]{1,8})")
"""A keysym by its character (U20AC) or its number (0x10020ac; below 0x100 the number is the character)."""
UNICODE: Final = 0x1000000
"""Added to a character's number, it makes its keysym."""

ALPHANUMERIC: Final = {
    "TLDE": 41,
    **{f"AE{place:02}": 1 + place for place in range(1, 13)},
    **{f"AD{place:02}": 15 + place for place in range(1, 13)},
    **{f"AC{place:02}": 29 + place for place in range(1, 12)},
    **{f"AB{place:02}": 43 + place for place in range(1, 11)},
    "SPCE": 57,
    "RTRN": 28,
    "BKSP": 14,
    "TAB": 15,
}
"""Names of the keys in the alphanumeric block, and their codes."""
KEY_NAMES: Final = {
    **ALPHANUMERIC,
    "ESC": 1, "LCTL": 29, "LFSH": 42, "BKSL": 43, "RTSH": 54, "LALT": 56, "CAPS": 58, "NMLK": 69, "SCLK": 70, "LSGT": 86,
    "RCTL": 97, "PRSC": 99, "RALT": 100, "HOME": 102, "UP": 103, "PGUP": 104, "LEFT": 105, "RGHT": 106, "END": 107,
    "DOWN": 108, "PGDN": 109, "INS": 110, "DELE": 111, "PAUS": 119, "LWIN": 125, "RWIN": 126, "COMP": 127,
    **{f"FK{number:02}": 58 + number for number in range(1, 11)},
    "FK11": 87, "FK12": 88,
}  # fmt: skip
"""Names of the keys of a PC keyboard, and their codes."""


def stroke(keysym: str) -> Stroke | None:
    """Return the key that makes a keysym on a US keyboard; None if no key does."""
    if (found := _STROKES.get(keysym) or _CHARACTERS.get(keysym)) is not None:
        return found
    numeric = _NUMERIC.fullmatch(keysym)
    if numeric is None:
        return None
    number = int(numeric[1] or numeric[2], 16)
    if numeric[2] and number >= UNICODE:
        number -= UNICODE
    return _CHARACTERS.get(chr(number)) if number <= 0x7F else None
