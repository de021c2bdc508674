"""`displbectl check`: what would keep displbe from working on this machine, each finding with what mends it.

It needs no daemon and no Xen, changes nothing, and looks at everything even when the first thing is wrong. What has to be opened is
looked at as displbe's user, where root asks.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from displbe.backend.quota import Total
from displbe.config import ConfigError, Settings, load
from displbe.sinks.drm.device import DrmDevice, Mastership
from displbe.sinks.drm.errors import DrmError
from displbe.sinks.registry import SINKS, mappings
from displbe.xen import gntdev, places

from .client import Client, Failure
from .finding import Finding, good, note, wrong
from .guests import guest_findings, read_guests
from .inputs import allowed_devices
from .machine import Machine

__all__ = ["findings"]

KERNEL: Final = {
    "CONFIG_XEN_GNTDEV": "guests' pages cannot be mapped",
    "CONFIG_XEN_DEV_EVTCHN": "guests cannot be heard",
}
"""Options without which nothing works."""
BETTER: Final = {
    "CONFIG_XEN_GNTDEV_DMABUF": "every frame is copied, and there is no be-alloc",
    "CONFIG_XEN_GRANT_DMA_ALLOC": "there is no be-alloc",
    "CONFIG_DRM": "the drm sink has no card",
}
FULL_HD: Final = 2025
"""Pages of a buffer of 1920x1080."""
RULES: Final = "install displbe's udev rules, and the groups of displbe.service"


def findings(machine: Machine, config: str, control: str, guests: list[str]) -> Iterator[Finding]:
    """All of them. `guests`: xl's configurations; none: those in /etc/xen."""
    settings = Settings()
    try:
        settings = load(config)
        yield good(f"{config} is right")
    except ConfigError as error:
        yield wrong(f"configuration: {error}", "correct it; configs/displbe.toml explains every key")
    yield from _who(machine)
    yield from _daemon(control)
    yield from _packages(settings)
    yield from _xen(machine)
    yield from machine.as_service(_nodes(machine))
    yield from _kernel(machine)
    yield from machine.as_service(_gntdev(machine))
    known, unread = read_guests(machine, guests)
    yield from _quotas(machine, settings, max(len(known), len(settings.guest)))
    yield from _sink(machine, settings)
    yield from machine.as_service(allowed_devices(machine, settings))
    yield from unread
    yield from guest_findings(machine, settings, known)


def _who(machine: Machine) -> Iterator[Finding]:
    if machine.trouble:
        yield wrong(machine.trouble, "systemd-sysusers makes those of systemd/displbe.sysusers")
    elif machine.who is not None:
        yield good(f"looked at as the user {machine.user}, as displbe.service says")
    elif not machine.certain:
        yield note(
            f"looked at as {machine.user}, which displbe does not run as", "as root, this looks as displbe's user"
        )


def _daemon(control: str) -> Iterator[Finding]:
    try:
        with Client(control) as client:
            client.ask("status")
        yield good("displbe runs and answers")
    except Failure as failure:
        yield note(f"displbe does not answer: {failure}", "systemctl status displbe says why, if it should run")


def _packages(settings: Settings) -> Iterator[Finding]:
    extras: dict[str, tuple[str, ...]] = {settings.sink: SINKS[settings.sink][2]}
    if settings.input.devices or any(guest.input for guest in settings.guest.values()):
        extras["input"] = ("evdev",)
    if settings.metrics.textfile or settings.metrics.socket or settings.metrics.listen:
        extras["metrics"] = ("prometheus_client",)
    for extra, packages in extras.items():
        for package in packages:
            if find_spec(package) is None:
                yield wrong(f"Python has no {package}", f"install displbe[{extra}], or the distribution's package")


def _xen(machine: Machine) -> Iterator[Finding]:
    if machine.text("/sys/hypervisor/type") != "xen":
        yield wrong("this is no Xen domain", "boot Xen, with this system as Dom0 or as a driver domain")
    elif (kind := machine.text("/sys/hypervisor/guest_type")) == "PV":
        yield note("this is a PV domain: its frames are copied", "boot Dom0 with dom0=pvh, or use a PVH driver domain")
    else:
        yield good(f"this is a Xen domain ({kind or 'of unknown kind'})")


def _nodes(machine: Machine) -> Iterator[Finding]:
    for name, module in (("evtchn", "xen_evtchn"), ("gntdev", "xen_gntdev")):
        yield _node(machine, f"/dev/xen/{name}", f"modprobe {module}")
    there = [path for path in map(machine.path, (*places.SOCKETS, places.XENBUS)) if os.path.exists(path)]
    usable = [path for path in there if machine.may(path, os.R_OK | os.W_OK)]
    if usable:
        yield good(f"XenStore: {usable[0]}")
    elif there:
        yield machine.denied(str(there[-1]), RULES)
    else:
        yield wrong("there is no XenStore", "start xenstored; in a driver domain, mount xenfs and load xenbus")


