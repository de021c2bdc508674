"""evdev devices: named by guests, allowed by the configuration, opened while a guest names them, and again when they are plugged in again.

Devices are looked for in /dev/input and /sys/class/input. Looking and opening may wait for the hardware: threads do it.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import glob
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct, calcsize
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from displbe.input.focus import Claim, Focus, Terms
from displbe.input.names import Binding, Role
from displbe.input.settings import InputSettings
from displbe.input.translate import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TOUCH_MINOR,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_REL,
    INPUT_PROP_POINTER,
    Axis,
    Decoder,
    Description,
    Event,
    Slot,
    State,
)

from .base import Receiver, Source

__all__ = ["READ", "Evdev", "Node", "Nodes", "SystemNodes", "read_events"]

RESCAN: Final = 0.5
"""Seconds between two looks for devices that are named and not there."""
KEYS_UP: Final = 2.0
"""Seconds that a device is waited for whose keys are down, before it is grabbed: whoever has it now is to see them go up."""
READ: Final = 256
"""Events that are read at once: more than the kernel keeps of a keyboard or a mouse (64)."""
READS: Final = 32
"""Reads in a row: more than the kernel keeps of any device."""
REST: Final = 0.004
"""Seconds between two looks at a device that says more sooner: each costs a wake-up, and a mouse may have 1000 motions a second."""
EV_REP: Final = 0x14
LONG: Final = calcsize("@l")
"""Octets of the kernel's long."""
_EVENT: Final = Struct(f"={2 * LONG}xHHi")
"""struct input_event, without its time: two longs."""
_NODE: Final = re.compile(r"/dev/input/event\d+")
_SLOT_CODES: Final = (
    ABS_MT_TRACKING_ID,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TOUCH_MINOR,
    ABS_MT_ORIENTATION,
)
"""In the order of Slot's fields."""

_log = structlog.get_logger("displbe.evdev")


Result = TypeVar("Result")


class Share(msgspec.Struct, frozen=True):
    """What a device is to a claim that names it, under the terms that were looked at."""

    terms: Terms
    roles: frozenset[Role]


Shares: TypeAlias = dict[tuple[str, int], Share]
"""By the claims' keys."""


class Node(Protocol):
    """An open device."""

    fd: int
    name: str
    description: Description
    repeats: bool

    def read(self) -> Sequence[Event]:
        """Events that wait, at most READ. Raises BlockingIOError when there are none, OSError when the device has gone."""

    def state(self) -> State:
        """How the device is now; the key events that were not read yet are gone. Raises OSError."""

    def grab(self) -> None:
        """Nobody else gets its events any more. Raises OSError."""

    def close(self) -> None:
        """Close it; it is no longer grabbed."""


class Nodes(Protocol):
    """The devices there are. Calls may block."""

    def paths(self) -> list[str]:
        """`/dev/input/event0` and so on."""

    def resolve(self, path: str) -> list[str]:
        """The nodes that a path, or a pattern of paths, leads to."""

    def name(self, path: str) -> str:
        """What a device calls itself; empty: it has gone."""

    def is_absolute(self, path: str) -> bool:
        """Whether, as a pointer, it says where it is. False when it has gone."""

    def fitness(self, path: str, role: Role) -> int:
        """How much of this a device can be; 0: it cannot, or has gone."""

    def open(self, path: str) -> Node:
        """Open a device. Raises OSError."""


