"""evdev devices: named by guests, allowed by the configuration, opened while a guest names them, and again when they are plugged in again.

Devices are looked for in /dev/input and /sys/class/input. Looking and opening may wait for the hardware: threads do it.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from struct import Struct
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import structlog
import trio

from displbe.input.focus import Claim, Focus
from displbe.input.names import Binding, Role
from displbe.input.translate import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TOUCH_MINOR,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
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

from .base import Source

__all__ = ["Evdev", "Node", "Nodes", "SystemNodes"]

RESCAN: Final = 0.5
"""Seconds between two looks for devices that are named and not there."""
KEYS_UP: Final = 2.0
"""Seconds that a device is waited for whose keys are down, before it is grabbed: whoever has it now is to see them go up."""
EV_REP: Final = 0x14
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


Roles: TypeAlias = dict[tuple[str, int], frozenset[Role]]
"""What a device is to those that name it, by their claims' keys."""


class Node(Protocol):
    """An open device."""

    fd: int
    name: str
    description: Description
    repeats: bool

    def read(self) -> Iterable[Event]:
        """The events that are there. Raises BlockingIOError when there are none, OSError when the device has gone."""

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

    def open(self, path: str) -> Node:
        """Open a device. Raises OSError."""


class InputSettings(Protocol):
    """`[input]` of the configuration, as far as evdev goes."""

    @property
    def devices(self) -> list[str]:
        """The devices that guests may name: paths, patterns of paths, `name=` and a pattern."""

    @property
    def grab(self) -> bool:
        """Whether the devices' events are kept from everybody else."""


class _Reader(Source):
    """An open device, and where its events go."""

    def __init__(self, path: str, node: Node, roles: Roles) -> None:
        super().__init__(path, repeats=node.repeats)
        self.path = path
        self.node = node
        self.roles = roles
        """What it is to each claim that names it."""
        self.scope = trio.CancelScope()
        self._decoder: Decoder | None = None
        self._receiver: Any = None
        self._as: frozenset[Role] = frozenset()

    def start(self) -> None:
        """Follow the device from how it is now. Raises OSError."""
        self._decoder = Decoder(self, self.node.description, self.node.state())

    def follow(self, focus: Focus) -> None:
        """Give the events to whom they belong now; whom they belonged to before is told that all is let go."""
        claim = focus.holder(lambda claim: claim.key in self.roles)
        receiver = claim.feed if claim is not None else None
        self._as = self.roles[claim.key] if claim is not None else frozenset()
        if receiver is not self._receiver:
            self.leave()
            self._receiver = receiver

    def leave(self) -> None:
        """Nothing comes from here any more."""
        if self._receiver is not None:
            self._receiver.leave(self)
            self._receiver.flush()
            self._receiver = None

    async def read(self) -> None:
        """Read until the device has gone. Raises OSError."""
        node, decoder = self.node, self._decoder
        assert decoder is not None
        while True:
            await trio.lowlevel.wait_readable(node.fd)
            try:
                lost = decoder.decode(node.read(), self._receiver, self._as)
            except BlockingIOError:
                continue
            if lost:
                _log.warning("events lost: the device is asked for its state", device=self.path)
                decoder.resync(node.state(), self._receiver, self._as)


