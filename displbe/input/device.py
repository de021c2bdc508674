"""A vkbd device: what XenStore says of it, and the frontend served while it is connected.

Its backend directory is `vinput` (libxl's `backend-type=linux`); `vkbd` there is QEMU's, and left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from displbe.backend.device import Device, Refused, releasing
from displbe.backend.guests import GuestSettings, guest_name
from displbe.backend.storms import Storms
from displbe.ops import status
from displbe.sinks.seat import Seats
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import RAW_MAX, BackKbdPage
from displbe.wire.xenbus import KEYBOARD_TRANSITIONS, State, parse_state
from displbe.wire.xs import parse_number
from displbe.xen.port import EventChannel, Hypervisor, StoreLost

from .bindings import Role, parse_unique_id
from .evdev.devices import EvdevDevices
from .features import DEFAULT_HEIGHT, DEFAULT_WIDTH, Features
from .focus import Assignment, Claim, InputFocus
from .guest_input import AutoRepeat, GuestInput
from .window_input import window_input

__all__ = ["InputDriver"]

CONTACTS: Final = 10
"""Fingers of a touch screen where the toolstack says nothing."""
MAX_CONTACTS: Final = 256
"""`contact_id` is a u8."""
MAX_SIZE: Final = 0x7FFFFFFF
"""Positions are s32."""
RESCUE: Final = 0.1
RESCUE_LAST: Final = 1.0
"""Seconds between looks at events that the guest does not take: the first ones, and at most."""
SIZE_WAIT: Final = 1.0
"""Seconds that a new device waits for the guest's screen, whose size it takes, and which the toolstack makes later."""
LAST_WORDS: Final = 0.3
"""Seconds that a guest has to take the releases of its keys before its page is let go."""


class _Keys(msgspec.Struct, frozen=True):
    """What the frontend has published."""

    page_gref: int
    event_channel: int


