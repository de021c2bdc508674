"""Checks guests' xl configurations against displbe's configuration: each one alone, and all together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from displbe.config import Settings
from displbe.sinks.drm.binding import Binding
from displbe.sinks.drm.names import canonical

from .check_result import CheckResult, failed, passed, warning
from .inputs import guests_devices
from .machine import Machine
from .xlconfig import Display, Keyboard, XlConfig, read_xl_config

__all__ = ["Guests", "guest_results", "outputs", "read_guests"]

Guests = dict[Path, XlConfig]
DOM0 = ("", "0", "Domain-0")
"""The values of `backend=` in xl.cfg that mean Dom0."""


def read_guests(machine: Machine, paths: list[str]) -> tuple[Guests, list[CheckResult]]:
    """Read xl configurations (empty: /etc/xen/*.cfg). Return the guests that have a device in this domain, and problems with the files."""
    guests: Guests = {}
    found: list[CheckResult] = []
    for path in [Path(path) for path in paths] or sorted(machine.path("/etc/xen").glob("*.cfg")):
        try:
            guest = read_xl_config(path.read_text("utf-8", "replace"))
        except OSError as error:
            found.append(warning(f"{path}: {error.strerror}", "run this check as a user who may read the file"))
            continue
        except ValueError as error:
            fix = 'man xl.cfg: vdispl = ["backend=0,connectors=HDMI-A-1:1920x1080"]'
            found.append(
                failed(f"{path}: {error}", fix if "vdispl" in str(error) else "configs/guest.cfg is an example")
            )
            continue
        devices: tuple[Display | Keyboard, ...] = (*guest.displays, *guest.keyboards)
        others = [device for device in devices if not _is_here(machine, device)]
        for name in sorted({device.backend or "0" for device in others}):
            found.append(
                warning(
                    f"{path}: it has devices with backend={name}, which is not this domain",
                    "a displbe in that domain serves them; to change it, set backend= in the vdispl and vkb lines",
                )
            )
        guest = msgspec.structs.replace(
            guest,
            displays=tuple(display for display in guest.displays if display not in others),
            keyboards=tuple(keyboard for keyboard in guest.keyboards if keyboard not in others),
        )
        if guest.displays or guest.keyboards:
            guests[path] = guest
    return guests, found


def _is_here(machine: Machine, device: Display | Keyboard) -> bool:
    """Return whether this domain may be a device's backend. A driver domain does not know its own name, so any name may be its own."""
    here = machine.is_dom0
    return here is None or (device.backend in DOM0) == here


def guest_results(machine: Machine, settings: Settings, guests: Guests) -> Iterator[CheckResult]:
    """Check each guest, and all of them together."""
    for path, guest in guests.items():
        yield from _guest(machine, settings, path, guest)
        yield from guests_devices(machine, settings, path, guest, outputs(settings, guest))
    yield from _together(settings, list(guests.values()))
    if settings.guest and machine.is_dom0 is False:
        yield warning(
            "a driver domain cannot read guests' names until Dom0 allows it: until then no [guest.NAME] applies",
            "in Dom0, use xenstore-chmod as docs/security.md describes",
        )


def _guest(machine: Machine, settings: Settings, path: Path, guest: XlConfig) -> Iterator[CheckResult]:
    own = settings.guest.get(guest.name)
    if any(display.be_alloc for display in guest.displays) and not (own and own.be_alloc):
        yield failed(
            f"{path}: be-alloc=1, which {guest.name} is not allowed",
            f"set be-alloc = true in [guest.{guest.name}], or be-alloc=0 in its vdispl line",
        )
    names = outputs(settings, guest)
    known = [re.sub(r"^card\d+-", "", entry.name) for entry in machine.path("/sys/class/drm").glob("card*-*")]
    for name in names:
        if settings.sink == "drm" and known and not _may_be_there(name, known):
            yield failed(f"{path}: there is no connector {name}", f"this machine has {', '.join(sorted(known))}")
        if settings.sink == "headless" and settings.headless.outputs and name not in settings.headless.outputs:
            yield failed(
                f"{path}: there is no output {name}", f"[headless] outputs has {', '.join(settings.headless.outputs)}"
            )
    if len(names) > settings.limits.connectors:
        yield failed(
            f"{path}: it has {len(names)} connectors; {settings.limits.connectors} are allowed",
            "raise connectors in [limits]",
        )
    largest = max((w * h * 4 // 4096 * 2 for d in guest.displays for _, w, h in d.connectors), default=0)
    if largest > settings.limits.pages:
        yield failed(
            f"{path}: two buffers of its largest screen need {largest} pages; {settings.limits.pages} are allowed",
            "raise pages in [limits]",
        )
    yield passed(f"{path}: {guest.name or 'a guest without a name'} on {', '.join(names) or 'no screen'}")


def _may_be_there(name: str, known: list[str]) -> bool:
    """Whether a connector of this name is there, or may come: a monitor or a dock that is named may be plugged in later."""
    binding = Binding(name)
    return not binding.is_by_kernel_name or binding.connector in map(canonical, known)


def outputs(settings: Settings, guest: XlConfig) -> list[str]:
    """Return the names of the outputs that show a guest's connectors."""
    own = settings.guest.get(guest.name)
    if own is not None and own.connectors:
        return list(own.connectors)
    return [name for display in guest.displays for name, _, _ in display.connectors]


def _together(settings: Settings, guests: list[XlConfig]) -> Iterator[CheckResult]:
    users: dict[str, list[str]] = {}
    for guest in guests:
        for name in outputs(settings, guest):
            users.setdefault(name, []).append(guest.name)
    for name, names in sorted(users.items()):
        if len(names) > 1:
            yield warning(
                f"{', '.join(names)} all use the output {name}",
                "only one of them is shown at a time; give each its own output",
            )
    missing = settings.guest.keys() - {guest.name for guest in guests}
    if guests and missing:
        yield warning(
            f"the configuration has settings for {', '.join(sorted(missing))}, but no xl configuration has these names",
            "NAME in [guest.NAME] must be the guest's `name` in xl",
        )
