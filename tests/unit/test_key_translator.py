"""Key codes of keyboards with a keymap of their own, as wtype and other clients of zwp_virtual_keyboard_v1 make them."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import string
import time
from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.wayland.key_translator import ALT, CONTROL, LEVEL3, LOCK, SHIFT, SUPER, KeyTranslator
from displbe.sinks.wayland.keymap import MAX_SIZE, Keymap, read_keymap
from displbe.sinks.wayland.us_layout import ALPHANUMERIC

PRINTABLE: Final = string.ascii_letters + string.digits + string.punctuation + " "
NAMES: Final = {
    " ": "space", "!": "exclam", '"': "quotedbl", "#": "numbersign", "$": "dollar", "%": "percent", "&": "ampersand",
    "'": "apostrophe", "(": "parenleft", ")": "parenright", "*": "asterisk", "+": "plus", ",": "comma", "-": "minus",
    ".": "period", "/": "slash", ":": "colon", ";": "semicolon", "<": "less", "=": "equal", ">": "greater", "?": "question",
    "@": "at", "[": "bracketleft", "\\": "backslash", "]": "bracketright", "^": "asciicircum", "_": "underscore", "`": "grave",
    "{": "braceleft", "|": "bar", "}": "braceright", "~": "asciitilde",
}  # fmt: skip
UNSHIFTED: Final = dict(
    zip(
        "`1234567890-=qwertyuiop[]asdfghjkl;'\\zxcvbnm,./ ",
        (41, *range(2, 14), *range(16, 28), *range(30, 41), 43, *range(44, 54), 57),
        strict=True,
    )
)
SHIFTED: Final = dict(zip('~!@#$%^&*()_+{}:"|<>?', "`1234567890-=[];'\\,./", strict=True))


def wtype_keymap(keysyms: Iterable[str]) -> str:
    """Return a keymap with a key for each keysym, numbered from 1, in the form of wtype's."""
    keysyms = list(keysyms)
    names = "".join(f"<K{number}> = {number + 8};\n" for number in range(1, len(keysyms) + 1))
    keys = "".join(f"key <K{number}> {{[{keysym}]}};\n" for number, keysym in enumerate(keysyms, 1))
    return (
        f'xkb_keymap {{\nxkb_keycodes "(unnamed)" {{\nminimum = 8;\nmaximum = {len(keysyms) + 9};\n{names}}};\n'
        'xkb_types "(unnamed)" { include "complete" };\nxkb_compatibility "(unnamed)" { include "complete" };\n'
        f'xkb_symbols "(unnamed)" {{\n{keys}}};\n}};\n'
    )


class _Names(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("rules", "model", "layout", "variant", "options")]


class Xkb:
    """libxkbcommon, which compositors use: it makes the text that they send to clients."""

    def __init__(self) -> None:
        found = ctypes.util.find_library("xkbcommon")
        if found is None:
            pytest.skip("libxkbcommon is not installed")
        self._library = ctypes.CDLL(found)
        for name in ("xkb_context_new", "xkb_keymap_new_from_string", "xkb_keymap_new_from_names"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.xkb_keymap_get_as_string.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.xkb_context_new(0))

    def compiled(self, text: str) -> str:
        """Return the text that a compositor sends for a keymap that it got."""
        return self._text(self._library.xkb_keymap_new_from_string(self._context, text.encode(), 1, 0))

    def layout(self, layout: str, variant: str = "") -> str:
        """Return the text of an ordinary keyboard's keymap."""
        names = _Names(b"evdev", b"pc105", layout.encode(), variant.encode(), b"")
        return self._text(self._library.xkb_keymap_new_from_names(self._context, ctypes.byref(names), 0))

    def _text(self, keymap: int | None) -> str:
        assert keymap
        return str(self._library.xkb_keymap_get_as_string(ctypes.c_void_p(keymap), 1).decode())


@pytest.fixture(scope="module")
def xkb() -> Xkb:
    return Xkb()


def read(text: str | bytes) -> Keymap | None:
    """Read a keymap from a memfd, as a compositor sends it: with a NUL at the end."""
    content = (text.encode() if isinstance(text, str) else text) + b"\0"
    fd = os.memfd_create("keymap")
    try:
        os.write(fd, content)
        return read_keymap(fd, len(content))
    finally:
        os.close(fd)


