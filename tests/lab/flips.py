"""The flip rates of a guest. Its modetest writes one to its console for every 60 flips."""

from __future__ import annotations

import re

from lab.vm import Machine

__all__ = ["flips", "goes_on"]


def flips(machine: Machine, name: str) -> list[float]:
    """Return the rates that a guest has written since it was created, in Hz."""
    return [float(rate) for rate in re.findall(r"freq: ([\d.]+)Hz", machine.console(name))]


def goes_on(machine: Machine, name: str) -> float:
    """Wait until a guest has flipped again. Return the rate of these flips, in Hz."""
    before = len(flips(machine, name))
    machine.wait_for(lambda: len(flips(machine, name)) > before + 1, 30, why="flips")
    return flips(machine, name)[-1]
