"""The metrics, read back with Prometheus' own parser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families
from unit.statuses import STATUS

from displbe.ops import clients, metrics
from displbe.ops.clients import MAX_CLIENTS
from displbe.ops.metrics import MAX_GUESTS, Metrics
from displbe.ops.settings import MetricsSettings
from displbe.ops.status import (
    Abilities,
    ConnectorStatus,
    DeviceStatus,
    FlipsStatus,
    GuestStatus,
    InputStatus,
    Latency,
    Loop,
    Refusal,
    Status,
    Usage,
)

CONFIGS = Path(__file__).parents[2] / "configs"
BUCKETS = (0, 0, 1, 0, 0, 0, 0, 40, 2, 0, 0, 0, 0, 0, 0, 1)

REFUSALS = (Refusal("PageFlip", "ENOENT", 2),)


def guest(domid: int, name: str, outputs: tuple[str, ...] = ("HDMI-A-1",)) -> GuestStatus:
    """Return the status of a guest that flips."""
    flips = FlipsStatus(44, 0.01, 60.0, 59.0, Latency(0.016, 0.02, 5.0), False, 6.5, BUCKETS)
    connectors = tuple(
        ConnectorStatus(
            i, output, "64x48", "64x48 XR24", "copy", "", (), False, flips, 50, 2, REFUSALS, "why", 1.0, 0, 7, 0.5, 1
        )
        for i, output in enumerate(outputs)
    )
    device = DeviceStatus("vdispl", 0, "connected", 9.0, "connected", 9.0, 3, 1, "", None, connectors)
    keyboard = DeviceStatus(
        "vkbd", 0, "connected", 9.0, "connected", 9.0, 1, 0, "", None, (), InputStatus(("/dev/input/event0",), 7, 0, 2)
    )
    return GuestStatus(domid, name, {"pages": Usage(6, 12)}, (device, keyboard))


def status(*guests: GuestStatus) -> Status:
    """Return a daemon's status."""
    return Status(
        "0.1.0",
        5.0,
        "drm",
        Usage(6, 196608),
        {"ports": 4},
        Usage(40, 4096),
        Loop(0.001, 4),
        Abilities({}, {}),
        "",
        guests,
    )


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return each sample's value, by its name and the values of its labels in the order of the labels' names."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def written(told: Status) -> bytes:
    """Return the metrics as text."""

    async def look() -> Status:
        return told

    return trio.run(Metrics(MetricsSettings(), look).text)


def test_what_is_told() -> None:
    found = samples(written(status(guest(3, "cockpit", ("HDMI-A-1", "DP-1")), guest(4, ""))))
    assert found["displbe_build_info", ("drm", "0.1.0")] == 1
    assert found["displbe_flips_total", ("HDMI-A-1", "cockpit")] == 44
    assert found["displbe_flips_total", ("DP-1", "cockpit")] == 44
    assert found["displbe_flips_total", ("HDMI-A-1", "4")] == 44
    assert found["displbe_last_flip_age_seconds", ("HDMI-A-1", "4")] == 0.01
    assert found["displbe_connector_lit", ("HDMI-A-1", "4", "copy")] == 1
    assert found["displbe_quota_used_ratio", ("cockpit", "pages")] == 0.5
    assert found["displbe_ring_shutoff_total", ("cockpit", "vdispl", "0")] == 1
    assert found["displbe_connections_total", ("cockpit", "vdispl", "0")] == 3
    assert found["displbe_input_events_total", ("cockpit", "vkbd", "0")] == 7
    assert found["displbe_input_events_dropped_total", ("4", "vkbd", "0")] == 2
    assert found["displbe_requests_refused_total", ("DP-1", "cockpit", "ENOENT", "PageFlip")] == 2
    assert found["displbe_notifications_spurious_total", ("DP-1", "cockpit")] == 7
    assert found["displbe_throttled_seconds_total", ("DP-1", "cockpit")] == 0.5
    assert found["displbe_events_late_total", ("DP-1", "cockpit")] == 1
    assert found["displbe_held", ("ports",)] == 4
    assert found["displbe_files_open", ()] / found["displbe_files_openable", ()] == 40 / 4096
    assert found["displbe_log_lines_dropped_total", ()] == 4
    assert found["displbe_flip_latency_seconds_sum", ("DP-1", "cockpit")] == 6.5
    bounds = {labels[2]: value for (name, labels), value in found.items() if name.endswith("_bucket") and "4" in labels}
    assert [bounds[f"{0.00025 * 2**n:g}"] for n in range(15)] == [0, 0, 1, 1, 1, 1, 1, 41, 43, 43, 43, 43, 43, 43, 43]
    assert bounds["+Inf"] == 44