class Typist:
    """A keyboard with a keymap, and a guest with a US keyboard that gets its keys."""

    def __init__(self, keymap: Keymap | None) -> None:
        self.ignored: list[str] = []
        self.down: list[int] = []
        """Keys that are down in the guest, in order."""
        self.pressed: list[tuple[int, ...]] = []
        """At each press of a key that is no modifier: the modifiers that are down, and the key."""
        self.translator = KeyTranslator(self.ignored.append)
        self.use(keymap)

    def _get(self, events: Iterable[tuple[int, bool]]) -> None:
        for code, down in events:
            if down:
                assert code not in self.down
                if code not in (29, 42, 54, 56, 125):
                    self.pressed.append((*sorted(set(self.down) & {29, 42, 54, 56, 125}), code))
                self.down.append(code)
            else:
                self.down.remove(code)

    def use(self, keymap: Keymap | None) -> None:
        self._get(self.translator.set_keymap(keymap))

    def key(self, code: int, down: bool) -> None:
        self._get(self.translator.key(code, down))

    def tap(self, code: int) -> None:
        self.key(code, True)
        self.key(code, False)


def us_key(character: str) -> tuple[int, ...]:
    """Return Shift (42) if it is needed, and the code of the key that makes a character on a US keyboard."""
    plain = SHIFTED.get(character, character.lower())
    return (UNSHIFTED[plain],) if plain == character else (42, UNSHIFTED[plain])


@given(text=st.text(PRINTABLE, min_size=1, max_size=30), numeric=st.booleans())
def test_text_that_wtype_types(text: str, numeric: bool) -> None:
    different = list(dict.fromkeys(text))
    keysyms = [f"U{ord(character):04X}" if numeric else NAMES.get(character, character) for character in different]
    typist = Typist(read(wtype_keymap(keysyms)))
    for character in text:
        typist.tap(different.index(character) + 1)
    assert typist.pressed == [us_key(character) for character in text]
    assert (typist.down, typist.ignored) == ([], [])


def test_hello_as_a_compositor_passes_it_on(xkb: Xkb) -> None:
    """`wtype hello` gave Escape 1 2 2 3."""
    keymap = read(xkb.compiled(wtype_keymap("helo")))
    typist = Typist(keymap)
    for code in (1, 2, 3, 3, 4):
        typist.tap(code)
    assert typist.pressed == [(35,), (18,), (38,), (38,), (24,)]


def test_the_compiled_text_has_the_same_keys(xkb: Xkb) -> None:
    keysyms = [
        *(NAMES.get(character, character) for character in PRINTABLE),
        "Return",
        "U20AC",
        "XF86AudioMute",
        "Cyrillic_a",
    ]
    text = wtype_keymap(keysyms)
    plain, compiled = read(text), read(xkb.compiled(text))
    assert plain is not None
    assert compiled is not None
    assert {code: key.layouts[0][0] for code, key in plain.keys.items()} == dict(enumerate(keysyms, 1))
    assert {code: key.layouts[0][0] for code, key in compiled.keys.items()} == dict(enumerate(keysyms, 1))


@pytest.mark.parametrize(
    ("layout", "variant"),
    [("us", ""), ("de", ""), ("fr", "bepo"), ("us", "dvorak"), ("ru", ""), ("jp", ""), ("us,ru,de,gr", "")],
)
def test_an_ordinary_keyboard_passes_through(xkb: Xkb, layout: str, variant: str) -> None:
    assert read(xkb.layout(layout, variant)) is None


@given(codes=st.lists(st.integers(0, 0x2FF)))
def test_codes_of_linux_are_unchanged(codes: list[int]) -> None:
    typist = KeyTranslator(pytest.fail)
    for code in codes:
        for down in (True, False):
            assert list(typist.key(code, down)) == [(code, down)]


def test_another_numbering_of_an_ordinary_keyboard(xkb: Xkb) -> None:
    """The keys are named as usual and numbered otherwise; the symbols are those of a US keyboard, with levels."""
    shifted = xkb.layout("us")
    start = shifted.index("xkb_keycodes")
    end = shifted.index("xkb_types")
    names = [*ALPHANUMERIC, "LFSH", "RALT"]
    keycodes = "".join(f"<{name}> = {number};\n" for number, name in enumerate(names, 100))
    typist = Typist(read(shifted[:start] + f"xkb_keycodes {{\n{keycodes}}};\n" + shifted[end:]))
    places = {name: number - 8 for number, name in enumerate(names, 100)}
    typist.tap(places["AD01"])
    typist.key(places["LFSH"], True)
    typist.translator.set_modifiers(SHIFT, 0, 0)
    typist.tap(places["AD02"])
    typist.tap(places["AE01"])
    typist.key(places["LFSH"], False)
    typist.translator.set_modifiers(0, LOCK, 0)
    typist.tap(places["AD02"])
    typist.tap(places["AE01"])
    assert typist.pressed == [(16,), (42, 17), (42, 2), (42, 17), (2,)]
    assert typist.down == []


