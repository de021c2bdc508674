"""Notices what a guest draws into the frame on the screen without flipping.

Xorg's shadow framebuffer draws in this way, and Linux's frontend has no message for it. Therefore displbe looks at the frame regularly.
`RedrawWatch` decides when. Its user does the look: it compares pixels, or tells the card that the frame may have changed.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["SLOWEST", "STILL", "RedrawWatch"]

STILL: Final = 0.25
"""Seconds between a flip and the first look after it. A guest that flips shows its frames itself. A commit of displbe's could delay the
guest's next flip by a refresh, and then one late flip would make all later ones late.
"""
SLOWEST: Final = 0.2
"""Seconds between two looks at a frame that has not changed for a while, unless the configured rate is lower."""
_BACKOFF: Final = 1.25
"""Each look that finds nothing makes the next pause longer by this factor."""


class RedrawWatch:
    """Says when to look at the frame on the screen: at most `rate` times a second, less often while nothing changes.

    `since_flip` returns the seconds since the guest's last flip. Without it, flips do not delay looks.
    """

    def __init__(self, rate: float, since_flip: Callable[[], float] = lambda: math.inf) -> None:
        self.pause = self._shortest = 1 / rate
        """Seconds until the next look."""
        self._since_flip = since_flip

    def is_due(self) -> bool:
        """Return whether to look now, `pause` seconds after the last look. If False, `pause` becomes the time that is left."""
        left = STILL - self._since_flip()
        if left > 0:
            self.pause = left
        return left <= 0

    def looked(self, *, redrawn: bool) -> None:
        """Set the next pause: the shortest after a change."""
        slowest = max(self._shortest, SLOWEST)
        self.pause = self._shortest if redrawn else min(slowest, max(self._shortest, self.pause) * _BACKOFF)

    async def run(self, look: Callable[[], Awaitable[bool]]) -> None:
        """Call `look` whenever a look is due, until cancelled. It returns whether the guest has drawn since the last look."""
        while True:
            await trio.sleep(self.pause)
            if self.is_due():
                self.looked(redrawn=await look())
