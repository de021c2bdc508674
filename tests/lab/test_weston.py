"""Linux guests as windows of a real Weston in Dom0: without a copy, with its software renderers, its shells, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from lab.backend import Backend, Held, backend, no_zombie, screens
from lab.pictures import Picture
from lab.vm import Machine, guest_config
from lab.weston import SOCKET, Weston, weston


def config(wayland: str = "") -> str:
    """displbe's configuration."""
    return f'sink = "wayland"\n[log]\nlevel = "debug"\n[wayland]\ndisplay = "{SOCKET}"\n{wayland}\n'


@pytest.fixture(scope="module")
def pictures(reference: Callable[..., Picture]) -> tuple[Picture, Picture]:
    """What modetest draws, and what it flips to: drawn before Weston takes the card."""
    return reference(), reference(pattern="plain")


@pytest.fixture(autouse=True)
def _guests(machine: Machine) -> Iterator[None]:
    """No guest is left; nor are its pages."""
    yield
    for name in ("one", "two", "hostile"):
        machine.destroy(name)
    no_zombie(machine)


def screen(machine: Machine, mode: str = "1024x768") -> str:
    """A guest's vdispl line for Weston's output."""
    return screens(next(iter(machine.connectors())), mode)


def way(displbe: Backend) -> str:
    """The way that the last framebuffer went."""
    return str(displbe.events("framebuffer attached")[-1]["way"])


def released(displbe: Backend, compositor: Weston, idle: Held) -> None:
    """Nothing of a guest's is held by displbe or by Weston."""
    machine = displbe.machine
    machine.wait_for(lambda: displbe.held() == idle, 20, why=f"everything released: {idle}")
    machine.wait_for(lambda: compositor.mappings() == 0, 10, why="Weston's mappings of guests' pages to end")


def test_picture(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """What a guest draws is what the monitor shows, and Weston maps the guest's own pages."""
    with weston(machine) as compositor, backend(machine, config()) as displbe:
        idle = displbe.held()
        machine.create("one", guest_config("still", screen(machine)))
        machine.wait_console("one", "guest: drawing", 60)
        machine.expect_picture(pictures[0], "weston-shm")
        assert way(displbe) == "shm"
        assert compositor.mappings() == 1
        machine.destroy("one")
        released(displbe, compositor, idle)
