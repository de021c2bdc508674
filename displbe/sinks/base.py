"""The interface of a sink: Sink, its outputs, and their buffers. tests/scenario runs the same scenarios over all sinks.

A sink owns a connection to the outside (a card, a compositor, an X server) and restores it when it is lost. It has outputs, each of which
shows one connector of one guest. An output shows a guest's buffer in the cheapest way that both support.
"""

from __future__ import annotations

import abc
import errno
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import trio

from displbe.pump.native import Copier, Pump
from displbe.wire.errors import Errno, RequestError
from displbe.wire.pgdir import pages_of
from displbe.xen.memory import Memory
from displbe.xen.port import GuestBuffer, HypervisorError

from .seat import Seats
from .turn import Turn

__all__ = [
    "NOBODY",
    "Allocation",
    "Claimant",
    "CopyMemory",
    "DeviceConnector",
    "Geometry",
    "Output",
    "OutputUnavailable",
    "Part",
    "Sink",
    "SinkBuffer",
    "SinkError",
    "SteadyFlips",
    "SteadyScreen",
    "memory_of",
]


class SinkError(Exception):
    """An output cannot do what was asked. `code` is the error code for the guest."""

    def __init__(self, code: Errno, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class OutputUnavailable(Exception):
    """An output does not exist, or another guest has it. The text goes to the device's `error` node."""


class Claimant(msgspec.Struct, frozen=True):
    """The guest that claims an output."""

    domid: int
    name: str
    """The guest's name in xl; empty: unknown."""


NOBODY: Final = Claimant(0, "")
"""The claimant where no guest is named."""


class DeviceConnector(msgspec.Struct, frozen=True):
    """A connector of a guest's device, as the toolstack and the configuration describe it. The guest cannot change it."""

    claimant: Claimant
    device: int
    """The number of the guest's vdispl."""
    index: int
    """The number of the connector."""
    name: str
    """The name of its output."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


class Geometry(msgspec.Struct, frozen=True):
    """The layout of pixels in a buffer. It has been checked against the buffer's size."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    fourcc: int
    """The DRM format (drm_fourcc.h)."""
    stride: int
    """Bytes from one row to the next."""
    offset: int
    """Bytes before the first row."""


class Part(msgspec.Struct, frozen=True):
    """The part of a framebuffer that is shown, in pixels. It lies within the framebuffer."""

    x: int
    y: int
    width: int
    height: int


class SinkBuffer(abc.ABC):
    """A guest's framebuffer, prepared for its output."""

    path: str
    """How its pixels get to the screen: `zero copy`, `be-alloc` or `copy`; empty: unknown while there is no screen."""
    reason: str = ""
    """Why no better path is possible."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Take the framebuffer off the screen if it is there, and release the guest's pages. Nothing uses them afterwards."""


async def memory_of(buffer: GuestBuffer) -> Memory:
    """Return a guest's pages as memory, to be borrowed. Raises SinkError."""
    try:
        return await buffer.map()
    except HypervisorError as error:
        raise SinkError(error.code, str(error)) from error


class CopyMemory:
    """Memory for copies of a guest's frames, which is charged to the guest.

    `take` and `give` get a number of pages; `take` raises RequestError if the guest, or all guests together, have too many. Both may be
    called in any thread. By default, nothing is charged.
    """

    def __init__(
        self, take: Callable[[int], None] = lambda pages: None, give: Callable[[int], None] = lambda pages: None
    ) -> None:
        self._take = take
        self._give = give

    def charge(self, size: int) -> Callable[[], None]:
        """Charge the guest with `size` bytes. Return the function that takes the charge back; a second call of it does nothing.

        Raises OSError ENOMEM, like a kernel that has no memory, with the reason.
        """
        pages = pages_of(size)
        try:
            self._take(pages)
        except RequestError as error:
            raise OSError(errno.ENOMEM, error.reason) from error
        charged = [pages]

        def uncharge() -> None:
            while charged:
                self._give(charged.pop())

        return uncharge


class SteadyScreen(msgspec.Struct):
    """What the pump needs to serve an output's flips. Addresses are of memory that stays until `Output.take_back`."""

    card: int
    """The card's file."""
    atomic: int
    """The address of the flip's drm_mode_atomic, which the output has filled in."""
    value: int
    """The address of the framebuffer's id in it."""
    framebuffers: Mapping[int, tuple[int, int]]
    """The guest's cookie -> the id of the card's framebuffer, and in copy mode the address of the first pixel to be copied."""
    copier: Copier | None = None
    """What copies the frames; None: they are not copied."""
    serial: int = 0
    """The serial number of the newest flip."""
    token: int = 0
    """Its token, which the event of the flip under way has. A SET_CONFIG may have shown another framebuffer since that flip."""
    late: float = 0.0
    """Seconds after which a flip ends although the card has not reported it."""
    still: float = 0.0
    """Seconds without a flip after which Python wants the output back."""


class SteadyFlips(msgspec.Struct):
    """What the pump has done with an output."""

    serial: int
    """The serial number of the newest flip."""
    shown: int
    """Flips whose frames the screen has shown."""
    token: int | None
    """The token of the flip under way; None: none is."""
    age: float
    """Seconds since the newest flip began."""
    newest: SinkBuffer | None
    """The buffer that was flipped to last; None: it is gone."""


class Allocation(abc.ABC):
    """Memory that an output has allocated, as a dma-buf. The output shows it without a copy."""

    fd: int
    """The dma-buf's file descriptor. The allocation closes it."""
    memory: Memory
    """The memory, read-only."""

    @abc.abstractmethod
    def close(self, wait: float = 0.0) -> bool:
        """Free the memory, and wait up to `wait` seconds for those that borrow it. Return whether it is free (`Mapping.close`).

        Called in worker threads: the kernel needs milliseconds to free a large buffer.
        """


class Output(abc.ABC):
    """A claimed place for one connector's picture: a screen or a window. One guest at a time claims it.

    After `release` the place may belong to another guest: `enable` and `flip` raise SinkError, and `disable` does nothing.
    """

    path: str = ""
    """How frames get to the screen now: `zero copy`, `be-alloc` (no copy, the memory is the output's) or `copy`; empty: not at all."""
    reason: str = ""
    """Why no better path is possible, or why nothing is shown; empty: there is no better path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_released = False
        """Whether `release` has given the output back."""
        self.flipped: Callable[[int], None] = lambda token: None
        """Called with the token of each accepted flip when the flip ends: its frame is shown, or can no longer be shown. The claimant
        sets this.
        """
        self.copies = CopyMemory()
        """What is charged for the memory of copies. The claimant sets this."""
        self.charge: Callable[[], float] = lambda: 0.0
        """Called for each mode change that the guest causes without `enable`, for example by removing what is shown. It charges the guest
        and returns the seconds that the change has to wait. The claimant sets this.
        """

        self.interrupt: Callable[[], None] = lambda: None
        """Called before the output changes while the pump may serve its flips: `take_back` has been called when it returns. The claimant
        sets this.
        """

    def steady(self, buffers: Mapping[int, SinkBuffer], *, is_pending: bool) -> SteadyScreen | None:
        """Return what the pump needs to flip between these buffers, by the guest's cookies; None: the pump cannot serve this output now.

        `is_pending`: the claimant waits for the end of a flip. `hand_over` follows unless None is returned.
        """
        return None

    def hand_over(self) -> None:  # noqa: B027
        """Leave the flips to the pump, with the flip under way: what `steady` has returned is used now."""

    def take_back(self, flips: SteadyFlips) -> None:  # noqa: B027
        """Serve the flips again, after `hand_over`."""

    @abc.abstractmethod
    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        """Prepare a guest's buffer for this output. Raises SinkError, and then holds nothing of the buffer."""

    @abc.abstractmethod
    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        """Switch on and show this part of the buffer, and of each buffer flipped to, until the next `enable`.

        Returns when the change has been requested. Raises SinkError; the screen then stays as it was.
        """

    @abc.abstractmethod
    async def disable(self) -> None:
        """Switch off. Raises nothing, because a screen that cannot be switched off is gone."""

    @abc.abstractmethod
    def flip(self, buffer: SinkBuffer, token: int) -> None:
        """Show another buffer at the next refresh. Raises SinkError; otherwise `flipped(token)` is called exactly once.

        The caller waits for `flipped` before the next flip.
        """

    @abc.abstractmethod
    async def edid(self) -> bytes | None:
        """Return the EDID of the connected monitor as it sent it, in whole blocks of 128 bytes; None if there is none."""

    @abc.abstractmethod
    async def allocate(self, pages: int) -> Allocation:
        """Allocate this many zeroed pages that the output can scan out, for a buffer that the backend allocates (be-alloc).

        Raises SinkError, with EOPNOTSUPP where the output cannot allocate.
        """

    @abc.abstractmethod
    async def release(self) -> None:
        """Switch off and give the output back. `flipped` is not called afterwards. The caller has closed all buffers before."""

    def _check_claimed(self) -> None:
        """Raise SinkError after `release`."""
        if self.is_released:
            raise SinkError(Errno.ENODEV, f"{self.name} has been given back; connect again to claim it")

    def _ignore_flips(self) -> None:
        """Do not call `flipped` any more: the output is being given back."""
        self.flipped = lambda token: None


class Sink(abc.ABC):
    """A kind of output, and the connection to the outside that its outputs share."""

    wants_dmabuf: bool
    """Whether the sink uses dma-bufs of guests' pages. Otherwise the pages are mapped."""

    wants_shared: bool = False
    """Whether another process maps guests' pages where possible (GuestBuffer.shm_fd). This process then need not map them."""

    pump: Pump | None = None
    """What serves steady flips of outputs that have `steady`; set before `run`. None: the sinks do."""

    seats: Seats | None = None
    """The input events of the compositor's seats for guests' surfaces; None: the sink has no seats."""

    @abc.abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, then clean up. `task_status.started` is called when outputs can be claimed."""

    def abilities(self) -> Mapping[str, str]:
        """Return what the driver or compositor can do, for the operator: name -> answer, in words."""
        return {}

    # A device's life is the toolstack's, and does not depend on the guest. A sink whose outputs are no windows ignores both calls.

    def connector_added(self, connector: DeviceConnector) -> None:  # noqa: B027
        """Take note that the toolstack has created a device with this connector. A sink of windows opens the connector's window."""

    def connector_removed(self, connector: DeviceConnector) -> None:  # noqa: B027
        """Take note that a connector is gone with its device, or that displbe ends. Its output has been released before."""

    def reopen(self, connector: DeviceConnector) -> None:
        """Open the connector's window again, which its user has closed, iconified or cannot see. Raises OutputUnavailable."""
        raise OutputUnavailable("this sink shows guests on whole screens, not in windows: there is no window to open")

    @abc.abstractmethod
    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        """Claim the output of this name for a guest's connector of this resolution in pixels. Raises OutputUnavailable.

        A window can be claimed only after `connector_added`.
        """

    @abc.abstractmethod
    def claimed(self, name: str) -> Output | None:
        """Return the output of this name if a guest has claimed it."""

    def turn_of(self, name: str) -> Turn:
        """Return how pictures lie on the screen of this name, for the input devices that are mounted with it."""
        return Turn.NONE
