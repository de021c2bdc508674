"""The settings of the Wayland sink: `[wayland]` of the configuration."""

from __future__ import annotations

from string import Formatter
from typing import Final, Literal

from displbe.settings import Table

__all__ = ["WaylandSettings"]

MAX_NAME: Final = "\U0010ffff" * 64
"""The longest name that replaces {guest} or {connector}: 64 characters of four bytes."""
MAX_TEXT: Final = 2048
"""Bytes of a title or an app-id with its names. libwayland sends no message of more than 4096 bytes."""


class WaylandSettings(Table, frozen=True):
    """`[wayland]` of the configuration. Its attributes are the keys, however many there are."""

    display: str = ""
    """The compositor's socket: a path, or a name in $XDG_RUNTIME_DIR; empty: the value of $WAYLAND_DISPLAY."""
    zero_copy: Literal["auto", "off"] = "auto"
    dmabuf: Literal["auto", "always", "never"] = "auto"
    trust_compositor: bool = False
    """Whether the compositor may get files of gntdev, with which it reaches every page that any guest grants to this domain."""
    shell: Literal["auto", "xdg"] = "auto"
    title: str = "{guest}: {connector}"
    app_id: str = "displbe.{guest}.{connector}"
    scale: Literal["fit", "stretch", "none"] = "fit"
    pixels: Literal["physical", "logical"] = "physical"
    """What a pixel of a window's guest is: a pixel of the monitor, or a unit of the compositor's desktop."""
    decorations: Literal["auto", "server", "none"] = "auto"
    """Who draws title bars. `auto`: the compositor, if it offers that. `server`: the same, and the log says if it does not."""
    inhibit_shortcuts: bool = False
    """Whether a guest gets the keys of the compositor's shortcuts."""
    inhibit_idle: bool = False
    """Whether the compositor's screens stay on while a guest's picture is seen."""
    refresh: float = 30.0
    """Maximum looks per second for what a guest draws without flipping; 0: none."""
    on_close: Literal["ignore", "detach"] = "ignore"
    cursor: Literal["auto", "show", "hide"] = "auto"
    """Whether a cursor is shown over a guest's picture. `auto`: if the guest does not take the pointer."""
    outputs: dict[str, str] = {}
    """The names of the compositor's outputs that connectors fill, by the connectors' names."""
    surfaces: dict[str, int] = {}
    """The ids for ivi-application, of 32 bits, by the names of connectors that are not numbers."""

    def __post_init__(self) -> None:
        if self.refresh != 0 and not 0.01 <= self.refresh <= 120:  # a thread cannot wait for any number of seconds
            raise ValueError("refresh is a number of looks per second, 0 (never) or 0.01 to 120")
        for template in (self.title, self.app_id):
            _check_template(template)
        if any(not 0 <= number < 1 << 32 for number in self.surfaces.values()):
            raise ValueError("surfaces are ivi ids: numbers of 32 bits")
        if len(set(self.surfaces.values())) < len(self.surfaces):
            raise ValueError("surfaces are ivi ids: no two connectors can have the same")


def _check_template(template: str) -> None:
    """Raise ValueError unless a template has only the fields {guest} and {connector}, without attribute, index, conversion or format
    specification, and its text fits into a message.
    """
    wrong = f"{template[:64]!r}: only {{guest}} and {{connector}} are replaced; a brace that is shown is written twice"
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(wrong) from error
    for _, name, specification, conversion in fields:
        if name not in ("guest", "connector") or specification or conversion:
            raise ValueError(wrong)
    if len(template.format(guest=MAX_NAME, connector=MAX_NAME).encode()) > MAX_TEXT:
        raise ValueError(f"{template[:64]!r}… may have more than {MAX_TEXT} bytes with the longest names: shorten it")
