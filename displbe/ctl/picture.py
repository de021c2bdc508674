"""Writes a guest's picture as a PNG file."""

from __future__ import annotations

import os
from pathlib import Path

from displbe.sinks.registry import how_to_install
from displbe.wire.formats import FORMATS

from .client import Failure

__all__ = ["write_png"]


def write_png(path: str, facts: dict[str, int | float | str], pixels: bytes) -> None:
    """Write the pixels of the daemon's answer to a PNG file. The file gets its name when it is complete. Raises Failure."""
    try:
        from displbe.sinks.base import Geometry, Part
        from displbe.sinks.picture import image
    except ImportError as error:
        raise Failure(f"writing PNG files needs Pillow: {how_to_install('headless', 'PIL')}") from error
    try:
        width, height, fourcc, stride = (int(facts[key]) for key in ("width", "height", "fourcc", "stride"))
        if fourcc not in FORMATS:
            raise Failure("displbectl and the daemon have different versions: the pixel format is not known here")
        part = Path(f"{path}.part")
        whole = Part(0, 0, width, height)
        image(memoryview(pixels), Geometry(width, height, fourcc, stride, 0), whole).save(part, "PNG")
        os.replace(part, path)
    except (KeyError, ValueError) as error:
        raise Failure(f"the answer is not from displbe: {error}") from error
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}") from error
