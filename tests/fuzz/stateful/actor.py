"""What all actors of a run have in common."""

from __future__ import annotations

import random

from .world import World

__all__ = ["Actor"]


class Actor:
    """Acts in a world, with random numbers of its own, until cancelled."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        self._world = world
        self._name = name
        self._chance = chance

    def _note(self, action: str) -> None:
        self._world.journal.note(self._name, action)

    async def run(self) -> None:
        """Act until cancelled."""
        raise NotImplementedError
