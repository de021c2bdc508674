"""One PV device: the xenbus handshake, driven by the table in `wire/xenbus.py`.

One task per device looks at the store, asks the table, acts, and waits until something may have changed. While a frontend is connected,
a second task tree serves it. Our state changes only when that tree has ended and holds nothing of the guest any more.
"""

from __future__ import annotations

import enum
from typing import Final, Generic, TypeVar

import msgspec
import trio

from displbe.ops import status
from displbe.ops.text import escape
from displbe.shortage import is_shortage, shortage
from displbe.wire.errors import FrontendBroken, first_leaf
from displbe.wire.xenbus import Next, State, decide, parse_state
from displbe.xen.port import HypervisorError, NoEntry, Store, StoreError, StoreLost, WatchRefused

from .changes import Changes
from .driver import Driver, Parts, Service
from .error_node import ErrorNode
from .guests import own_domid
from .nodes import DeviceNodes, DeviceRefused
from .quota import Quota, TokenBucket

__all__ = ["ConnectionState", "Device"]

RETRY: Final = 1.0
"""Seconds after which a refused connection is tried again though nothing in XenStore has changed: a monitor may have been plugged in, or
another guest may have released the output.
"""
RECONNECT_BURST: Final = 5
"""Connections that a device gets before `reconnects-per-second` applies."""
FINAL_STATE_TIME: Final = 0.2
"""Seconds that the final state of a device stays in XenStore before the directory is removed, so that the toolstack sees it."""
SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that the last changes of state may take when the device's task ends."""

S = TypeVar("S", bound=Service)


class ConnectionState(enum.Enum):
    """The connection of a device to its frontend."""

    NONE = "none"
    """No frontend is connected."""
    SERVED = "served"
    """The frontend is connected, and the device's service serves it."""


class _Seen(msgspec.Struct, frozen=True):
    """The result of one look at the store."""

    backend: State | None
    frontend: State | None
    online: bool


class _LastState:
    """The state of one side as it was last read or written, and the time of its last change."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.since = 0.0
        """In seconds of trio's clock."""

    @property
    def age(self) -> float:
        """Seconds since the last change."""
        return trio.current_time() - self.since

    def set(self, state: State | None) -> None:
        """Note the state that was read or written."""
        if state is not self.state:
            self.state, self.since = state, trio.current_time()

    def __str__(self) -> str:
        return "missing" if self.state is None else self.state.name.lower()