class _Reader(Source):
    """An open device, and where its events go."""

    def __init__(self, path: str, node: Node, shares: Shares) -> None:
        super().__init__(path, repeats=node.repeats)
        self.path = path
        self.node = node
        self.shares = shares
        self.scope = trio.CancelScope()
        self._decoder: Decoder | None = None
        self._receiver: Any = None
        self._as: frozenset[Role] = frozenset()

    def start(self) -> None:
        """Follow the device from how it is now. Raises OSError."""
        self._decoder = Decoder(self, self.node.description, self._ask())

    def follow(self, focus: Focus) -> None:
        """Give the events to whom they belong now. Those that wait to be read came while they were another's: they are its own still.
        Then it is told that all is let go.
        """
        claim = focus.holder(lambda claim: claim.key in self.shares)
        share = self.shares[claim.key] if claim is not None else None
        if share is None or claim is None or share.terms != claim.terms:
            receiver, roles = None, frozenset[Role]()  # also: until somebody has looked at the new terms
        else:
            receiver, roles = claim.feed, share.roles
        if receiver is not self._receiver:
            with suppress(OSError):  # the device has gone: its task will see that too
                self._take()
            self.leave()
            self._receiver = receiver
        self._as = roles

    def leave(self) -> None:
        """Nothing comes from here any more."""
        if self._receiver is not None:
            self._receiver.leave(self)
            self._receiver.flush()
            self._receiver = None

    def is_heard_by(self, receiver: Receiver) -> bool:
        """Whether the events are for this one."""
        return self._receiver is receiver

    async def read(self) -> None:
        """Read until the device has gone. Raises OSError."""
        before = -math.inf
        while True:
            await trio.lowlevel.wait_readable(self.node.fd)
            now = trio.current_time()
            is_busy, before = now - before < REST, now
            self._take()
            while is_busy:
                await trio.sleep(REST)
                before = trio.current_time()
                is_busy = self._take()

    def _take(self) -> bool:
        """Tell all that waits in the device file. False when nothing did. Raises OSError."""
        if self._decoder is None:
            return False
        found = lost = False
        with suppress(BlockingIOError):
            for _ in range(READS):
                events = self.node.read()
                found = True
                lost = self._decoder.decode(events, self._receiver, self._as)
                if lost or len(events) < READ:
                    break
        if lost:
            _log.warning("events lost: the device is asked for its state", device=self.path)
            self._decoder.resync(self._ask(), self._receiver, self._as)
        return found

    def _ask(self) -> State:
        """How the device is now. What waits was before that, and would be taken for later: it goes unread. Raises OSError."""
        with suppress(BlockingIOError):
            for _ in range(READS):
                if len(self.node.read()) < READ:
                    break
        return self.node.state()


