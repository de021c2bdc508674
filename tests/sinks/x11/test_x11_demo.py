"""`displbe demo` with a running X server or Wayland compositor, and with the name of one that does not run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trio
from PIL import Image
from scenario.world import until
from sinks.x11.xvfb import User, Xvfb

COMMAND = [sys.executable, "-W", "error", "-m", "displbe", "demo"]


def environment(display: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    return {**others, "DISPLAY": display}


async def test_window(xvfb: Xvfb, user: User, tmp_path: Path) -> None:
    """A window shows the guest's moving bars; it is closed when the demonstration ends by itself."""
    command = [*COMMAND, "--frames", "90"]
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process, command, env=environment(xvfb.display), cwd=tmp_path, capture_stdout=True, check=True
        )
        done: list[subprocess.CompletedProcess[bytes]] = []

        async def run() -> None:
            done.append(await start())

        nursery.start_soon(run)
        await until(lambda: colours(user) > 6, 20)
    assert b"90 frames of 800x600 flipped; the window is closed" in done[0].stdout
    assert not (tmp_path / "displbe-demo.png").exists()
    await until(lambda: not user.windows())


def colours(user: User) -> int:
    """Return the number of colours on the screen."""
    return len(user.picture().getcolors(1 << 24) or ())


@pytest.mark.parametrize("display", [":4711", "nonsense"])
def test_no_server(display: str, tmp_path: Path) -> None:
    """The demonstration says that there is no window, and writes a picture."""
    command = [*COMMAND, "--frames", "3", "--output", "demo.png"]
    done = subprocess.run(
        command, env=environment(display), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(f"no window: no X server at {display}")
    assert "demo.png" in done.stdout
    with Image.open(tmp_path / "demo.png") as image:
        assert image.size == (800, 600)


def test_wayland(tmp_path: Path) -> None:
    """The demonstration opens a window on the running compositor."""
    tmp_path.chmod(0o700)
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["weston", "--backend=headless-backend.so", "--socket=wayland-demo", "--idle-time=0", "--no-config"]
    with open(tmp_path / "weston.log", "wb") as log:
        weston = subprocess.Popen(command, env={**environment(""), **runtime}, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while not (tmp_path / "wayland-demo").exists() and weston.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        done = subprocess.run(
            [*COMMAND, "--frames", "30"],
            env={**environment(""), **runtime, "WAYLAND_DISPLAY": "wayland-demo"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        weston.terminate()
        weston.wait()
    assert done.returncode == 0, done.stderr + (tmp_path / "weston.log").read_text()
    assert "30 frames of 800x600 flipped; the window is closed" in done.stdout
    assert '"event": "output on"' in done.stderr


def test_no_compositor(tmp_path: Path) -> None:
    """The demonstration says that there is no window, and writes a picture."""
    names = {"XDG_RUNTIME_DIR": str(tmp_path), "WAYLAND_DISPLAY": "wayland-7"}
    done = subprocess.run(
        [*COMMAND, "--frames", "3"],
        env={**environment(""), **names},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(f"no window: {tmp_path}/wayland-7: ")
    assert (tmp_path / "displbe-demo.png").exists()