class Device(Generic[S]):
    """The device in our directory `backend/KIND/DOMID/NUMBER`."""

    def __init__(self, store: Store, driver: Driver[S], domid: int, number: int, quota: Quota) -> None:
        self.nodes = DeviceNodes(store, driver.backend_kind, driver.frontend_kind, domid, number)
        self.quota = quota
        self.service = driver.open(self.nodes, quota)
        """The driver's service for this device; it outlives each connection."""
        self.connection = ConnectionState.NONE
        self.is_kicked = False
        """The operator has asked for the end of the connection since its guest was identified."""
        self._driver = driver
        self._changes = Changes()
        self._rings_changed = False
        """Whether the frontend may have published other rings."""
        self._backend_state = _LastState()
        self._frontend_state = _LastState()
        self._error = ErrorNode(self.nodes)
        self._connections = 0
        self._shut_off = 0
        rate = quota.limits.reconnects_per_second
        self._reconnects = TokenBucket(RECONNECT_BURST, rate, trio.current_time)
        self._not_before = 0.0
        """The earliest time of the next connection, in seconds of trio's clock."""

    @property
    def domid(self) -> int:
        """The guest's domain."""
        return self.nodes.domid

    @property
    def name(self) -> str:
        """The guest's name in xl; empty when it is not known."""
        return self.nodes.name

    @property
    def is_served(self) -> bool:
        """Whether a frontend is connected."""
        return self.connection is not ConnectionState.NONE

    def mark_dirty(self) -> None:
        """Note a possible change in our directory."""
        self._changes.mark()

    def _guest_wrote(self, path: str) -> None:
        """Note a possible change in the frontend's directory. While the frontend is connected, all nodes but its state and those that name
        its rings are ignored, because each of our looks keeps XenStore from serving others.
        """
        home = self.nodes.frontend
        rings = path == home or path.rpartition("/")[2] in self._driver.published
        if rings or not self.is_served or path == f"{home}/state":
            self._rings_changed |= rings
            self._changes.mark_guest()

    def kick(self) -> None:
        """End the connection, also one that is being made. The frontend may connect again."""
        self.is_kicked = True
        self._changes.mark()

    async def status(self) -> status.DeviceStatus:
        """Return the device's part of the status. Other tasks run while it is collected, because each connector's part takes some time."""
        parts = await self.service.status() if self.is_served else Parts()
        if not self.is_served:  # the connection has ended meanwhile
            parts = Parts()
        error = self._error
        return status.DeviceStatus(
            kind=self.nodes.kind,
            number=self.nodes.number,
            backend=str(self._backend_state),
            backend_age=self._backend_state.age,
            frontend=str(self._frontend_state),
            frontend_age=self._frontend_state.age,
            connections=self._connections,
            shut_off=self._shut_off,
            error=escape(error.reason),
            error_age=trio.current_time() - error.reason_at if error.reason else None,
            connectors=parts.connectors,
            input=parts.input,
        )

    async def arrive(self) -> None:
        """Read the guest's name, and let the service prepare for the device. Wait while XenStore cannot be reached."""
        while True:
            try:
                await self.nodes.identify()
                await self.service.arrive()
                return
            except StoreLost:
                await trio.lowlevel.checkpoint()

    def depart(self) -> None:
        """Tell the service that the device is gone. Raises nothing."""
        try:
            self.service.depart()
        except Exception:  # what follows must be done in any case
            self.nodes.log.exception("the end of the device failed")

    async def run(self, background: trio.Nursery) -> None:
        """Serve until the directory is gone, or until cancelled. `background` is for tasks that may outlive the device."""
        self.connection = ConnectionState.NONE
        self._backend_state.since = self._frontend_state.since = trio.current_time()
        why = "displbe ends"
        try:
            if self._driver.guests and not self.name:
                self.nodes.log.warning(
                    "the guest's name is not known here: no [guest.NAME] of the configuration applies to it"
                )
            await self._until_gone(background)
        except Exception:
            why = "an error in displbe"
            raise
        finally:
            self.service.close()
            with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
                await self._write_closed(why)

    async def _until_gone(self, background: trio.Nursery) -> None:
        """Serve the frontend while its directory can be watched. Without a watch its changes would not be seen: it is not served, and the
        `error` node gives the reason.
        """
        refused = False
        while True:
            try:
                async with self.nodes.store.watch(self.nodes.frontend, self._guest_wrote):
                    if refused:
                        await self._report("")
                    while (seen := await self._look()).backend is not None:
                        await self._act(seen, background)
                    return
            except WatchRefused as error:
                refused = True
                await self._report(str(error))
                await self._wait(RETRY)
                if (await self._look()).backend is None:
                    return

    async def _act(self, seen: _Seen, background: trio.Nursery) -> None:
        step = self._decide(seen)
        if seen.backend is State.CLOSED and not seen.online and await own_domid(self.nodes.store) != 0:
            await self._remove()
        elif step.state is None or step.wait > 0:
            await self._wait(step.wait)
        elif step.state is State.CONNECTED:
            if (rest := self._not_before - trio.current_time()) > 0:
                await self._wait(rest)
                return  # the caller looks again
            # This slows down a guest that connects and leaves in a loop.
            self._not_before = trio.current_time() + self._reconnects.take()
            await self._connect(step, background)
        else:
            await self._switch(step)

    def _decide(self, seen: _Seen) -> Next:
        assert seen.backend is not None
        self._backend_state.set(seen.backend)  # the toolstack or an earlier daemon may have written it
        # If nothing is served at 4 (Connected), another daemon has written the 4, and its rings must not be touched.
        backend = State.UNKNOWN if seen.backend is State.CONNECTED and not self.is_served else seen.backend
        return decide(backend, seen.frontend, seen.online, self._backend_state.age, self._driver.transitions)

    async def _look(self) -> _Seen:
        """Read the states and `online` from XenStore. Wait while XenStore cannot be reached."""
        self._changes.begin_look()
        nodes = self.nodes
        while True:
            try:
                backend = parse_state(await nodes.read(f"{nodes.path}/state"))
                online = await nodes.read(f"{nodes.path}/online") != b"0"
                self._frontend_state.set(parse_state(await nodes.read(f"{nodes.frontend}/state")))
                return _Seen(backend, self._frontend_state.state, online)
            except StoreLost:
                await trio.lowlevel.checkpoint()

    async def _wait(self, seconds: float) -> None:
        """Wait until something may have changed, for at most `seconds`."""
        await self._error.write()
        await self._changes.wait(seconds if self._error.is_written else min(seconds, RETRY))

    async def _switch(self, step: Next) -> None:
        """Write our state, unless it has changed since the step was decided: the toolstack may be removing the directory, or the next
        daemon may have started.
        """
        assert step.state is not None
        path = self.nodes.path
        while True:
            try:
                prepared = await self.service.prepare() if step.state is State.INIT_WAIT else {}
                async with self.nodes.store.transaction() as transaction:
                    if parse_state(await transaction.read(f"{path}/state")) is not self._backend_state.state:
                        return
                    for key, value in prepared.items():
                        await transaction.write(f"{path}/{key}", value.encode())
                    await transaction.write(f"{path}/state", b"%d" % step.state)
                break
            except NoEntry:
                return
            except StoreLost:
                continue
            except StoreError as error:
                if str(error) != "EAGAIN":
                    raise
            except (OSError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                self.nodes.log.warning("preparing for the frontend failed; tried again", reason=shortage(error))
                await trio.sleep(RETRY)
        self._backend_state.state, self._backend_state.since = step.state, trio.current_time()
        self.nodes.log.info("state", to=step.state.name.lower(), because=step.why)

    async def _remove(self) -> None:
        """Remove the directory of a device that has ended. Called in driver domains only: there the toolstack waits 10 s for the backend to
        remove it (libxl_device.c, device_destroy_be_watch_cb). In Dom0 the toolstack removes the directory itself.
        """
        path = self.nodes.path
        await trio.sleep(max(0.0, FINAL_STATE_TIME - self._backend_state.age))
        try:
            async with self.nodes.store.transaction() as transaction:
                state = parse_state(await transaction.read(f"{path}/state"))
                if state is State.CLOSED and await transaction.read(f"{path}/online") == b"0":
                    await transaction.remove(path)  # the directories above it belong to the toolstack
        except (StoreError, StoreLost) as error:
            self.nodes.log.debug("directory not removed", error=str(error))
            await trio.sleep(FINAL_STATE_TIME)  # another client has changed it; the caller looks again

    async def _connect(self, step: Next, background: trio.Nursery) -> None:
        """Serve the frontend until the table says that the connection is over."""
        over = Next(State.CLOSING, why="the connection failed")
        try:
            async with trio.open_nursery() as nursery:
                await self.nodes.verify()
                await self.nodes.identify()
                self.is_kicked, self._rings_changed = False, True
                await nursery.start(self.service.serve, background)
                self.connection = ConnectionState.SERVED
                self._connections += 1
                await self._report("")
                await self._switch(step)
                over = await self._until_over()
                nursery.cancel_scope.cancel()
        except* (DeviceRefused, HypervisorError, FrontendBroken, OSError, MemoryError) as group:
            first = first_leaf(group)
            await self._report(shortage(first))
            if isinstance(first, FrontendBroken):
                # A frontend that broke the protocol has to start over, even if it was not served yet. Other connections are tried again.
                self.connection = ConnectionState.SERVED
            if not self.is_served:
                await self._wait(RETRY)
        except* StoreLost:
            self.nodes.log.warning(
                "XenStore was lost while connecting; the device connects again when XenStore is back"
            )
        was_served, self.connection = self.is_served, ConnectionState.NONE
        if was_served and over.state is not None:
            await self._switch(over)

    async def _until_over(self) -> Next:
        while True:
            seen = await self._look()
            if seen.backend is None:
                return Next()
            step = self._decide(seen)
            if seen.backend is not State.CONNECTED and step.state in (None, State.CONNECTED):
                return Next(State.CLOSING, why="our state was overwritten")
            if self.is_kicked:
                return Next(State.CLOSING, why="the operator has ended the connection")
            if self._rings_changed:
                self._rings_changed = False
                if not await self.service.is_current():
                    return Next(State.CLOSING, why="the frontend has published other rings")
            if step.state is not None and step.wait == 0:
                return step
            await self._wait(step.wait)

    async def _report(self, reason: str) -> None:
        """Report why the device is not connected, in the `error` node and with one log line. An empty reason: it is connected."""
        if not self._error.set(reason):
            return
        if reason:
            self._shut_off += self.is_served
            self.nodes.log.error("device shut off" if self.is_served else "cannot connect", reason=reason)
        await self._error.write()

    async def _write_closed(self, why: str) -> None:
        """Set our state to 5 and then to 6: the device is not served any more. A frontend that polls has 0.1 s to see the 5."""
        if self._backend_state.state not in (State.INIT_WAIT, State.CONNECTED, State.CLOSING):
            return
        try:
            if self._backend_state.state is State.CONNECTED:
                await self._switch(Next(State.CLOSING, why=why))
            if self._backend_state.state is State.CLOSING:
                await trio.sleep(0.1)
            await self._switch(Next(State.CLOSED, why=why))
        except StoreError as error:
            self.nodes.log.warning(
                "cannot write the backend state; the guest does not see that its device is not served", error=str(error)
            )