class Evdev:
    """All devices that guests name. `settings` and `nodes` say which there are."""

    def __init__(self, settings: InputSettings, focus: Focus, nodes: Nodes) -> None:
        self._settings = settings
        self._focus = focus
        self._nodes = nodes
        self._readers: dict[str, _Reader] = {}
        self._changed = trio.Event()
        self._refused: set[tuple[str, str]] = set()
        self._unopened: dict[str, str] = {}
        """Why a device could not be opened when that was tried last."""
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve for ever."""
        self._focus.listeners.append(self._on_change)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    self._changed = trio.Event()
                    missing = await self._look(nursery)
                    with trio.move_on_after(min(RESCAN if missing else math.inf, self._focus.patience())):
                        await self._changed.wait()
        finally:
            self._focus.listeners.remove(self._on_change)

    def _on_change(self) -> None:
        """At once: what was typed for one guest is not for the next."""
        for reader in self._readers.values():
            reader.follow(self._focus)
        self._changed.set()

    def heard_by(self, receiver: Receiver) -> tuple[str, ...]:
        """The devices that belong to it now."""
        return tuple(sorted(path for path, reader in self._readers.items() if reader.is_heard_by(receiver)))

    async def is_absolute(self, claim: Claim) -> bool:
        """Whether one of the pointers that a claim names says where it is."""
        nodes, _ = await self._wanted([claim])
        for path, shares in nodes.items():
            if Role.POINTER in shares[claim.key].roles and await self._in_thread(self._nodes.is_absolute, path):
                return True
        return False

    async def _look(self, nursery: trio.Nursery) -> bool:
        """Open what is named and there, close what nobody names. True when something is named and not there."""
        # A guest that has gone opens nothing, but its place is kept.
        named, missing = await self._wanted(self._focus.claims)
        here = {claim.key for claim in self._focus.claims if claim.left is None}
        wanted = {path: shares for path, shares in named.items() if here & shares.keys()}
        for path, reader in list(self._readers.items()):
            if path not in wanted:
                reader.scope.cancel()
            else:
                reader.shares = wanted[path]
                reader.follow(self._focus)
        for path, shares in wanted.items():
            if path not in self._readers:
                missing |= not await self._open(nursery, path, shares)
        return missing

    async def _wanted(self, claims: list[Claim]) -> tuple[dict[str, Shares], bool]:
        """The nodes that claims name, with what each is to whom; and whether some that are named are not there."""
        found: dict[str, Shares] = {}
        missing = False
        for claim in claims:
            terms = claim.terms
            for binding in terms.bindings:
                if binding.is_device:
                    path = await self._resolve(claim.guest, terms, binding)
                    missing |= path is None and claim.left is None
                    if path is not None:
                        shares = found.setdefault(path, {})
                        before = shares[claim.key].roles if claim.key in shares else frozenset[Role]()
                        shares[claim.key] = Share(terms, before | {binding.role})
        return found, missing

    async def _resolve(self, guest: str, terms: Terms, binding: Binding) -> str | None:
        """The node that a guest's binding leads to, if it is there and allowed: the one that can be most of what it is to be."""
        paths = await self._in_thread(self._named, binding)
        for path in paths:
            if binding.id in terms.allowed or await self._in_thread(self._is_allowed, path):
                return path
            if (guest, path) not in self._refused:
                self._refused.add((guest, path))
                _log.error(
                    "the configuration allows no guest this device: [input] devices",
                    guest=guest,
                    named=binding.id,
                    device=path,
                )
        return None

    def _named(self, binding: Binding) -> list[str]:
        """The nodes that a guest's binding leads to. It is no pattern."""
        nodes = self._nodes
        if not binding.id.startswith("name="):
            return nodes.resolve(glob.escape(_absolute(binding.id)))
        name = binding.id.removeprefix("name=")
        named = [path for path in nodes.paths() if nodes.name(path) == name]
        # One device may have several nodes of one name: its keyboard, and its few special keys.
        return sorted(named, key=lambda path: (-nodes.fitness(path, binding.role), _number(path)))

    def _is_allowed(self, path: str) -> bool:
        """Whether the configuration lets guests name this node: by a pattern of paths, or of names."""
        for entry in self._settings.devices:
            if entry.startswith("name="):
                if fnmatch.fnmatchcase(self._nodes.name(path), entry.removeprefix("name=")):
                    return True
            elif path in self._nodes.resolve(_absolute(entry)):
                return True
        return False

    async def _in_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._limiter)

    async def _open(self, nursery: trio.Nursery, path: str, shares: Shares) -> bool:
        try:
            node = await self._in_thread(self._nodes.open, path)
        except Exception as error:  # also: evdev is not installed, or does not bear what the device calls itself
            if self._unopened.get(path) != str(error):
                self._unopened[path] = str(error)
                known = isinstance(error, OSError)
                _log.warning("cannot open", device=path, reason=str(error), exc_info=not known)
            return False
        self._unopened.pop(path, None)
        reader = self._readers[path] = _Reader(path, node, shares)
        nursery.start_soon(self._serve, reader)
        return True

    async def _serve(self, reader: _Reader) -> None:
        """One device's task, until it has gone or nobody names it."""
        try:
            with reader.scope:
                await self._read(reader)
                await trio.sleep(RESCAN)  # its node may be there for a moment still
        finally:
            reader.leave()
            del self._readers[reader.path]
            reader.node.close()
            self._changed.set()

    async def _read(self, reader: _Reader) -> None:
        """Read a device until it has gone; then all that it held down has been let go."""
        node = reader.node
        log = _log.bind(device=reader.path, name=node.name)
        try:
            if self._settings.grab:
                await self._grab(node)
            reader.start()
            reader.follow(self._focus)
            log.info("device opened", grabbed=self._settings.grab)
            await reader.read()
        except OSError as error:
            log.warning("device lost", reason=error.strerror)
        except Exception:
            log.exception("device failed")
        reader.leave()

    async def _grab(self, node: Node) -> None:
        """Raises OSError: another program has grabbed it."""
        with trio.move_on_after(KEYS_UP):
            while node.state().keys:
                await trio.lowlevel.wait_readable(node.fd)
                with suppress(BlockingIOError):
                    node.read()
        node.grab()


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/dev/input/{path}"


def _number(path: str) -> int:
    """Of a node: event10 comes after event9."""
    return int(path.rpartition("event")[2])


