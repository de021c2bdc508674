"""Finds the device nodes that guests' bindings name, and checks that the configuration allows them."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from displbe.input.bindings import Binding, Role
from displbe.input.focus import Assignment, Claim
from displbe.input.settings import InputSettings
from displbe.threads import run_in_thread

from .nodes import DeviceNode, DeviceNodes

__all__ = ["ClaimedRoles", "DeviceLookup", "RolesByClaim"]

NAME: Final = "name="
"""The prefix of an ID, or of an entry in `[input] devices`, that is the name a device reports."""

_log = structlog.get_logger("displbe.evdev")

Result = TypeVar("Result")


class ClaimedRoles(msgspec.Struct, frozen=True):
    """The roles in which a claim names a device, and the assignment that they come from."""

    assignment: Assignment
    roles: frozenset[Role]


RolesByClaim: TypeAlias = dict[tuple[str, int], ClaimedRoles]
"""The roles of each claim that names a device, by `Claim.key`."""


class DeviceLookup:
    """Looks for nodes in /dev/input and /sys/class/input. The hardware may make this slow, so a thread does it, one call at a time."""

    def __init__(self, settings: InputSettings, nodes: DeviceNodes) -> None:
        self._settings = settings
        self._nodes = nodes
        self._refused: set[tuple[str, str]] = set()
        """Pairs of a guest and a node that it names but may not use. Each is logged once."""
        self._limiter = trio.CapacityLimiter(1)

    async def claimed_nodes(self, claims: Iterable[Claim]) -> tuple[dict[str, RolesByClaim], bool]:
        """Return the nodes that claims name, and whether any named node is missing."""
        found: dict[str, RolesByClaim] = {}
        missing = False
        for claim in claims:
            assignment = claim.assignment
            for binding in assignment.bindings:
                if binding.is_device:
                    path = await self._find(claim.guest, assignment, binding)
                    missing |= path is None and claim.gone_since is None
                    if path is not None:
                        claimed = found.setdefault(path, {})
                        before = claimed[claim.key].roles if claim.key in claimed else frozenset[Role]()
                        claimed[claim.key] = ClaimedRoles(assignment, before | {binding.role})
        return found, missing

    async def has_absolute_pointer(self, claim: Claim) -> bool:
        """Return whether one of the pointers that a claim names reports positions."""
        nodes, _ = await self.claimed_nodes([claim])
        for path, claimed in nodes.items():
            if Role.POINTER in claimed[claim.key].roles and await self._in_thread(self._nodes.is_absolute, path):
                return True
        return False

    async def open(self, path: str) -> DeviceNode:
        """Open a node. Raises OSError, and the exceptions of python-evdev."""
        return await self._in_thread(self._nodes.open, path)

    async def _find(self, guest: str, assignment: Assignment, binding: Binding) -> str | None:
        """Return the most suitable of the allowed nodes that a binding names; None if there is none."""
        paths = await self._in_thread(self._named, binding)
        for path in paths:
            if binding.id in assignment.always_allowed or await self._in_thread(self._is_allowed, path):
                return path
            if (guest, path) not in self._refused:
                self._refused.add((guest, path))
                _log.error(
                    "device not allowed by [input] devices: the guest gets no events from it",
                    guest=guest,
                    named=binding.id,
                    device=path,
                )
        return None

    def _named(self, binding: Binding) -> list[str]:
        """Return the nodes that a binding names, the most suitable one first. An ID is never a pattern."""
        nodes = self._nodes
        if not binding.id.startswith(NAME):
            return nodes.resolve(glob.escape(_absolute(binding.id)))
        name = binding.id.removeprefix(NAME)
        named = [path for path in nodes.paths() if nodes.name(path) == name]
        # A device may have several nodes of the same name: its keyboard, and a few special keys.
        return sorted(named, key=lambda path: (-nodes.fitness(path, binding.role), _number(path)))

    def _is_allowed(self, path: str) -> bool:
        """Return whether a pattern in `[input] devices` matches this node."""
        return any(self._matches(path, entry) for entry in self._settings.devices)

    def _matches(self, path: str, entry: str) -> bool:
        """Return whether a pattern, of paths or of names, matches this node."""
        if entry.startswith(NAME):
            return fnmatch.fnmatchcase(self._nodes.name(path), entry.removeprefix(NAME))
        return path in self._nodes.resolve(_absolute(entry))

    async def rotate(self, path: str) -> str:
        """Return the value of the first entry in `[input.rotate]` that matches this node; empty: none does."""
        return await self._in_thread(self._rotate, path)

    def _rotate(self, path: str) -> str:
        return next((turn for entry, turn in self._settings.rotate.items() if self._matches(path, entry)), "")

    async def _in_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        return await run_in_thread(call, *arguments, limiter=self._limiter)


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/dev/input/{path}"


def _number(path: str) -> int:
    """Return a node's number, for sorting: event10 comes after event9."""
    return int(path.rpartition("event")[2])
