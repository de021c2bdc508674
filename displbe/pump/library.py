"""Opens the compiled pump, `_pump.so` (packaging/compile_pump.py). In an installation without it, Python serves all flips."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from displbe import __version__

from . import _pump_abi

__all__ = ["LIBRARY", "describe", "ffi", "open_library"]

ffi: Final[Any] = _pump_abi.ffi
LIBRARY: Final = Path(__file__).with_name("_pump.so")


def open_library(path: Path = LIBRARY) -> tuple[Any, str]:
    """Return the library and an empty text; or None, and the reason why this installation has no pump.

    A library of another version of displbe is refused: its structs and functions may differ from those that this Python code uses.
    """
    if not path.exists():
        return None, f"there is no {path}: displbe was built without a C compiler, or with DISPLBE_PUMP=off"
    try:
        library: Any = ffi.dlopen(str(path))
        told: Any = ffi.string(library.pump_version())
    except (OSError, ffi.error) as error:
        why = str(error).removeprefix(f"cannot load library '{path}': ")
        return None, f"{path} is damaged, or for another kind of machine ({why}): install displbe again"
    if (version := told.decode(errors="replace")) != __version__:
        return None, f"{path} is of displbe {version}, and this is displbe {__version__}: install displbe again"
    return library, ""


def describe() -> str:
    """Return the words of `displbe --version` about the pump."""
    library, reason = open_library()
    return f"none: {reason}" if library is None else "compiled"
