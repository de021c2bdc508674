"""`displbe demo` where there is an X server, or only the name of one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from PIL import Image
from scenario.world import until
from sinks.x11.xvfb import User, Xvfb

COMMAND = [sys.executable, "-W", "error", "-m", "displbe", "demo"]


def environment(display: str) -> dict[str, str]:
    return {**os.environ, "DISPLAY": display}


async def test_window(xvfb: Xvfb, user: User, tmp_path: Path) -> None:
    """The guest's moving bars are in a window; the demonstration ends by itself, and its window with it."""
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
    """How many colours there are on the screen."""
    return len(user.picture().getcolors(1 << 24) or ())


@pytest.mark.parametrize("display", [":4711", "nonsense"])
def test_no_server(display: str, tmp_path: Path) -> None:
    """It says so, and there is a picture."""
    command = [*COMMAND, "--frames", "3", "--output", "demo.png"]
    done = subprocess.run(
        command, env=environment(display), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(f"no window: no X server at {display}")
    assert "demo.png" in done.stdout
    with Image.open(tmp_path / "demo.png") as image:
        assert image.size == (800, 600)
