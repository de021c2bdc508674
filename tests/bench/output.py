"""A screen for the benchmark. As on a DRM card, a flip is one system call, and a file becomes readable when it is complete."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from struct import Struct
from typing import Any, Final
from unittest.mock import patch

import trio

from displbe.sinks import registry
from displbe.sinks.base import NOBODY, Allocation, Claimant, Geometry, Output, Part, Sink, SinkBuffer
from displbe.xen.port import GuestBuffer

__all__ = ["EVENT", "BenchSink", "bench_sink"]

EVENT: Final = Struct("<IIQIIII")
"""struct drm_event_vblank: type, length, the commit's user data, time, sequence, CRTC."""
FLIP_COMPLETE: Final = 2


class _Frame(SinkBuffer):
    path = "none"

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Output(Output):
    def __init__(self, sink: BenchSink, name: str, number: int) -> None:
        super().__init__(name)
        self._commits = sink.commits
        self._number = number

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        await trio.lowlevel.checkpoint()
        return _Frame()

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        await trio.lowlevel.checkpoint()

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        # The atomic commit. The card completes it at once.
        os.write(self._commits, EVENT.pack(FLIP_COMPLETE, EVENT.size, token, 0, 0, 0, self._number))

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        raise NotImplementedError

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()


class BenchSink(Sink):
    """A card. A pipe takes the place of its file: commits are written to it, events are read from it."""

    wants_dmabuf = False

    def __init__(self, settings: Any) -> None:
        self._events, self.commits = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._outputs: list[Output] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(self._events)
            for _, _, token, *_, number in EVENT.iter_unpack(os.read(self._events, 1024)):
                self._outputs[number].flipped(token)

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        self._outputs.append(_Output(self, name, len(self._outputs)))
        return self._outputs[-1]

    def claimed(self, name: str) -> Output | None:
        return next((output for output in self._outputs if output.name == name), None)


@asynccontextmanager
async def bench_sink() -> AsyncIterator[None]:
    """Put this sink in the place of the headless one."""
    with patch.dict(registry.SINKS, {"headless": (BenchSink.__module__, BenchSink.__name__, ())}):
        yield
