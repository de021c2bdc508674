"""XenStore for trio, over xenstored's socket or /dev/xen/xenbus.

One task reads; requests are matched with their replies by id. Messages are written whole: a cancelled request leaves the
stream intact, and its late reply is dropped. A lost connection fails every request under way, then the store connects again and
sets its watches again, each of which is called once more, so that whoever watches looks at everything anew.

The socket takes many requests at a time, the device one. Linux (drivers/xen/xenbus/xenbus_dev_frontend.c, since 4.11) holds a mutex
while it sets a watch and waits for XenStore's answer; the thread that reads that answer takes the same mutex when it first has the
reply to another request of ours. From then on nobody in the domain hears of XenStore any more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog
import trio

from displbe.wire import xs
from displbe.wire.xs import NUL, Op

from .paths import connect, is_device
from .port import NoEntry, StoreError, StoreLost, WatchRefused

__all__ = ["XenStore", "connect"]

_RECONNECT_FIRST: Final = 0.05
_RECONNECT_LAST: Final = 2.0
_PATIENCE: Final = 1.0
"""Seconds that tidying up may take when xenstored does not answer."""
_log = structlog.get_logger("displbe.store")


class _Reply:
    """A place for one answer."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.packet: xs.Packet | None = None


class XenStore:
    """port.Store over one connection, which `run` keeps up."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._device = False
        self._last: _Reply | None = None
        """The device's last request: the next one waits for its reply."""
        self._connected = trio.Event()
        self._ids = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._watches: dict[bytes, tuple[str, Callable[[str], None]]] = {}
        self._tokens = itertools.count(1)
        self._writing = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection up. The first one must succeed: raises OSError when it does not."""
        self._open()
        task_status.started()
        pause = _RECONNECT_FIRST
        try:
            while True:
                if self._fd >= 0:
                    await self._serve()
                    pause = _RECONNECT_FIRST
                await trio.sleep(pause)
                pause = min(2 * pause, _RECONNECT_LAST)
                with contextlib.suppress(OSError):
                    self._open()
        finally:
            self._lose()

    def _open(self) -> None:
        self._fd = connect(self._path)
        self._device = is_device(self._fd)
        self._connected.set()

    async def _serve(self) -> None:
        """Read until the connection is lost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_again)
                await self._receive()
        except* (OSError, xs.ProtocolError, StoreLost) as lost:
            _log.warning("connection to XenStore lost", error=str(lost.exceptions[0]))
        finally:
            self._lose()

    async def _receive(self) -> None:
        decoder = xs.Decoder()
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed by xenstored")
            for packet in decoder.feed(data):
                self._dispatch(packet)

    def _dispatch(self, packet: xs.Packet) -> None:
        if packet.op == Op.WATCH_EVENT:
            # /dev/xen/xenbus leaves the ids of an event uninitialised; its token says whose it is.
            path, token, *_ = [*xs.split(packet.payload), b"", b""]
            if (watch := self._watches.get(token)) is not None:
                watch[1](path.decode("utf-8", "replace"))
        elif (reply := self._replies.pop(packet.request_id, None)) is not None:
            reply.packet = packet
            reply.arrived.set()

    def _lose(self) -> None:
        """The connection is gone: fail every request that waits."""
        self._connected = trio.Event()
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.arrived.set()

    async def _watch_again(self) -> None:
        for token, (path, _) in list(self._watches.items()):
            if token in self._watches:
                try:
                    await self._set_watch(path, token)
                except WatchRefused as refused:
                    _log.error("a watch is not set again", reason=str(refused))

    async def _set_watch(self, path: str, token: bytes) -> None:
        try:
            await self._request(Op.WATCH, path.encode() + NUL, token + NUL)
        except StoreError as error:
            if str(error) != "EEXIST":  # a new connection has set it before us
                raise WatchRefused(
                    f"XenStore refuses to watch {path} ({error}): this domain's quota, 128 watches if nobody has raised it, may be"
                    " used up; its kernel's own drivers are counted too"
                ) from error

    async def _request(self, op: int, *parts: bytes, transaction: _Transaction | None = None) -> bytes:
        """One request and its answer's payload. Raises StoreError, NoEntry, StoreLost."""
        if transaction is None:
            await self._connected.wait()
        elif (
            transaction.connection is not self._connected
        ):  # it ended with its connection; its number may be another's now
            raise StoreLost("connection to XenStore lost")
        number = next(self._ids) & 0xFFFFFFFF
        reply = self._replies[number] = _Reply()
        message = xs.encode(op, number, transaction.number if transaction else 0, b"".join(parts))
        try:
            await self._send(message, reply, in_thread=self._device and op in (Op.WATCH, Op.UNWATCH))
        except BaseException:
            self._replies.pop(number, None)
            raise
        await reply.arrived.wait()
        packet = reply.packet
        if packet is None:
            raise StoreLost("connection to XenStore lost")
        if packet.op == Op.ERROR:
            name = packet.payload.rstrip(NUL).decode("ascii", "replace")
            raise (NoEntry if name == "ENOENT" else StoreError)(name)
        return bytes(packet.payload)

    async def _send(self, message: bytes, reply: _Reply, in_thread: bool) -> None:
        async with self._writing:
            if self._device and self._last is not None:
                await self._last.arrived.wait()
            if reply.arrived.is_set():  # the connection was lost meanwhile; the message is not for the next one
                return
            with trio.CancelScope(shield=True):  # half a message would leave the stream without a place to go on from
                try:
                    await self._write(message, in_thread)
                except (OSError, trio.ClosedResourceError) as error:
                    if in_thread and isinstance(error, OSError):
                        # XenStore has refused: the device says so here, and sends no reply (xenbus_write_watch).
                        raise StoreError(errno.errorcode.get(error.errno or 0, str(error))) from error
                    raise StoreLost(f"connection to XenStore lost: {error}") from error
            self._last = reply

    async def _write(self, message: bytes, in_thread: bool) -> None:
        if in_thread:
            # The kernel waits here for xenstored, and for all its own watches under way: those of other drivers take their time.
            await trio.to_thread.run_sync(_write_and_close, os.dup(self._fd), message)
            return
        fd = self._fd
        while message:
            try:
                message = message[os.write(fd, message) :]
            except BlockingIOError:  # the socket only: the device takes a write whole
                await trio.lowlevel.wait_writable(fd)

    async def read(self, path: str, transaction: _Transaction | None = None) -> bytes:
        """port.Store.read"""
        return await self._request(Op.READ, path.encode() + NUL, transaction=transaction)

    async def children(self, path: str) -> list[str]:
        """port.Store.children: C xenstored refuses a long listing, oxenstored sends it and knows no parts."""
        try:
            payload = await self._request(Op.DIRECTORY, path.encode() + NUL)
        except StoreError as error:
            if str(error) != "E2BIG":
                raise
            payload = await self._list_parts(path)
        return [name.decode("utf-8", "replace") for name in xs.split(payload)]

    async def _list_parts(self, path: str) -> bytes:
        """The directory piece by piece, from the start again whenever it changes meanwhile."""
        generation, listing = b"", b""
        while True:
            offset = str(len(listing)).encode()
            payload = await self._request(Op.DIRECTORY_PART, path.encode() + NUL, offset + NUL)
            now, _, part = payload.partition(NUL)
            if listing and now != generation:
                listing = b""
                continue
            generation = now
            listing += part
            if part in (b"", NUL) or listing.endswith(NUL + NUL):
                return listing.rstrip(NUL) + NUL if listing.strip(NUL) else b""

    async def write(self, path: str, value: bytes, transaction: _Transaction | None = None) -> None:
        """port.Store.write"""
        await self._request(Op.WRITE, path.encode() + NUL, value, transaction=transaction)

    async def remove(self, path: str, transaction: _Transaction | None = None) -> None:
        """port.Store.remove"""
        with contextlib.suppress(NoEntry):
            await self._request(Op.RM, path.encode() + NUL, transaction=transaction)

    async def permissions(self, path: str) -> list[tuple[str, int]]:
        """port.Store.permissions"""
        payload = await self._request(Op.GET_PERMS, path.encode() + NUL)
        try:
            return xs.parse_perms(payload)
        except xs.ProtocolError as error:
            raise StoreError(str(error)) from error

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Transaction]:
        """port.Store.transaction"""
        connection = self._connected
        await trio.lowlevel.checkpoint()
        number = 0
        with trio.move_on_after(_PATIENCE, shield=True):  # one that was opened must be known, to be ended
            number = int((await self._request(Op.TRANSACTION_START, NUL)).rstrip(NUL))
        if number == 0:
            raise StoreLost("XenStore does not answer")
        transaction = _Transaction(self, number, connection)
        under_way = True
        try:
            yield transaction
            try:
                await self._request(Op.TRANSACTION_END, b"T" + NUL, transaction=transaction)
            except (StoreError, StoreLost):
                under_way = False
                raise
            under_way = False
        finally:
            if under_way:
                with trio.move_on_after(_PATIENCE, shield=True), contextlib.suppress(StoreError, StoreLost):
                    await self._request(Op.TRANSACTION_END, b"F" + NUL, transaction=transaction)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, changed: Callable[[str], None]) -> AsyncIterator[None]:
        """port.Store.watch"""
        token = b"displbe-%d" % next(self._tokens)
        self._watches[token] = (path, changed)
        try:
            with contextlib.suppress(StoreLost):  # set with the next connection
                await self._set_watch(path, token)
            yield
        finally:
            del self._watches[token]
            if self._connected.is_set():  # else it ended with its connection
                with trio.move_on_after(_PATIENCE, shield=True), contextlib.suppress(StoreError, StoreLost):
                    await self._request(Op.UNWATCH, path.encode() + NUL, token + NUL)


def _write_and_close(fd: int, message: bytes) -> None:
    try:
        os.write(fd, message)
    finally:
        os.close(fd)


class _Transaction:
    """port.Transaction"""

    def __init__(self, store: XenStore, number: int, connection: trio.Event) -> None:
        self.number = number
        self.connection = connection
        self._store = store

    async def read(self, path: str) -> bytes:
        return await self._store.read(path, self)

    async def write(self, path: str, value: bytes) -> None:
        await self._store.write(path, value, self)

    async def remove(self, path: str) -> None:
        await self._store.remove(path, self)
