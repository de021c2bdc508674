"""The sinks by name. A sink's module is imported on demand: a board without Wayland needs no pywayland."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, Final

from displbe.xen.port import Unavailable

from .base import Sink

__all__ = ["SINKS", "MissingPackage", "how_to_install", "make_sink", "mappings"]

SINKS: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "headless": ("displbe.sinks.headless.sink", "HeadlessSink", ("PIL",)),
    "drm": ("displbe.sinks.drm.sink", "DrmSink", ()),
    "wayland": ("displbe.sinks.wayland.sink", "WaylandSink", ("pywayland",)),
    "x11": ("displbe.sinks.x11.sink", "X11Sink", ("xcffib",)),
}
"""Name -> (module, class, packages it needs). The extra of pyproject.toml that installs them has the sink's name."""


DEBIAN: Final = {
    "PIL": "python3-pil",
    "evdev": "python3-evdev",
    "prometheus_client": "python3-prometheus-client",
    "pywayland": "python3-pywayland",
    "xcffib": "python3-xcffib",
}
"""Debian's packages of the Python modules that parts of displbe need."""


class MissingPackage(Unavailable):
    """A package that the sink needs is not installed."""


def how_to_install(extra: str, *modules: str) -> str:
    """Return how to install Python modules, which an extra of pyproject.toml has: Debian's packages, and pip's."""
    return f"install {' '.join(DEBIAN[module] for module in modules)} (Debian), or displbe[{extra}] (pip)"


def mappings(settings: Any) -> int:
    """Return the maximum number of simultaneous mappings of a guest's page under a sink's settings. Each takes an entry of Xen's maptrack.

    The number is 2 where zero copy is tried: the card or the compositor maps the page, and displbe may map it too, to copy frames that
    cannot be shown without a copy, to notice what the guest draws without flipping, or to take a screenshot. Otherwise it is 1.
    """
    return 1 if getattr(settings, "zero_copy", "off") == "off" else 2


def make_sink(name: str, settings: Any) -> Sink:
    """Make the sink of this name with its settings. Raises MissingPackage."""
    module, kind, packages = SINKS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackage(f"the {name} sink needs {', '.join(missing)}: {how_to_install(name, *missing)}")
    sink: Sink = getattr(importlib.import_module(module), kind)(settings)
    return sink