def _node(machine: Machine, name: str, fix: str) -> Finding:
    path = machine.path(name)
    if not os.path.exists(path):
        return wrong(f"{name} is not there", fix)
    if not machine.may(path, os.R_OK | os.W_OK):
        return machine.denied(name, RULES)
    return good(f"{name} is there")


def _kernel(machine: Machine) -> Iterator[Finding]:
    options = machine.kernel_options()
    if not options:
        yield note("the kernel's configuration cannot be read", "look for CONFIG_XEN_GNTDEV_DMABUF=y in it yourself")
    for wanted, grade in ((KERNEL, wrong), (BETTER, note)) if options else ():
        for option, loss in wanted.items():
            if options.get(option) not in ("y", "m"):
                yield grade(f"the kernel has no {option}: {loss}", "build or install a kernel that has it")


def _gntdev(machine: Machine) -> Iterator[Finding]:
    try:
        fd = gntdev.open_gntdev(str(machine.path("/dev/xen/gntdev")))
    except OSError:
        return  # told already
    try:
        if gntdev.probe(fd):
            yield good("gntdev has dma-bufs")
        else:
            yield note("gntdev has no dma-bufs: every frame is copied", "a kernel with CONFIG_XEN_GNTDEV_DMABUF=y")
    finally:
        os.close(fd)
    limit = machine.text("/sys/module/xen_gntdev/parameters/limit")
    if limit.isdigit() and int(limit) < FULL_HD:
        yield wrong(
            f"gntdev maps only {limit} pages at once, a buffer of 1920x1080 has {FULL_HD}",
            "set the module parameter: xen_gntdev.limit=65536 on the kernel's command line",
        )


def _quotas(machine: Machine, settings: Settings, guests: int) -> Iterator[Finding]:
    room = Total(settings.xen.maptrack, mappings(getattr(settings, settings.sink))).limit
    count = max(1, guests)
    promised = count * settings.limits.pages
    if promised > room:
        yield note(
            f"{count} guests of {settings.limits.pages} pages are more than the {room} that can be mapped",
            "lower pages in [limits]; or raise Xen's gnttab_max_maptrack_frames, and maptrack in [xen] to 256 times that",
        )
    else:
        yield good(f"{count} guests' quotas ({promised} pages) fit into maptrack ({room})")
    frames = re.search(r"gnttab_max_maptrack_frames=(\d+)", machine.xl_info())
    if frames is not None and int(frames[1]) * 256 != settings.xen.maptrack:
        yield wrong(
            f"Xen has {int(frames[1]) * 256} maptrack entries, the configuration says {settings.xen.maptrack}",
            f"maptrack = {int(frames[1]) * 256} in [xen]",
        )


# Sinks


def _sink(machine: Machine, settings: Settings) -> Iterator[Finding]:
    if settings.sink == "drm":
        yield from machine.as_service(_cards(machine, settings))
    elif settings.sink == "wayland":
        from displbe.sinks.wayland.sink import socket_path

        path = socket_path(settings.wayland.display)
        yield from machine.as_service(_connects(path, "the compositor", "display in [wayland]"))
    elif settings.sink == "x11":
        display = settings.x11.display or os.environ.get("DISPLAY", "")
        number = re.fullmatch(r":(\d+)(\.\d+)?", display)
        if number is not None:
            path = str(machine.path(f"/tmp/.X11-unix/X{number[1]}"))
            yield from machine.as_service(_connects(path, "the X server", "display in [x11]"))
        elif not display:
            yield wrong("no X server is named", "display in [x11], or the environment's DISPLAY")
    elif settings.headless.directory:
        yield from machine.as_service(_writes(machine, settings.headless.directory))


def _writes(machine: Machine, folder: str) -> Iterator[Finding]:
    if not machine.may(machine.path(folder), os.W_OK):
        yield note(f"{folder} cannot be written", "directory in [headless]")


def _connects(path: str, whose: str, key: str) -> Iterator[Finding]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(path)
        except OSError as error:
            yield wrong(
                f"{path}: {error.strerror or error}",
                f"start {whose}, or name its socket ({key}); displbe's user must be let in",
            )
        else:
            yield good(f"{path} answers")


def _cards(machine: Machine, settings: Settings) -> Iterator[Finding]:
    folder = machine.path("/dev/dri")
    named = settings.drm.device
    paths = sorted(folder.glob("card*")) if named == "auto" else [folder / Path(named).name]
    usable = False
    for path in paths:
        try:
            device = DrmDevice(str(path))
        except (DrmError, OSError) as error:
            why = str(error) if isinstance(error, DrmError) else error.strerror
            yield note(f"{path.name} cannot be used: {why}", "displbe's user must be in the group video or render")
            continue
        try:
            usable = True
            if device.ask_for_master() is Mastership.MASTER:
                yield good(f"{path.name}: can be DRM master")
            else:
                yield note(
                    f"{path.name}: another program is DRM master, maybe displbe",
                    'end the compositor or display manager there, or let displbe be its client (sink = "wayland")',
                )
        finally:
            device.close()
    if not usable:
        yield wrong(f"no usable DRM device in {folder}", "load the card's driver; or choose another sink")
