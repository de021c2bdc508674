"""Guests' xl configurations beside displbe's: what each of them asks for, and what they ask for together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from displbe.config import Settings

from .finding import Finding, good, note, wrong
from .inputs import guests_devices
from .machine import Machine
from .xlconfig import Display, Keyboard, XlConfig, read_xl_config

__all__ = ["guest_findings", "read_guests"]

Guests = dict[Path, XlConfig]
DOM0 = ("", "0", "Domain-0")


def read_guests(machine: Machine, paths: list[str]) -> tuple[Guests, list[Finding]]:
    """The guests that have a device of ours, out of these files; none: those in /etc/xen. And what is wrong with files."""
    guests: Guests = {}
    found: list[Finding] = []
    for path in [Path(path) for path in paths] or sorted(machine.path("/etc/xen").glob("*.cfg")):
        try:
            guest = read_xl_config(path.read_text("utf-8", "replace"))
        except OSError as error:
            found.append(note(f"{path}: {error.strerror}", "run this check as a user who may read it"))
            continue
        except ValueError as error:
            fix = 'man xl.cfg: vdispl = ["backend=0,connectors=HDMI-A-1:1920x1080"]'
            found.append(
                wrong(f"{path}: {error}", fix if "vdispl" in str(error) else "configs/guest.cfg has an example")
            )
            continue
        devices: tuple[Display | Keyboard, ...] = (*guest.displays, *guest.keyboards)
        others = [device for device in devices if not _is_here(machine, device)]
        for name in sorted({device.backend or "0" for device in others}):
            found.append(
                note(
                    f"{path}: it has devices whose backend is the domain {name}, not this one",
                    "backend= in its vdispl and vkb lines; a displbe there serves it",
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
    """Whether this domain is a device's backend, as far as that can be known: a driver domain does not know how it is called."""
    here = machine.is_dom0
    return here is None or (device.backend in DOM0) == here


def guest_findings(machine: Machine, settings: Settings, guests: Guests) -> Iterator[Finding]:
    """What is wrong with each, and with all of them."""
    for path, guest in guests.items():
        yield from _guest(machine, settings, path, guest)
        yield from guests_devices(machine, settings, path, guest, _outputs(settings, guest))
    yield from _together(settings, list(guests.values()))
    if settings.guest and machine.is_dom0 is False:
        yield note(
            "a driver domain does not know guests' names: no [guest.NAME] holds before Dom0 lets it",
            "xenstore-chmod, as docs/security.md has it",
        )


def _guest(machine: Machine, settings: Settings, path: Path, guest: XlConfig) -> Iterator[Finding]:
    own = settings.guest.get(guest.name)
    if any(display.be_alloc for display in guest.displays) and not (own and own.be_alloc):
        yield wrong(
            f"{path}: be-alloc=1, which is not allowed to {guest.name}",
            f"be-alloc = true in [guest.{guest.name}]; or be-alloc=0",
        )
    names = _outputs(settings, guest)
    known = [re.sub(r"^card\d+-", "", entry.name) for entry in machine.path("/sys/class/drm").glob("card*-*")]
    for name in names:
        if settings.sink == "drm" and known and name.rpartition("/")[2] not in known:
            yield wrong(f"{path}: there is no connector {name}", f"there are: {', '.join(sorted(known))}")
        if settings.sink == "headless" and settings.headless.outputs and name not in settings.headless.outputs:
            yield wrong(f"{path}: there is no output {name}", f"there are: {', '.join(settings.headless.outputs)}")
    if len(names) > settings.limits.connectors:
        yield wrong(
            f"{path}: {len(names)} connectors, {settings.limits.connectors} are allowed", "connectors in [limits]"
        )
    largest = max((w * h * 4 // 4096 * 2 for d in guest.displays for _, w, h in d.connectors), default=0)
    if largest > settings.limits.pages:
        yield wrong(
            f"{path}: two buffers of its largest screen are {largest} pages, {settings.limits.pages} are allowed",
            "pages in [limits]",
        )
    yield good(f"{path}: {guest.name or 'a guest without name'} on {', '.join(names) or 'no screen'}")


def _outputs(settings: Settings, guest: XlConfig) -> list[str]:
    """Where its connectors are shown."""
    own = settings.guest.get(guest.name)
    if own is not None and own.connectors:
        return list(own.connectors)
    return [name for display in guest.displays for name, _, _ in display.connectors]


def _together(settings: Settings, guests: list[XlConfig]) -> Iterator[Finding]:
    users: dict[str, list[str]] = {}
    for guest in guests:
        for name in _outputs(settings, guest):
            users.setdefault(name, []).append(guest.name)
    for name, who in sorted(users.items()):
        if len(who) > 1:
            yield note(
                f"{', '.join(who)} all want the output {name}", "only one of them is shown at a time; name another"
            )
    missing = settings.guest.keys() - {guest.name for guest in guests}
    if guests and missing:
        yield note(
            f"the configuration has settings for {', '.join(sorted(missing))}, of whom no guest's configuration was found",
            "the name must be the guest's `name` in xl",
        )
