"""Makes what the slow tests need and the cache does not have, minutes on a new machine, and then becomes another program:
`PYTHONPATH=tests python -m lab.images [COMMAND...]`.

Both take what other processes of their session leave of the processors, and are a process group of their own: `kill -- -PID` ends them.
"""

from __future__ import annotations

import os
import sys

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
    if command := sys.argv[1:]:
        os.execvp(command[0], command)
