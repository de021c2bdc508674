"""The compiled pump's accesses of shared pages have their barriers, in the machine's own instructions."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parents[2] / "displbe/pump/pump.c"
ARM: Final = {"load": r"\sldap?r\s", "store": r"\sstlr\s", "respond": r"\sdmb\s+ish$", "final_check": r"\sdmb\s+ish$"}
"""Acquire, release, full fence."""
X86: Final = {"respond": r"\s(mfence|lock or)", "final_check": r"\s(mfence|lock or)"}
"""The other barriers are those of all accesses."""


@pytest.mark.parametrize(("machine", "expected"), [("aarch64", ARM), ("x86_64", X86)])
def test_barriers(machine: str, expected: dict[str, str], tmp_path: Path) -> None:
    prefix = "" if platform.machine() == machine else f"{machine}-linux-gnu-"
    if shutil.which(f"{prefix}gcc") is None:
        pytest.skip(f"no compiler for {machine} (Debian: gcc-{machine.replace('_', '-')}-linux-gnu)")
    library = tmp_path / "pump.so"
    flags = ("-std=c11", "-O2", "-fno-inline", "-shared", "-fPIC", '-DPUMP_VERSION="0"')
    subprocess.run([f"{prefix}gcc", *flags, "-o", library, SOURCE], check=True)
    listed = subprocess.run([f"{prefix}objdump", "-d", library], check=True, capture_output=True, text=True).stdout
    for name, pattern in expected.items():
        (body,) = re.findall(rf"^\w+ <{name}(?:\.\w+)*>:\n((?:.+\n)+)", listed, re.M)
        assert re.search(pattern, body, re.M), f"{name}:\n{body}"
