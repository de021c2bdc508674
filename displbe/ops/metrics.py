"""Metrics for Prometheus: in a file for node_exporter's textfile collector, over HTTP on a UNIX socket, or over HTTP on TCP, as configured.

The number of series is limited: at most 64 guests, and their existing connectors. A guest is labelled with its name in xl, escaped and
truncated.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
import trio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from displbe.shortage import shortage
from displbe.threads import run_in_thread

from .clients import Client, Clients
from .files import replace_file
from .settings import MetricsSettings
from .status import ConnectorStatus, DeviceStatus, GuestStatus, Status

__all__ = ["Metrics", "families"]

MAX_GUESTS: Final = 64
MAX_NAME: Final = 64
"""Characters of a guest's name."""
FIRST_BUCKET: Final = 0.00025
"""The bound of the first bucket in seconds. Each further bound is twice the previous one (status.FlipsStatus.buckets)."""
CLIENT_TIMEOUT: Final = 5.0
"""Seconds that a client may take to send its request, and again to read the answer."""
MAX_REQUEST: Final = 8192
"""Bytes of an HTTP request."""
FAREWELL: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""The answer to a client that is disconnected for another one, because it sent no request for longest."""
MAX_AGE: Final = 1.0
"""Seconds for which the same text is sent to further clients."""
_log = structlog.get_logger("displbe.metrics")


def _label(guest: GuestStatus, guests: list[GuestStatus]) -> str:
    """Return a guest's label: its name if no other guest has the same, else its domid."""
    name = guest.name[:MAX_NAME]
    is_unique = sum(other.name[:MAX_NAME] == name for other in guests) == 1
    return name if name and is_unique else str(guest.domid)


def families(status: Status) -> Iterator[Metric]:
    """Return all metrics."""
    guests = list(status.guests[:MAX_GUESTS])
    named = [(_label(guest, guests), guest) for guest in guests]
    devices = [(dom, device) for dom, guest in named for device in guest.devices]
    connectors = [(dom, connector) for dom, device in devices for connector in device.connectors]
    yield from _daemon_metrics(status)
    yield from _guest_metrics(named)
    yield from _device_metrics(devices)
    yield from _connector_metrics(connectors)
    yield _refusals(connectors)
    yield _latencies(connectors)


def _daemon_metrics(status: Status) -> Iterator[Metric]:
    build = GaugeMetricFamily("displbe_build_info", "The daemon's version and sink.", labels=["version", "sink"])
    build.add_metric([status.version, status.sink], 1)
    yield build
    yield GaugeMetricFamily("displbe_uptime_seconds", "Seconds since the daemon started.", status.uptime)
    yield GaugeMetricFamily(
        "displbe_loop_lag_seconds",
        "The longest lag, in the last minute, of the loop that serves the rings.",
        status.loop.lag,
    )
    yield CounterMetricFamily(
        "displbe_log_lines_dropped", "Lines of the log that were dropped.", status.loop.log_dropped
    )
    yield GaugeMetricFamily("displbe_grants_mapped_pages", "Mapped pages of all guests.", status.mapped.used)
    yield GaugeMetricFamily(
        "displbe_grants_mappable_pages", "The limit of mapped pages of all guests.", status.mapped.limit
    )
    held = GaugeMetricFamily(
        "displbe_held",
        "Resources of all guests: event channels (ports), ring pages (pages), buffers, pages of buffers.",
        labels=["kind"],
    )
    for kind, count in status.held.items():
        held.add_metric([kind], count)
    yield held
    yield GaugeMetricFamily("displbe_files_open", "Open file descriptors.", status.files.used)
    yield GaugeMetricFamily("displbe_files_openable", "The limit of open file descriptors.", status.files.limit)
    yield GaugeMetricFamily("displbe_threads", "Threads.", status.threads.used)
    yield GaugeMetricFamily("displbe_threads_startable", "The limit of threads.", status.threads.limit)
    yield GaugeMetricFamily("displbe_copies_pages", "Pages of the copies of all guests' frames.", status.copies.used)
    yield GaugeMetricFamily(
        "displbe_copies_allowed_pages", "The limit of pages of the copies of all guests' frames.", status.copies.limit
    )
    yield GaugeMetricFamily("displbe_guests", "Guests with a device.", len(status.guests))