def test_modifiers_without_keys() -> None:
    """`wtype -M ctrl -M alt c` presses no key for the modifiers."""
    typist = Typist(read(wtype_keymap(["c", "Left"])))
    typist.translator.set_modifiers(CONTROL | ALT, 0, 0)
    typist.tap(1)
    typist.translator.set_modifiers(SUPER | SHIFT, 0, 0)
    typist.tap(2)
    assert typist.pressed == [(29, 56, 46), (42, 125, 105)]
    assert typist.down == []


def test_shift_that_the_symbol_does_not_need() -> None:
    """On a French keyboard, Shift makes the digit."""
    text = wtype_keymap(["Shift_L", "ampersand, 1", "a, A"])
    typist = Typist(read(text))
    typist.key(1, True)
    typist.translator.set_modifiers(SHIFT, 0, 0)
    typist.key(2, True)
    assert typist.pressed == [(2,)]
    typist.key(2, False)
    assert typist.down == [42], "Shift is down again, as on the keyboard"
    typist.tap(3)
    typist.key(1, False)
    typist.translator.set_modifiers(0, 0, 0)
    typist.tap(2)
    assert typist.pressed == [(2,), (42, 30), (42, 8)]
    assert typist.down == []


def test_a_press_without_a_release() -> None:
    """With Shift the key has another symbol: the first one is released."""
    typist = Typist(read(wtype_keymap(["a, 1"])))
    typist.key(1, True)
    typist.translator.set_modifiers(SHIFT, 0, 0)
    typist.key(1, True)
    assert typist.down == [2]
    typist.key(1, False)
    assert (typist.pressed, typist.down) == ([(30,), (2,)], [])


def test_levels_and_layouts() -> None:
    keys = """key <A> { [ a, A, at, exclam ] };
key <B> { type= "X", symbols[Group1]= [ b ], symbols[Group2]= [ { c, d }, C ], actions[Group1]= [ NoAction() ] };"""
    typist = Typist(read(f'xkb_keymap {{ xkb_keycodes {{ <A> = 9; <B> = 10; }}; xkb_symbols "x" {{ {keys} }}; }};'))
    for down in (0, SHIFT, LEVEL3, SHIFT | LEVEL3):
        typist.translator.set_modifiers(down, 0, 0)
        typist.tap(1)
    typist.translator.set_modifiers(0, 0, 1)
    typist.tap(2)
    assert typist.pressed == [(30,), (42, 30), (42, 3), (42, 2), (46,)]


def test_symbols_that_no_us_keyboard_has() -> None:
    typist = Typist(read(wtype_keymap(["Cyrillic_a", "U1F600", "NoSymbol", "0x10020ac", "0x1000061"])))
    for code in (1, 2, 3, 4, 5, 6):
        typist.tap(code)
    assert typist.pressed == [(30,)]
    assert typist.ignored == ["Cyrillic_a", "U1F600", "NoSymbol", "0x10020ac", "code 6"]


def test_a_named_key_without_a_us_symbol_is_the_key_at_its_place() -> None:
    """A Cyrillic keyboard, numbered from 1: the guest's own layout makes the letter."""
    text = "xkb_keymap { xkb_keycodes { <AD01> = 9; }; xkb_symbols { key <AD01> { [ Cyrillic_shorti, Cyrillic_SHORTI ] }; }; };"
    typist = Typist(read(text))
    typist.translator.set_modifiers(SHIFT, 0, 0)
    typist.tap(1)
    assert typist.pressed == [(42, 16)]


