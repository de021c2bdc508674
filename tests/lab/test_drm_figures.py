"""The DRM sink's figures that test_counted.py has not: be-alloc, and pictures of two sizes."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import pytest
from lab.backend import Backend, backend, screens
from lab.figures import Figure
from lab.flips import flips as rates_of
from lab.test_drm import config
from lab.vm import Machine, guest_config

ALLOWED = "[guest.one]\nbe-alloc = true\n"

LINES = 18
"""modetest writes a line for 60 flips."""


@pytest.fixture(autouse=True)
def _guest(machine: Machine) -> Iterator[None]:
    yield
    machine.destroy("one")


class Cost(NamedTuple):
    """The cost of a guest's flips: flips per second, and milliseconds of displbe's CPU time per flip."""

    rate: float
    user: float
    system: float


def flipping(machine: Machine, displbe: Backend, mode: str, be_alloc: int = 0) -> Cost:
    """Let a guest flip more than a thousand times. Return the cost."""
    connector = next(iter(machine.connectors()))
    machine.create("one", guest_config("flip", screens(connector, mode, be_alloc), mode=mode))
    machine.wait_console("one", "freq:", 60, count=2)
    before, began = displbe.cpu_seconds(), machine.clock
    seen = len(rates_of(machine, "one"))
    machine.wait_console("one", "freq:", 120, count=seen + LINES)
    after, elapsed = displbe.cpu_seconds(), machine.clock - began
    rate = median(rates_of(machine, "one")[seen:])
    user, system = (1000 * (late - early) / (rate * elapsed) for early, late in zip(before, after, strict=True))
    return Cost(rate, user, system)


class Flips(NamedTuple):
    """The results of a guest's flips."""

    cost: Cost
    flips: int
    shown: int
    late: int


def flips(machine: Machine) -> Flips:
    """Let a guest flip at 1024x768 between buffers that displbe has allocated."""
    with backend(machine, config(f'zero-copy = "require"\n{ALLOWED}')) as displbe:
        cost = flipping(machine, displbe, "1024x768", be_alloc=1)
        machine.destroy("one")
        machine.wait_for(lambda: displbe.events("output off"), 20, why="the guest's end")
        off = displbe.events("output off")[-1]
        assert displbe.events("output on")[-1]["path"] == "be-alloc"
        assert displbe.events("output dark") == []
    count, shown, late = (int(str(off[key])) for key in ("flips", "shown", "late"))
    return Flips(cost, count, shown, late)


def test_flips(machine: Machine, figure: Figure) -> None:
    """There is a flip for each refresh of the screen, and none of more than a thousand is late or lost."""
    found = flips(machine)
    cost = found.cost
    figure(f"be-alloc: {cost.rate:.1f} flips/s, CPU {cost.user:.2f} + {cost.system:.2f} ms per flip (user + system)")
    assert cost.rate > 59
    assert found.late == 0
    assert found.flips >= 1000
    assert found.flips - found.shown - found.late <= 1, "none is lost but the one under way"


def test_zero_copy_touches_no_pixels(machine: Machine, figure: Figure) -> None:
    """The user CPU time per flip does not grow with the picture's size: displbe touches no pixels.

    The system time does grow in this lab: the emulator's own copy of the screen counts as time of the process that gave the
    card the command.
    """
    cost = {}
    with backend(machine, config('zero-copy = "require"')) as displbe:
        for mode in ("640x480", "1920x1080"):
            now = cost[mode] = flipping(machine, displbe, mode)
            figure(f"{mode}: {now.rate:.1f} flips/s, CPU {now.user:.2f} + {now.system:.2f} ms per flip (user + system)")
            machine.destroy("one")
    assert cost["1920x1080"].user <= 1.1 * cost["640x480"].user
