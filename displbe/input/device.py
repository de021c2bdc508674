"""The vkbd driver: serves guests' keyboards, pointers and touch screens, one `InputDevice` for each device.

The backend directory is `vinput` (libxl's `backend-type=linux`); `vkbd` there is QEMU's and is not touched.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio

from displbe.backend.driver import Parts
from displbe.backend.guests import Guests, GuestSettings
from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.backend.quota import Quota
from displbe.backend.release import shielded_stack
from displbe.backend.spurious_events import SpuriousEvents
from displbe.ops import status
from displbe.sinks.seat import Seats
from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import RAW_MAX, BackKbdPage
from displbe.wire.xenbus import KEYBOARD_TRANSITIONS, State, parse_state
from displbe.wire.xs import parse_number
from displbe.xen.port import EventChannel, Hypervisor, StoreLost

from .features import DEFAULT_HEIGHT, DEFAULT_WIDTH, Features
from .feed import Feed, Repeats
from .focus import Claim, Focus, Terms
from .names import Role, parse_unique_id
from .sources.evdev import Evdev
from .sources.wayland import listening

__all__ = ["InputDevice", "InputDriver"]

CONTACTS: Final = 10
"""Contacts of a touch screen where the toolstack does not say how many."""
MAX_CONTACTS: Final = 256
"""`contact_id` is a u8."""
MAX_SIZE: Final = 0x7FFFFFFF
"""Positions are s32."""
RESCUE: Final = 0.1
RESCUE_LAST: Final = 1.0
"""Seconds between two looks at events that the guest does not take: at first, and at most."""
SIZE_WAIT: Final = 1.0
"""Seconds that a new device waits for the guest's display, whose size it takes over: the toolstack makes it later."""
LAST_WORDS: Final = 0.3
"""Seconds that a guest has to take the releases of its keys before its page is unmapped."""


class _Published(msgspec.Struct, frozen=True):
    """What the frontend has published: a grant reference and the guest's port."""

    page_gref: int
    event_channel: int


class InputDriver:
    """The vkbd devices of all guests (backend.driver.Driver)."""

    backend_kind: Final = "vinput"
    frontend_kind: Final = "vkbd"
    transitions: Final = KEYBOARD_TRANSITIONS
    published: Final = ("page-gref", "event-channel")

    def __init__(
        self,
        hypervisor: Hypervisor,
        focus: Focus,
        evdev: Evdev,
        seats: Seats | None,
        guests: Guests,
        repeats: Repeats | None = None,
    ) -> None:
        self.guests = guests
        self._hypervisor = hypervisor
        self._focus = focus
        self._evdev = evdev
        self._seats = seats
        self._repeats = repeats or Repeats()

    def open(self, nodes: DeviceNodes, quota: Quota) -> InputDevice:
        """Return the service of a device that was found."""
        return InputDevice(nodes, self._hypervisor, self._focus, self._evdev, self._seats, self.guests, self._repeats)


