"""Old faults of displbe, which can be put back. The runs must find them: tests/hostile/test_stateful.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest.mock import patch

from displbe.commands import Commands
from displbe.display.connected import ConnectedDisplay
from displbe.display.connector import Connector
from displbe.display.device import DisplayDevice
from displbe.display.screen import Screen
from displbe.input.focus import InputFocus
from displbe.ops.control import CommandError, Request

__all__ = ["MUTATIONS", "mutated"]


@contextlib.contextmanager
def _connectors_outlive_a_refused_connection() -> Iterator[None]:
    """A connection that is refused after its connectors were made leaves them at work."""
    run, stop = ConnectedDisplay.run, Connector.stop
    served: set[int] = set()

    async def noted_run(display: ConnectedDisplay, **keys: Any) -> None:
        served.update(map(id, display.connectors))
        await run(display, **keys)

    def partial_stop(connector: Connector) -> None:
        if id(connector) in served:
            served.discard(id(connector))
            stop(connector)

    async def close(screen: Screen) -> None:
        pass

    with (
        patch.object(ConnectedDisplay, "run", noted_run),
        patch.object(Connector, "stop", partial_stop),
        patch.object(Screen, "close", close),
    ):
        yield


@contextlib.contextmanager
def _handlers_of_commands_raise() -> Iterator[None]:
    """A command for a guest without connectors raises an exception that the control socket does not expect."""
    found = Commands._connectors

    def connectors(commands: Commands, request: Request) -> list[tuple[DisplayDevice, Connector]]:
        try:
            return found(commands, request)
        except CommandError:
            return []

    with patch.object(Commands, "_connectors", connectors):
        yield


@contextlib.contextmanager
def _reservations_do_not_expire() -> Iterator[None]:
    """The reservation of a guest's keyboard that has expired makes the daemon look for devices without a pause."""

    def expire(focus: InputFocus) -> None:
        pass

    with patch.object(InputFocus, "expire", expire):
        yield


MUTATIONS: Final[dict[str, Callable[[], contextlib.AbstractContextManager[None]]]] = {
    "connectors": _connectors_outlive_a_refused_connection,
    "commands": _handlers_of_commands_raise,
    "reservations": _reservations_do_not_expire,
}


def mutated(name: str) -> contextlib.AbstractContextManager[None]:
    """Put a fault back while the block lasts. An empty name: none."""
    return MUTATIONS[name]() if name else contextlib.nullcontext()
