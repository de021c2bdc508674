"""XenStore for trio, over xenstored's socket or /dev/xen/xenbus.

One task reads; replies are matched with requests by id. Messages are written whole: a cancelled request leaves the stream intact, and
its late reply is dropped. When the connection is lost, all pending requests fail; then the store connects again and sets its watches
again. Each watch's callback is called once more, so that its owner reads everything again.

The socket accepts many requests at a time; on the device, one request is sent at a time. Linux (since 4.11,
drivers/xen/xenbus/xenbus_dev_frontend.c) holds a mutex while it sets a watch and waits for XenStore's answer. If the kernel thread that
reads answers first receives the reply to another request of ours, it waits for the same mutex: a deadlock, which cuts the whole domain
off from XenStore.
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

from displbe.threads import run_in_thread_or_here
from displbe.wire import xs
from displbe.wire.xs import NUL, Op

from .paths import connect, is_device
from .port import NoEntry, StoreError, StoreLost, WatchRefused

__all__ = ["XenStore", "connect"]

_RECONNECT_FIRST: Final = 0.05
_RECONNECT_LAST: Final = 2.0
_TIMEOUT: Final = 1.0
"""Seconds to wait for xenstored when a transaction is aborted or a watch is removed."""
MAX_TRANSACTIONS: Final = 4
"""Maximum number of our transactions that are open at a time; the others wait for their turn, in the order in which they came.

