"""Notices what a guest draws into the frame on the screen without flipping.

Xorg's shadow framebuffer draws in this way, and Linux's frontend has no message for it. Therefore displbe looks at the frame regularly.
`RedrawWatch` decides when. Its user does the look: it compares pixels, or tells the card that the frame may have changed.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from displbe.whole_seconds import next_multiple

__all__ = ["SLOW", "SLOWEST", "STILL", "RedrawWatch"]

STILL: Final = 0.25
"""Seconds between a flip and the first look after it. A guest that flips shows its frames itself. A commit of displbe's could delay the
guest's next flip by a refresh, and then one late flip would make all later ones late.
"""
SLOW: Final = 0.2
"""Seconds between two looks at a frame that has not changed for a second."""
SLOWEST: Final = 2.0
"""Seconds between two looks at a frame that has not changed for half a minute, unless the configured rate is lower. Whoever pauses in a
terminal should not wait for the next letter; but a picture that stands still all day must not keep the processor from sleeping.
"""
_BACKOFF: Final = 1.25
_LATER_BACKOFF: Final = 1.05
"""Each look that finds nothing makes the next pause longer by this factor: up to SLOW, and after it."""


class RedrawWatch:
    """Says when to look at the frame on the screen: at most `rate` times a second, less often while nothing changes.

    `since_flip` returns the seconds since the guest's last flip. Without it, flips do not delay looks. `waits_for_rest`: `rest` is called
    when the guest has not flipped for a while, and the watch need not wake up to find that out.
    """

    def __init__(
        self, rate: float, since_flip: Callable[[], float] = lambda: math.inf, *, waits_for_rest: bool = False
    ) -> None:
        self.pause = self._shortest = 1 / rate
        """Seconds until the next look."""
        self._since_flip = since_flip
        self._waits_for_rest = waits_for_rest
        self._waits = False
        """Whether `rest` ends the sleep, because the guest flips."""
        self._sleep = trio.CancelScope()

    def next_look(self) -> float:
        """Return the time of the next look, in seconds of trio's clock. The longest pause ends together with other periodic work."""
        return next_multiple(SLOWEST) if self.pause == SLOWEST else trio.current_time() + self.pause

    def rest(self) -> None:
        """Take note that the guest has not flipped for a while. With `waits_for_rest`, nothing else wakes the watch while it flips."""
        if self._waits:
            self._sleep.deadline = trio.current_time() + max(0.0, STILL - self._since_flip())

    def is_due(self) -> bool:
        """Return whether to look now, `pause` seconds after the last look. If False, `pause` becomes the time that is left."""
        left = STILL - self._since_flip()
        if left > 0:
            self.pause = left
        return left <= 0

    def looked(self, *, redrawn: bool) -> None:
        """Set the next pause: the shortest after a change."""
        slowest = max(self._shortest, SLOWEST)
        before = max(self._shortest, self.pause)
        longer = before * (_BACKOFF if before < SLOW else _LATER_BACKOFF)
        self.pause = self._shortest if redrawn else min(slowest, longer)

    def hurry(self) -> None:
        """Look at the configured rate from now on: the guest has drawn since the last look."""
        self.looked(redrawn=True)
        self._sleep.deadline = min(self._sleep.deadline, trio.current_time() + self.pause)

    async def run(self, look: Callable[[], Awaitable[bool]]) -> None:
        """Call `look` whenever a look is due, until cancelled. It returns whether the guest has drawn since the last look; or `hurry` is
        called later if it has.
        """
        while True:
            with trio.CancelScope(deadline=math.inf if self._waits else self.next_look()) as self._sleep:
                await trio.sleep_forever()
            due = self.is_due()
            self._waits = self._waits_for_rest and not due
            if due:
                self.looked(redrawn=await look())
