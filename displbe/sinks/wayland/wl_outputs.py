"""The compositor's outputs (wl_output), by name. A connector of the same name is shown full screen on its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .conn import Connection, Global, Proxy

__all__ = ["DEFAULT_PERIOD", "WlOutputs"]

CURRENT: Final = 1
"""wl_output.mode: the flag of the current mode."""
DEFAULT_PERIOD: Final = 1 / 60
"""Seconds between two refreshes of an output whose mode is unknown."""


class _WlOutput:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.xdg_output: Proxy = None
        """The zxdg_output that sends the output's name; None: the wl_output sends it (version 4)."""
        self.name = ""
        self.period = 0.0
        """Seconds between two refreshes; 0: unknown."""


class WlOutputs:
    """The wl_outputs of one connection. `changed` is called when one gets a name or a mode, or is removed."""

    def __init__(self, conn: Connection, changed: Callable[[], None]) -> None:
        self._conn = conn
        self._changed = changed
        self._outputs: dict[int, _WlOutput] = {}
        self._xdg_manager: Proxy = None

    def add(self, announced: Global) -> None:
        """Bind an output that the compositor announces."""
        output = self._outputs[announced.number] = _WlOutput(self._conn.bind(announced))

        def on_mode(flags: int, width: int, height: int, refresh: int) -> None:
            if flags & CURRENT and refresh > 0:
                output.period = 1000 / refresh  # `refresh` is in millihertz
                self._changed()

        self._conn.on(output.proxy, "mode", on_mode)
        if self._conn.version(output.proxy) >= 4:
            self._follow_name(output, output.proxy)
        elif self._xdg_manager is not None:
            self._request_name(output)

    def use_xdg_manager(self, manager: Proxy) -> None:
        """Use a zxdg_output_manager for the names of outputs that do not send their own."""
        if self._conn.version(manager) >= 2:
            self._xdg_manager = manager
            for output in self._outputs.values():
                if self._conn.version(output.proxy) < 4:
                    self._request_name(output)

    def _request_name(self, output: _WlOutput) -> None:
        output.xdg_output = self._conn.keep(self._xdg_manager.get_xdg_output(output.proxy))
        self._follow_name(output, output.xdg_output)

    def _follow_name(self, output: _WlOutput, sender: Proxy) -> None:
        def on_name(name: str) -> None:
            output.name = name
            self._changed()

        self._conn.on(sender, "name", on_name)

    def remove(self, removed: Global) -> None:
        """Release an output that the compositor has removed."""
        output = self._outputs.pop(removed.number, None)
        if output is not None:
            self._conn.destroy(output.xdg_output, output.proxy)
            self._changed()

    def find(self, name: str) -> Proxy | None:
        """Return the output of this name, or None."""
        return next((output.proxy for output in self._outputs.values() if name and output.name == name), None)

    @property
    def names(self) -> list[str]:
        """The names that are known, sorted."""
        return sorted(output.name for output in self._outputs.values() if output.name)

    @property
    def period(self) -> float:
        """Seconds between two refreshes of the fastest output."""
        return min((output.period for output in self._outputs.values() if output.period), default=DEFAULT_PERIOD)