def test_keyboards_in_turns() -> None:
    """A real keyboard and a virtual one on the same seat: the compositor sends the keymap of the one that is used."""
    virtual = read(wtype_keymap("hA"))
    typist = Typist(None)
    typist.key(35, True)
    typist.use(virtual)
    typist.tap(2)
    typist.key(1, True)
    assert typist.pressed == [(35,), (42, 30), (35,)], "h is pressed again: it is down on the other keyboard"
    typist.use(None)
    assert typist.down == [], "the virtual keyboard's keys do not outlast its keymap"
    typist.tap(1)
    assert typist.pressed[-1] == (1,), "Escape again"


def test_shift_that_is_let_go_while_it_is_lifted() -> None:
    """Shift of a real keyboard, released or taken over while a key of a virtual one needs it up."""
    virtual = read(wtype_keymap(["h", "Shift_L"]))
    for taken_over in (False, True):
        typist = Typist(None)
        typist.key(42, True)
        typist.use(virtual)
        typist.key(1, True)
        assert typist.down == [35]
        if taken_over:
            typist.key(2, True)
        typist.key(42, False)
        if taken_over:
            typist.key(2, False)
        typist.key(1, False)
        assert typist.down == []


@given(
    acts=st.lists(
        st.one_of(
            st.tuples(st.just("key"), st.integers(0, 8), st.booleans()),
            st.tuples(st.just("modifiers"), st.integers(0, 255), st.booleans()),
            st.tuples(st.just("keymap"), st.integers(0, 2), st.booleans()),
        ),
        max_size=40,
    )
)
def test_nothing_sticks(acts: list[tuple[str, int, bool]]) -> None:
    """Whatever a keyboard does: when all its keys are up, all keys of the guest are up."""
    keymaps = [
        None,
        read(wtype_keymap(["h", "H", "Shift_L", "Control_L", "1, exclam", "a, 2", "Left"])),
        read(wtype_keymap("xYz")),
    ]
    down: set[int] = set()
    guest: set[int] = set()
    translator = KeyTranslator(lambda keysym: None)

    def get(events: Iterable[tuple[int, bool]]) -> None:
        for code, pressed in events:
            (guest.add if pressed else guest.discard)(code)

    for act, number, flag in acts:
        match act:
            case "key":
                (down.add if flag else down.discard)(number)
                get(translator.key(number, flag))
            case "modifiers":
                translator.set_modifiers(number, 255 * flag, 0)
            case "keymap":
                get(translator.set_keymap(keymaps[number]))
    for number in down:
        get(translator.key(number, False))
    get(translator.set_keymap(None))
    for number in range(9):
        get(translator.key(number, False))
    assert guest == set()


@given(
    content=st.one_of(
        st.binary(max_size=300), st.text(alphabet='xkb_keycodessymbols{}[]<>=;,"\\/# \n1Ka', max_size=300)
    )
)
def test_any_keymap(content: bytes | str) -> None:
    text = content if isinstance(content, bytes) else f"xkb_keycodes {{ <K1> = 9; {content}"
    try:
        keymap = read(text)
    except ValueError:
        return
    if keymap is not None:
        typist = KeyTranslator(lambda keysym: None)
        list(typist.set_keymap(keymap))
        list(typist.key(1, True))


@pytest.mark.parametrize(
    "filler", ['"\\"', '"\\', "[", "[]", "{", "<a>", "//", "xkb_symbols ", "key <K1> { ", "key <K1> {[a]};", "{ a", ","]
)
def test_a_large_keymap_is_read_in_time(filler: str) -> None:
    """A compositor that has been broken into sends a quarter of a megabyte of anything."""
    text = "xkb_keymap { xkb_keycodes { <K1> = 9; }; xkb_symbols { "
    text += filler * ((MAX_SIZE - len(text) - 1) // len(filler))
    began = time.process_time()
    with contextlib.suppress(ValueError):
        read(text)
    assert time.process_time() - began < 1


def test_files_that_are_not_read() -> None:
    with open("/dev/null", "rb") as null, pytest.raises(ValueError, match="not in shared memory"):
        read_keymap(null.fileno(), 100)
    ends = os.pipe()
    with pytest.raises(ValueError, match=r"not in shared memory|Illegal seek"):
        read_keymap(ends[0], 100)
    for end in ends:
        os.close(end)
    fd = os.memfd_create("keymap")
    for size in (0, MAX_SIZE + 1, 0xFFFFFFFF):
        with pytest.raises(ValueError, match=f"it has {size} bytes"):
            read_keymap(fd, size)
    with pytest.raises(ValueError, match="no key codes"):
        read_keymap(fd, 4096)  # it shrank
    os.close(fd)
