"""The vkbd driver: serves guests' keyboards, pointers and touch screens, one `InputDevice` for each device.

The backend directory is `backend/vinput` (libxl's `backend-type=linux`). `backend/vkbd` belongs to QEMU; displbe does not use it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import trio

from displbe.backend.driver import Parts
from displbe.backend.guests import Guests, GuestSettings
from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.backend.quota import Quota
from displbe.backend.release import shielded_stack
from displbe.ops import status
from displbe.ops.text import escape
from displbe.sinks.seat import Seats
from displbe.wire.kbdif import BackKbdPage
from displbe.wire.xenbus import KEYBOARD_TRANSITIONS
from displbe.xen.port import Hypervisor, StoreLost

from .bindings import Role, parse_unique_id
from .connected import ConnectedInput
from .evdev.devices import EvdevDevices
from .features import DEFAULT_HEIGHT, DEFAULT_WIDTH
from .focus import Assignment, Claim, InputFocus
from .guest_input import GuestInput
from .key_repeater import AutoRepeat
from .published import PAGE_KEYS, has_not_begun, read_display_size, read_features, read_published, read_trusted_node
from .window_input import window_input

__all__ = ["InputDevice", "InputDriver"]

CONTACTS: Final = 10
"""Contacts of a touch screen if the toolstack gives no number."""
SIZE_WAIT: Final = 1.0
"""Seconds that a new device waits for the guest's display, whose size it uses. The toolstack creates the display later."""
RELEASE_TIMEOUT: Final = 0.3
"""Seconds that a guest has to take the releases of its keys before its page is unmapped."""


class InputDriver:
    """The vkbd devices of all guests (backend.driver.Driver)."""

    backend_kind: Final = "vinput"
    frontend_kind: Final = "vkbd"
    transitions: Final = KEYBOARD_TRANSITIONS
    published: Final = PAGE_KEYS

    def __init__(
        self,
        hypervisor: Hypervisor,
        focus: InputFocus,
        evdev: EvdevDevices,
        seats: Seats | None,
        guests: Guests,
        repeats: AutoRepeat | None = None,
        synced_locks: frozenset[int] = frozenset(),
    ) -> None:
        """`synced_locks`: the lock keys whose locks guests in windows take over from the desktop."""
        self.guests = guests
        self._hypervisor = hypervisor
        self._focus = focus
        self._evdev = evdev
        self._seats = seats
        self._repeats = repeats or AutoRepeat()
        self._synced_locks = synced_locks

    def open(self, nodes: DeviceNodes, quota: Quota) -> InputDevice:
        """Return the service of a device that was found."""
        return InputDevice(
            nodes,
            self._hypervisor,
            self._focus,
            self._evdev,
            self._seats,
            self.guests,
            self._repeats,
            self._synced_locks,
        )


