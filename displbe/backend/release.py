"""Releases what a device holds, also when its task is being cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

__all__ = ["shielded_stack"]


@asynccontextmanager
async def shielded_stack() -> AsyncIterator[AsyncExitStack]:
    """Yield a stack whose callbacks are called at the end of the block, in reverse order. A cancellation does not interrupt them."""
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        with trio.CancelScope(shield=True):
            await stack.aclose()
