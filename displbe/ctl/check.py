"""`displbectl check`: finds what would keep displbe from working on this machine, and tells how to fix each problem.

It needs neither a running daemon nor Xen, changes nothing, and does all checks even if some fail. When root runs it, it opens files and
sockets as displbe's user, so that the results apply to the service.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Set
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from displbe.backend.quota import Total
from displbe.config import ConfigError, Settings, load
from displbe.ops.status import Status
from displbe.sinks.drm.binding import describe
from displbe.sinks.drm.bus_path import nodes_at
from displbe.sinks.drm.device import MASTER, DrmDevice, Mastership
from displbe.sinks.drm.errors import DrmError
from displbe.sinks.registry import SINKS, how_to_install, mappings
from displbe.sinks.wayland.socket_path import socket_path
from displbe.xen import paths

from .check_result import CheckResult, failed, passed, warning
from .client import Client, Failure, read_status
from .guests import guest_results, read_guests
from .inputs import allowed_devices
from .machine import Machine
from .totals import total_results
from .xenstore import store_results
from .zero_copy import zero_copy_results

__all__ = ["run_checks"]

REQUIRED: Final = {
    "CONFIG_XEN_GNTDEV": "guests' pages cannot be mapped",
    "CONFIG_XEN_DEV_EVTCHN": "notifications of guests cannot be received",
}
"""Kernel options without which nothing works, and what is missing without them."""
USEFUL: Final = {
    "CONFIG_DRM": "the drm sink has no card",
}
"""Kernel options without which displbe does less, and what is missing without them. zero_copy.py has those for zero copy."""
FULL_HD: Final = 2025
"""Pages of a 1920x1080 buffer of 32 bits per pixel."""
UDEV_RULES: Final = "install displbe's udev rules, and the groups that displbe.service names"


def run_checks(machine: Machine, config: str, control: str, guests: list[str]) -> Iterator[CheckResult]:
    """Do all checks.

    `config` is the path of displbe's configuration, `control` that of the control socket. `guests` has the paths of xl configurations
    (empty: /etc/xen/*.cfg).
    """
    settings = Settings()
    try:
        settings = load(config)
        yield passed(f"{config} is valid")
    except ConfigError as error:
        yield failed(f"configuration: {error}", "correct it; configs/displbe.toml explains each key")
    yield from _user(machine)
    daemon = _ask_status(control)
    yield _daemon(daemon)
    yield from _packages(settings)
    yield from _xen(machine)
    yield from machine.as_service(_nodes(machine))
    yield from machine.as_service(store_results(machine, settings))
    options = machine.kernel_options()
    yield from _kernel(options)
    yield from _gntdev_limit(machine)
    yield from machine.as_service(zero_copy_results(machine, settings, options))
    known, unread = read_guests(machine, guests)
    yield from _quotas(machine, settings, max(len(known), len(settings.guest)))
    yield from total_results(settings, machine.limits, known)
    masters = _masters(daemon)
    yield from _sink(machine, settings, masters)
    yield from machine.as_service(allowed_devices(machine, settings))
    yield from unread
    yield from guest_results(machine, settings, known)


def _user(machine: Machine) -> Iterator[CheckResult]:
    if machine.identity_error:
        yield failed(machine.identity_error, "systemd-sysusers creates the user and groups of systemd/displbe.sysusers")
    elif machine.identity is not None:
        yield passed(f"checked as the user {machine.user}, which displbe.service names")
    elif not machine.is_service_user:
        yield warning(
            f"checked as {machine.user}, but displbe does not run as this user",
            "run this check as root: it then checks as displbe's user",
        )


def _ask_status(control: str) -> Status | Failure:
    """Return the status of the daemon that runs; or why there is none."""
    try:
        with Client(control) as client:
            return read_status(client)
    except Failure as failure:
        return failure


def _daemon(daemon: Status | Failure) -> CheckResult:
    if isinstance(daemon, Status):
        return passed("displbe runs and answers")
    return warning(f"displbe does not answer: {daemon}", "if it should run, systemctl status displbe shows the reason")


def _packages(settings: Settings) -> Iterator[CheckResult]:
    extras: dict[str, tuple[str, ...]] = {settings.sink: SINKS[settings.sink][2]}
    if settings.input.devices or any(guest.input for guest in settings.guest.values()):
        extras["input"] = ("evdev",)
    if settings.metrics.textfile or settings.metrics.socket or settings.metrics.listen:
        extras["metrics"] = ("prometheus_client",)
    for extra, packages in extras.items():
        for package in packages:
            if find_spec(package) is None:
                yield failed(f"Python has no {package}", how_to_install(extra, package))


def _xen(machine: Machine) -> Iterator[CheckResult]:
    if machine.text("/sys/hypervisor/type") != "xen":
        yield failed("this is no Xen domain", "boot Xen with this system as Dom0, or run it as a driver domain")
    else:
        yield passed(f"this is a Xen domain ({machine.text('/sys/hypervisor/guest_type') or 'type unknown'})")


def _nodes(machine: Machine) -> Iterator[CheckResult]:
    for name, module in (("evtchn", "xen_evtchn"), ("gntdev", "xen_gntdev")):
        yield _node(machine, f"/dev/xen/{name}", f"modprobe {module}")
    present = [path for path in map(machine.path, (*paths.SOCKETS, paths.XENBUS)) if os.path.exists(path)]
    usable = [path for path in present if machine.may(path, os.R_OK | os.W_OK)]
    if usable:
        yield passed(f"XenStore can be opened: {usable[0]}")
    elif present:
        yield machine.denied(str(present[-1]), UDEV_RULES)
    else:
        yield failed("there is no XenStore", "start xenstored; in a driver domain, mount xenfs")


def _node(machine: Machine, name: str, fix: str) -> CheckResult:
    path = machine.path(name)
    if not os.path.exists(path):
        return failed(f"{name} does not exist", fix)
    if not machine.may(path, os.R_OK | os.W_OK):
        return machine.denied(name, UDEV_RULES)
    return passed(f"{name} can be opened")


def _kernel(options: Mapping[str, str]) -> Iterator[CheckResult]:
    if not options:
        yield warning("the kernel's configuration cannot be read", f"check that it has {' and '.join(REQUIRED)}")
    for wanted, result in ((REQUIRED, failed), (USEFUL, warning)) if options else ():
        for option, loss in wanted.items():
            if options.get(option) not in ("y", "m"):
                yield result(f"the kernel has no {option}: {loss}", "build or install a kernel that has it")


def _gntdev_limit(machine: Machine) -> Iterator[CheckResult]:
    limit = machine.text("/sys/module/xen_gntdev/parameters/limit")
    if limit.isdigit() and int(limit) < FULL_HD:
        yield failed(
            f"gntdev maps only {limit} pages at once; a buffer of 1920x1080 has {FULL_HD}",
            "set the module parameter: xen_gntdev.limit=65536 on the kernel command line",
        )


def _quotas(machine: Machine, settings: Settings, guests: int) -> Iterator[CheckResult]:
    room = Total(settings.xen.maptrack, mappings(getattr(settings, settings.sink))).limit
    count = max(1, guests)
    promised = count * settings.limits.pages
    if promised > room:
        yield warning(
            f"{count} guests may map {settings.limits.pages} pages each; together they may map {room}",
            "lower pages in [limits]; or raise Xen's gnttab_max_maptrack_frames, and set maptrack in [xen] to 256 times that",
        )
    else:
        yield passed(f"the quotas of {count} guests ({promised} pages) fit into maptrack ({room})")
    frames = re.search(r"gnttab_max_maptrack_frames=(\d+)", machine.xl_info())
    if frames is not None and int(frames[1]) * 256 != settings.xen.maptrack:
        yield failed(
            f"Xen has {int(frames[1]) * 256} maptrack entries, but the configuration says {settings.xen.maptrack}",
            f"set maptrack = {int(frames[1]) * 256} in [xen]",
        )


# Sinks


def _masters(daemon: Status | Failure) -> Set[str]:
    """Return the names of the cards whose master is the daemon that runs."""
    if isinstance(daemon, Failure) or daemon.sink != "drm":
        return frozenset()
    return {card for card, told in daemon.abilities.sink.items() if told.startswith(MASTER)}


def _sink(machine: Machine, settings: Settings, masters: Set[str]) -> Iterator[CheckResult]:
    if settings.sink == "drm":
        yield from machine.as_service(_cards(machine, settings, masters))
    elif settings.sink == "wayland":
        path = socket_path(settings.wayland.display, machine.environment, machine.uid)
        yield from machine.as_service(_connects(path, "the compositor", "display in [wayland]"))
    elif settings.sink == "x11":
        display = settings.x11.display or machine.environment.get("DISPLAY", "")
        number = re.fullmatch(r":(\d+)(\.\d+)?", display)
        if number is not None:
            path = str(machine.path(f"/tmp/.X11-unix/X{number[1]}"))
            yield from machine.as_service(_connects(path, "the X server", "display in [x11]"))
        elif not display:
            yield failed(
                "no X server is configured", "set display in [x11], or DISPLAY for the service (configs/desktop.conf)"
            )
    elif settings.headless.directory:
        yield from machine.as_service(_writes(machine, settings.headless.directory))


def _writes(machine: Machine, folder: str) -> Iterator[CheckResult]:
    if not machine.may(machine.path(folder), os.W_OK):
        yield warning(f"{folder} cannot be written", "set directory in [headless] to one that displbe's user may write")


def _connects(path: str, server: str, key: str) -> Iterator[CheckResult]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(path)
        except OSError as error:
            yield failed(
                f"{path}: {error.strerror or error}",
                f"start {server}, or set its socket ({key}); displbe's user must have access",
            )
        else:
            yield passed(f"{path} accepts connections")


def _cards(machine: Machine, settings: Settings, masters: Set[str]) -> Iterator[CheckResult]:
    folder = machine.path("/dev/dri")
    named = settings.drm.device
    nodes = sorted(folder.glob("card*"))
    if named != "auto":
        nodes = nodes_at(nodes, named) or [folder / Path(named).name]
    usable = False
    for path in nodes:
        try:
            device = DrmDevice(str(path))
        except (DrmError, OSError) as error:
            why = str(error) if isinstance(error, DrmError) else error.strerror
            yield warning(f"{path.name} cannot be used: {why}", "displbe's user must be in the group video or render")
            continue
        try:
            usable = True
            if path.name in masters:
                yield passed(f"{path.name}: displbe is DRM master")
            elif device.ask_for_master() is Mastership.MASTER:
                yield passed(f"{path.name}: displbe can be DRM master")
            else:
                yield warning(
                    f"{path.name}: another program is DRM master",
                    'stop the compositor or display manager, or make displbe its client (sink = "wayland")',
                )
            yield _outputs(device)
        finally:
            device.close()
    if not usable:
        yield failed(f"no usable DRM device in {folder}", "load the card's driver, or choose another sink")


def _outputs(device: DrmDevice) -> CheckResult:
    """List the names of a card's connectors, monitors and places on docks."""
    card = f"{device.name} ({device.bus_path})" if device.bus_path else device.name
    try:
        names = sorted(map(describe, device.probe()))
    except DrmError as error:
        return warning(f"{card}: {error}", "run this check again; displbe tries again by itself")
    return passed(f"{card} has {', '.join(names) or 'no connectors'}")
