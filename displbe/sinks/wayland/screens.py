"""The compositor's outputs, by name."""

from __future__ import annotations

from collections.abc import Callable

from .conn import Connection, Global, Proxy

__all__ = ["Screens"]


class _Screen:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.named_by: Proxy = None
        """The zxdg_output that tells its name; None: it does itself (wl_output, version 4)."""
        self.name = ""
        self.period = 0.0


class Screens:
    """The wl_outputs of one connection; `changed` is called when there are others."""

    def __init__(self, conn: Connection, changed: Callable[[], None]) -> None:
        self._conn = conn
        self._changed = changed
        self._screens: dict[int, _Screen] = {}
        self._names: Proxy = None

    def add(self, there: Global) -> None:
        """An output is there."""
        screen = self._screens[there.number] = _Screen(self._conn.bind(there))

        def on_mode(flags: int, width: int, height: int, refresh: int) -> None:
            if flags & 1 and refresh > 0:  # the current mode; millihertz
                screen.period = 1000 / refresh

        self._conn.on(screen.proxy, "mode", on_mode)
        if self._conn.version(screen.proxy) >= 4:
            self._name(screen, screen.proxy)
        elif self._names is not None:
            self._ask_name(screen)

    def name_with(self, manager: Proxy) -> None:
        """A zxdg_output_manager, for the names of outputs that do not tell them."""
        if self._conn.version(manager) >= 2:
            self._names = manager
            for screen in self._screens.values():
                if self._conn.version(screen.proxy) < 4:
                    self._ask_name(screen)

    def _ask_name(self, screen: _Screen) -> None:
        screen.named_by = self._conn.keep(self._names.get_xdg_output(screen.proxy))
        self._name(screen, screen.named_by)

    def _name(self, screen: _Screen, told_by: Proxy) -> None:
        def on_name(name: str) -> None:
            screen.name = name
            self._changed()

        self._conn.on(told_by, "name", on_name)

    def remove(self, there: Global) -> None:
        """An output has gone."""
        screen = self._screens.pop(there.number, None)
        if screen is not None:
            self._conn.destroy(screen.named_by, screen.proxy)
            self._changed()

    def find(self, name: str) -> Proxy | None:
        """The output of this name."""
        return next((screen.proxy for screen in self._screens.values() if name and screen.name == name), None)

    @property
    def names(self) -> list[str]:
        """Their names, as far as the compositor tells."""
        return sorted(screen.name for screen in self._screens.values() if screen.name)

    @property
    def period(self) -> float:
        """Seconds between two refreshes of the fastest of them."""
        return min((screen.period for screen in self._screens.values() if screen.period), default=1 / 60)
