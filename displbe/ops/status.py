"""What the daemon says of itself: the tree behind `displbectl status`, the metrics and systemd's STATUS line.

Each object that knows a part of it makes that part; the names of the fields are those of the JSON (protocol/control.md). Times are
seconds, ages count back from the moment of the answer. Whatever a guest may have written has been escaped.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "Abilities",
    "ConnectorStatus",
    "DeviceStatus",
    "FlipsStatus",
    "Framebuffers",
    "GuestStatus",
    "InputStatus",
    "Latency",
    "Loop",
    "Refusal",
    "Status",
    "Usage",
]


class Latency(msgspec.Struct, frozen=True):
    """From a flip's request to its event, in seconds, of the last 1,000 flips of a connection."""

    p50: float
    p99: float
    max: float


class FlipsStatus(msgspec.Struct, frozen=True):
    """Page flips of one connector since its guest has connected."""

    shown: int
    age: float | None
    """Since the last one; None: there was none."""
    fps_1s: float
    fps_60s: float
    latency: Latency | None
    pending: bool
    """One is under way."""
    total_latency: float
    """Of all flips, in seconds."""
    buckets: tuple[int, ...]
    """How many took at most 0.25 ms, 0.5 ms, 1 ms, … each twice the one before, 16 in all; the last are all others."""


class Refusal(msgspec.Struct, frozen=True):
    """Requests that were refused, of one kind and for one error."""

    request: str
    error: str
    count: int


class Framebuffers(msgspec.Struct, frozen=True):
    """Framebuffers of a guest that can get to an output's screen in the same way."""

    path: str
    """As a connector's; empty: not known while there is no screen."""
    reason: str
    """Why not in a better way."""
    count: int


class ConnectorStatus(msgspec.Struct, frozen=True):
    """One connector of a guest and the output that shows it."""

    index: int
    output: str
    resolution: str
    """What the toolstack gave the connector."""
    shown: str
    """Size, format and place of what the guest shows; empty: it has switched the connector off."""
    path: str
    """How frames get to the screen: `zero copy`, `be-alloc`, `copy`; empty: they do not."""
    reason: str
    """Why not in a better way, or not at all."""
    framebuffers: tuple[Framebuffers, ...]
    """All that the guest has attached and this output can show. Where one must be copied, DRM copies all of them."""
    blanked: bool
    """By the operator."""
    flips: FlipsStatus
    requests: int
    refused: int
    refusals: tuple[Refusal, ...]
    """The same by kind and error."""
    error: str
    """The last refused request; empty: none was."""
    error_age: float | None
    rescued: int
    """Requests that were found without a notification; there should be none."""
    spurious: int
    """Notifications without a request."""
    throttled: float
    """Seconds that its requests had to wait because its guest asks for too much (`[limits]`)."""
    late_events: int
    """Events of flips that had to wait because the guest had left no room for them."""


class InputStatus(msgspec.Struct, frozen=True):
    """The input of a connected device."""

    devices: tuple[str, ...]
    """This machine's devices that are the guest's now: of those that several guests name, those that it has the focus of."""
    events: int
    """Those that it was given."""
    waiting: int
    """Those that its page has no room for."""
    dropped: int
    """Those that it never sees, since it took none for too long."""


class DeviceStatus(msgspec.Struct, frozen=True):
    """One PV device."""

    kind: str
    number: int
    backend: str
    """Our state."""
    backend_age: float
    frontend: str
    """The guest's state."""
    frontend_age: float
    connections: int
    shut_off: int
    """How often it was shut off for a broken rule."""
    error: str
    """Why it is not connected, or was shut off last; empty: never."""
    error_age: float | None
    connectors: tuple[ConnectorStatus, ...]
    """Those of the connection there is."""
    input: InputStatus | None = None
    """Of a `vkbd` that is connected."""


class Usage(msgspec.Struct, frozen=True):
    """What a guest holds, and may hold, of one kind."""

    used: int
    limit: int


class GuestStatus(msgspec.Struct, frozen=True):
    """A guest and all its devices."""

    domid: int
    name: str
    """In xl; empty: not known."""
    quota: dict[str, Usage]
    devices: tuple[DeviceStatus, ...]


class Abilities(msgspec.Struct, frozen=True):
    """What host, driver and compositor can do, in words: name and answer."""

    host: dict[str, str]
    sink: dict[str, str]


class Loop(msgspec.Struct, frozen=True):
    """The loop that serves all rings."""

    lag: float
    """The most that it was late in the last minute."""
    log_dropped: int
    """Lines that the log had no room for."""


class Status(msgspec.Struct, frozen=True):
    """The daemon."""

    version: str
    uptime: float
    sink: str
    mapped: Usage
    """Pages of all guests."""
    held: dict[str, int]
    """Of all guests: event channels (`ports`), pages of rings and directories (`pages`), `buffers` and `buffer_pages`."""
    files: Usage
    """Of the process: descriptors."""
    loop: Loop
    abilities: Abilities
    focus: str
    """The guest that has the input devices which several name; empty: the one that came first."""
    guests: tuple[GuestStatus, ...]

    def summary(self) -> str:
        """One line for systemd."""
        devices = [device for guest in self.guests for device in guest.devices]
        connected = sum(device.backend == "connected" for device in devices)
        flips = sum(connector.flips.fps_1s for device in devices for connector in device.connectors)
        off = sum(device.backend != "connected" and bool(device.error) for device in devices)
        line = (
            f"serving {len(self.guests)} guests, {connected} of {len(devices)} devices connected, {flips:.0f} flips/s"
        )
        return f"{line}, {off} with an error" if off else line