class InputDevice:
    """One guest's input device, over all its connections (backend.driver.Service)."""

    def __init__(
        self,
        nodes: DeviceNodes,
        hypervisor: Hypervisor,
        focus: InputFocus,
        evdev: EvdevDevices,
        seats: Seats | None,
        guests: Guests,
        repeats: AutoRepeat,
        synced_locks: frozenset[int],
    ) -> None:
        self._nodes = nodes
        self._hypervisor = hypervisor
        self._focus = focus
        self._evdev = evdev
        self._seats = seats
        self._guests = guests
        self._repeats = repeats
        self._synced_locks = synced_locks
        self._claim: Claim | None = None
        """The claim to the devices that the guest names; None: it names no device that it may have."""
        self._connected: ConnectedInput | None = None
        """The connection; None: the frontend is not connected."""

    # Before the frontend is connected, and after

    async def arrive(self) -> None:
        """Claim the devices that the guest names, before any device is served: claims are in the order of the devices. Raises StoreLost."""
        try:
            await self._update_claim()
        except DeviceRefused:
            pass  # `prepare` and `serve` report it

    async def prepare(self) -> Mapping[str, str]:
        """Return the feature nodes that the toolstack has not written; none if the frontend has started, since it reads them only once."""
        nodes = self._nodes
        try:
            claim = await self._update_claim()
        except DeviceRefused as error:
            nodes.log.warning("no input", reason=str(error))
            return {}
        offers = await self._offers(claim) if await has_not_begun(nodes) else {}
        offers = {key: value for key, value in offers.items() if await nodes.read(f"{nodes.path}/{key}") is None}
        return offers if await has_not_begun(nodes) else {}

    async def _offers(self, claim: Claim) -> dict[str, str]:
        """Return the feature nodes that match the abilities of this guest's sources."""
        bindings = claim.assignment.bindings
        roles = {binding.role for binding in bindings}
        offers: dict[str, str] = {}
        of_window = any(binding.role is Role.POINTER and not binding.is_device for binding in bindings)
        if of_window or (Role.POINTER in roles and await self._evdev.has_absolute_pointer(claim)):
            offers |= {"feature-abs-pointer": "1", "feature-raw-pointer": "1"}
        size = None
        if offers or Role.TOUCH in roles:
            with trio.move_on_after(SIZE_WAIT):
                while (size := await read_display_size(self._nodes)) is None:
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
        """Claim the devices that the guest names now. The claim lasts as long as the guest's device exists, connected or not.

        Raises DeviceRefused; nothing is claimed then.
        """
        nodes = self._nodes
        try:
            assignment = await self._assignment(self._guests.settings(nodes.name))
        except DeviceRefused:
            self.close()
            raise
        if self._claim is None:
            self._claim = Claim(nodes.name, nodes.domid, nodes.number, assignment)
            self._focus.arrive(self._claim)
        elif (self._claim.name, self._claim.assignment) != (nodes.name, assignment):
            self._claim.name, self._claim.assignment = nodes.name, assignment
            self._focus.changed()
        return self._claim

    async def _assignment(self, settings: GuestSettings) -> Assignment:
        """Return the assignment from the configuration, or from the toolstack if the configuration has none. Raises DeviceRefused."""
        text = settings.input
        if not text:
            text = (await read_trusted_node(self._nodes, "unique-id") or b"").decode("utf-8", "replace")
        if not text:
            raise DeviceRefused("unique-id is missing: nothing says which devices this guest gets")
        try:
            bindings = parse_unique_id(text)
        except ValueError as error:
            raise DeviceRefused(f"unique-id: {error}") from error
        windows = [binding.id for binding in bindings if not binding.is_device]
        if windows and self._seats is None:
            raise DeviceRefused(
                f"unique-id names {', '.join(windows)}, but this sink's screens have no input of their own"
            )
        return Assignment(bindings, frozenset(binding.id for binding in bindings) if settings.input else frozenset())

    def depart(self) -> None:
        """Do nothing: `close` has given up the claim."""

    def close(self) -> None:
        """Give up the claim: the device is gone."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._focus.leave(claim)

    async def is_current(self) -> bool:
        """Return whether the page that is served is the one that the frontend has published.

        After a resume the guest has another page and another channel, and its state does not leave 4 for long.
        """
        try:
            return self._connected is None or self._connected.published == await read_published(self._nodes)
        except (DeviceRefused, StoreLost):
            return True  # the frontend is about to leave and will change its state; or the caller asks again after StoreLost

    def _windows(self) -> tuple[str, ...]:
        """Return the connectors whose windows give the guest input."""
        bindings = self._claim.assignment.bindings if self._claim is not None else ()
        return tuple(dict.fromkeys(escape(binding.id) for binding in bindings if not binding.is_device))

    async def status(self) -> Parts:
        """Return the status of the connection."""
        await trio.lowlevel.checkpoint()
        if self._connected is None:
            return Parts()
        guest_input = self._connected.guest_input
        queue = guest_input.queue
        return Parts(
            input=status.InputStatus(
                self._evdev.passed_to(guest_input), queue.written, queue.waiting, queue.dropped, self._windows()
            )
        )

    # The connection

    async def serve(self, background: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve a frontend whose page is published, until cancelled (backend.driver.Service)."""
        nodes = self._nodes
        claim = await self._update_claim()
        published = await read_published(nodes)
        features = await read_features(nodes)
        async with shielded_stack() as stack:
            shared = self._hypervisor.map_page(nodes.domid, published.page_gref, writable=True)
            stack.callback(shared.close)
            page = BackKbdPage(shared)
            connected = ConnectedInput(published, page, features, self._repeats, nodes.log)
            channel = self._hypervisor.bind(nodes.domid, published.event_channel, connected.notified)
            stack.callback(channel.close)
            connected.start(channel)
            # The frontend may have started over meanwhile, and its references may name other pages now.
            if await read_published(nodes) != published:
                raise DeviceRefused("the frontend has published another page meanwhile")
            self._connected = connected
            if page.used:
                connected.guest_input.release_everything()
            try:
                with self._listening(claim, connected.guest_input):
                    await connected.run(task_status=task_status)
            finally:
                self._connected = None
                with trio.move_on_after(RELEASE_TIMEOUT, shield=True):
                    await connected.end()

    def _listening(self, claim: Claim, guest_input: GuestInput) -> contextlib.ExitStack:
        """Give the guest the input of the devices and windows that are assigned to it, until the returned stack is closed."""
        stack = contextlib.ExitStack()

        def detach() -> None:
            claim.guest_input = None
            self._focus.changed()

        claim.guest_input = guest_input
        stack.callback(detach)
        if self._seats is not None:
            stack.enter_context(window_input(self._seats, claim, guest_input, self._synced_locks))
        self._focus.changed()
        return stack
