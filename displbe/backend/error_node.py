"""The `error` node of a device's backend directory: why the device is not connected, for the operator and the toolstack."""

from __future__ import annotations

import trio

from displbe.xen.port import NoEntry, StoreError, StoreLost

from .nodes import DeviceNodes

__all__ = ["ErrorNode"]

MAX_SIZE = 512
"""Bytes of the text."""


class ErrorNode:
    """The node, and the text that it should have. The next `write` tries again after a failed one."""

    def __init__(self, nodes: DeviceNodes) -> None:
        self.reason = ""
        """The last text that was not empty."""
        self.reason_at = 0.0
        """When `reason` was set, in seconds of trio's clock."""
        self._nodes = nodes
        self._wanted: bytes | None = None
        """The text that the node should have. Empty: the node should not exist. None: not decided yet, the node stays as it is."""
        self._written: bytes | None = None
        """The text that was written last. Empty: the node was removed. None: not known."""

    @property
    def is_written(self) -> bool:
        """Whether the node has the text that it should have."""
        return self._wanted == self._written

    def set(self, reason: str) -> bool:
        """Set the text that `write` will write. Return whether it is new."""
        text = reason.encode("ascii", "backslashreplace")[:MAX_SIZE]
        if text == self._wanted:
            return False
        self._wanted = text
        if reason:
            self.reason, self.reason_at = reason, trio.current_time()
        return True

    async def write(self) -> None:
        """Write or remove the node, unless it has the right text already. A failure is logged."""
        text = self._wanted
        if text == self._written:
            return
        path = self._nodes.path
        try:
            async with self._nodes.store.transaction() as transaction:
                await transaction.read(f"{path}/state")  # the toolstack may be removing the directory
                if text:
                    await transaction.write(f"{path}/error", text)
                else:
                    await transaction.remove(f"{path}/error")
        except NoEntry:
            pass
        except (StoreError, StoreLost) as error:
            self._nodes.log.warning("cannot write the error node", error=str(error))
            return
        self._written = text