def _guest_metrics(guests: list[tuple[str, GuestStatus]]) -> Iterator[Metric]:
    used = GaugeMetricFamily("displbe_quota_used_ratio", "The used part of a guest's quota.", labels=["dom", "kind"])
    for dom, guest in guests:
        for kind, usage in guest.quota.items():
            used.add_metric([dom, kind], usage.used / usage.limit if usage.limit else 0.0)
    yield used


def _device_metrics(devices: list[tuple[str, DeviceStatus]]) -> Iterator[Metric]:
    labels = ["dom", "kind", "number"]
    connected = GaugeMetricFamily("displbe_device_connected", "Whether the device is connected.", labels=labels)
    connections = CounterMetricFamily("displbe_connections", "Connections of the device.", labels=labels)
    shut_off = CounterMetricFamily(
        "displbe_ring_shutoff",
        "How often the device was shut off because its frontend broke the protocol.",
        labels=labels,
    )
    events = CounterMetricFamily("displbe_input_events", "Input events written to the guest's page.", labels=labels)
    dropped = CounterMetricFamily(
        "displbe_input_events_dropped",
        "Input events dropped because the guest consumed none for too long.",
        labels=labels,
    )
    for dom, device in devices:
        values = [dom, device.kind, str(device.number)]
        connected.add_metric(values, device.backend == "connected")
        connections.add_metric(values, device.connections)
        shut_off.add_metric(values, device.shut_off)
        if device.input is not None:
            events.add_metric(values, device.input.events)
            dropped.add_metric(values, device.input.dropped)
    yield from (connected, connections, shut_off, events, dropped)


def _connector_metrics(connectors: list[tuple[str, ConnectorStatus]]) -> Iterator[Metric]:
    labels = ["dom", "conn"]
    flips = CounterMetricFamily("displbe_flips", "Page flips that were shown.", labels=labels)
    rate = GaugeMetricFamily("displbe_flips_per_second", "Page flips shown in the last second.", labels=labels)
    age = GaugeMetricFamily("displbe_last_flip_age_seconds", "Seconds since the last page flip.", labels=labels)
    wanted = GaugeMetricFamily(
        "displbe_connector_on", "Whether the guest has switched the connector on.", labels=labels
    )
    lit = GaugeMetricFamily(
        "displbe_connector_lit", "Whether the guest's image is on the screen.", labels=[*labels, "path"]
    )
    requests = CounterMetricFamily("displbe_requests", "Requests read from the ring.", labels=labels)
    rescued = CounterMetricFamily(
        "displbe_rescue_polls",
        "Requests found by polling, without a notification; there should be none.",
        labels=labels,
    )
    spurious = CounterMetricFamily("displbe_notifications_spurious", "Notifications without a request.", labels=labels)
    throttled = CounterMetricFamily(
        "displbe_throttled_seconds",
        "Seconds that requests were delayed because the guest exceeded its limits.",
        labels=labels,
    )
    late = CounterMetricFamily(
        "displbe_events_late", "Flip events delayed because the guest's event page was full.", labels=labels
    )
    for dom, connector in connectors:
        values = [dom, connector.output]
        flips.add_metric(values, connector.flips.shown)
        rate.add_metric(values, connector.flips.fps_1s)
        if connector.flips.age is not None:
            age.add_metric(values, connector.flips.age)
        wanted.add_metric(values, bool(connector.shown))
        lit.add_metric([*values, connector.path or "none"], bool(connector.path) and not connector.blanked)
        requests.add_metric(values, connector.requests)
        rescued.add_metric(values, connector.rescued)
        spurious.add_metric(values, connector.spurious)
        throttled.add_metric(values, connector.throttled)
        late.add_metric(values, connector.late_events)
    yield from (flips, rate, age, wanted, lit, requests, rescued, spurious, throttled, late)


def _refusals(connectors: list[tuple[str, ConnectorStatus]]) -> Metric:
    """Return the counts of refused requests, with one series for each kind of request and error that occurred."""
    labels = ["dom", "conn", "request", "error"]
    family = CounterMetricFamily("displbe_requests_refused", "Requests that were refused.", labels=labels)
    for dom, connector in connectors:
        for refusal in connector.refusals:
            family.add_metric([dom, connector.output, refusal.request, refusal.error], refusal.count)
    return family


