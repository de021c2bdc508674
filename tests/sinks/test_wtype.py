"""wtype types into a guest's window on sway: the keys of a virtual keyboard with its own keymap. Skipped where they are not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from scenario.world import until
from sinks.window_guest import on_compositor, show_bars, window_guest

from displbe.wire import kbdif

pytestmark = pytest.mark.skipif(
    shutil.which("wtype") is None or (shutil.which("sway") is None and "DISPLBE_SWAY" not in os.environ),
    reason="sway and wtype are not installed",
)
SIZE = 640, 480
TEXT = "hello, World! {42}"
LETTERS = dict(zip("helowrd42", (35, 18, 38, 24, 17, 19, 32, 5, 3), strict=True))
OTHERS = {" ": (57,), ",": (51,), "!": (42, 2), "{": (42, 26), "}": (42, 27)}


NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that sway can use. It refuses to run as root, and pytest's own directories are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="displbe-sway-") as name:
        (Path(name) / "config").write_text("output * resolution 1024x768\n")
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


async def test_text_that_wtype_types(folder: Path) -> None:
    """DISPLBE_SWAY names the socket of a sway that runs already."""
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(folder),
        "WLR_BACKENDS": "headless",
        "WLR_RENDERER": "pixman",
        "WLR_LIBINPUT_NO_DEVICES": "1",
    }
    socket = Path(os.environ.get("DISPLBE_SWAY", folder / "wayland-1"))
    sway = None
    if "DISPLBE_SWAY" not in os.environ:
        command = ["sway", "-c", str(folder / "config")]
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
        sway = await trio.lowlevel.open_process(command, env=environment, stderr=subprocess.DEVNULL, **user)
    try:
        await until(socket.exists)
        await _type(folder, environment | {"WAYLAND_DISPLAY": str(socket)}, socket)
    finally:
        if sway is not None:
            sway.terminate()
            await sway.wait()


async def _type(folder: Path, environment: dict[str, str], socket: Path) -> None:
    async with window_guest(folder, on_compositor(socket), "HEADLESS-1", SIZE, "K:HEADLESS-1") as guest:
        await show_bars(guest, SIZE)
        await trio.sleep(1)
        # Without a real keyboard, the seat has one only while wtype runs, and clients need a moment to ask for it.
        await trio.run_process(["wtype", "-s", "500", TEXT], env=environment)
        await trio.run_process(["wtype", "-s", "500", "-M", "ctrl", "-k", "c", "-m", "ctrl"], env=environment)
        await until(lambda: guest.input.events and kbdif.Key(0, 46) in guest.input.events and not guest.input.pressed)
        down: list[int] = []
        typed = []
        for event in guest.input.events:
            if isinstance(event, kbdif.Key) and event.pressed:
                down.append(event.keycode)
                if event.keycode not in (29, 42):
                    typed.append((*(code for code in down if code in (29, 42)), event.keycode))
            elif isinstance(event, kbdif.Key):
                down.remove(event.keycode)
        expected = [
            OTHERS.get(character) or ((42,) if character.isupper() else ()) + (LETTERS[character.lower()],)
            for character in TEXT
        ]
        assert typed == [*expected, (29, 46)]
