"""The Debian package of this project, for the lab."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from lab.build import run
from lab.vm import Machine

__all__ = ["check_devices", "deb", "debian_package", "newer"]

TREE = Path(__file__).resolve().parents[2]


def deb() -> ModuleType:
    """Return packaging/deb.py as a module."""
    spec = importlib.util.spec_from_file_location("deb", TREE / "packaging" / "deb.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["deb"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def debian_package(architecture: str) -> bytes:
    """Return the package of this tree for an architecture. It is built if needed."""
    path: Path = deb().built(architecture)
    return path.read_bytes()


def newer(package: bytes) -> bytes:
    """Return a package with a higher version and the same files."""
    with tempfile.TemporaryDirectory(prefix="displbe-lab-") as folder:
        old, new, tree = (Path(folder) / name for name in ("old.deb", "new.deb", "tree"))
        old.write_bytes(package)
        run(["dpkg-deb", "-R", old, tree])
        control = tree / "DEBIAN/control"
        control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+lab1", control.read_text(), flags=re.M))
        run(["dpkg-deb", "-Zgzip", "-b", tree, new])
        return new.read_bytes()


def check_devices(machine: Machine) -> None:
    """Assert that by the installed package's rules udev has given Xen's devices to its group, except privcmd, which only root may open."""
    listed = machine.check("stat -c '%n %G %a' /dev/xen/{gntdev,evtchn,xenbus,privcmd} /dev/dri/card0")
    assert listed.splitlines() == [
        *(f"/dev/xen/{name} displbe-xen 660" for name in ("gntdev", "evtchn", "xenbus")),
        "/dev/xen/privcmd root 600",
        "/dev/dri/card0 video 660",
    ]
