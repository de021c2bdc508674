"""The names of keys in linux/input-event-codes.h, in lower case and without `KEY_`."""

from __future__ import annotations

from typing import Final

__all__ = ["KEY_CODES"]

_NAMES: Final = """
esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p leftbrace rightbrace enter leftctrl a s d f g h j k l semicolon
apostrophe grave leftshift backslash z x c v b n m comma dot slash rightshift kpasterisk leftalt space capslock f1 f2 f3 f4 f5 f6 f7 f8
f9 f10 numlock scrolllock kp7 kp8 kp9 kpminus kp4 kp5 kp6 kpplus kp1 kp2 kp3 kp0 kpdot - zenkakuhankaku 102nd f11 f12 ro katakana hiragana
henkan katakanahiragana muhenkan kpjpcomma kpenter rightctrl kpslash sysrq rightalt linefeed home up pageup left right end down pagedown
insert delete macro mute volumedown volumeup power kpequal kpplusminus pause scale kpcomma hangeul hanja yen leftmeta rightmeta compose stop
again props undo front copy open paste find cut help menu calc setup sleep wakeup file sendfile deletefile xfer prog1 prog2 www msdos coffee
rotate_display cyclewindows mail bookmarks computer back forward closecd ejectcd ejectclosecd nextsong playpause previoussong stopcd record
rewind phone iso config homepage refresh exit move edit scrollup scrolldown kpleftparen kprightparen new redo f13 f14 f15 f16 f17 f18 f19
f20 f21 f22 f23 f24
"""
"""The names in the order of their codes, from 1 (KEY_ESC) to 194 (KEY_F24); `-` where there is no name."""

KEY_CODES: Final = {name: code for code, name in enumerate(_NAMES.split(), 1) if name != "-"}
"""The code of each name."""