def _latencies(connectors: list[tuple[str, ConnectorStatus]]) -> Metric:
    family = HistogramMetricFamily(
        "displbe_flip_latency_seconds", "Seconds from a page flip's request to its event.", labels=["dom", "conn"]
    )
    for dom, connector in connectors:
        buckets, total = [], 0
        for place, count in enumerate(connector.flips.buckets):
            total += count
            last = place == len(connector.flips.buckets) - 1
            buckets.append(("+Inf" if last else f"{FIRST_BUCKET * 2**place:g}", float(total)))
        family.add_metric([dom, connector.output], buckets, connector.flips.total_latency)
    return family


class _SingleFamily(CollectorRegistry):
    """A registry of one family. With it, each family can be written separately."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class Metrics:
    """Serves the metrics in all configured ways. `read_status` returns the status."""

    def __init__(self, settings: MetricsSettings, read_status: Callable[[], Awaitable[Status]]) -> None:
        self._settings = settings
        self._read_status = read_status
        self.clients = Clients("metrics", self._answer, FAREWELL)
        self._generating = trio.Lock()
        self._text = b""
        self._generated_at = float("-inf")

    async def run(self) -> None:
        """Serve until cancelled. If a file or socket cannot be opened, log that and serve the others."""
        async with trio.open_nursery() as nursery:
            if self._settings.textfile:
                nursery.start_soon(self._write_file, Path(self._settings.textfile))
            if self._settings.socket:
                nursery.start_soon(self.clients.serve_unix, Path(self._settings.socket))
            if self._settings.listen:
                nursery.start_soon(self._serve_tcp, self._settings.listen)

    async def text(self) -> bytes:
        """Return the metrics in Prometheus' exposition format. Rings are served between two families."""
        async with self._generating:
            if trio.current_time() - self._generated_at >= MAX_AGE:
                pieces = []
                for family in families(await self._read_status()):
                    pieces.append(generate_latest(_SingleFamily(family)))
                    await trio.lowlevel.checkpoint()
                self._text, self._generated_at = b"".join(pieces), trio.current_time()
            return self._text

    async def _write_file(self, path: Path) -> None:
        """Write the file at each interval. Remove it at the end, because its reader would regard the old figures as current."""
        try:
            while True:
                try:
                    await run_in_thread(replace_file, path, await self.text(), 0o644)
                except OSError as error:
                    _log.warning("cannot write the metrics file", file=str(path), reason=shortage(error))
                except Exception:  # it costs this file; the guests go on
                    _log.exception("cannot write the metrics file: trying again")
                await trio.sleep(self._settings.interval)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    async def _serve_tcp(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            listeners = await trio.open_tcp_listeners(int(port), host=host.strip("[]"))
        except (
            OSError,
            UnicodeError,
            RuntimeError,
        ) as error:  # UnicodeError: not a host name; RuntimeError: no thread to look it up
            _log.error("cannot listen for metrics: TCP clients are not served", address=address, reason=str(error))
            return
        async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for listener in listeners:
                await stack.enter_async_context(listener)
                nursery.start_soon(self.clients.accept, listener)

    async def _answer(self, client: Client) -> None:
        """Answer one request. The connection then ends."""
        with trio.fail_after(CLIENT_TIMEOUT):
            line = await _request_line(client.stream)
        with client.served():
            await self._answer_line(client.stream, line)

    async def _answer_line(self, client: trio.SocketStream, line: bytes) -> None:
        if line.split(b"?")[0] not in (b"GET /metrics", b"GET /"):
            text, kind, status = b"only /metrics is here\n", "text/plain", "404 Not Found"
        else:
            text, kind, status = await self.text(), CONTENT_TYPE_LATEST, "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        with trio.fail_after(CLIENT_TIMEOUT):
            await client.send_all(head.encode() + text)


async def _request_line(client: trio.SocketStream) -> bytes:
    """Read a whole HTTP request, and return its method and path. Raises trio.BrokenResourceError if it is incomplete or too long."""
    request = b""
    while b"\r\n\r\n" not in request and b"\n\n" not in request:
        more = await client.receive_some(MAX_REQUEST)
        request += more
        if not more or len(request) > MAX_REQUEST:
            raise trio.BrokenResourceError
    words = request.splitlines()[0].split(b" ")
    return b" ".join(words[:2])
