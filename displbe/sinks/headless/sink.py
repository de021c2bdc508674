"""The headless sink: outputs in memory, for CI, demos, boards without a display."""

from __future__ import annotations

from functools import partial

import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.flip import FlipClock
from displbe.xen.port import Unavailable

from .output import HeadlessOutput
from .settings import HeadlessSettings

__all__ = ["HeadlessSink"]


class HeadlessSink(Sink):
    """A sink whose outputs are in memory."""

    wants_dmabuf = False

    def __init__(self, settings: HeadlessSettings) -> None:
        self.settings = settings
        self.outputs: dict[str, HeadlessOutput] = {}
        self._clock = FlipClock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raises Unavailable when the directory for pictures cannot be made."""
        if self.settings.directory:
            try:
                await trio.Path(self.settings.directory).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable(
                    f"directory in [headless]: {self.settings.directory} cannot be made: {error.strerror}"
                ) from error
        task_status.started()
        await self._clock.run()

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if self.settings.outputs and name not in self.settings.outputs:
            raise OutputUnavailable(f"no output {name}; there are: {', '.join(self.settings.outputs)}")
        if "/" in name or name.startswith("."):
            raise OutputUnavailable("an output's name contains no / and does not begin with a dot")
        if name in self.outputs:
            raise OutputUnavailable(f"output {name} is taken by another guest")
        output = self.outputs[name] = HeadlessOutput(name, self.settings, self._clock, partial(self._free, name))
        return output

    def _free(self, name: str) -> None:
        """Free the output of this name."""
        del self.outputs[name]

    def claimed(self, name: str) -> Output | None:
        return self.outputs.get(name)
