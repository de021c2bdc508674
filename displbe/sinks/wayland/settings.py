"""The settings of the Wayland sink: `[wayland]` of the configuration."""

from __future__ import annotations

from typing import Literal

from displbe.settings import Table

__all__ = ["WaylandSettings"]


class WaylandSettings(Table, frozen=True):
    """`[wayland]` of the configuration."""

    display: str = ""
    """The compositor's socket: a path, or a name in $XDG_RUNTIME_DIR; empty: the value of $WAYLAND_DISPLAY."""
    zero_copy: Literal["auto", "off"] = "auto"
    dmabuf: Literal["auto", "always", "never"] = "auto"
    shell: Literal["auto", "xdg"] = "auto"
    title: str = "{guest}: {connector}"
    app_id: str = "displbe.{guest}.{connector}"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    """Maximum looks per second for what a guest draws without flipping; 0: none."""
    on_close: Literal["ignore", "detach"] = "ignore"
    outputs: dict[str, str] = {}
    """The names of the compositor's outputs that connectors fill, by the connectors' names."""
    surfaces: dict[str, int] = {}
    """The ids for ivi-application, of 32 bits, by the names of connectors that are not numbers."""

    def __post_init__(self) -> None:
        if not 0 <= self.refresh <= 120:
            raise ValueError("refresh is a number of looks per second, from 0 (never) to 120")
        for template in (self.title, self.app_id):
            try:
                template.format(guest="", connector="")
            except (LookupError, ValueError) as error:
                raise ValueError(f"{template!r}: only {{guest}} and {{connector}} are replaced") from error
        if any(not 0 <= number < 1 << 32 for number in self.surfaces.values()):
            raise ValueError("surfaces are ivi ids: numbers of 32 bits")
        if len(set(self.surfaces.values())) < len(self.surfaces):
            raise ValueError("surfaces are ivi ids: no two connectors can have the same")
