"""One PV device: the xenbus handshake, driven by the table in `wire/xenbus.py`.

One task per device looks at the store, asks the table, acts, and waits until something may have changed. Watches only mark the
device dirty. While connected, a second task tree serves the frontend; leaving that state ends it first, so that nothing of the
guest's is held when our state says so.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, Protocol

import msgspec
import structlog
import trio

from displbe.ops import status
from displbe.ops.text import escape
from displbe.wire.errors import FrontendBroken
from displbe.wire.xenbus import Next, State, Table, decide, parse_state
from displbe.xen.port import HypervisorError, NoEntry, Store, StoreError, StoreLost, WatchRefused

from .guests import GuestSettings, guest_name, own_domid
from .quota import Quota, TokenBucket

__all__ = ["Device", "Driver", "Refused", "Served", "releasing"]

RETRY: Final = 1.0
"""Seconds after which a refused connection is tried again without being told of a change (a monitor, another guest's output)."""
RECONNECT_BURST: Final = 5
"""Connections that a guest gets before `reconnects-per-second` holds."""
LAST_WORD: Final = 0.2
"""Seconds that the state of a device that has ended stands, for the toolstack to see."""
LOOKS: Final = 0.05
"""Seconds at least between two looks that the guest's writes cause. The first is at once: a handshake's steps are further apart."""
FAREWELL: Final = 2.0
"""Seconds that saying goodbye may take when the daemon ends."""


class Refused(Exception):
    """The device cannot be connected as it stands in XenStore; the text goes to its `error` node."""


class Served(Protocol):
    """A part of a connected device, such as a connector."""

    def status(self) -> status.ConnectorStatus:
        """What the operator is told of it."""

    def forget(self) -> None:
        """It is not looked at any more."""


class Driver(Protocol):
    """What is served over a connected device."""

    @property
    def backend_kind(self) -> str:
        """Where its devices are in our own directory: `backend/KIND`."""

    @property
    def frontend_kind(self) -> str:
        """Where they are in the guests': `device/KIND`."""

    @property
    def transitions(self) -> Table:
        """How its frontends move between states."""

    @property
    def guests(self) -> Mapping[str, GuestSettings]:
        """What the configuration says of guests, by their names."""

    @property
    def published(self) -> Collection[str]:
        """The names of the nodes, at whatever depth, by which a frontend publishes its rings: `is_current` reads them."""

    async def prepare(self, device: Device) -> Mapping[str, str]:
        """Nodes of the backend's directory that a frontend may read, written before state 2."""

    def forget(self, device: Device) -> None:
        """The device is gone: its directory is no longer there, or the daemon ends."""

    async def is_current(self, device: Device) -> bool:
        """Whether what is served is still what the frontend has published."""

    async def serve(self, device: Device, *, task_status: trio.TaskStatus[None]) -> None:
        """Map, bind, call `started`, serve until cancelled, release everything.

        Raises Refused or HypervisorError before `started`; FrontendBroken after it, to shut the device off.
        """


class _Seen(msgspec.Struct, frozen=True):
    backend: State | None
    frontend: State | None
    online: bool


@asynccontextmanager
async def releasing() -> AsyncIterator[AsyncExitStack]:
    """A stack of things to release, in reverse order, whole even when this task is being cancelled."""
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        with trio.CancelScope(shield=True):
            await stack.aclose()


class Device:
    """The device in our directory `backend/KIND/DOMID/NUMBER`."""

    background: trio.Nursery
    """For what may outlive the device; set by `run`."""

    def __init__(self, store: Store, driver: Driver, domid: int, number: int, quota: Quota) -> None:
        self.store = store
        self.domid = domid
        self.quota = quota
        self.kind = driver.frontend_kind
        self.number = number
        self.name = ""
        """The guest's name in xl; empty: not known."""
        self.parts: Sequence[Served] = ()
        """What is served, or was when the device was connected last; set by the driver."""
        self.input: Callable[[], status.InputStatus] | None = None
        """What the operator is told of the input, while there is some; set by the driver."""
        self.path = f"backend/{driver.backend_kind}/{domid}/{number}"
        # Identity is what our own directory's place says. The guest's `backend` node is the guest's to write.
        self.frontend = f"/local/domain/{domid}/device/{driver.frontend_kind}/{number}"
        self._log: Any = structlog.get_logger("displbe.device").bind(
            domid=domid, device=f"{driver.frontend_kind}/{number}"
        )
        self._driver = driver
        self._dirty = trio.Event()
        self._urgent = trio.Event()
        self._heard = -math.inf
        """When the guest's writes were looked at last."""
        self._moved = False
        """The frontend may have published other rings."""
        self._state: State | None = None
        self._since = 0.0
        self._frontend_state: State | None = None
        self._frontend_since = 0.0
        self._connected = 0
        self._shut_off = 0
        self._reason = ""
        self._reason_at = 0.0
        self._kicked = False
        self._verdict: bytes | None = None
        """What the `error` node is to say, None: not decided yet; empty: there is to be none."""
        self._told: bytes | None = None
        """What it says, as far as it is known."""
        self._connections: TokenBucket | None = None
        self._not_before = 0.0
        self._serving = False

    @property
    def log(self) -> Any:
        """Each line says which device of which guest, by its name where that is known."""
        return self._log.bind(guest=self.name) if self.name else self._log

    def mark_dirty(self) -> None:
        """Something may have changed that is not the guest's."""
        self._urgent.set()
        self._dirty.set()

    def _guest_wrote(self, path: str) -> None:
        """A node of the frontend's directory may have changed. A guest writes as fast as it likes, and each look of ours keeps XenStore
        from others: while it is connected, only its state counts, and what names its rings.
        """
        moved = path == self.frontend or path.rpartition("/")[2] in self._driver.published
        if moved or not self._serving or path == f"{self.frontend}/state":
            self._moved |= moved
            self._dirty.set()

    def kick(self) -> None:
        """End the connection there is; the frontend may connect anew."""
        self._kicked = True
        self.mark_dirty()

    @property
    def served(self) -> Sequence[Served]:
        """Its parts, while it is connected."""
        return self.parts if self._serving else ()

    def status(self, connectors: tuple[status.ConnectorStatus, ...]) -> status.DeviceStatus:
        """What the operator is told; the parts' statuses, each of which takes its time, have been made before."""
        now = trio.current_time()
        return status.DeviceStatus(
            kind=self.kind,
            number=self.number,
            backend=_name(self._state),
            backend_age=now - self._since,
            frontend=_name(self._frontend_state),
            frontend_age=now - self._frontend_since,
            connections=self._connected,
            shut_off=self._shut_off,
            error=escape(self._reason),
            error_age=now - self._reason_at if self._reason else None,
            connectors=connectors if self._serving else (),
            input=self.input() if self.input is not None else None,
        )

    async def run(self, background: trio.Nursery) -> None:
        """Serve until the directory is gone, or the daemon ends."""
        self.background = background
        self._serving = False
        self._since = self._frontend_since = trio.current_time()
        why = "displbe ends"
        try:
            with suppress(StoreLost):
                self.name = await guest_name(self.store, self.domid)
                if self._driver.guests and not self.name:
                    self.log.warning(
                        "the guest's name is not known here: no [guest.NAME] of the configuration is for it"
                    )
            await self._until_gone()
        except Exception:
            why = "an error of displbe's own"
            raise
        finally:
            self._driver.forget(self)
            with trio.move_on_after(FAREWELL, shield=True):
                await self._farewell(why)

    async def _until_gone(self) -> None:
        """A frontend that is not watched is not served: it would not be seen to change. The reason stands in its `error` node."""
        refused = ""
        while True:
            try:
                async with self.store.watch(self.frontend, self._guest_wrote):
                    if refused:
                        await self._report("")
                    while (seen := await self._look()).backend is not None:
                        await self._act(seen)
                    return
            except WatchRefused as error:
                refused = str(error)
                await self._report(refused)
                await self._changed(RETRY)
                if (await self._look()).backend is None:
                    return

    async def _act(self, seen: _Seen) -> None:
        step = self._decide(seen)
        if seen.backend is State.CLOSED and not seen.online and await own_domid(self.store) != 0:
            await self._remove()
        elif step.state is None or step.wait > 0:
            await self._changed(step.wait)
        elif step.state is State.CONNECTED:
            if (rest := self._not_before - trio.current_time()) > 0:
                await self._changed(rest)
                return  # and look again
            self._count_connection()
            await self._connect(step)
        else:
            await self._switch(step)

    def _decide(self, seen: _Seen) -> Next:
        assert seen.backend is not None
        if seen.backend is not self._state:  # another one wrote it: the toolstack, or a daemon before us
            self._state, self._since = seen.backend, trio.current_time()
        # A 4 under which nothing is served is another daemon's: its rings are not to be touched.
        backend = State.UNKNOWN if seen.backend is State.CONNECTED and not self._serving else seen.backend
        return decide(backend, seen.frontend, seen.online, trio.current_time() - self._since, self._driver.transitions)

    async def _look(self) -> _Seen:
        """What the store says now; waits while the store cannot be reached."""
        self._dirty, self._urgent = trio.Event(), trio.Event()
        while True:
            try:
                backend = parse_state(await self.read(f"{self.path}/state"))
                online = await self.read(f"{self.path}/online") != b"0"
                frontend = parse_state(await self.read(f"{self.frontend}/state"))
                if frontend is not self._frontend_state:
                    self._frontend_state, self._frontend_since = frontend, trio.current_time()
                return _Seen(backend, frontend, online)
            except StoreLost:
                await trio.lowlevel.checkpoint()

    async def read_trusted(self, path: str, key: str) -> tuple[bytes, list[tuple[str, int]]] | None:
        """A node that the toolstack or our own domain wrote, with its permissions; None when it is missing. Raises Refused.

        The guest can remove a node of its directory and write one of its own in its place, but not one with another owner.
        """
        try:
            # The value first: the guest can replace a node between the two requests, but never by one with our owner.
            value = await self.store.read(path)
            permissions = await self.store.permissions(path)
        except NoEntry:
            return None
        except StoreError as error:
            raise Refused(f"cannot read {key}: {error}") from error
        owner = permissions[0][1]
        if owner not in (0, await own_domid(self.store)):
            raise Refused(f"{key} was written by {'the guest' if owner == self.domid else f'domain {owner}'}")
        return value, permissions

    async def read(self, path: str) -> bytes | None:
        """A node, None when it is missing or not ours to read (the frontend's, for a moment after it was made)."""
        try:
            return await self.store.read(path)
        except StoreError:
            return None

    async def _changed(self, wait: float) -> None:
        """Wait until something may have changed, for at most so many seconds."""
        await self._tell()
        if self._told != self._verdict:
            wait = min(wait, RETRY)
        with trio.move_on_after(wait):
            await self._dirty.wait()
            if not self._urgent.is_set():
                with trio.move_on_at(self._heard + LOOKS):
                    await self._urgent.wait()
                self._heard = trio.current_time()

    async def _switch(self, step: Next) -> None:
        """Write our state: only over the one that the step was chosen by. The toolstack may be removing the directory; the daemon that
        follows this one may have begun its work.
        """
        assert step.state is not None
        while True:
            try:
                nodes = await self._driver.prepare(self) if step.state is State.INIT_WAIT else {}
                async with self.store.transaction() as transaction:
                    if parse_state(await transaction.read(f"{self.path}/state")) is not self._state:
                        return
                    for key, value in nodes.items():
                        await transaction.write(f"{self.path}/{key}", value.encode())
                    await transaction.write(f"{self.path}/state", b"%d" % step.state)
                break
            except NoEntry:
                return
            except StoreLost:
                continue
            except StoreError as error:
                if str(error) != "EAGAIN":
                    raise
        self._state, self._since = step.state, trio.current_time()
        self.log.info("state", to=step.state.name.lower(), because=step.why)

    async def _remove(self) -> None:
        """The device has ended, and our domain is not the toolstack's: there the toolstack waits 10 s for us to remove our directory
        (libxl_device.c, device_destroy_be_watch_cb); in Dom0 it does so itself.
        """
        await trio.sleep(max(0.0, self._since + LAST_WORD - trio.current_time()))
        try:
            async with self.store.transaction() as transaction:
                state = parse_state(await transaction.read(f"{self.path}/state"))
                if state is State.CLOSED and await transaction.read(f"{self.path}/online") == b"0":
                    await transaction.remove(self.path)  # those above it are the toolstack's
        except (StoreError, StoreLost) as error:
            self.log.debug("directory not removed", error=str(error))
            await trio.sleep(LAST_WORD)  # somebody else changed it: look again

    async def _connect(self, step: Next) -> None:
        """Serve the frontend until the table says that it is over."""
        over = Next(State.CLOSING, why="the connection failed")
        try:
            async with trio.open_nursery() as nursery:
                await self._verify()
                self.name = await guest_name(self.store, self.domid)
                self._kicked, self._moved = False, True
                await nursery.start(self._driver.serve, self)
                self._serving = True
                self._connected += 1
                await self._report("")
                await self._switch(step)
                over = await self._until_over()
                nursery.cancel_scope.cancel()
        except* (Refused, HypervisorError, FrontendBroken) as group:
            first = _first(group)
            await self._report(str(first))
            # A frontend that broke a rule before it was served has to begin anew; others may be served when something changes.
            self._serving = self._serving or isinstance(first, FrontendBroken)
            if not self._serving:
                await self._changed(RETRY)
        except* StoreLost:
            self.log.warning("XenStore was lost while connecting")
        served, self._serving = self._serving, False
        if served and over.state is not None:
            await self._switch(over)

    def _count_connection(self) -> None:
        """Slow down a guest that connects and leaves in a loop."""
        if self._connections is None:
            self._connections = TokenBucket(RECONNECT_BURST, self.quota.limits.reconnects_per_second, trio.current_time)
        self._not_before = trio.current_time() + self._connections.take()

    async def _verify(self) -> None:
        """Our own directory must name the guest that its place names. Raises Refused."""
        for key, value in (("frontend-id", b"%d" % self.domid), ("frontend", self.frontend.encode())):
            if (found := await self.read(f"{self.path}/{key}")) != value:
                raise Refused(f"{key} is {found!r} where {value!r} belongs")
        # The guest can write this node of its own, and leads nobody with it; but it should not go unnoticed.
        found = await self.read(f"{self.frontend}/backend")
        if found is not None and not found.endswith(f"/{self.path}".encode()):
            raise Refused(f"the guest's backend node is {found[:128]!r} where {self.path} belongs")

    async def _until_over(self) -> Next:
        while True:
            seen = await self._look()
            if seen.backend is None:
                return Next()
            step = self._decide(seen)
            if seen.backend is not State.CONNECTED and step.state in (None, State.CONNECTED):
                return Next(State.CLOSING, why="our state was overwritten")
            if self._kicked:
                return Next(State.CLOSING, why="the operator has ended the connection")
            if self._moved:
                self._moved = False
                if not await self._driver.is_current(self):
                    return Next(State.CLOSING, why="the frontend has published other rings")
            if step.state is not None and step.wait == 0:
                return step
            await self._changed(step.wait)

    async def _report(self, reason: str) -> None:
        """Tell the operator why the device is not connected: the `error` node, and one line in the log."""
        text = reason.encode("ascii", "backslashreplace")[:512]
        if text == self._verdict:
            return
        self._verdict = text
        if reason:
            self._reason, self._reason_at = reason, trio.current_time()
            self._shut_off += self._serving
            self.log.error("device shut off" if self._serving else "cannot connect", reason=reason)
        await self._tell()

    async def _tell(self) -> None:
        """Write the `error` node, or remove it. What fails is tried again at the next look, and now and then."""
        text = self._verdict
        if text == self._told:
            return
        try:
            async with self.store.transaction() as transaction:
                await transaction.read(f"{self.path}/state")  # the toolstack may be removing the directory
                if text:
                    await transaction.write(f"{self.path}/error", text)
                else:
                    await transaction.remove(f"{self.path}/error")
        except NoEntry:
            pass
        except (StoreError, StoreLost) as error:
            self.log.warning("cannot write the error node", error=str(error))
            return
        self._told = text

    async def _farewell(self, why: str) -> None:
        """Nobody serves the device any more: say so, long enough for those who poll to see it."""
        if self._state not in (State.INIT_WAIT, State.CONNECTED, State.CLOSING):
            return
        try:
            if self._state is State.CONNECTED:
                await self._switch(Next(State.CLOSING, why=why))
            if self._state is State.CLOSING:
                await trio.sleep(0.1)
            await self._switch(Next(State.CLOSED, why=why))
        except StoreError as error:
            self.log.warning("cannot say that the device is not served", error=str(error))


def _name(state: State | None) -> str:
    return "missing" if state is None else state.name.lower()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
