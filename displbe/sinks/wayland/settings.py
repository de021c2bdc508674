"""`[wayland]` of the configuration."""

from __future__ import annotations

from typing import Literal

from displbe.settings import Table

__all__ = ["WaylandSettings"]


class WaylandSettings(Table, frozen=True):
    """`[wayland]`"""

    display: str = ""
    """The compositor's socket: a path, or a name in $XDG_RUNTIME_DIR; empty: the one that $WAYLAND_DISPLAY names."""
    zero_copy: Literal["auto", "off"] = "auto"
    dmabuf: Literal["auto", "always", "never"] = "auto"
    shell: Literal["auto", "xdg"] = "auto"
    title: str = "{guest}: {connector}"
    app_id: str = "displbe.{guest}.{connector}"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    """Looks per second for what a guest draws without flipping; 0: none."""
    on_close: Literal["ignore", "detach"] = "ignore"
    outputs: dict[str, str] = {}
    """The compositor's outputs that connectors fill, by the connectors' names."""
    surfaces: dict[str, int] = {}
    """The ivi ids, numbers of 32 bits, of connectors whose names are not numbers."""

    def __post_init__(self) -> None:
        if not 0 <= self.refresh <= 120:
            raise ValueError("refresh is a number of looks per second, 0 (never) to 120")
        for template in (self.title, self.app_id):
            try:
                template.format(guest="", connector="")
            except (LookupError, ValueError) as error:
                raise ValueError(f"{template!r}: only {{guest}} and {{connector}} can be filled in") from error
        if any(not 0 <= number < 1 << 32 for number in self.surfaces.values()):
            raise ValueError("surfaces are ivi ids, numbers of 32 bits")
        if len(set(self.surfaces.values())) < len(self.surfaces):
            raise ValueError("surfaces are ivi ids: no two connectors have the same")