class InputDevice:
    """One guest's input device, over all its connections (backend.driver.Service)."""

    def __init__(
        self,
        nodes: DeviceNodes,
        hypervisor: Hypervisor,
        focus: Focus,
        evdev: Evdev,
        seats: Seats | None,
        guests: Guests,
        repeats: Repeats,
    ) -> None:
        self._nodes = nodes
        self._hypervisor = hypervisor
        self._focus = focus
        self._evdev = evdev
        self._seats = seats
        self._guests = guests
        self._repeats = repeats
        self._claim: Claim | None = None
        """The devices that the guest names; None: it names none that it may have."""
        self._connected: ConnectedInput | None = None
        """The connection, while there is one."""

    # Before the frontend is connected, and after

    async def arrive(self) -> None:
        """Claim what the device names, before another device's frontend does anything. Raises StoreLost."""
        try:
            await self._update_claim()
        except DeviceRefused:
            pass  # reported when it is prepared and connected

    async def prepare(self) -> Mapping[str, str]:
        """Return the feature nodes that the toolstack has not written, unless the frontend has begun: it reads them only once."""
        nodes = self._nodes
        try:
            claim = await self._update_claim()
        except DeviceRefused as error:
            nodes.log.warning("no input", reason=str(error))
            return {}
        offers = await self._offers(claim) if await _has_not_begun(nodes) else {}
        offers = {key: value for key, value in offers.items() if await nodes.read(f"{nodes.path}/{key}") is None}
        return offers if await _has_not_begun(nodes) else {}

    async def _offers(self, claim: Claim) -> dict[str, str]:
        """Return the feature nodes for what this guest's sources can do."""
        bindings = claim.terms.bindings
        roles = {binding.role for binding in bindings}
        offers: dict[str, str] = {}
        of_window = any(binding.role is Role.POINTER and not binding.is_device for binding in bindings)
        if of_window or (Role.POINTER in roles and await self._evdev.is_absolute(claim)):
            offers |= {"feature-abs-pointer": "1", "feature-raw-pointer": "1"}
        size = None
        if offers or Role.TOUCH in roles:
            with trio.move_on_after(SIZE_WAIT):
                while (size := await _display_size(self._nodes)) is None:
                    await trio.sleep(SIZE_WAIT / 20)
        if size is not None:
            offers |= {"width": str(size[0]), "height": str(size[1])}
        if Role.TOUCH in roles:
            width, height = size or (DEFAULT_WIDTH, DEFAULT_HEIGHT)
            offers |= {
                "feature-multi-touch": "1",
                "multi-touch-width": str(width),
                "multi-touch-height": str(height),
                "multi-touch-num-contacts": str(CONTACTS),
            }
        return offers

    async def _update_claim(self) -> Claim:
        """Claim the devices that the guest names now. It has them as long as its own device is there, connected or not.

        Raises DeviceRefused; nothing is claimed then.
        """
        nodes = self._nodes
        try:
            terms = await self._terms(self._guests.settings(nodes.name))
        except DeviceRefused:
            self.close()
            raise
        if self._claim is None:
            self._claim = Claim(nodes.name, nodes.domid, nodes.number, terms)
            self._focus.arrive(self._claim)
        elif (self._claim.name, self._claim.terms) != (nodes.name, terms):
            self._claim.name, self._claim.terms = nodes.name, terms
            self._focus.changed()
        return self._claim

    async def _terms(self, settings: GuestSettings) -> Terms:
        """Return what the guest names: by the configuration, else by the toolstack. Raises DeviceRefused."""
        text = settings.input
        if not text:
            text = (await _read_trusted(self._nodes, "unique-id") or b"").decode("utf-8", "replace")
        if not text:
            raise DeviceRefused("unique-id is missing: which devices are this guest's?")
        try:
            bindings = parse_unique_id(text)
        except ValueError as error:
            raise DeviceRefused(f"unique-id: {error}") from error
        windows = [binding.id for binding in bindings if not binding.is_device]
        if windows and self._seats is None:
            raise DeviceRefused(
                f"unique-id names {', '.join(windows)}, but this sink's screens have no input of their own"
            )
        return Terms(bindings, frozenset(binding.id for binding in bindings) if settings.input else frozenset())

    def close(self) -> None:
        """The device is gone: give up what it has claimed."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._focus.leave(claim)

    async def is_current(self) -> bool:
        """Return whether the page that is served is the one that the frontend has published.

        After a resume the guest has another page and another channel, and its state does not leave 4 for long.
        """
        try:
            return self._connected is None or self._connected.published == await _read_published(self._nodes)
        except (DeviceRefused, StoreLost):
            return True  # the frontend is about to go, which its state will say; or this is asked again

    async def status(self) -> Parts:
        """Return what the operator is told of the connection."""
        await trio.lowlevel.checkpoint()
        if self._connected is None:
            return Parts()
        feed = self._connected.feed
        outbox = feed.outbox
        return Parts(input=status.Input(self._evdev.heard_by(feed), outbox.written, outbox.waiting, outbox.dropped))

    # The connection

    async def serve(self, background: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve a frontend whose page is published, until cancelled (backend.driver.Service)."""
        nodes = self._nodes
        claim = await self._update_claim()
        published = await _read_published(nodes)
        features = await _read_features(nodes)
        async with shielded_stack() as stack:
            shared = self._hypervisor.map_page(nodes.domid, published.page_gref, writable=True)
            stack.callback(shared.close)
            page = BackKbdPage(shared)
            connected = ConnectedInput(published, page, features, self._repeats, nodes.log)
            channel = self._hypervisor.bind(nodes.domid, published.event_channel, connected.notified)
            stack.callback(channel.close)
            connected.start(channel)
            # The frontend may have begun anew meanwhile: its references may name other pages by now.
            if await _read_published(nodes) != published:
                raise DeviceRefused("the frontend has published another page meanwhile")
            self._connected = connected
            if page.used:
                connected.feed.release_everything()
            try:
                with self._listening(claim, connected.feed):
                    await connected.run(task_status=task_status)
            finally:
                self._connected = None
                with trio.move_on_after(LAST_WORDS, shield=True):
                    await connected.end()

    def _listening(self, claim: Claim, feed: Feed) -> contextlib.ExitStack:
        """Give the guest the input of the devices and windows that are its own, while the block lasts."""
        stack = contextlib.ExitStack()

        def detach() -> None:
            claim.feed = None
            self._focus.changed()

        claim.feed = feed
        stack.callback(detach)
        if self._seats is not None:
            stack.enter_context(listening(self._seats, claim, feed))
        self._focus.changed()
        return stack


