"""Runs in Dom0: simulates input devices through /dev/uinput. Orders are lines of JSON on a FIFO:

* `{"do": "plug", "name": …, "kind": …, "called": the name that the device reports}`
* `{"do": "unplug", "name": …}`
* `{"do": "emit", "name": …, "frames": [[[type, code, value], …], …], "times": repetitions of all frames, "rate": frames per second or 0}`

For each order, one line is written to the log, with the seconds that the order took.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from evdev import AbsInfo, UInput
from evdev import ecodes as e

EVENT = struct.Struct("@llHHi")


def axis(code: int, maximum: int) -> tuple[int, AbsInfo]:
    """Return an absolute axis with values from 0 to `maximum`."""
    return code, AbsInfo(0, 0, maximum, 0, 0, 0)


MT = [
    axis(e.ABS_MT_POSITION_X, 4095),
    axis(e.ABS_MT_POSITION_Y, 4095),
    axis(e.ABS_MT_TRACKING_ID, 65535),
    axis(e.ABS_MT_TOUCH_MAJOR, 4095),
]
KINDS: dict[str, dict[int, Sequence[Any]]] = {
    "keyboard": {e.EV_KEY: list(range(1, 240)), e.EV_REP: []},
    "plain keyboard": {e.EV_KEY: list(range(1, 240))},
    "mouse": {
        e.EV_KEY: list(range(e.BTN_LEFT, e.BTN_TASK + 1)),
        e.EV_REL: [e.REL_X, e.REL_Y, e.REL_WHEEL, e.REL_HWHEEL, e.REL_WHEEL_HI_RES, e.REL_HWHEEL_HI_RES],
    },
    "tablet": {
        e.EV_KEY: [e.BTN_LEFT, e.BTN_RIGHT],
        e.EV_ABS: [axis(e.ABS_X, 32767), axis(e.ABS_Y, 32767)],
        e.EV_REL: [e.REL_WHEEL],
    },
    "touch": {e.EV_KEY: [e.BTN_TOUCH], e.EV_ABS: [axis(e.ABS_MT_SLOT, 4), *MT]},
    "touch A": {e.EV_KEY: [e.BTN_TOUCH], e.EV_ABS: MT[:2]},
}
devices: dict[str, UInput] = {}


def emit(name: str, frames: list[list[tuple[int, int, int]]], rate: float) -> None:
    """Write each frame at its time, with one write. `rate` is in frames per second; 0: without pauses."""
    fd = devices[name].fd
    begun = time.monotonic()
    for number, frame in enumerate(frames):
        if rate:
            wait = begun + number / rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
        os.write(fd, b"".join(EVENT.pack(0, 0, *event) for event in [*frame, (e.EV_SYN, e.SYN_REPORT, 0)]))


def execute(order: dict[str, Any]) -> None:
    """Execute an order."""
    name = order["name"]
    if order["do"] == "plug":
        devices[name] = UInput(KINDS[order["kind"]], name=order["called"])
    elif order["do"] == "unplug":
        devices.pop(name).close()
    else:
        emit(name, order["frames"] * order.get("times", 1), order["rate"])


def main(fifo: str) -> None:
    """Execute orders from the FIFO for ever."""
    if not os.path.exists(fifo):
        os.mkfifo(fifo)
    print("ready", flush=True)
    while True:
        with open(fifo) as commands:
            for line in commands:
                order = json.loads(line)
                begun = time.monotonic()
                execute(order)
                print(f"done {order['id']} {time.monotonic() - begun:.3f}", flush=True)


main(sys.argv[1])
