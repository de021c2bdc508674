"""Makes what the slow tests need and the cache does not have: `PYTHONPATH=tests python -m lab.images`, minutes on a new machine.

It takes what other processes of its session leave of the processors, and is the leader of a process group: `kill -- -PID` ends all of it.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.setpgrp()
    os.nice(19)

from lab.build import build
from lab.package import deb
from lab.x86 import booted
from proof.cbmc import tools

if __name__ == "__main__":
    tools()
    build()
    deb().debian()
    booted()
