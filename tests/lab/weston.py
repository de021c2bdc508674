"""Weston in the lab's Dom0, as DRM master, with a choice of renderer and shell."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from lab.vm import LabError, Machine

__all__ = ["Weston", "weston"]

FOLDER = "/run/user/0"
SOCKET = f"{FOLDER}/wayland-lab"
LOG = "/var/log/weston.log"
INI = """
[core]
idle-time=0
{core}
[shell]
locking=false
[output]
name={output}
mode={mode}
{more}
"""

# The settings that Weston's own controller for ivi-shell requires. The controller places surfaces by their ids.
IVI = """
[ivi-shell]
ivi-shell-user-interface=/usr/libexec/weston-ivi-shell-user-interface
cursor-theme=default
cursor-size=32
base-layer-id=1000
base-layer-id-offset=10000
workspace-background-layer-id=2000
workspace-layer-id=3000
application-layer-id=4000
transition-duration=300
background-image=/usr/share/weston/background.png
background-id=1001
panel-image=/usr/share/weston/background.png
panel-id=1002
surface-id-offset=10
tiling-image=/usr/share/weston/tiling.png
tiling-id=1003
sidebyside-image=/usr/share/weston/sidebyside.png
sidebyside-id=1004
fullscreen-image=/usr/share/weston/fullscreen.png
fullscreen-id=1005
random-image=/usr/share/weston/random.png
random-id=1006
home-image=/usr/share/weston/home.png
home-id=1007
workspace-background-color=0x99000000
workspace-background-id=2001
"""


class Weston:
    """A running Weston, which can be ended and started again."""

    def __init__(self, machine: Machine, renderer: str, shell: str, output: str, mode: str, more: str) -> None:
        self.machine = machine
        self.output = output
        core = "modules=hmi-controller.so" if shell == "ivi" else ""
        more = IVI if shell == "ivi" else more
        machine.put("/etc/weston.ini", INI.format(core=core, output=output, mode=mode, more=more))
        self._command = (
            f"export XDG_RUNTIME_DIR={FOLDER} LIBSEAT_BACKEND=noop; exec weston --backend=drm --renderer={renderer}"
            f" --drm-device=card0 --continue-without-input --shell={shell} --socket=wayland-lab --config=/etc/weston.ini"
        )
        self._group: int | None = None

    def start(self) -> None:
        """Start Weston, and wait until it listens."""
        machine = self.machine
        machine.check(f"mkdir -p -m 700 {FOLDER}; rm -f {SOCKET}; mkdir -p /tmp/.X11-unix")
        if machine.run("test -e /run/udev/control").code != 0:
            machine.check("/usr/lib/systemd/systemd-udevd --daemon; udevadm trigger; udevadm settle", 90)
        self._group = machine.start(self._command, LOG)
        machine.wait_for(
            lambda: machine.run(f"test -S {SOCKET}").code == 0 or not self.running, 60, why="Weston's socket"
        )
        if not self.running:
            raise LabError(f"Weston did not start:\n{self.log}")

    @property
    def running(self) -> bool:
        return self._group is not None and self.machine.running(self._group)

    @property
    def pid(self) -> int:
        assert self._group is not None
        return self._group

    @property
    def log(self) -> str:
        return self.machine.run(f"cat {LOG}").output

    def kill(self, signal: str = "KILL") -> None:
        """End it."""
        if self._group is not None:
            self.machine.stop(self._group, signal)
            self._group = None

    def signal(self, name: str) -> None:
        """Send Weston a signal."""
        self.machine.check(f"kill -{name} {self.pid}")

    def mappings(self) -> int:
        """Return the number of guests' buffers that Weston maps."""
        return int(self.machine.run(f"grep -c xen/gntdev /proc/{self.pid}/maps").output)

    def imports(self) -> int:
        """Return the number of dma-bufs that gntdev has exported."""
        return len(re.findall("xen_gntdev", self.machine.run("cat /sys/kernel/debug/dma_buf/bufinfo").output))


@contextlib.contextmanager
def weston(
    machine: Machine, *, renderer: str = "pixman", shell: str = "kiosk", mode: str = "1024x768", more: str = ""
) -> Iterator[Weston]:
    """Run Weston on the first card while the block lasts."""
    made = Weston(machine, renderer, shell, next(iter(machine.connectors())), mode, more)
    made.start()
    try:
        yield made
    finally:
        made.kill("TERM" if made.running else "KILL")
