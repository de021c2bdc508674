"""A simulated XenStore daemon: the real messages over UNIX sockets, with permissions, watches and transactions.

It behaves like C xenstored (tools/xenstored) or like oxenstored (`flavour`), where a client can tell them apart: the length of a
listing, DIRECTORY_PART, the names of some errors. Each domain has its own socket, which identifies it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import trio

from displbe.wire import xs
from displbe.wire.xs import NUL, Op

__all__ = ["StoreFailure", "StoreServer", "Tree"]

Perms = list[tuple[str, int]]
MAX_WATCHES: Final = 128
"""quota_nb_watch_per_domain in xenstored_core.c."""
MAX_TRANSACTIONS: Final = 10
"""quota_max_transaction in xenstored_core.c."""


class StoreFailure(Exception):
    """A request failed. The text is the name of the error, which is the payload of the ERROR message."""


class Node:
    """One node. The first permission has the owner, and the right of all domains that are not listed."""

    __slots__ = ("children", "generation", "perms", "value")

    def __init__(self, perms: Perms) -> None:
        self.value = b""
        self.perms = perms
        self.children: dict[str, Node] = {}
        self.generation = 0

    def copy(self) -> Node:
        """Return a copy of this node and all below it."""
        twin = Node(list(self.perms))
        twin.value, twin.generation = self.value, self.generation
        twin.children = {name: child.copy() for name, child in self.children.items()}
        return twin

    def allows(self, domid: int, right: str) -> bool:
        """Return whether a domain may read (`r`) or write (`w`)."""
        owner = self.perms[0][1]
        if domid in (0, owner):
            return True
        granted = next((mode for mode, whose in self.perms[1:] if whose == domid), self.perms[0][0])
        return granted in (right, "b")


class Tree:
    """The nodes, with checks of permissions. Paths are absolute and checked by the caller."""

    def __init__(self, root: Node | None = None) -> None:
        self.root = root or Node([("n", 0)])
        self.clock = 0

    def find(self, path: str) -> Node | None:
        """Return the node of a path, or None."""
        node: Node | None = self.root
        for name in _names(path):
            node = node.children.get(name) if node is not None else None
        return node

    def get(self, domid: int, path: str, right: str = "r") -> Node:
        """Return the node if the domain has this right on it. Raises StoreFailure ENOENT, EACCES."""
        node = self.find(path)
        if node is None:
            # A domain that may not read the nearest existing node must not learn which nodes exist below it.
            raise StoreFailure("ENOENT" if self._nearest(path).allows(domid, "r") else "EACCES")
        if not node.allows(domid, right):
            raise StoreFailure("EACCES")
        return node

    def _nearest(self, path: str) -> Node:
        node = self.root
        for name in _names(path):
            if name not in node.children:
                break
            node = node.children[name]
        return node

    def make(self, domid: int, path: str) -> Node:
        """Return the node. If it is missing, it and its parents are created with the permissions of the nearest existing node.

        The creating domain owns new nodes. Nodes that Dom0 creates get their parent's owner (construct_node in xenstored_core.c).
        Raises StoreFailure EACCES.
        """
        node = self.root
        for name in _names(path):
            child = node.children.get(name)
            if child is None:
                if not node.allows(domid, "w"):
                    raise StoreFailure("EACCES")
                owner = node.perms[0][1] if domid == 0 else domid
                child = node.children[name] = Node([(node.perms[0][0], owner), *node.perms[1:]])
                self._touch(node)
            node = child
        return node

    def write(self, domid: int, path: str, value: bytes) -> None:
        """Write a value; the node is created when missing. Raises StoreFailure EACCES."""
        node = self.make(domid, path)
        if not node.allows(domid, "w"):
            raise StoreFailure("EACCES")
        node.value = value
        self._touch(node)

    def remove(self, domid: int, path: str) -> None:
        """Remove a node and all below it; only the permissions of this node count (do_rm)."""
        if path == "/":
            raise StoreFailure("EINVAL")
        self.get(domid, path, "w")
        parent, _, name = path.rpartition("/")
        above = self.find(parent or "/")
        assert above is not None
        del above.children[name]
        self._touch(above)

    def set_perms(self, domid: int, path: str, perms: Perms) -> None:
        """Change permissions. The owner and Dom0 may; only Dom0 may change the owner. Raises StoreFailure ENOENT, EACCES."""
        node = self.find(path)
        if node is None:
            raise StoreFailure("ENOENT")
        if domid not in (0, node.perms[0][1]) or (domid and perms[0][1] != node.perms[0][1]):
            raise StoreFailure("EACCES")
        node.perms = perms
        self._touch(node)

    def _touch(self, node: Node) -> None:
        self.clock += 1
        node.generation = self.clock


def _generation(node: Node | None) -> int | None:
    return node.generation if node is not None else None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


class Transaction:
    """A copy of the tree for the requests of a transaction, and their changes, which a commit repeats on the real tree."""

    def __init__(self, tree: Tree) -> None:
        self.before = Tree(tree.root.copy())
        self.tree = Tree(tree.root.copy())
        self.tree.clock = tree.clock
        self.seen: set[str] = set()
        self.changes: list[tuple[Callable[[Tree], None], str]] = []


class Connection:
    """One client. A reply is sent before the watch events that its request causes."""

    def __init__(self, server: StoreServer, domid: int, stream: trio.SocketStream) -> None:
        self.server = server
        self.domid = domid
        self.watches: dict[tuple[bytes, bytes], str] = {}
        self._stream = stream
        self.transactions: dict[int, Transaction] = {}
        self._next_transaction = 1
        self._out, self._queue = trio.open_memory_channel[bytes](100_000)

    async def run(self) -> None:
        """Serve the client until it disconnects."""
        decoder = xs.Decoder(limit=xs.MAX_PAYLOAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            with contextlib.suppress(xs.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in self._stream:
                    assert isinstance(data, bytes)
                    for packet in decoder.feed(data):
                        self._serve(packet)
            nursery.cancel_scope.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for message in self._queue:
                await self._stream.send_all(message)

    def _serve(self, packet: xs.Packet) -> None:
        self._fired: list[str] = []
        try:
            op, payload = packet.op, self._handle(packet)
        except StoreFailure as failure:
            op, payload = Op.ERROR, str(failure).encode() + NUL
        self._put(op, packet.request_id, packet.transaction_id, payload)
        if packet.op == Op.WATCH and op != Op.ERROR:
            path, token = xs.split(packet.payload)
            self.event(path.decode(), token)
        self.server.fire(self._fired)

    def _put(self, op: int, request: int, transaction: int, payload: bytes) -> None:
        header = xs.HEADER.pack(op, request, transaction, len(payload))
        with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
            self._out.send_nowait(header + payload)

    def event(self, path: str, token: bytes) -> None:
        """Send a watch event."""
        self._put(Op.WATCH_EVENT, 0, 0, path.encode() + NUL + token + NUL)

    def absolute(self, raw: bytes) -> str:
        """Return the absolute path for a path from the client. Raises StoreFailure EINVAL."""
        text = raw.decode("utf-8", "replace")
        if text.startswith("@"):
            return text
        path = text if text.startswith("/") else f"/local/domain/{self.domid}/{text}"
        good = all(c.isascii() and (c.isalnum() or c in "-/_@") for c in path)
        if not good or "//" in path or len(path) > 3072 or (path.endswith("/") and path != "/"):
            raise StoreFailure("EINVAL")
        return path

    def _handle(self, packet: xs.Packet) -> bytes:
        handler = _HANDLERS.get(packet.op)
        if handler is None or (packet.op == Op.DIRECTORY_PART and self.server.flavour == "oxenstored"):
            raise StoreFailure("ENOSYS")
        transaction = None
        if packet.transaction_id:
            transaction = self.transactions.get(packet.transaction_id)
            if transaction is None:
                raise StoreFailure("ENOENT" if self.server.flavour == "xenstored" else "EIO")
        return handler(self, transaction, packet)

    def _look(self, transaction: Transaction | None, path: str) -> Tree:
        if transaction is None:
            return self.server.tree
        transaction.seen.add(path)
        return transaction.tree

    def _change(self, transaction: Transaction | None, path: str, change: Callable[[Tree], None]) -> bytes:
        tree = self._look(transaction, path)
        if transaction is not None and tree.find(path) is None:
            # A new node changes its parent, so that it conflicts with other new nodes there.
            transaction.seen.add(path.rpartition("/")[0] or "/")
        change(tree)
        if transaction is None:
            self._fired.append(path)
        else:
            transaction.changes.append((change, path))
        return b"OK" + NUL

    def read(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        path = self.absolute(packet.payload.rstrip(NUL))
        return self._look(transaction, path).get(self.domid, path).value

    def directory(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        path = self.absolute(packet.payload.rstrip(NUL))
        listing = b"".join(name.encode() + NUL for name in self._look(transaction, path).get(self.domid, path).children)
        if len(listing) > xs.MAX_PAYLOAD and self.server.flavour == "xenstored":
            raise StoreFailure("E2BIG")
        return listing

    def directory_part(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        raw, offset, *_ = xs.split(packet.payload)
        path = self.absolute(raw)
        node = self._look(transaction, path).get(self.domid, path)
        listing = b"".join(name.encode() + NUL for name in node.children) + NUL
        head = str(node.generation).encode() + NUL
        start = int(offset)
        return head + listing[start : start + xs.MAX_PAYLOAD - len(head)]

    def get_perms(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        path = self.absolute(packet.payload.rstrip(NUL))
        perms = self._look(transaction, path).get(self.domid, path).perms
        return b"".join(f"{mode}{domid}".encode() + NUL for mode, domid in perms)

    def write(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        raw, _, value = packet.payload.partition(NUL)
        path = self.absolute(raw)
        return self._change(transaction, path, lambda tree: tree.write(self.domid, path, value))

    def mkdir(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        path = self.absolute(packet.payload.rstrip(NUL))

        def make(tree: Tree) -> None:
            tree.make(self.domid, path)

        return self._change(transaction, path, make)

    def rm(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        path = self.absolute(packet.payload.rstrip(NUL))
        return self._change(transaction, path, lambda tree: tree.remove(self.domid, path))

    def set_perms(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        raw, _, rest = packet.payload.partition(NUL)
        path = self.absolute(raw)
        try:
            perms = xs.parse_perms(rest)
        except xs.ProtocolError:
            raise StoreFailure("EINVAL") from None
        return self._change(transaction, path, lambda tree: tree.set_perms(self.domid, path, perms))

    def watch(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        raw, token = xs.split(packet.payload)[:2]
        if (raw, token) in self.watches:
            raise StoreFailure("EEXIST")
        if self.domid and self.server.watches_of(self.domid) >= self.server.max_watches:
            raise StoreFailure("E2BIG" if self.server.flavour == "xenstored" else "EQUOTA")
        self.watches[raw, token] = self.absolute(raw)
        return b"OK" + NUL

    def unwatch(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        raw, token = xs.split(packet.payload)[:2]
        if self.watches.pop((raw, token), None) is None:
            raise StoreFailure("ENOENT")
        return b"OK" + NUL

    def reset_watches(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        self.watches.clear()
        return b"OK" + NUL

    def start(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        if self.domid and self.server.transactions_of(self.domid) >= self.server.max_transactions:
            raise StoreFailure("ENOSPC" if self.server.flavour == "xenstored" else "EQUOTA")
        number, self._next_transaction = self._next_transaction, self._next_transaction + 1
        self.transactions[number] = Transaction(self.server.tree)
        return str(number).encode() + NUL

    def end(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        if transaction is None:
            raise StoreFailure("ENOENT")
        del self.transactions[packet.transaction_id]
        if packet.payload == b"T" + NUL:
            self._commit(transaction)
        return b"OK" + NUL

    def _commit(self, transaction: Transaction) -> None:
        tree = self.server.tree
        for path in transaction.seen:
            if _generation(tree.find(path)) != _generation(transaction.before.find(path)):
                raise StoreFailure("EAGAIN")
        for change, path in transaction.changes:
            change(tree)
            self._fired.append(path)

    def domain_path(self, transaction: Transaction | None, packet: xs.Packet) -> bytes:
        return f"/local/domain/{int(packet.payload.rstrip(NUL))}".encode() + NUL


_HANDLERS: Final[dict[int, Callable[[Connection, Transaction | None, xs.Packet], bytes]]] = {
    Op.READ: Connection.read,
    Op.DIRECTORY: Connection.directory,
    Op.DIRECTORY_PART: Connection.directory_part,
    Op.GET_PERMS: Connection.get_perms,
    Op.WRITE: Connection.write,
    Op.MKDIR: Connection.mkdir,
    Op.RM: Connection.rm,
    Op.SET_PERMS: Connection.set_perms,
    Op.WATCH: Connection.watch,
    Op.UNWATCH: Connection.unwatch,
    Op.RESET_WATCHES: Connection.reset_watches,
    Op.TRANSACTION_START: Connection.start,
    Op.TRANSACTION_END: Connection.end,
    Op.GET_DOMAIN_PATH: Connection.domain_path,
}


class StoreServer:
    """The daemon. `folder` holds one socket for each domain."""

    def __init__(self, folder: Path, flavour: Literal["xenstored", "oxenstored"] = "xenstored") -> None:
        self.folder = folder
        self.flavour = flavour
        self.tree = Tree()
        self.max_watches = MAX_WATCHES
        """The limit for all connections of a domain together. Dom0 has no limit."""
        self.max_transactions = MAX_TRANSACTIONS
        """The limit of open transactions for all connections of a domain together. Dom0 has no limit."""
        self._connections: set[Connection] = set()
        self._listening: dict[int, trio.CancelScope] = {}

    def watches_of(self, domid: int) -> int:
        """Return the number of watches that a domain has set."""
        return sum(len(connection.watches) for connection in self._connections if connection.domid == domid)

    def transactions_of(self, domid: int) -> int:
        """Return the number of transactions that a domain has open."""
        return sum(len(connection.transactions) for connection in self._connections if connection.domid == domid)

    def socket_of(self, domid: int) -> Path:
        """Return the socket of a domain."""
        return self.folder / f"xenstored-{domid}"

    async def serve(self, domid: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve a domain's socket until `release`."""
        path = self.socket_of(domid)
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        scope = self._listening[domid] = trio.CancelScope()
        try:
            await listening.bind(str(path))
            listening.listen()
            with scope:
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    while True:
                        client, _ = await listening.accept()
                        nursery.start_soon(self._client, domid, client)
        finally:
            listening.close()
            if self._listening.get(domid) is scope:  # otherwise a new domain with the same id has created it
                os.unlink(path)

    async def _client(self, domid: int, client: trio.socket.SocketType) -> None:
        async with trio.SocketStream(client) as stream:
            connection = Connection(self, domid, stream)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)

    def disconnect(self, domid: int) -> None:
        """Close a domain's connections, as a restart of the daemon does; it may connect again."""
        for connection in [c for c in self._connections if c.domid == domid]:
            connection._stream.socket.shutdown(trio.socket.SHUT_RDWR)

    def release(self, domid: int) -> None:
        """End a dead domain: remove its socket and fire @releaseDomain."""
        self._listening.pop(domid).cancel()
        os.unlink(self.socket_of(domid))
        self.fire(["@releaseDomain"])

    def fire(self, paths: list[str]) -> None:
        """Send the events of changed paths to the watches at and above them, and for a removed node also to the watches below it.

        A domain that may not read an existing node gets no event of it.
        """
        for connection in list(self._connections):
            for (raw, token), watched in list(connection.watches.items()):
                for path in paths:
                    if watched == path or path.startswith(f"{watched.rstrip('/')}/"):
                        node = self.tree.find(path)
                        if node is None or node.allows(connection.domid, "r"):
                            connection.event(_as_watched(raw.decode(), watched, path), token)
                    elif watched.startswith(f"{path}/") and self.tree.find(watched) is None:
                        connection.event(raw.decode(), token)


def _as_watched(raw: str, watched: str, path: str) -> str:
    """Return the path of an event. It is relative if the watch is relative."""
    return path if raw.startswith(("/", "@")) else raw + path[len(watched) :]
