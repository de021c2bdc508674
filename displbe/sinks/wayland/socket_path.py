"""The path of the compositor's socket. This module needs no pywayland, so that `displbectl check` can look at the socket without it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["socket_path"]


def socket_path(display: str, environment: Mapping[str, str] = os.environ, uid: int | None = None) -> str:
    """Return the path of the compositor's socket, by libwayland's rules.

    Where XDG_RUNTIME_DIR is not set, as for a system service, it is /run/user/UID. `uid`: None is this process's user.
    """
    name = display or environment.get("WAYLAND_DISPLAY", "") or "wayland-0"
    folder = environment.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid() if uid is None else uid}"
    return str(Path(folder) / name)
