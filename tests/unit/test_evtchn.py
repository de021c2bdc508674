"""Event channels over a fake evtchn file. The rest is tested by tests/conformance, on real event channels too."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from struct import iter_unpack, pack, unpack
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from displbe.pump.library import ffi
from displbe.pump.native import SystemCalls, open_pump
from displbe.xen import evtchn
from displbe.xen.evtchn import Channel, EventChannels
from displbe.xen.port import HypervisorError, Ledger


class Kernel:
    """Replaces the fcntl module. The file is one end of a socket, whose other end the test has."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.refuses = 0
        self._next = 40

    def ioctl(self, fd: int, number: int, argument: bytearray | int = 0) -> int:
        fields = unpack(f"={len(argument) // 4}I", argument) if isinstance(argument, bytearray) else ()
        self.asked.append((number, fields))
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        if number == evtchn.BIND_INTERDOMAIN:
            self._next += 1
            return self._next
        return 0

    def fire(self, *ports: int) -> None:
        """Let these ports fire, all in one read."""
        self.theirs.send(pack(f"={len(ports)}I", *ports))

    def rearmed(self) -> list[int]:
        """Return the ports written back since the last call."""
        self.theirs.setblocking(False)
        found = []
        try:
            while True:
                found += [port for (port,) in iter_unpack("=I", self.theirs.recv(1000))]
        except BlockingIOError:
            return found


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(evtchn, "fcntl", kernel)
    monkeypatch.setattr("displbe.xen.evtchn.os.open", lambda path, flags: os.dup(kernel.ours.fileno()))
    kernel.ours.setblocking(False)
    yield kernel
    kernel.ours.close()
    kernel.theirs.close()


async def test_ports(kernel: Kernel) -> None:
    ledger = Ledger()
    channels = EventChannels(ledger)
    fired: list[int] = []
    bound: dict[int, Channel] = {}
    for remote in (7, 8):

        def note(remote: int = remote) -> bool:
            fired.append(remote)
            bound[remote].rearm()
            return False

        bound[remote] = channels.bind(3, remote, note)
    assert kernel.asked == [(evtchn.BIND_INTERDOMAIN, (3, 7)), (evtchn.BIND_INTERDOMAIN, (3, 8))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channels.run)
        kernel.fire(42, 41, 99)
        await trio.testing.wait_all_tasks_blocked()
        assert (fired, kernel.rearmed()) == ([8, 7], [42, 41])
        bound[7].close()
        kernel.fire(41, 42)
        await trio.testing.wait_all_tasks_blocked()
        assert (fired[2:], kernel.rearmed()) == ([8], [42])
        bound[8].notify()
        assert kernel.asked[-2:] == [(evtchn.UNBIND, (41,)), (evtchn.NOTIFY, (42,))]
        nursery.cancel_scope.cancel()
    channels.close()
    assert kernel.asked[-1] == (evtchn.UNBIND, (42,))
    assert ledger == Ledger()


@pytest.mark.parametrize("refuses", [0, errno.ENOMEM])
async def test_fired_ports_that_the_kernel_lost(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, refuses: int) -> None:
    """Its ring was full (EFBIG): all ports count as fired, also when the ring cannot be reset."""
    channels = EventChannels(Ledger())
    fired: list[int] = []

    def note(remote: int) -> bool:
        fired.append(remote)
        return False

    for remote in (7, 8):
        channels.bind(3, remote, partial(note, remote))
    read = os.read

    def overflow(fd: int, size: int) -> bytes:
        monkeypatch.setattr("displbe.xen.evtchn.os.read", read)
        read(fd, size)
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr("displbe.xen.evtchn.os.read", overflow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channels.run)
        kernel.refuses = refuses
        kernel.fire(41)
        await trio.testing.wait_all_tasks_blocked()
        kernel.refuses = 0
        assert fired == [7, 8]
        assert kernel.asked[-1] == (evtchn.RESET, ())
        kernel.fire(42)
        await trio.testing.wait_all_tasks_blocked()
        assert fired == [7, 8, 8]
        nursery.cancel_scope.cancel()
    channels.close()


@pytest.mark.parametrize("refuses", [0, errno.ENOMEM])
async def test_fired_ports_that_the_pump_could_not_read(kernel: Kernel, refuses: int) -> None:
    """All ports count as fired, and the pump goes on reading; it is too often unable to, and the daemon ends."""
    fired, errors = list[int](), [errno.EFBIG]

    def read(fd: int, data: Any, size: int) -> int:
        if errors:
            return -errors.pop()
        try:
            return os.readv(fd, [ffi.buffer(data, size)])
        except BlockingIOError:
            return -errno.EAGAIN

    def note(remote: int) -> bool:
        fired.append(remote)
        return False

    pump, reason = open_pump(SystemCalls(read, lambda *_: 0, lambda *_: 0, lambda *_: 0))
    if pump is None:
        pytest.skip(reason)
    channels = EventChannels(Ledger())
    channels.pump = pump
    for remote in (7, 8):
        channels.bind(3, remote, partial(note, remote))
    kernel.refuses = refuses
    async with pump.running(), trio.open_nursery() as nursery:
        scope: trio.CancelScope = await nursery.start(_run, channels)
        kernel.fire(41)
        with trio.fail_after(5):
            while fired != [7, 8, 7]:
                await trio.sleep(0.001)
        assert kernel.asked[-1] == (evtchn.RESET, ())
        kernel.fire(42)
        with trio.fail_after(5):
            while fired != [7, 8, 7, 8]:
                await trio.sleep(0.001)
        errors += [errno.EIO] * 2 * evtchn.READ_TRIES
        kernel.fire(42)
        with trio.fail_after(5):
            while not scope.cancel_called:
                await trio.sleep(0.001)
        channels.close()


async def _run(channels: EventChannels, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Run them until they cannot be read."""
    scope = trio.CancelScope()
    task_status.started(scope)
    with pytest.raises(OSError, match="Input/output error"):
        await channels.run()
    scope.cancel()


@pytest.mark.parametrize(
    ("error", "said"), [(errno.EINVAL, "event channel 7 of domain 3: Invalid argument"), (errno.EPERM, "SILO")]
)
async def test_refused(kernel: Kernel, error: int, said: str) -> None:
    ledger = Ledger()
    channels = EventChannels(ledger)
    kernel.refuses = error
    with pytest.raises(HypervisorError, match=said) as refused:
        channels.bind(3, 7, lambda: False)
    assert refused.value.number == error
    assert ledger == Ledger()
    channels.close()


async def test_a_callback_that_raises_affects_its_own_port_only(kernel: Kernel) -> None:
    """It must not; but all guests depend on the task that calls it."""
    channels = EventChannels(Ledger())
    fired: list[str] = []
    more = [False, True, False]

    def bad() -> bool:
        fired.append("bad")
        if len(fired) > 1:
            raise ZeroDivisionError("a mistake")
        return True

    def good() -> bool:
        fired.append("good")
        return more.pop()

    channels.bind(3, 7, bad)
    channels.bind(4, 8, good)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channels.run)
            kernel.fire(41)
            await trio.testing.wait_all_tasks_blocked()
            assert fired == ["bad", "bad"], "at once, and when its turn came again"
            kernel.fire(41, 42)
            await trio.testing.wait_all_tasks_blocked()
            kernel.fire(42)
            await trio.testing.wait_all_tasks_blocked()
            assert fired == ["bad", "bad", "good", "good", "good"]
            nursery.cancel_scope.cancel()
    channels.close()
    assert [(line["event"], line["port"]) for line in logs] == [
        ("callback of a port failed; the port is ignored from now on", 41)
    ]
