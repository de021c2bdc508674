"""Finds the machine's cards and opens those that are to be used.

The methods wait for drivers, so they are called in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from .bus_path import nodes_at, sysfs_path_of
from .card import Card
from .errors import DrmError, Unfit

__all__ = ["CardFinder"]

_log = structlog.get_logger("displbe.drm")


class CardFinder:
    """Opens the cards in a directory of device nodes that are not open yet.

    `wanted` is `[drm] device`: `auto`, or a card's path, name or place in the machine. `open_card` opens a card; it raises DrmError or
    OSError.
    """

    def __init__(self, directory: Path, wanted: str, open_card: Callable[[str], Card]) -> None:
        self.failed: dict[str, str] = {}
        """Paths of cards that could not be opened or probed, and why. They are tried again."""
        self._directory = directory
        self._wanted = wanted
        self._open_card = open_card
        self._wanted_sysfs_path = ""
        """The sysfs path of the one card that is wanted, once it has been opened."""
        self._unfit: dict[str, tuple[int, int]] = {}
        """Path -> inode and device number of nodes that this sink cannot use. They are not tried again."""

    def open_new(self, known: Collection[str]) -> tuple[list[Card], list[str]]:
        """Open the wanted cards whose paths are not `known`. Return them, and the reasons why others were not opened."""
        found: list[Card] = []
        refusals: list[str] = []
        before, self.failed = self.failed, {}
        for path in self._wanted_paths():
            name = str(path)
            if name in known:
                continue
            try:
                node = os.stat(path)
                if self._unfit.get(name) == (node.st_ino, node.st_rdev):
                    continue
                found.append(self._open_card(name))
            except Exception as error:  # not only DrmError and OSError: a driver's odd answer must not end the search
                known_kind = isinstance(error, DrmError | OSError)
                reason = str(error.strerror) if isinstance(error, OSError) else str(error) or type(error).__name__
                refusals.append(f"{path.name}: {reason}")
                if isinstance(error, Unfit):
                    self._unfit[name] = node.st_ino, node.st_rdev
                elif not isinstance(error, FileNotFoundError):
                    self.failed[name] = reason
                else:
                    continue
                if before.get(name) != reason:
                    _log.warning("card not used", card=path.name, reason=reason, exc_info=not known_kind)
        return found, refusals

    def opened(self, card: Card) -> None:
        """Take note that a card is in use. If the settings name this card, it is known by its sysfs path from now on."""
        if self._wanted != "auto":
            self._wanted_sysfs_path = card.device.sysfs_path

    def _wanted_paths(self) -> list[Path]:
        """Return the device nodes of the wanted cards.

        A card that the settings name may come back under another number.
        """
        nodes = sorted(self._directory.glob("card*"))
        if self._wanted == "auto":
            return nodes
        known = self._wanted_sysfs_path
        found = [node for node in nodes if known and _sysfs_path(node) == known]
        return found or nodes_at(nodes, self._wanted) or [self._directory / self._wanted]


def _sysfs_path(node: Path) -> str:
    """Return the sysfs path of the device behind a node; empty: the node is gone."""
    try:
        return sysfs_path_of(os.stat(node))
    except OSError:
        return ""