XenStore lets a domain other than Dom0 have about ten (`xenstored --transaction`, `quota-transaction` of oxenstored). Those of the domain's
kernel drivers and of its other programs count too.
"""
_QUOTA_ERRORS: Final = frozenset({"ENOSPC", "EQUOTA"})
"""The answers of xenstored and of oxenstored to a domain that has too many transactions."""
_QUOTA_PAUSE: Final = 0.02
"""Seconds until a transaction that was refused for that reason is tried again."""
_WATCH_PAUSE: Final = 1.0
"""Seconds until a watch that was refused on a new connection is tried again."""
_log = structlog.get_logger("displbe.store")


class _Reply:
    """The reply to one request. `packet` stays None when the connection is lost."""

    def __init__(self) -> None:
        self.is_abandoned = False
        """Whether the request was cancelled after it had been sent."""
        self.arrived = trio.Event()
        self.packet: xs.Packet | None = None


class XenStore:
    """port.Store over one connection, which `run` keeps open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._device = False
        self._last: _Reply | None = None
        """Reply to the last request sent to the device; the next request waits for it."""
        self._connected = trio.Event()
        self._ids = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._watches: dict[bytes, tuple[str, Callable[[str], None]]] = {}
        self._tokens = itertools.count(1)
        self._writing = trio.Lock()
        self._transactions = trio.Semaphore(MAX_TRANSACTIONS, max_value=MAX_TRANSACTIONS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection open. Raises OSError when the first attempt to connect fails."""
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
        """Set the watches and read until the connection is lost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_again)
                await self._receive(nursery)
        except* (OSError, xs.ProtocolError, StoreLost) as lost:
            _log.warning("connection to XenStore lost; connecting again", error=str(lost.exceptions[0]))
        finally:
            self._lose()

    async def _receive(self, nursery: trio.Nursery) -> None:
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
                self._dispatch(packet, nursery)

    def _dispatch(self, packet: xs.Packet, nursery: trio.Nursery) -> None:
        if packet.op == Op.WATCH_EVENT:
            # /dev/xen/xenbus leaves the ids of an event uninitialised, so the watch is found by its token.
            path, token, *_ = [*xs.split(packet.payload), b"", b""]
            if (watch := self._watches.get(token)) is not None:
                watch[1](path.decode("utf-8", "replace"))
        elif (reply := self._replies.pop(packet.request_id, None)) is not None:
            reply.packet = packet
            reply.arrived.set()
            if reply.is_abandoned and packet.op == Op.TRANSACTION_START:
                nursery.start_soon(self._end_unused, packet.payload)

    def _lose(self) -> None:
        """Close the connection and fail all pending requests."""
        self._connected = trio.Event()
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.arrived.set()

    async def _watch_again(self) -> None:
        """Set the watches on a new connection. Those that XenStore refuses are tried again: without them, no changes would be seen."""
        wanted, is_logged = list(self._watches), False
        while wanted:
            refused = []
            for token in wanted:
                if token in self._watches:
                    try:
                        await self._set_watch(self._watches[token][0], token)
                    except WatchRefused as error:
                        refused.append(token)
                        if not is_logged:
                            _log.error("a watch could not be set again; its changes are not seen", reason=str(error))
                            is_logged = True
            wanted = refused
            if wanted:
                await trio.sleep(_WATCH_PAUSE)

    async def _set_watch(self, path: str, token: bytes) -> None:
        try:
            await self._request(Op.WATCH, path.encode() + NUL, token + NUL)
        except StoreError as error:
            if str(error) != "EEXIST":  # `_watch_again` of a new connection has set it already
                raise WatchRefused(
                    f"XenStore refuses to watch {path} ({error}): this domain's quota of watches (128 by default) may be used up;"
                    " those of its kernel's drivers count too"
                ) from error

    async def _request(self, op: int, *parts: bytes, transaction: _Transaction | None = None) -> bytes:
        """Send a request and return the payload of its reply. Raises StoreError, NoEntry, StoreLost."""
        if transaction is None:
            await self._connected.wait()
        elif (
            transaction.connection is not self._connected
        ):  # it ended with its connection; another transaction may have its number now
            raise StoreLost("connection to XenStore lost")
        number = next(self._ids) & 0xFFFFFFFF
        reply = self._replies[number] = _Reply()
        message = xs.encode(op, number, transaction.number if transaction else 0, b"".join(parts))
        try:
            await self._send(message, reply, in_thread=self._device and op in (Op.WATCH, Op.UNWATCH))
        except BaseException:
            self._replies.pop(number, None)
            raise
        try:
            await reply.arrived.wait()
        except trio.Cancelled:
            # If the reply has arrived at the same time, the caller gets it, and is cancelled at its next checkpoint.
            if reply.packet is None:
                reply.is_abandoned = True
                raise
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
            if reply.arrived.is_set():  # the connection was lost; do not send this on the next one
                return
            with trio.CancelScope(shield=True):  # half a message would put the stream out of step
                try:
                    await self._write(message, in_thread)
                except (OSError, trio.ClosedResourceError) as error:
                    if in_thread and isinstance(error, OSError):
                        # XenStore has refused: the device reports it as an error of write, without a reply (xenbus_write_watch).
                        raise StoreError(errno.errorcode.get(error.errno or 0, str(error))) from error
                    raise StoreLost(f"connection to XenStore lost: {error}") from error
            self._last = reply

    async def _write(self, message: bytes, in_thread: bool) -> None:
        if in_thread:
            # The write blocks until xenstored has answered, and while the kernel sets watches of other drivers. A copy of the file,
            # because this one may be closed meanwhile.
            try:
                copy = os.dup(self._fd)
            except OSError:  # no file is left: the loop waits
                os.write(self._fd, message)
            else:
                await run_in_thread_or_here(_write_and_close, copy, message)
            return
        fd = self._fd
        while message:
            try:
                message = message[os.write(fd, message) :]
            except BlockingIOError:  # the socket only: the device accepts whole messages
                await trio.lowlevel.wait_writable(fd)

    async def read(self, path: str, transaction: _Transaction | None = None) -> bytes:
        """port.Store.read"""
        return await self._request(Op.READ, path.encode() + NUL, transaction=transaction)

    async def children(self, path: str) -> list[str]:
        """port.Store.children. C xenstored refuses a long listing with E2BIG; oxenstored sends it whole and has no DIRECTORY_PART."""
        try:
            payload = await self._request(Op.DIRECTORY, path.encode() + NUL)
        except StoreError as error:
            if str(error) != "E2BIG":
                raise
            payload = await self._list_parts(path)
        return [name.decode("utf-8", "replace") for name in xs.split(payload)]

    async def _list_parts(self, path: str) -> bytes:
        """Read a directory in parts; start again when it changes in between."""
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
        async with self._transactions:
            transaction = await self._start()
            async with self._ended(transaction):
                yield transaction

    async def _start(self) -> _Transaction:
        """Start a transaction, as soon as XenStore allows this domain one more. Raises StoreError, StoreLost."""
        is_refused = False
        while True:
            await self._connected.wait()
            connection = self._connected
            try:
                return _Transaction(self, _number(await self._request(Op.TRANSACTION_START, NUL)), connection)
            except StoreError as error:
                if str(error) not in _QUOTA_ERRORS:
                    raise
                if not is_refused:
                    _log.warning(
                        "XenStore refuses a transaction: this domain has too many; displbe tries again until the drivers and other"
                        " programs of the domain have ended theirs (raise the quota in Dom0: xenstored --transaction)",
                        error=str(error),
                    )
                is_refused = True
            await trio.sleep(_QUOTA_PAUSE)

    async def _end_unused(self, started: bytes) -> None:
        """Abort a transaction whose start was cancelled before the reply arrived. Otherwise it would count until the connection ends."""
        with contextlib.suppress(StoreError, StoreLost):
            transaction = _Transaction(self, _number(started), self._connected)
            await self._request(Op.TRANSACTION_END, b"F" + NUL, transaction=transaction)

    @contextlib.asynccontextmanager
    async def _ended(self, transaction: _Transaction) -> AsyncIterator[None]:
        """Commit a transaction at the end of the block, or abort it when an exception leaves the block."""
        is_open = True
        try:
            yield
            try:
                await self._request(Op.TRANSACTION_END, b"T" + NUL, transaction=transaction)
            except (StoreError, StoreLost):
                is_open = False
                raise
            is_open = False
        finally:
            if is_open:
                with trio.move_on_after(_TIMEOUT, shield=True), contextlib.suppress(StoreError, StoreLost):
                    await self._request(Op.TRANSACTION_END, b"F" + NUL, transaction=transaction)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, changed: Callable[[str], None]) -> AsyncIterator[None]:
        """port.Store.watch"""
        token = b"displbe-%d" % next(self._tokens)
        self._watches[token] = (path, changed)
        try:
            with contextlib.suppress(StoreLost):  # the watch is set on the next connection
                await self._set_watch(path, token)
            yield
        finally:
            del self._watches[token]
            if self._connected.is_set():  # otherwise the watch ended with the connection
                with trio.move_on_after(_TIMEOUT, shield=True), contextlib.suppress(StoreError, StoreLost):
                    await self._request(Op.UNWATCH, path.encode() + NUL, token + NUL)


def _number(started: bytes) -> int:
    """Return the number in the reply to TRANSACTION_START. Raises StoreError."""
    number = xs.parse_number(started.rstrip(NUL))
    if not number:
        raise StoreError(f"transaction {started!r}")
    return number


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