class Evdev:
    """All devices that guests name. `settings` and `nodes` say which there are."""

    def __init__(self, settings: InputSettings, focus: Focus, nodes: Nodes) -> None:
        self._settings = settings
        self._focus = focus
        self._nodes = nodes
        self._readers: dict[str, _Reader] = {}
        self._changed = trio.Event()
        self._refused: set[tuple[str, str]] = set()
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

    async def is_absolute(self, claim: Claim) -> bool:
        """Whether one of the pointers that a claim names says where it is."""
        nodes, _ = await self._wanted([claim])
        for path, roles in nodes.items():
            if Role.POINTER in roles[claim.key] and await self._in_thread(self._nodes.is_absolute, path):
                return True
        return False

    async def _look(self, nursery: trio.Nursery) -> bool:
        """Open what is named and there, close what nobody names. True when something is named and not there."""
        # A guest that has gone opens nothing, but its place is kept.
        named, missing = await self._wanted(self._focus.claims)
        here = {claim.key for claim in self._focus.claims if claim.left is None}
        wanted = {path: roles for path, roles in named.items() if here & roles.keys()}
        for path, reader in list(self._readers.items()):
            if path not in wanted:
                reader.scope.cancel()
            else:
                reader.roles = wanted[path]
                reader.follow(self._focus)
        for path, roles in wanted.items():
            if path not in self._readers:
                missing |= not await self._open(nursery, path, roles)
        return missing

    async def _wanted(self, claims: list[Claim]) -> tuple[dict[str, Roles], bool]:
        """The nodes that claims name, with what each is to whom; and whether some that are named are not there."""
        found: dict[str, Roles] = {}
        missing = False
        for claim in claims:
            for binding in claim.bindings:
                if binding.is_device:
                    path = await self._resolve(claim, binding)
                    missing |= path is None and claim.left is None
                    if path is not None:
                        roles = found.setdefault(path, {})
                        roles[claim.key] = roles.get(claim.key, frozenset()) | {binding.role}
        return found, missing

    async def _resolve(self, claim: Claim, binding: Binding) -> str | None:
        """The node that a guest's binding leads to, if it is there and allowed."""
        for path in await self._in_thread(self._named, binding.id):
            if binding.id in claim.allowed or await self._in_thread(self._is_allowed, path):
                return path
            if (claim.guest, path) not in self._refused:
                self._refused.add((claim.guest, path))
                _log.error(
                    "the configuration allows no guest this device: [input] devices",
                    guest=claim.guest,
                    named=binding.id,
                    device=path,
                )
        return None

    def _named(self, id: str) -> list[str]:
        """The nodes that an ID of a guest leads to. It is no pattern."""
        if id.startswith("name="):
            return [path for path in self._nodes.paths() if self._nodes.name(path) == id.removeprefix("name=")]
        return self._nodes.resolve(glob.escape(_absolute(id)))

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

    async def _open(self, nursery: trio.Nursery, path: str, roles: Roles) -> bool:
        try:
            node = await self._in_thread(self._nodes.open, path)
        except OSError as error:
            _log.warning("cannot open", device=path, reason=error.strerror)
            return False
        reader = self._readers[path] = _Reader(path, node, roles)
        nursery.start_soon(self._serve, reader)
        return True

    async def _serve(self, reader: _Reader) -> None:
        """One device's task, until it has gone or nobody names it."""
        node = reader.node
        log = _log.bind(device=reader.path, name=node.name)
        try:
            with reader.scope:
                if self._settings.grab:
                    await self._grab(node)
                reader.start()
                reader.follow(self._focus)
                log.info("device opened", grabbed=self._settings.grab)
                await reader.read()
        except OSError as error:
            log.warning("device lost", reason=error.strerror)
            await trio.sleep(RESCAN)  # its node may be there for a moment still
        except Exception:
            log.exception("device failed")
            await trio.sleep(RESCAN)
        finally:
            reader.leave()
            del self._readers[reader.path]
            node.close()
            self._changed.set()

    async def _grab(self, node: Node) -> None:
        """Raises OSError: another program has grabbed it."""
        with trio.move_on_after(KEYS_UP):
            while node.state().keys:
                await trio.lowlevel.wait_readable(node.fd)
                try:
                    for _ in node.read():
                        pass
                except BlockingIOError:
                    pass
        node.grab()


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/dev/input/{path}"


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
        words = (_attribute(path, name).split() or ["0"] for name in ("capabilities/abs", "properties"))
        axes, properties = (int(word[-1], 16) for word in words)
        position = 1 << ABS_X | 1 << ABS_Y
        return axes & position == position and not properties >> INPUT_PROP_POINTER & 1

    def open(self, path: str) -> Node:
        return _EvdevNode(path)


def _attribute(path: str, name: str) -> str:
    try:
        return Path(f"/sys/class/input/{os.path.basename(path)}/device/{name}").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


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

    def read(self) -> Iterable[Event]:
        return [(event.type, event.code, event.value) for event in self._device.read()]

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
