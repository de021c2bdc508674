"""Sinks by name, imported on demand: a board without Wayland needs no pywayland."""

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
"""Name -> (module, class, packages it needs); the extra of pyproject.toml that brings them has the sink's name."""


class MissingPackage(Unavailable):
    """A package that this sink needs is not installed."""


def mappings(settings: Any) -> int:
    """How often a guest's page may be mapped at a time, each of which takes an entry of maptrack, under a sink's settings.

    Where zero copy is tried: once by the card or the compositor, and once here, where its frames turn out to be copied after all, are
    watched for what the guest draws without flipping, or are photographed.
    """
    return 1 if getattr(settings, "zero_copy", "off") == "off" else 2


def make_sink(name: str, settings: Any) -> Sink:
    """The sink of this name with its settings. Raises MissingPackage."""
    module, kind, packages = SINKS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackage(f"the {name} sink needs {', '.join(missing)}: install displbe[{name}]")
    sink: Sink = getattr(importlib.import_module(module), kind)(settings)
    return sink
