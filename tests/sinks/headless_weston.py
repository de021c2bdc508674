"""A real Weston without a screen, on this machine. Tests start, stop and end it, and take screenshots."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import trio
from PIL import Image

__all__ = ["IVI", "Weston", "version", "weston"]

PLAIN: Final = """
[shell]
startup-animation=none
close-animation=none
animation=none
locking=false
"""
"""A desktop without animations, which shows windows at once."""

IVI: Final = """
[core]
shell=ivi-shell.so
modules=hmi-controller.so
[ivi-shell]
ivi-shell-user-interface={interface}
cursor-theme=default
cursor-size=32
base-layer-id=1000
base-layer-id-offset=10000
workspace-background-layer-id=2000
workspace-layer-id=3000
application-layer-id=4000
transition-duration=10
background-image={image}
background-id=1001
panel-image={image}
panel-id=1002
surface-id-offset=10
tiling-image={image}
tiling-id=1003
sidebyside-image={image}
sidebyside-id=1004
fullscreen-image={image}
fullscreen-id=1005
random-image={image}
random-id=1006
home-image={image}
home-id=1007
workspace-background-color=0x99000000
workspace-background-id=2001
"""
"""The configuration that Weston's controller for ivi-shell requires."""


def version() -> int:
    """Return Weston's major version. Options have other names since 12."""
    said = subprocess.run(["weston", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"weston (\d+)", said)
    assert found is not None
    return int(found[1])


class Weston:
    """Weston with a screen of 1024x768 named `headless`, or as a window on an X server. It can be ended and started again.

    Weston has a seat only on an X server: the X server's keyboard and pointer.
    """

    def __init__(self, folder: Path, ini: str = PLAIN, renderer: str = "pixman", display: str = "") -> None:
        """`display` is the X server's display; empty: without an X server."""
        self.folder = folder
        self.socket = folder / "wayland-test"
        self._process: trio.Process | None = None
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "WAYLAND_DISPLAY": "wayland-test"}
        self._display = {"DISPLAY": display} if display else {}
        kind = "x11" if display else "headless"
        self._log = folder / "weston.log"
        new = version() >= 12
        images = sorted(Path("/usr/share/weston").glob("*.png"))
        interface = next(Path("/usr").glob("lib*/**/weston-ivi-shell-user-interface"), "")
        config = folder / "weston.ini"
        config.write_text(ini.format(image=images[0] if images else "", interface=interface))
        self._command = [
            "weston",
            f"--backend={kind}{'' if new else '-backend.so'}",
            f"--renderer={renderer}" if new else f"--use-{renderer}",
            "--width=1024",
            "--height=768",
            "--socket=wayland-test",
            "--idle-time=0",
            "--debug",
            f"--config={config}",
        ]

    async def start(self) -> None:
        """Start Weston, and return when it listens."""
        self.socket.unlink(missing_ok=True)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        try:
            self._process = await trio.lowlevel.open_process(
                self._command, env=self._environment | self._display, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        finally:
            os.close(log)
        with trio.fail_after(60):
            while not self.socket.exists():
                assert self._process.poll() is None, self._log.read_text()
                await trio.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send Weston a signal."""
        os.kill(self.pid, number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            with trio.CancelScope(shield=True):
                await self._process.wait()
            self._process = None

    async def screenshot(self) -> Image.Image:
        """Return a picture of Weston's screen."""
        for old in self.folder.glob("wayland-screenshot*.png"):
            old.unlink()
        with trio.fail_after(60):
            await trio.run_process(["weston-screenshooter"], cwd=self.folder, env=self._environment)
        (made,) = self.folder.glob("wayland-screenshot*.png")
        with Image.open(made) as picture:
            return picture.convert("RGB")

    def mapped(self, what: str) -> int:
        """Return the number of Weston's mappings of files of this name."""
        return sum(what in line for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines())

    def files(self) -> int:
        """Return the number of files that Weston has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextlib.asynccontextmanager
async def weston(folder: Path, ini: str = PLAIN, renderer: str = "pixman", display: str = "") -> AsyncIterator[Weston]:
    """Run Weston while the block lasts."""
    made = Weston(folder, ini, renderer, display)
    await made.start()
    try:
        yield made
    finally:
        await made.end()
