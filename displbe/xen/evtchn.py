"""Event channels: one file and one reading task for all ports, because the wake-up is the most expensive part of a page flip.

`EventChannels` implements them over /dev/xen/evtchn (drivers/xen/evtchn.c): a read returns the ports that fired, which stay masked
until they are written back.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

import structlog

from displbe.pump.native import Pump, PumpError
from displbe.readiness import serve

from .port import HypervisorError, Ledger

__all__ = ["Channel", "ChannelTable", "EventChannels"]

BIND_INTERDOMAIN: Final = 0x00084501
UNBIND: Final = 0x00044503
NOTIFY: Final = 0x00044504
RESET: Final = 0x00004505
READ_TRIES: Final = 10
"""Consecutive failures to read the fired ports before the daemon gives up. After each failure, all ports count as fired."""
_log = structlog.get_logger("displbe.evtchn")
_PORT: Final = Struct("=I")
_PAIR: Final = Struct("=II")


def _nothing() -> bool:
    """The callback of a closed port, which may still be in the list of ports with work left."""
    return False


class Channel(abc.ABC):
    """One bound port (port.EventChannel)."""

    def __init__(self, port: int, fired: Callable[[], bool], table: ChannelTable) -> None:
        self.port = port
        self.fd = table.fd
        self.fired = fired
        self._table = table

    @abc.abstractmethod
    def notify(self) -> None:
        """Notify the other end."""

    @abc.abstractmethod
    def rearm(self) -> None:
        """Allow the port to fire again."""

    def call(self) -> bool:
        """Call the callback. A callback must not raise; one that does is never called again, and other ports are not affected."""
        try:
            return self.fired()
        except Exception:
            _log.exception("callback of a port failed; the port is ignored from now on", port=self.port)
            self.fired = _nothing
            return False

    def close(self) -> None:
        """Unbind the port; a second call does nothing."""
        self.fired = _nothing
        self._table.closed(self.port)


class ChannelTable(abc.ABC):
    """All bound ports of our domain.

    `run` calls the callback of each port that fires. A callback must neither block nor raise. It returns True when it has work left; it is
    then called again in the next turn.
    """

    def __init__(self, fd: int, ledger: Ledger) -> None:
        self.fd = fd
        self.pump: Pump | None = None
        """What reads the file and serves some of the ports; set before `run`. None: `run` reads it."""
        self._channels: dict[int, Channel] = {}
        self._busy: list[Channel] = []
        """The channels whose callbacks have work left."""
        self._ledger = ledger

    @abc.abstractmethod
    def _fired(self) -> Iterable[int]:
        """Return the ports that fired since the last call and that the pump has not served; possibly none."""

    @abc.abstractmethod
    def _unbind(self, port: int) -> None: ...

    async def run(self) -> None:
        """Call the callbacks of ports that fire, until cancelled. Ports with work left take turns with the ports that fire next."""
        await serve(self._watched(), self._serve)

    def _serve(self) -> bool:
        """Call the callbacks of the ports that have work left, and of those that have fired. Return whether one has work left."""
        busy = [channel for channel in self._busy if channel.call()] if self._busy else []
        for port in self._fired():
            channel = self._channels.get(port)
            if channel is not None and channel.call():
                busy.append(channel)
        self._busy = busy
        return bool(busy)

    def _watched(self) -> int:
        """Let the pump read the file if there is one and it can. Return the file that is readable when ports have fired."""
        if self.pump is not None:
            try:
                self.pump.watch_ports(self.fd)
            except PumpError as error:
                _log.warning("the event channels are read without the pump", reason=error.strerror)
                self.pump = None
        return self.fd if self.pump is None else self.pump.ports_fd

    def add(self, channel: Channel) -> None:
        """Add a port that has been bound."""
        self._channels[channel.port] = channel
        self._ledger.ports += 1

    def closed(self, port: int) -> None:
        """Remove and unbind a port; a second call does nothing."""
        if self._channels.pop(port, None) is not None:
            self._ledger.ports -= 1
            self._unbind(port)

    def close(self) -> None:
        """Close all ports and the file."""
        for port in list(self._channels):
            self._channels[port].close()
        if self.pump is not None:
            self.pump.unwatch(self.fd)
        os.close(self.fd)


class EventChannels(ChannelTable):
    """The ports of a /dev/xen/evtchn file. Raises OSError when it cannot be opened."""

    def __init__(self, ledger: Ledger, path: str = "/dev/xen/evtchn") -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), ledger)
        self._failures = 0

    def _fired(self) -> Iterable[int]:
        try:
            fired = self._read() if self.pump is None else self.pump.fired_ports()
            self._failures = 0
            return fired
        except BlockingIOError:
            return ()
        except PumpError:
            raise  # the pump does not read the file any more
        except OSError as error:
            # EFBIG: the kernel's ring of fired ports was full and some are lost. For any error, all ports count as fired.
            if not (error.errno == errno.EFBIG and self._reset()):
                self._failures += 1
                if self._failures > READ_TRIES:
                    raise
            return list(self._channels)

    def _read(self) -> list[int]:
        return [port for (port,) in _PORT.iter_unpack(os.read(self.fd, 1024))]

    def _reset(self) -> bool:
        try:
            fcntl.ioctl(self.fd, RESET)
        except OSError:
            return False
        return True

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> Channel:
        """Bind another domain's unbound port. Raises HypervisorError."""
        try:
            port = fcntl.ioctl(self.fd, BIND_INTERDOMAIN, bytearray(_PAIR.pack(domid, remote_port)))
        except OSError as error:
            reason = f"cannot bind event channel {remote_port} of domain {domid}: {error.strerror}"
            if error.errno == errno.EPERM:
                reason += " (Xen's XSM policy, for example SILO, forbids channels between these two domains)"
            raise HypervisorError(error.errno or errno.EIO, reason) from error
        channel = _Evtchn(port, fired, self)
        self.add(channel)
        return channel

    def _unbind(self, port: int) -> None:
        with contextlib.suppress(OSError):  # it is unbound already, or will be when the file is closed
            fcntl.ioctl(self.fd, UNBIND, bytearray(_PORT.pack(port)))


class _Evtchn(Channel):
    def __init__(self, port: int, fired: Callable[[], bool], table: ChannelTable) -> None:
        super().__init__(port, fired, table)
        self._packed = _PORT.pack(port)
        self._argument = bytearray(self._packed)

    def notify(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # the guest may have closed its end; the device's task learns that from XenStore
            fcntl.ioctl(self.fd, NOTIFY, self._argument)

    def rearm(self) -> None:
        with contextlib.suppress(OSError):  # the port stays masked; the rescue poll finds its requests
            os.write(self.fd, self._packed)
