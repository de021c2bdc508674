"""What a sink must do. `headless` and `drm` are sinks; tests/scenario runs the same scenarios over them.

A sink owns a connection to the outside and gets it back when it is lost. It has outputs, each of which shows one connector
of one guest. An output turns a guest's buffer into something it can show, in the cheapest way that it and the buffer share.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import trio

from displbe.wire.errors import Errno
from displbe.xen.port import GuestBuffer, HypervisorError

from .seat import Seats

__all__ = [
    "NOBODY",
    "Allocation",
    "Claimant",
    "Geometry",
    "Output",
    "OutputUnavailable",
    "Part",
    "Sink",
    "SinkBuffer",
    "SinkError",
    "view_of",
]


class SinkError(Exception):
    """An output cannot do what was asked. `code` is what the guest gets for it."""

    def __init__(self, code: Errno, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class OutputUnavailable(Exception):
    """There is no such output, or it is taken; the text says which, for the device's `error` node."""


class Claimant(msgspec.Struct, frozen=True):
    """Whose picture an output is to show."""

    domid: int
    name: str
    """The guest's name in xl; empty: unknown."""


NOBODY: Final = Claimant(0, "")


class Geometry(msgspec.Struct, frozen=True):
    """How pixels lie in a buffer: pixels, a DRM fourcc, octets. It has been checked against the buffer's size."""

    width: int
    height: int
    fourcc: int
    stride: int
    offset: int


class Part(msgspec.Struct, frozen=True):
    """The part of a framebuffer that is shown, in pixels; it lies inside."""

    x: int
    y: int
    width: int
    height: int


class SinkBuffer(abc.ABC):
    """A guest's framebuffer as its output shows it."""

    path: str
    """How its pixels can get to the screen: `zero copy`, `be-alloc` or `copy`; empty: not known while there is no screen."""
    reason: str = ""
    """Why not in a better way."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Take it off the screen if it is there, and let go of the guest's pages; nothing uses them afterwards."""


async def view_of(buffer: GuestBuffer) -> memoryview:
    """A guest's pages as memory. Raises SinkError."""
    try:
        return await buffer.view()
    except HypervisorError as error:
        raise SinkError(error.code, str(error)) from error


class Allocation(abc.ABC):
    """Memory of an output as a dma-buf. Attaching it to that output is zero copy."""

    fd: int
    """The dma-buf; it stays the allocation's."""

    @abc.abstractmethod
    def view(self) -> memoryview:
        """The memory, read-only."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free it. Nothing uses it any more."""


class Output(abc.ABC):
    """A place for one connector's picture, claimed by one guest at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ""
        """How frames get to the screen now: `zero copy`, `be-alloc` (without a copy, from the output's own memory), `copy`; or not."""
        self.reason = ""
        """Why not in a better way, or not at all; empty: there is nothing better."""
        self.flipped: Callable[[int], None] = lambda token: None
        """Called once per accepted flip, when it is shown or can no longer be; set by who claims the output."""

    @abc.abstractmethod
    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        """Prepare a guest's buffer for this output. Raises SinkError, and holds nothing then."""

    @abc.abstractmethod
    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        """Switch on and show this part of the buffer, and of those flipped to later, until the next `enable`.

        Returns when it is on its way. Raises SinkError: the screen stays as it was.
        """

    @abc.abstractmethod
    async def disable(self) -> None:
        """Switch off. Raises nothing: what cannot be switched off is gone already."""

    @abc.abstractmethod
    def flip(self, buffer: SinkBuffer, token: int) -> None:
        """Show another buffer at the next refresh; `flipped(token)` follows exactly once. Raises SinkError, then it does not.

        One flip at a time: the caller waits for `flipped` before the next.
        """

    @abc.abstractmethod
    async def edid(self) -> bytes | None:
        """The EDID of the monitor that is there, whole blocks of 128 octets as it sent them, or None."""

    @abc.abstractmethod
    async def allocate(self, pages: int) -> Allocation:
        """Memory of this many pages that the output can scan out: for buffers that the backend allocates, zeroed.

        Raises SinkError EOPNOTSUPP where the output has none to give.
        """

    @abc.abstractmethod
    async def release(self) -> None:
        """Give the output back: off, with no call of `flipped` afterwards. Its buffers have been closed before."""

    def _ignore_flips(self) -> None:
        """Call `flipped` no more: the output is being given back."""
        self.flipped = lambda token: None


class Sink(abc.ABC):
    """One way to the outside."""

    wants_dmabuf: bool
    """Whether a dma-buf of a guest's pages is of use here; else they are mapped."""

    wants_shared: bool = False
    """Whether another process maps guests' pages, if it can (GuestBuffer.shm_fd); they need not be mapped here then."""

    seats: Seats | None = None
    """What its compositor's seats say to guests' surfaces; None: it has none."""

    @abc.abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve; `started` when outputs can be claimed. Cleans up when cancelled."""

    def abilities(self) -> Mapping[str, str]:
        """What its driver or compositor can do, for the operator: name and answer, in words."""
        return {}

    @abc.abstractmethod
    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        """The output of this name, for a guest's connector of this resolution. Raises OutputUnavailable."""

    @abc.abstractmethod
    def claimed(self, name: str) -> Output | None:
        """The output of this name while a guest has it."""