class SystemNodes:
    """The devices of this machine, through python-evdev."""

    def paths(self) -> list[str]:
        return sorted(path for path in glob.glob("/dev/input/event*") if _NODE.fullmatch(path))

    def resolve(self, path: str) -> list[str]:
        found = {os.path.realpath(match) for match in glob.glob(path)}
        return sorted(match for match in found if _NODE.fullmatch(match))

    def name(self, path: str) -> str:
        return _attribute(path, "name")

    def is_absolute(self, path: str) -> bool:
        return describe(path).is_absolute

    def fitness(self, path: str, role: Role) -> int:
        return describe(path).fitness(role)

    def open(self, path: str) -> Node:
        return _EvdevNode(path)


def read_events(fd: int) -> list[Event]:
    """Node.read of evdev's files: whole events, as many as are asked for."""
    events: list[Any] = list(_EVENT.iter_unpack(os.read(fd, READ * _EVENT.size)))
    if not events:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return events


def _attribute(path: str, name: str) -> str:
    try:
        return Path(f"/sys/class/input/{os.path.basename(path)}/device/{name}").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def describe(path: str) -> Description:
    """What a node's device can say, by sysfs, without opening it; the ranges of its axes are not there. Nothing when it has gone."""
    axes = _bits(path, "capabilities/abs")
    return Description(
        keys=_bits(path, "capabilities/key"),
        wheels=_bits(path, "capabilities/rel"),
        axes=dict.fromkeys(axes, Axis(0, 0)),
        is_touchpad=INPUT_PROP_POINTER in _bits(path, "properties"),
    )


def _bits(path: str, name: str) -> frozenset[int]:
    """The numbers of the bits that are set, by words of the kernel's longs, the highest first (input_print_bitmap)."""
    words = _attribute(path, name).split()[::-1]
    return frozenset(
        place * 8 * LONG + bit
        for place, word in enumerate(words)
        for bit in range(8 * LONG)
        if int(word, 16) >> bit & 1
    )


class _EvdevNode:
    """One open device."""

    def __init__(self, path: str) -> None:
        import evdev  # an optional package: only who names such devices needs it

        self._device: Any = evdev.InputDevice(path)
        self.fd: int = self._device.fd
        self.name: str = self._device.name
        can: dict[int, Any] = self._device.capabilities()
        self.description = Description(
            keys=frozenset(can.get(EV_KEY, ())),
            wheels=frozenset(can.get(EV_REL, ())),
            axes={code: Axis(info.min, info.max) for code, info in can.get(EV_ABS, ())},
            is_touchpad=INPUT_PROP_POINTER in self._device.input_props(),
        )
        self.repeats = EV_REP in can

    def read(self) -> Sequence[Event]:
        # Not InputDevice.read(), which makes an object of each event, and calls for each 64 of them.
        return read_events(self.fd)

    def state(self) -> State:
        axes = {code: self._device.absinfo(code).value for code in self.description.axes}
        slots = self.description.slots
        columns = [self._slot_values(code, slots) for code in _SLOT_CODES] if slots else []
        return State(
            keys=frozenset(self._device.active_keys()),
            axes=axes,
            slots=[Slot(*fields) for fields in zip(*columns, strict=True)],
        )

    def _slot_values(self, code: int, slots: int) -> tuple[int, ...]:
        """EVIOCGMTSLOTS, struct input_mt_request_layout: one value of each slot. An axis that the device has not is 0."""
        if code not in self.description.axes:
            return (0,) * slots
        layout = Struct(f"=I{slots}i")
        request = 2 << 30 | layout.size << 16 | ord("E") << 8 | 0x0A  # _IOC(_IOC_READ, 'E', 0x0a, size)
        answer = bytearray(layout.pack(code, *(0,) * slots))
        fcntl.ioctl(self.fd, request, answer)
        values: tuple[int, ...] = layout.unpack(answer)[1:]
        return values

    def grab(self) -> None:
        self._device.grab()

    def close(self) -> None:
        # Not InputDevice.close(), which makes an asyncio loop to take the file from.
        os.close(self.fd)
        self._device.fd = -1