class InputState(enum.Enum):
    """The state of a connected input device."""

    SERVED = "served"
    """The guest is given its input; its notifications are served."""
    BROKEN = "broken"
    """The frontend broke a rule: the device is about to end."""
    ENDED = "ended"
    """The page is about to be unmapped: it must not be touched any more."""


class ConnectedInput:
    """A connected input device: the guest's page, and the input that is written into it."""

    _channel: EventChannel

    def __init__(
        self, published: _Published, page: BackKbdPage, features: Features, repeats: Repeats, log: Any
    ) -> None:
        self.published = published
        self.state = InputState.SERVED
        self.feed = Feed(page, features, repeats, self._notify, self._break)
        self._page = page
        self._log = log
        self._spurious = SpuriousEvents()
        self._masked_for = 0.0
        """Seconds that the port stays masked after a spurious event."""
        self._masked = trio.Event()
        self._seen = page.taken()
        """How many events the guest had taken when it notified last."""
        self._woken = trio.Event()
        self._failed = trio.Event()
        self._reason = FrontendBroken("")
        self._answers = 0
        """Notifications by which the guest said that it has taken events."""

    def start(self, channel: EventChannel) -> None:
        """This is the device's event channel."""
        self._channel = channel

    def _notify(self) -> None:
        self._channel.notify()
        self._woken.set()

    def _break(self, reason: FrontendBroken) -> None:
        """The frontend broke a rule: this device ends, and no other."""
        if self.state is InputState.SERVED:
            self.state = InputState.BROKEN
        self._reason = reason
        self._failed.set()

    def notified(self) -> bool:
        """The guest has notified: most likely it has taken events. Return False: there is never more to do."""
        if self.state is not InputState.SERVED:
            return False
        try:
            self._page.drain()
            self._page.room()
            self.feed.flush()
            taken = self._page.taken()
            moved = 0 < (taken - self._seen) & 0xFFFFFFFF < 0x80000000
            if moved:
                self._seen = taken
                self._answers += 1
            # Events that it sends over its own ring, which has no use, are no reason to arm the port sooner.
            self._arm(spurious=not moved)
        except FrontendBroken as broken:
            self._break(broken)
        except Exception as error:  # an error in displbe ends this device, never the task that serves all of them
            self._log.exception("input failed")
            self._break(FrontendBroken(f"internal error: {type(error).__name__}"))
        return False

    def _arm(self, *, spurious: bool) -> None:
        """Arm the port again: at once, or later after spurious events."""
        if not spurious:
            self._spurious.reset()
        elif pause := self._spurious.add():
            self._masked_for = pause
            self._masked.set()
            return
        self._channel.rearm()

    async def _arm_later(self) -> None:
        while True:
            await self._masked.wait()
            self._masked = trio.Event()
            await trio.sleep(self._masked_for)
            self._channel.rearm()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises FrontendBroken."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.feed.repeat)
            nursery.start_soon(self._arm_later)
            nursery.start_soon(self._rescue)
            task_status.started()
            await self._failed.wait()
            raise self._reason

    async def _rescue(self) -> None:
        """Notify a guest again that was notified and takes nothing: its frontend may not notify back, or the notification was lost."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            before, pause = None, RESCUE
            while self._page.is_waiting() or self.feed.outbox.waiting:
                self.feed.flush()
                if (now := self._page.taken()) == before:
                    self._channel.notify()
                    pause = min(2 * pause, RESCUE_LAST)
                before = now
                await trio.sleep(pause)

    async def end(self) -> None:
        """Release every key, button and contact, and give the guest the time to take that."""
        try:
            if self.state is InputState.SERVED:
                self.feed.leave_all()
            while self.feed.outbox.waiting and self.state is InputState.SERVED:
                await trio.sleep(0.01)
                self.feed.flush()
        finally:
            self.state = InputState.ENDED
            outbox = self.feed.outbox
            self._log.info(
                "input over",
                events=outbox.written,
                dropped=outbox.dropped,
                notifications=outbox.notified,
                answers=self._answers,
            )


# What XenStore says


async def _has_not_begun(nodes: DeviceNodes) -> bool:
    """Return whether the frontend has not read our nodes yet."""
    return parse_state(await nodes.read(f"{nodes.frontend}/state")) is State.INITIALISING


async def _read_trusted(nodes: DeviceNodes, key: str) -> bytes | None:
    """Return a node of our own directory; None when it is missing. Raises DeviceRefused when the guest may write it."""
    found = await nodes.read_trusted(f"{nodes.path}/{key}", key)
    if found is None:
        return None
    value, permissions = found
    if permissions[0][0] in "wb" or any(domid == nodes.domid and letter in "wb" for letter, domid in permissions[1:]):
        raise DeviceRefused(f"{key} may be written by the guest")
    return value


async def _number(nodes: DeviceNodes, key: str, default: int, most: int) -> int:
    """Return a number of our own directory, at most `most`. As in Linux's frontend, what is no number means the default."""
    number = parse_number(await _read_trusted(nodes, key) or b"")
    return default if number is None else min(number, most)


