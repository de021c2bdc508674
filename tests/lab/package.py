"""The Debian package of this project, for the lab."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["debian_package"]

TREE = Path(__file__).resolve().parents[2]


def debian_package(architecture: str) -> bytes:
    """Return the package of this tree for an architecture. It is built if needed."""
    spec = importlib.util.spec_from_file_location("deb", TREE / "packaging" / "deb.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["deb"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path: Path = module.built(architecture)
    return path.read_bytes()
