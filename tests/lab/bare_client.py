"""A full-screen Wayland client that draws nothing; runs in Dom0 as `bare_client.py WIDTH HEIGHT FRAMES`.

It commits two buffers in turn, each as soon as the compositor asks for a frame, and prints how many frames per second the compositor
has asked for.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from pywayland.client import Display
from pywayland.protocol.wayland import WlCompositor, WlShm

from displbe.sinks.wayland.protocol.xdg_shell import XdgWmBase

WIDTH, HEIGHT, FRAMES = map(int, sys.argv[1:])
WARM_UP = 10
bound: dict[str, Any] = {}
times: list[float] = []


def on_global(registry: Any, number: int, interface: str, version: int) -> None:
    kinds = {"wl_compositor": (WlCompositor, 4), "wl_shm": (WlShm, 1), "xdg_wm_base": (XdgWmBase, 1)}
    if interface in kinds:
        kind, wanted = kinds[interface]
        bound[interface] = registry.bind(number, kind, wanted)


display = Display()
display.connect()
registry = display.get_registry()
registry.dispatcher["global"] = on_global
display.roundtrip()
bound["xdg_wm_base"].dispatcher["ping"] = lambda base, serial: base.pong(serial)

size = WIDTH * HEIGHT * 4
fd = os.memfd_create("frames")
os.ftruncate(fd, 2 * size)
pool = bound["wl_shm"].create_pool(fd, 2 * size)
buffers = [pool.create_buffer(n * size, WIDTH, HEIGHT, WIDTH * 4, WlShm.format.xrgb8888.value) for n in (0, 1)]
surface = bound["wl_compositor"].create_surface()
xdg_surface = bound["xdg_wm_base"].get_xdg_surface(surface)
toplevel = xdg_surface.get_toplevel()
toplevel.set_fullscreen(None)
callbacks: list[Any] = []


def frame(*_: Any) -> None:
    times.append(time.monotonic())
    callback = surface.frame()
    callback.dispatcher["done"] = frame
    callbacks[:] = [callback]
    surface.attach(buffers[len(times) % 2], 0, 0)
    surface.damage(0, 0, WIDTH, HEIGHT)
    surface.commit()
    display.flush()


def configured(_: Any, serial: int) -> None:
    xdg_surface.ack_configure(serial)
    if not times:
        frame()


xdg_surface.dispatcher["configure"] = configured
surface.commit()
display.flush()
while len(times) < WARM_UP + FRAMES:
    display.dispatch(block=True)
rate = FRAMES / (times[-1] - times[WARM_UP - 1])
print(f"{rate:.1f}")
display.disconnect()
