"""The daemon's status, which `displbectl status`, the metrics and systemd's STATUS line show.

The structs are encoded as JSON (protocol/control.md), so the names of their fields are an interface. Times are in seconds. An age is the
time from an event to the answer. Text that a guest may have written has been escaped.
"""

from __future__ import annotations

from typing import Literal

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
    "PumpStatus",
    "Refusal",
    "Status",
    "Usage",
]


class Latency(msgspec.Struct, frozen=True):
    """The time from a flip's request to its event, in seconds: percentiles and maximum of a connection's last 1,000 flips."""

    p50: float
    p99: float
    max: float


class FlipsStatus(msgspec.Struct, frozen=True):
    """Page flips of one connector since its guest connected."""

    shown: int
    age: float | None
    """The age of the last flip; None: there was none."""
    fps_1s: float
    fps_60s: float
    latency: Latency | None
    pending: bool
    """Whether the guest waits for a flip's event."""
    total_latency: float
    """The sum of all flips' latencies, in seconds."""
    buckets: tuple[int, ...]
    """The histogram of latencies: the numbers of flips that took less than 0.25 ms, less than 0.5 ms and so on. Each bound is twice the one
    before. There are 16 buckets; a flip is counted in the first bucket that fits, and the last bucket has no bound.
    """


class Refusal(msgspec.Struct, frozen=True):
    """The number of requests of one kind that were refused with one error."""

    request: str
    error: str
    count: int


class Framebuffers(msgspec.Struct, frozen=True):
    """The number of framebuffers whose contents reach the screen in the same way."""

    path: str
    """As `path` in ConnectorStatus; empty: it is not known while there is no screen."""
    reason: str
    """Why they do not reach the screen in a better way."""
    count: int


class ConnectorStatus(msgspec.Struct, frozen=True):
    """One connector of a guest and the output that shows it. It has many attributes, because each one is a field of the JSON."""

    index: int
    output: str
    resolution: str
    """WIDTHxHEIGHT in pixels, as the toolstack configured it in XenStore."""
    shown: str
    """The size, pixel format and position of the image that the guest shows; empty: the guest has switched the connector off."""
    path: str
    """The way in which frames reach the screen: `zero copy`, `be-alloc` or `copy`; empty: they do not reach it."""
    reason: str
    """Why frames do not reach the screen, or do not reach it in a better way."""
    framebuffers: tuple[Framebuffers, ...]
    """The framebuffers that the guest has attached and this output can show. If one of them must be copied, the DRM sink copies all."""
    blanked: bool
    """Whether the operator has switched the screen off (`displbectl blank`)."""
    flips: FlipsStatus
    requests: int
    refused: int
    refusals: tuple[Refusal, ...]
    """Refused requests by kind and error."""
    error: str
    """The last refused request and the reason; empty: no request was refused."""
    error_age: float | None
    rescued: int
    """Requests that were found by polling, because the guest's notification was missing. There should be none."""
    spurious: int
    """Notifications without a request."""
    throttled: float
    """Seconds that requests were delayed because the guest exceeded its `[limits]`."""
    late_events: int
    """Flip events that were delayed because the guest's event page was full."""


class InputStatus(msgspec.Struct, frozen=True):
    """The input of a connected vkbd."""

    devices: tuple[str, ...]
    """The host devices whose events the guest gets now. If several guests name a device, the guest with the focus gets its events."""
    events: int
    """Events written to the guest's page."""
    waiting: int
    """Events that wait until the guest's page has room."""
    dropped: int
    """Events that were dropped because the guest consumed none for too long."""
    windows: tuple[str, ...] = ()
    """The guest's connectors whose windows give it events while they have the focus."""


class DeviceStatus(msgspec.Struct, frozen=True):
    """One PV device."""

    kind: str
    number: int
    backend: str
    """The backend's xenbus state."""
    backend_age: float
    frontend: str
    """The frontend's xenbus state."""
    frontend_age: float
    connections: int
    shut_off: int
    """The number of times that the device was shut off because the frontend broke the protocol."""
    error: str
    """Why the device is not connected, or why it was shut off last; empty: there was no error."""
    error_age: float | None
    connectors: tuple[ConnectorStatus, ...]
    """The connectors of a connected vdispl."""
    input: InputStatus | None = None
    """The input of a connected vkbd."""


class Usage(msgspec.Struct, frozen=True):
    """The amount of one resource that is used, and its limit."""

    used: int
    limit: int


class GuestStatus(msgspec.Struct, frozen=True):
    """A guest and its devices."""

    domid: int
    name: str
    """The guest's name in xl; empty when it is not known."""
    quota: dict[str, Usage]
    devices: tuple[DeviceStatus, ...]


class Abilities(msgspec.Struct, frozen=True):
    """The abilities of host, driver and compositor, as pairs of a name and an answer in words."""

    host: dict[str, str]
    sink: dict[str, str]


class Loop(msgspec.Struct, frozen=True):
    """The loop that serves all rings."""

    lag: float
    """The longest lag of the last minute (ops.lag)."""
    log_dropped: int
    """Log lines that were dropped."""


class PumpStatus(msgspec.Struct, frozen=True):
    """Whether steady flips are served by the compiled pump."""

    state: Literal["on", "off", "missing"]
    """`on`: the pump runs. `off`: the configuration does not want it, or has no use for it. `missing`: the pump cannot be loaded."""
    reason: str
    """Why the pump does not run, or what it lacks; empty: nothing, or an older daemon, which has no pump, has sent this status."""


class Status(msgspec.Struct, frozen=True):
    """The daemon."""

    version: str
    uptime: float
    sink: str
    mapped: Usage
    """Mapped pages of all guests."""
    held: dict[str, int]
    """Resources of all guests: event channels (`ports`), pages of rings and page directories (`pages`), `buffers`, `buffer_pages`."""
    files: Usage
    """The process' file descriptors."""
    loop: Loop
    abilities: Abilities
    focus: str
    """The guest that gets the input devices that several guests name; empty: the guest that arrived first."""
    guests: tuple[GuestStatus, ...]
    input_with_host: bool = False
    """Whether the host has its input devices now, because the key combination `[input] release` was pressed: guests get nothing from
    them."""
    threads: Usage = Usage(0, 0)
    """The process' threads, and the limit of the service."""
    copies: Usage = Usage(0, 0)
    """Pages of the copies of all guests' frames, and of the buffers that displbe has allocated for guests."""
    pump: PumpStatus = PumpStatus("missing", "")

    def summary(self) -> str:
        """Return one line for systemd's STATUS."""
        devices = [device for guest in self.guests for device in guest.devices]
        connected = sum(device.backend == "connected" for device in devices)
        flips = sum(connector.flips.fps_1s for device in devices for connector in device.connectors)
        off = sum(device.backend != "connected" and bool(device.error) for device in devices)
        line = (
            f"serving {len(self.guests)} guests, {connected} of {len(devices)} devices connected, {flips:.0f} flips/s"
        )
        return f"{line}, {off} with an error" if off else line
