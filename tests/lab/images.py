"""Makes what the slow tests need and the cache does not have: `PYTHONPATH=tests python -m lab.images`, minutes on a new machine."""

from __future__ import annotations

from lab.build import build
from lab.package import deb
from lab.x86 import booted
from proof.cbmc import tools

if __name__ == "__main__":
    tools()
    build()
    deb().debian()
    booted()
