"""Events of monitors that come and go, and polling where there are none."""

from __future__ import annotations

import os
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from displbe.sinks.drm import hotplug


class Monitor:
    """The used part of pyudev's Monitor: each event is one byte in a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def poll(self, timeout: float) -> bytes | None:
        assert timeout == 0
        try:
            return os.read(self.fd, 1)
        except BlockingIOError:
            return None


async def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of events causes one call, the next event another."""
    read, write = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(hotplug, "_monitor", lambda: Monitor(read))
    told = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hotplug.watch, lambda: told.append(True), lambda: None)
        for count in (1, 2):
            await trio.testing.wait_all_tasks_blocked(0.01)
            os.write(write, b"eee")
            with trio.fail_after(10):
                while len(told) < count:
                    await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(told) == 2
        nursery.cancel_scope.cancel()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("error", [ImportError("no pyudev"), OSError("no netlink")])
async def test_polled(error: Exception, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any) -> None:
    """Without events, the connectors are polled every few seconds."""

    def refuse() -> None:
        raise error

    monkeypatch.setattr(hotplug, "_monitor", refuse)
    told = []
    with trio.move_on_after(10 * hotplug.POLL + 0.5):
        await hotplug.watch(lambda: None, lambda: told.append(trio.current_time()))
    assert len(told) == 10


async def test_an_event_that_cannot_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It causes a call like any other event, and the next events are waited for as before."""
    read, write = os.pipe2(os.O_NONBLOCK)
    monitor = Monitor(read)
    parse = monitor.poll

    def poll(timeout: float) -> bytes | None:
        event = parse(timeout)
        if event == b"x":
            raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a property")
        return event

    monkeypatch.setattr(monitor, "poll", poll)
    monkeypatch.setattr(hotplug, "_monitor", lambda: monitor)
    monkeypatch.setattr(hotplug, "POLL", 0.01)
    told = []
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hotplug.watch, lambda: told.append(True), lambda: None)
            for count, event in enumerate((b"x", b"e", b"x"), 1):
                os.write(write, event)
                with trio.fail_after(10):
                    while len(told) < count:
                        await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    os.close(read)
    os.close(write)
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["exc_info"]