class InputDriver:
    """Serves vkbd devices (backend.device.Driver)."""

    backend_kind: Final = "vinput"
    frontend_kind: Final = "vkbd"
    transitions: Final = KEYBOARD_TRANSITIONS
    published: Final = ("page-gref", "event-channel")

    def __init__(
        self,
        hypervisor: Hypervisor,
        focus: InputFocus,
        evdev: EvdevDevices,
        seats: Seats | None,
        guests: Mapping[str, GuestSettings] | None = None,
        repeats: AutoRepeat | None = None,
    ) -> None:
        self._hypervisor = hypervisor
        self._focus = focus
        self._evdev = evdev
        self._seats = seats
        self.guests = guests or {}
        self._repeats = repeats or AutoRepeat()
        self._claims: dict[str, Claim] = {}
        self._served: dict[str, _Keys] = {}

    # Before the guest is connected, and after

    async def arrive(self, device: Device) -> None:
        """A device is there: what it names is its own before another one's frontend does anything."""
        while True:
            try:
                device.name = await guest_name(device.store, device.domid)
                await self._claim(device)
                return
            except Refused:
                return  # which is told when it is prepared and connected
            except StoreLost:
                await trio.lowlevel.checkpoint()

    async def prepare(self, device: Device) -> Mapping[str, str]:
        """The features that the toolstack has not written: while the frontend, which reads them once, has not begun."""
        try:
            claim = await self._claim(device)
        except Refused as error:
            device.log.warning("no input", reason=str(error))
            return {}
        nodes = await self._offers(device, claim) if await _has_not_begun(device) else {}
        nodes = {key: value for key, value in nodes.items() if await device.read(f"{device.path}/{key}") is None}
        return nodes if await _has_not_begun(device) else {}

    async def _offers(self, device: Device, claim: Claim) -> dict[str, str]:
        """What we can do for this guest."""
        bindings = claim.assignment.bindings
        roles = {binding.role for binding in bindings}
        nodes: dict[str, str] = {}
        of_window = any(binding.role is Role.POINTER and not binding.is_device for binding in bindings)
        if of_window or (Role.POINTER in roles and await self._evdev.has_absolute_pointer(claim)):
            nodes |= {"feature-abs-pointer": "1", "feature-raw-pointer": "1"}
        size = None
        if nodes or Role.TOUCH in roles:
            with trio.move_on_after(SIZE_WAIT):
                while (size := await _display_size(device)) is None:
                    await trio.sleep(SIZE_WAIT / 20)
        if size is not None:
            nodes |= {"width": str(size[0]), "height": str(size[1])}
        if Role.TOUCH in roles:
            width, height = size or (DEFAULT_WIDTH, DEFAULT_HEIGHT)
            nodes |= {
                "feature-multi-touch": "1",
                "multi-touch-width": str(width),
                "multi-touch-height": str(height),
                "multi-touch-num-contacts": str(CONTACTS),
            }
        return nodes

    async def _claim(self, device: Device) -> Claim:
        """The devices that a guest names now. It has them as long as its own is there, connected or not. Raises Refused."""
        try:
            terms = await self._terms(device, self.guests.get(device.name, GuestSettings()))
        except Refused:
            self.forget(device)
            raise
        claim = self._claims.get(device.path)
        if claim is None:
            claim = self._claims[device.path] = Claim(device.name, device.domid, device.number, terms)
            self._focus.arrive(claim)
        elif (claim.name, claim.assignment) != (device.name, terms):
            claim.name, claim.assignment = device.name, terms
            self._focus.changed()
        return claim

    async def _terms(self, device: Device, settings: GuestSettings) -> Assignment:
        """By the configuration, else by the toolstack. Raises Refused."""
        text = settings.input
        if not text:
            text = (await _read_trusted(device, "unique-id") or b"").decode("utf-8", "replace")
        if not text:
            raise Refused("unique-id is missing: which devices are this guest's?")
        try:
            bindings = parse_unique_id(text)
        except ValueError as error:
            raise Refused(f"unique-id: {error}") from error
        windows = [binding.id for binding in bindings if not binding.is_device]
        if windows and self._seats is None:
            raise Refused(f"unique-id names {', '.join(windows)}, but this sink's screens have no input of their own")
        return Assignment(bindings, frozenset(binding.id for binding in bindings) if settings.input else frozenset())

    def forget(self, device: Device) -> None:
        """The device is gone."""
        claim = self._claims.pop(device.path, None)
        if claim is not None:
            self._focus.leave(claim)

    async def is_current(self, device: Device) -> bool:
        """After a resume the guest has another page and another channel, and says so without leaving its state for long."""
        served = self._served.get(device.path)
        try:
            return served is None or served == await _read_keys(device)
        except (Refused, StoreLost):
            return True  # it is about to go, which its state says; or this is asked again

    # While it is connected

    async def serve(self, device: Device, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve a frontend whose page is published, until cancelled."""
        claim = await self._claim(device)
        keys = await _read_keys(device)
        features = await _read_features(device)
        async with releasing() as stack:
            page = self._hypervisor.map_page(device.domid, keys.page_gref, writable=True)
            stack.callback(page.close)
            session = _Session(BackKbdPage(page), features, self._repeats, device)
            channel = self._hypervisor.bind(device.domid, keys.event_channel, session.kicked)
            stack.callback(channel.close)
            session.channel = channel
            # A frontend that has begun anew meanwhile: references may name other pages by now.
            if await _read_keys(device) != keys:
                raise Refused("the frontend has published another page meanwhile")
            self._served[device.path] = keys
            stack.callback(self._served.pop, device.path)
            if session.page.used:
                session.feed.release_everything()
            device.input = lambda: self._tell(session.feed)
            try:
                with self._listening(claim, session.feed):
                    await session.run(task_status)
            finally:
                device.input = None
                with trio.move_on_after(LAST_WORDS, shield=True):
                    await session.end()

    def _listening(self, claim: Claim, feed: GuestInput) -> contextlib.ExitStack:
        """Let the guest have what is its own, while the block lasts."""
        stack = contextlib.ExitStack()

        def detach() -> None:
            claim.guest_input = None
            self._focus.changed()

        claim.guest_input = feed
        stack.callback(detach)
        if self._seats is not None:
            stack.enter_context(window_input(self._seats, claim, feed))
        self._focus.changed()
        return stack

    def _tell(self, feed: GuestInput) -> status.InputStatus:
        outbox = feed.queue
        return status.InputStatus(self._evdev.passed_to(feed), outbox.written, outbox.waiting, outbox.dropped)


class _Session:
    """A connected device at work."""

    channel: EventChannel

    def __init__(self, page: BackKbdPage, features: Features, repeats: AutoRepeat, device: Device) -> None:
        self.page = page
        self._log = device.log
        self.feed = GuestInput(page, features, repeats, self._wake, self._break)
        self._storms = Storms(self._rearm)
        self._seen = page.taken()
        self._woken = trio.Event()
        self._failed = trio.Event()
        self._reason = FrontendBroken("")
        self._open = True
        self._answers = 0

    def _wake(self) -> None:
        self.channel.notify()
        self._woken.set()

    def _rearm(self) -> None:
        self.channel.rearm()

    def _break(self, reason: FrontendBroken) -> None:
        """The frontend broke a rule: the device ends, this device only."""
        self._reason = reason
        self._failed.set()

    def kicked(self) -> bool:
        """The guest has notified: it has taken events, most likely."""
        if not self._open or self._failed.is_set():
            return False
        try:
            self.page.drain()
            self.page.room()
            self.feed.flush()
            taken = self.page.taken()
            moved = 0 < (taken - self._seen) & 0xFFFFFFFF < 0x80000000
            if moved:
                self._seen = taken
                self._answers += 1
            # What it sends over its own ring, which nobody has asked for, is no reason to be listened to sooner.
            self._storms.notified(for_nothing=not moved)
        except FrontendBroken as broken:
            self._break(broken)
        except Exception as error:  # a mistake of ours ends this device, never the task that serves all of them
            self._log.exception("input failed")
            self._break(FrontendBroken(f"internal error: {type(error).__name__}"))
        return False

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises FrontendBroken."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.feed.repeat)
            nursery.start_soon(self._storms.run)
            nursery.start_soon(self._rescue)
            task_status.started()
            await self._failed.wait()
            raise self._reason

    async def _rescue(self) -> None:
        """Wake a guest again that takes nothing, though it was woken: a frontend that does not notify back, or an event that was lost."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            before, pause = None, RESCUE
            while self.page.is_waiting() or self.feed.queue.waiting:
                self.feed.flush()
                if (now := self.page.taken()) == before:
                    self.channel.notify()
                    pause = min(2 * pause, RESCUE_LAST)
                before = now
                await trio.sleep(pause)

    async def end(self) -> None:
        """Tell the guest that nothing is held any more, and give it the time to take that."""
        try:
            if not self._failed.is_set():
                self.feed.leave_all()
                while self.feed.queue.waiting and not self._failed.is_set():
                    await trio.sleep(0.01)
                    self.feed.flush()
        finally:
            self._open = False
            outbox = self.feed.queue
            self._log.info(
                "input over",
                events=outbox.written,
                dropped=outbox.dropped,
                notifications=outbox.notified,
                answers=self._answers,
            )


# What XenStore says


async def _has_not_begun(device: Device) -> bool:
    """Whether the frontend has not read our nodes yet."""
    return parse_state(await device.read(f"{device.frontend}/state")) is State.INITIALISING


async def _read_trusted(device: Device, key: str) -> bytes | None:
    """A node of our own directory, which the guest may not write. None when it is missing. Raises Refused."""
    found = await device.read_trusted(f"{device.path}/{key}", key)
    if found is None:
        return None
    value, permissions = found
    if permissions[0][0] in "wb" or any(domid == device.domid and letter in "wb" for letter, domid in permissions[1:]):
        raise Refused(f"{key} may be written by the guest")
    return value


async def _number(device: Device, key: str, default: int, most: int) -> int:
    """A number of our own directory as Linux's frontend reads it: what is no number is the default. At most `most`."""
    number = parse_number(await _read_trusted(device, key) or b"")
    return default if number is None else min(number, most)


async def _read_features(device: Device) -> Features:
    """What the frontend has made of itself: from what it found in our directory, and what it asks for. Raises Refused."""

    async def asked(key: str) -> bool:
        return await device.read(f"{device.frontend}/{key}") == b"1"

    async def flag(key: str) -> bool:
        return (await _read_trusted(device, key) or b"0") != b"0"

    absolute = await flag("feature-abs-pointer") and await asked("request-abs-pointer")
    raw = absolute and await flag("feature-raw-pointer") and await asked("request-raw-pointer")
    width = await _number(device, "width", DEFAULT_WIDTH, MAX_SIZE)
    height = await _number(device, "height", DEFAULT_HEIGHT, MAX_SIZE)
    touch = await flag("feature-multi-touch") and await asked("request-multi-touch")
    return Features(
        keyboard=not await flag("feature-disable-keyboard"),
        pointer=not await flag("feature-disable-pointer"),
        absolute=absolute,
        width=RAW_MAX + 1 if raw else max(1, width),
        height=RAW_MAX + 1 if raw else max(1, height),
        contacts=await _number(device, "multi-touch-num-contacts", 1, MAX_CONTACTS) if touch else 0,
        touch_width=max(1, await _number(device, "multi-touch-width", DEFAULT_WIDTH, MAX_SIZE)),
        touch_height=max(1, await _number(device, "multi-touch-height", DEFAULT_HEIGHT, MAX_SIZE)),
    )


async def _read_keys(device: Device) -> _Keys:
    """Raises Refused."""
    numbers = []
    for key in InputDriver.published:
        value = await device.read(f"{device.frontend}/{key}")
        number = parse_number(value or b"")
        if number is None:
            raise Refused(f"{key} is no number: {(value or b'')[:64]!r}")
        numbers.append(number)
    return _Keys(*numbers)


async def _display_size(device: Device) -> tuple[int, int] | None:
    """The size of the guest's first screen, where the toolstack gave it one."""
    value = await device.read(f"/local/domain/{device.domid}/device/vdispl/0/0/resolution")
    sides = [parse_number(side, 16384) for side in (value or b"").split(b"x")]
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None