async def _read_features(nodes: DeviceNodes) -> Features:
    """Return the devices that the frontend has made: those that our directory offers and that it asks for. Raises DeviceRefused."""

    async def asked(key: str) -> bool:
        return await nodes.read(f"{nodes.frontend}/{key}") == b"1"

    async def flag(key: str) -> bool:
        return (await _read_trusted(nodes, key) or b"0") != b"0"

    absolute = await flag("feature-abs-pointer") and await asked("request-abs-pointer")
    raw = absolute and await flag("feature-raw-pointer") and await asked("request-raw-pointer")
    width = await _number(nodes, "width", DEFAULT_WIDTH, MAX_SIZE)
    height = await _number(nodes, "height", DEFAULT_HEIGHT, MAX_SIZE)
    touch = await flag("feature-multi-touch") and await asked("request-multi-touch")
    return Features(
        keyboard=not await flag("feature-disable-keyboard"),
        pointer=not await flag("feature-disable-pointer"),
        absolute=absolute,
        width=RAW_MAX + 1 if raw else max(1, width),
        height=RAW_MAX + 1 if raw else max(1, height),
        contacts=await _number(nodes, "multi-touch-num-contacts", 1, MAX_CONTACTS) if touch else 0,
        touch_width=max(1, await _number(nodes, "multi-touch-width", DEFAULT_WIDTH, MAX_SIZE)),
        touch_height=max(1, await _number(nodes, "multi-touch-height", DEFAULT_HEIGHT, MAX_SIZE)),
    )


async def _read_published(nodes: DeviceNodes) -> _Published:
    """Return where the frontend's page and event channel are. Raises DeviceRefused."""
    numbers = []
    for key in InputDriver.published:
        value = await nodes.read(f"{nodes.frontend}/{key}")
        number = parse_number(value or b"")
        if number is None:
            raise DeviceRefused(f"{key} is no number: {(value or b'')[:64]!r}")
        numbers.append(number)
    return _Published(*numbers)


async def _display_size(nodes: DeviceNodes) -> tuple[int, int] | None:
    """Return the size of the guest's first screen in pixels; None where the toolstack gave it none."""
    value = await nodes.read(f"/local/domain/{nodes.domid}/device/vdispl/0/0/resolution")
    sides = [parse_number(side, 16384) for side in (value or b"").split(b"x")]
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None