def test_two_guests_of_one_name() -> None:
    found = samples(written(status(guest(1, "twin"), guest(2, "twin"))))
    assert {labels[1] for (name, labels) in found if name == "displbe_flips_total"} == {"1", "2"}


def test_series_are_bounded() -> None:
    few = samples(written(status(*(guest(n, f"guest {n} " + "x" * 500) for n in range(MAX_GUESTS)))))
    many = samples(written(status(*(guest(n, f"guest {n} " + "x" * 500) for n in range(3 * MAX_GUESTS)))))
    assert len(few) == len(many)
    assert all(len(label) <= 64 for _, labels in many for label in labels)


@given(STATUS)
def test_whatever_there_is_can_be_parsed(told: Status) -> None:
    samples(written(told))


def labels_of(text: bytes) -> dict[str, set[str]]:
    """Return the labels of each series, by its name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def check_expression(expression: str, shown: str) -> None:
    """Check that the series and labels of an expression exist, and that the labels used in `shown` are among those of its result."""
    told = labels_of(written(status(guest(1, "cluster"))))
    named = re.findall(r"\b(displbe_\w+)(?:\{(.*?)\})?", expression)
    assert named, expression
    left = set.intersection(*(told[name] for name, _ in named)) - {"le"}
    for name, selectors in named:
        assert set(re.findall(r"(\w+)[=!]~?=?\"", selectors)) <= told[name], expression
    for names in re.findall(r"\b(?:by|on) \((.*?)\)", expression):
        assert set(names.split(", ")) <= left, expression
    if by := re.search(r"\bby \((.*?)\)", expression):
        left = set(by[1].split(", "))
    assert set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", shown)) <= left, shown


def test_the_alerts_ask_for_what_there_is() -> None:
    text = (CONFIGS / "alerts.yml").read_text("utf-8")
    rules = text.split("- alert: ")[1:]
    assert len(rules) > 5
    for rule in rules:
        (expression,) = re.findall(r"expr: (.+)", rule)
        check_expression(expression, rule)


def test_the_dashboard_asks_for_what_there_is() -> None:
    panels = json.loads((CONFIGS / "grafana.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel["targets"]:
            check_expression(target["expr"], target["legendFormat"])


def test_what_would_not_be_found_is_found_out() -> None:
    """A check of the checks: wrong expressions are found."""
    for expression, shown in (
        ("displbe_flip_total", ""),
        ('displbe_flips_total{guest="a"}', ""),
        ("max by (dom, kind) (displbe_flips_total)", ""),
        ("max by (dom) (displbe_flips_total)", "{{conn}}"),
        ("displbe_flips_total", "{{ $labels.kind }}"),
    ):
        with pytest.raises((AssertionError, KeyError)):
            check_expression(expression, shown)


# The file, the sockets


class Told:
    """A daemon whose status is read."""

    def __init__(self) -> None:
        self.looks = 0

    async def look(self) -> Status:
        """Return the status, and count the call."""
        self.looks += 1
        await trio.lowlevel.checkpoint()
        return status(guest(1, "cockpit"))


async def http(stream: trio.SocketStream, request: bytes) -> bytes:
    """Send a request; return all that is answered."""
    answer = b""
    async with stream:
        with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(request)
            while more := await stream.receive_some():
                answer += more
    return answer


async def until_there(path: Path) -> None:
    """Wait for a file."""
    with trio.fail_after(10):
        while not await trio.Path(path).exists():
            await trio.sleep(0.005)


async def test_a_textfile(tmp_path: Path) -> None:
    path = tmp_path / "displbe.prom"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Metrics(MetricsSettings(textfile=str(path)), Told().look).run)
        await until_there(path)
        assert samples(await trio.Path(path).read_bytes())["displbe_flips_total", ("HDMI-A-1", "cockpit")] == 44
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
        assert os.listdir(tmp_path) == ["displbe.prom"]
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []  # a daemon that has ended has no metrics


async def test_what_cannot_be_written_or_opened_harms_nobody(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none" / "x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", "no such host:9487", "\N{SNOWMAN}:9487"):
            listen = msgspec.structs.replace(MetricsSettings(textfile=nowhere, socket=nowhere), listen=address)
            with trio.move_on_after(0.2) as scope:
                await Metrics(listen, Told().look).run()
            assert scope.cancelled_caught  # the text file is tried again


async def test_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics"
    told = Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Metrics(MetricsSettings(socket=str(path)), told.look).run)
        await until_there(path)
        for _ in range(5):
            answer = await http(await trio.open_unix_socket(path), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain")
            assert f"Content-Length: {len(body)}".encode() in head
            assert samples(body)["displbe_flips_total", ("HDMI-A-1", "cockpit")] == 44
        assert told.looks < 5  # an answer is sent again for a while
        assert b"404" in await http(await trio.open_unix_socket(path), b"GET /secret HTTP/1.0\r\n\r\n")
        assert b"404" in await http(await trio.open_unix_socket(path), b"POST /metrics HTTP/1.0\r\n\r\n")
        assert await http(await trio.open_unix_socket(path), b"x" * 20000) == b""
        nursery.cancel_scope.cancel()


async def test_idle_clients_are_few_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File descriptors are scarce: the client that has been idle for longest is disconnected for the next one, which is answered."""
    monkeypatch.setattr(clients, "ACCEPT_INTERVAL", 0.0)
    monkeypatch.setattr(clients, "GRACE", 0.01)
    monkeypatch.setattr(metrics, "CLIENT_TIMEOUT", 60.0)
    path = tmp_path / "metrics"
    made = Metrics(MetricsSettings(socket=str(path)), Told().look)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await until_there(path)
        idle = [await trio.open_unix_socket(path) for _ in range(MAX_CLIENTS)]
        with trio.fail_after(10):
            while made.clients.count < MAX_CLIENTS:
                await trio.sleep(0.005)
        for number in range(3 * MAX_CLIENTS):
            assert b"200 OK" in await http(await trio.open_unix_socket(path), b"GET / HTTP/1.0\r\n\r\n")
            assert made.clients.count <= MAX_CLIENTS
            idle.append(await trio.open_unix_socket(path))
            with trio.fail_after(10):
                assert (await idle[number].receive_some()).startswith(b"HTTP/1.1 408 ")
        for client in idle:
            await client.aclose()
        with trio.fail_after(10):
            while made.clients.count:
                await trio.sleep(0.005)
        monkeypatch.setattr(metrics, "CLIENT_TIMEOUT", 0.05)
        late = await trio.open_unix_socket(path)
        assert await http(late, b"GET") == b""
        assert b"200 OK" in await http(await trio.open_unix_socket(path), b"GET / HTTP/1.0\r\n\r\n")
        nursery.cancel_scope.cancel()


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_tcp_when_asked_for() -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Metrics(MetricsSettings(listen=f"127.0.0.1:{port}"), Told().look).run)
        answer = b""
        with trio.fail_after(10):
            while not answer:
                try:
                    answer = await http(await trio.open_tcp_stream("127.0.0.1", port), b"GET /metrics HTTP/1.0\r\n\r\n")
                except OSError:
                    await trio.sleep(0.01)
        assert b"displbe_flips_total" in answer
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "wrong",
    [
        {"listen": "9487"},
        {"listen": ":9487"},
        {"listen": "a:b"},
        {"listen": "a:0"},
        {"listen": "a..b:80"},
        {"interval": 0.1},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, MetricsSettings)


async def test_idle_clients_of_tcp_do_not_shut_out_the_unix_socket(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "metrics"
    settings = MetricsSettings(listen=f"127.0.0.1:{port}", socket=str(path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Metrics(settings, Told().look).run)
        await until_there(path)
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(12)]
        for _ in range(3):
            with trio.fail_after(5):
                unix = await http(await trio.open_unix_socket(path), b"GET / HTTP/1.0\r\n\r\n")
                tcp = await http(await trio.open_tcp_stream("127.0.0.1", port), b"GET / HTTP/1.0\r\n\r\n")
            assert b"200 OK" in unix
            assert b"200 OK" in tcp
        for client in idle:
            await client.aclose()
        nursery.cancel_scope.cancel()
