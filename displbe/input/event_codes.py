"""Event types and codes of linux/input-event-codes.h, and the input property that marks a touchpad (linux/input.h)."""

from __future__ import annotations

from typing import Final

# Event types
EV_SYN: Final = 0
EV_KEY: Final = 1
EV_REL: Final = 2
EV_ABS: Final = 3
EV_LED: Final = 0x11
EV_REP: Final = 0x14

# EV_SYN
SYN_REPORT: Final = 0
SYN_MT_REPORT: Final = 2
SYN_DROPPED: Final = 3

# EV_KEY
KEY_ESC: Final = 1
KEY_CAPSLOCK: Final = 58
KEY_NUMLOCK: Final = 69
KEY_SCROLLLOCK: Final = 70
KEY_UNKNOWN: Final = 240
BTN_MISC: Final = 0x100
BTN_LEFT: Final = 0x110
BTN_TASK: Final = 0x117
BTN_TOOL_PEN: Final = 0x140
BTN_TOOL_FINGER: Final = 0x145
BTN_TOOL_QUINTTAP: Final = 0x148
BTN_TOUCH: Final = 0x14A
BTN_TOOL_DOUBLETAP: Final = 0x14D
BTN_TOOL_TRIPLETAP: Final = 0x14E
BTN_TOOL_QUADTAP: Final = 0x14F
KEY_OK: Final = 0x160
KEY_MAX: Final = 0x2FF

# EV_REL
REL_X: Final = 0
REL_Y: Final = 1
REL_WHEEL: Final = 8
REL_WHEEL_HI_RES: Final = 11

# EV_ABS
ABS_X: Final = 0
ABS_Y: Final = 1
ABS_MT_SLOT: Final = 47
ABS_MT_TOUCH_MAJOR: Final = 48
ABS_MT_TOUCH_MINOR: Final = 49
ABS_MT_ORIENTATION: Final = 52
ABS_MT_POSITION_X: Final = 53
ABS_MT_POSITION_Y: Final = 54
ABS_MT_TRACKING_ID: Final = 57

# EV_LED
LED_NUML: Final = 0
LED_CAPSL: Final = 1
LED_SCROLLL: Final = 2

INPUT_PROP_POINTER: Final = 0
