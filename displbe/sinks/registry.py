"""The sinks by name. A sink's module is imported on demand: a board without Wayland needs no pywayland."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, Final

from displbe.xen.port import Unavailable

from .base import Sink

__all__ = ["SINKS", "MissingPackage", "make_sink", "mappings"]

SINKS: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "headless": ("displbe.sinks.headless.sink", "HeadlessSink", ("PIL",)),
    "drm": ("displbe.sinks.drm.sink", "DrmSink", ()),
    "wayland": ("displbe.sinks.wayland.sink", "WaylandSink", ("pywayland",)),
    "x11": ("displbe.sinks.x11.sink", "X11Sink", ("xcffib",)),
}
"""Name -> (module, class, packages it needs). The extra of pyproject.toml that installs them has the sink's name."""


class MissingPackage(Unavailable):
    """A package that the sink needs is not installed."""


def mappings(settings: Any) -> int:
    """Return how often a guest's page may be mapped at the same time under a sink's settings. Each mapping takes an entry of maptrack.

    Twice where zero copy is tried: by the card or the compositor, and by displbe, to copy its frames after all, to notice what the guest
    draws without flipping, or to take a screenshot.
    """
    return 1 if getattr(settings, "zero_copy", "off") == "off" else 2


def make_sink(name: str, settings: Any) -> Sink:
    """Make the sink of this name with its settings. Raises MissingPackage."""
    module, kind, packages = SINKS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackage(f"the {name} sink needs {', '.join(missing)}: install displbe[{name}]")
    sink: Sink = getattr(importlib.import_module(module), kind)(settings)
    return sink
