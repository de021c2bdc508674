"""Formats the status as text, 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from displbe.ops.status import ConnectorStatus, DeviceStatus, Framebuffers, GuestStatus, InputStatus, Status
from displbe.ops.text import escape

__all__ = ["WIDTH", "status_lines", "top_lines"]

WIDTH = 80
PAGE = 4096


def _cut(text: str, width: int) -> str:
    text = escape(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _age(seconds: float | None) -> str:
    """Return a length of time in at most five characters."""
    if seconds is None:
        return "never"
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "m"), (360000, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds / unit)}{name}"
    return f"{int(seconds / 86400)}d"


def _milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, without a unit, in at most five characters. A time of 10 s or more has a larger unit, shown."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f}"
    return f"{seconds * 1000:.0f}" if seconds < 10 else _age(seconds)


def _pages(pages: int) -> str:
    return f"{pages * PAGE / (1 << 20):.1f}".removesuffix(".0")


def _wrap(indent: str, label: str, text: str) -> Iterator[str]:
    """Yield a text with its label, over as many lines as needed."""
    room = WIDTH - len(indent) - 10
    words = escape(text)
    while len(words) > room:
        space = words.rfind(" ", 0, room + 1)
        end = space if space > 0 else room
        yield f"{indent}{label:10}{words[:end]}"
        words, label = words[end:].lstrip(), ""
    yield f"{indent}{label:10}{words}"


def status_lines(status: Status) -> Iterator[str]:
    """Yield the lines of `displbectl status`."""
    mapped = f"{_pages(status.mapped.used)} of {_pages(status.mapped.limit)} MiB mapped"
    lag = f"loop at most {_milliseconds(status.loop.lag)} ms late"
    yield _cut(f"displbe {status.version}, {status.sink}, up {_age(status.uptime)}, {mapped}, {lag}", WIDTH)
    if status.loop.log_dropped:
        yield f"{status.loop.log_dropped} log lines were lost: the log's reader is too slow"
    for label, answers in (("host", status.abilities.host), ("screens", status.abilities.sink)):
        for name, answer in answers.items():
            yield from _wrap("  ", label, f"{name}: {answer}")
            label = ""
    if status.pump.reason or status.pump.state != "missing":
        yield from _wrap("  ", "pump", ": ".join(filter(None, (status.pump.state, status.pump.reason))))
    if status.input_with_host:
        yield _cut("the host has its input devices: press [input] release again, or use displbectl focus", WIDTH)
    elif status.focus:
        yield _cut(f"shared input devices go to {status.focus}", WIDTH)
    if not status.guests:
        yield "no guest has a device here"
    for guest in status.guests:
        yield ""
        yield from _guest_lines(guest)


def _guest_lines(guest: GuestStatus) -> Iterator[str]:
    held = [
        f"{usage.used} of {usage.limit} {kind.replace('_', ' ')}" for kind, usage in guest.quota.items() if usage.used
    ]
    yield _cut(f"guest {guest.name or '(no name)'}, domain {guest.domid}", WIDTH)
    yield from _wrap("  ", "holds", ", ".join(held) or "nothing")
    for device in guest.devices:
        yield from _device_lines(device)


def _device_lines(device: DeviceStatus) -> Iterator[str]:
    ours = f"backend {device.backend} for {_age(device.backend_age)}"
    theirs = f"frontend {device.frontend} for {_age(device.frontend_age)}"
    yield f"  {device.kind} {device.number}: {ours}, {theirs}"
    if device.connections > 1 or device.shut_off:
        yield from _wrap("    ", "history", f"connected {device.connections} times, shut off {device.shut_off} times")
    if device.error:
        yield from _wrap("    ", "error", f"{device.error} ({_age(device.error_age)} ago)")
    if device.input is not None:
        yield from _wrap("    ", "input", _input(device.input))
    for connector in device.connectors:
        yield from _connector_lines(connector)


def _input(status: InputStatus) -> str:
    sources = [*status.devices, *(f"the window of {name}" for name in status.windows)]
    text = f"from {', '.join(sources)}" if sources else "from no device of this machine at present"
    text += f"; {status.events} events"
    if status.waiting:
        text += f", {status.waiting} waiting for the guest"
    return f"{text}, {status.dropped} dropped" if status.dropped else text


def _connector_lines(connector: ConnectorStatus) -> Iterator[str]:
    shown = f"shows {connector.shown}" if connector.shown else "switched off by the guest"
    yield _cut(f"    connector {connector.index} on {connector.output}, {connector.resolution}: {shown}", WIDTH)
    indent = " " * 6
    path = connector.path or "not on the screen"
    if connector.blanked:
        path = "blanked by the operator (displbectl unblank)"
        yield from _wrap(indent, "path", path)
    else:
        yield from _wrap(indent, "path", f"{path}: {connector.reason}" if connector.reason else path)
    if [each.path for each in connector.framebuffers] != [connector.path] and connector.framebuffers:
        yield from _wrap(indent, "buffers", "; ".join(map(_framebuffers, connector.framebuffers)))
    yield from _wrap(indent, "flips", _flips(connector))
    asked = f"{connector.requests} served, {connector.refused} refused"
    if connector.rescued:
        asked += f", {connector.rescued} found without a notification"
    if connector.throttled:
        asked += f", held back for {_age(connector.throttled)} by its limits"
    yield from _wrap(indent, "requests", asked)
    if connector.error:
        yield from _wrap(indent, "error", f"{connector.error} ({_age(connector.error_age)} ago)")


def _framebuffers(status: Framebuffers) -> str:
    text = f"{status.count} {status.path or 'not shown yet'}"
    return f"{text} ({status.reason})" if status.reason else text


def _flips(connector: ConnectorStatus) -> str:
    flips = connector.flips
    if not flips.shown:
        return "none yet" + (", one pending" if flips.pending else "")
    text = f"last {_age(flips.age)} ago, {flips.fps_1s:.1f}/s, {flips.fps_60s:.1f}/s in a minute"
    if flips.latency is not None:
        took = [_milliseconds(value) for value in (flips.latency.p50, flips.latency.p99, flips.latency.max)]
        text += ", took {} ms (p99 {}, max {})".format(*took)
    return text


HEADING = (
    f"{'GUEST':12} {'OUTPUT':11} {'STATE':11} {'PATH':9} {'FPS':>5} {'LAST':>5} {'P50':>5} {'P99':>5} {'MAPPED':>6}"
)


def top_lines(status: Status) -> Iterator[str]:
    """Yield the lines of `displbectl top`: one for each connector. MAPPED counts the whole guest, in MiB."""
    yield _cut(f"displbe: {status.summary()}", WIDTH)
    yield HEADING
    for guest in status.guests:
        name = guest.name or str(guest.domid)
        pages = guest.quota.get("pages")
        mapped = _pages(pages.used) if pages is not None else ""
        for device in guest.devices:
            if not device.connectors:
                where = f"{device.kind} {device.number}"
                yield f"{_cut(name, 12):12} {_cut(where, 11):11} {_cut(device.backend, 11):11} {_cut(device.error, 42)}"
            for connector in device.connectors:
                yield _top_line(name, connector, mapped)


def _top_line(name: str, connector: ConnectorStatus, mapped: str) -> str:
    flips = connector.flips
    state = "blanked" if connector.blanked else "off" if not connector.shown else "on" if connector.path else "dark"
    if state == "on" and flips.age is not None and flips.age > 1:
        state = "still"
    took = [_milliseconds(flips.latency.p50), _milliseconds(flips.latency.p99)] if flips.latency else ["", ""]
    start = f"{_cut(name, 12):12} {_cut(connector.output, 11):11} {state:11} {_cut(connector.path or '-', 9):9}"
    return _cut(f"{start} {flips.fps_1s:5.1f} {_age(flips.age):>5} {took[0]:>5} {took[1]:>5} {mapped:>6}", WIDTH)
