"""systemd's notifications."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from displbe.ops.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Return a service manager's socket, and its address as in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ear:
        name = f"displbe-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
        ear.bind("\0" + name if request.param == "abstract" else name)
        yield ear, "@" + name if request.param == "abstract" else name


def test_it_tells(manager: tuple[socket.socket, str]) -> None:
    ear, address = manager
    health = ServiceManager({"NOTIFY_SOCKET": address})
    health.notify("READY=1", "STATUS=serving")
    assert ear.recv(1000) == b"READY=1\nSTATUS=serving"
    health.notify("STOPPING=1")
    assert ear.recv(1000) == b"STOPPING=1"


def test_nobody_listens(tmp_path: Path) -> None:
    ServiceManager({}).notify("READY=1")
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).notify("READY=1")


def test_a_manager_that_does_not_read_holds_nobody_up(manager: tuple[socket.socket, str]) -> None:
    _, address = manager
    health = ServiceManager({"NOTIFY_SOCKET": address})
    for _ in range(2000):
        health.notify("WATCHDOG=1")


def test_the_watchdog() -> None:
    mine, other = str(os.getpid()), str(os.getpid() + 1)
    assert ServiceManager({"WATCHDOG_USEC": "3000000"}).watchdog_interval == 1.5
    assert ServiceManager({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": mine}).watchdog_interval == 1.5
    assert ServiceManager({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": other}).watchdog_interval is None
    assert ServiceManager({"WATCHDOG_USEC": "soon"}).watchdog_interval is None
    assert ServiceManager({}).watchdog_interval is None
