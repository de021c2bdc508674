"""`displbectl check`: what would keep displbe from working on this machine, each finding with what mends it.

It needs no daemon and no Xen, changes nothing, and looks at everything even when the first thing is wrong.
"""

from __future__ import annotations

import gzip
import os
import platform
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import msgspec

from displbe.backend.quota import MAPTRACK_SHARE
from displbe.config import ConfigError, Settings, load
from displbe.sinks.registry import SINKS
from displbe.xen import gntdev, store

from .client import Client, Failure
from .xlconfig import XlConfig, read_xl_config

__all__ = ["Finding", "Machine", "findings"]

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


class Finding(msgspec.Struct, frozen=True):
    """`wrong` keeps displbe or a guest from working; `note` costs something."""

    grade: Literal["good", "note", "wrong"]
    what: str
    fix: str = ""


def good(what: str) -> Finding:
    """Nothing to do."""
    return Finding("good", what)


def note(what: str, fix: str) -> Finding:
    """It works, and could be better."""
    return Finding("note", what, fix)


def wrong(what: str, fix: str) -> Finding:
    """It will not work."""
    return Finding("wrong", what, fix)


class Machine:
    """Where to look; another root in tests."""

    def __init__(
        self, root: Path = Path("/"), release: str = platform.release(), xl: Sequence[str] = ("xl", "info")
    ) -> None:
        self.root = root
        self.release = release
        self._xl = xl

    def path(self, path: str) -> Path:
        """A file of this machine."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A file's text, empty when it cannot be read."""
        try:
            return self.path(path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def xl_info(self) -> str:
        """What xl says of Xen; empty where it may not be asked."""
        try:
            return subprocess.run(self._xl, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def kernel_options(self) -> dict[str, str]:
        """The kernel's configuration, empty where it is not to be had."""
        text = self.text(f"/boot/config-{self.release}")
        if not text:
            try:
                text = gzip.decompress(self.path("/proc/config.gz").read_bytes()).decode()
            except (OSError, EOFError, UnicodeDecodeError):
                return {}
        return dict(re.findall(r"^(CONFIG_\w+)=(\S+)$", text, re.MULTILINE))


def findings(machine: Machine, config: str, control: str, guests: list[str]) -> Iterator[Finding]:
    """All of them. `guests`: xl's configurations; none: those in /etc/xen."""
    settings = Settings()
    try:
        settings = load(config)
        yield good(f"{config} is right")
    except ConfigError as error:
        yield wrong(f"configuration: {error}", "correct it; configs/displbe.toml explains every key")
    yield from _daemon(control)
    yield from _packages(settings)
    yield from _xen(machine)
    yield from _kernel(machine)
    yield from _quotas(machine, settings)
    yield from _sink(machine, settings)
    yield from _guests(machine, settings, guests)


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
    for name, module in (("evtchn", "xen_evtchn"), ("gntdev", "xen_gntdev")):
        yield _node(machine, f"/dev/xen/{name}", f"modprobe {module}")
    places = [str(machine.path(path)) for path in (*store.SOCKETS, store.XENBUS)]
    found = store.find(tuple(places))
    if found is None:
        yield wrong("there is no XenStore", "start xenstored; in a driver domain, mount xenfs and load xenbus")
    elif os.access(found, os.R_OK | os.W_OK):
        yield good(f"XenStore: {found}")
    else:
        yield wrong(f"{found} is not for {_me()}", "install displbe's udev rules, or add the user to its group")


def _node(machine: Machine, name: str, fix: str) -> Finding:
    path = machine.path(name)
    if not path.exists():
        return wrong(f"{name} is not there", fix)
    if not os.access(path, os.R_OK | os.W_OK):
        return wrong(
            f"{name} is not for {_me()}", "install displbe's udev rules; run this check as the user displbe runs as"
        )
    return good(f"{name} is there")


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _kernel(machine: Machine) -> Iterator[Finding]:
    options = machine.kernel_options()
    if not options:
        yield note("the kernel's configuration cannot be read", "look for CONFIG_XEN_GNTDEV_DMABUF=y in it yourself")
    for wanted, grade in ((KERNEL, wrong), (BETTER, note)) if options else ():
        for option, loss in wanted.items():
            if options.get(option) not in ("y", "m"):
                yield grade(f"the kernel has no {option}: {loss}", "build or install a kernel that has it")
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


def _quotas(machine: Machine, settings: Settings) -> Iterator[Finding]:
    room = int(settings.xen.maptrack * MAPTRACK_SHARE)
    count = max(1, len(settings.guest))
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
        yield from _cards(machine, settings)
    elif settings.sink == "wayland":
        from displbe.sinks.wayland.sink import socket_path

        yield _connects(socket_path(settings.wayland.display), "the compositor", "display in [wayland]")
    elif settings.sink == "x11":
        display = settings.x11.display or os.environ.get("DISPLAY", "")
        number = re.fullmatch(r":(\d+)(\.\d+)?", display)
        if number is not None:
            yield _connects(str(machine.path(f"/tmp/.X11-unix/X{number[1]}")), "the X server", "display in [x11]")
        elif not display:
            yield wrong("no X server is named", "display in [x11], or the environment's DISPLAY")
    elif settings.headless.directory and not os.access(machine.path(settings.headless.directory), os.W_OK):
        yield note(f"{settings.headless.directory} cannot be written", "directory in [headless]")


def _connects(path: str, whose: str, key: str) -> Finding:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(path)
        except OSError as error:
            return wrong(
                f"{path}: {error.strerror or error}",
                f"start {whose}, or name its socket ({key}); displbe's user must be let in",
            )
    return good(f"{path} answers")


def _cards(machine: Machine, settings: Settings) -> Iterator[Finding]:
    from displbe.sinks.drm.device import Card
    from displbe.sinks.drm.errors import DrmError

    folder = machine.path("/dev/dri")
    named = settings.drm.device
    paths = sorted(folder.glob("card*")) if named == "auto" else [folder / Path(named).name]
    usable = False
    for path in paths:
        try:
            card = Card(str(path))
        except (DrmError, OSError) as error:
            why = str(error) if isinstance(error, DrmError) else error.strerror
            yield note(f"{path.name} cannot be used: {why}", "displbe's user must be in the group video or render")
            continue
        try:
            usable = True
            if card.become_master():
                yield good(f"{path.name}: can be DRM master")
            else:
                yield note(
                    f"{path.name}: another program is DRM master, maybe displbe",
                    'end the compositor or display manager there, or let displbe be its client (sink = "wayland")',
                )
        finally:
            card.close()
    if not usable:
        yield wrong(f"no usable DRM device in {folder}", "load the card's driver; or choose another sink")


# Guests


def _guests(machine: Machine, settings: Settings, paths: list[str]) -> Iterator[Finding]:
    files = [Path(path) for path in paths] or sorted(machine.path("/etc/xen").glob("*.cfg"))
    found: list[XlConfig] = []
    for path in files:
        try:
            guest = read_xl_config(path.read_text("utf-8", "replace"))
        except OSError as error:
            yield note(f"{path}: {error.strerror}", "run this check as a user who may read it")
            continue
        except ValueError as error:
            yield wrong(f"{path}: {error}", 'man xl.cfg: vdispl = ["backend=0,connectors=HDMI-A-1:1920x1080"]')
            continue
        if guest.displays:
            found.append(guest)
            yield from _guest(machine, settings, path, guest)
    yield from _together(settings, found)


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
    yield good(f"{path}: {guest.name or 'a guest without name'} on {', '.join(names)}")


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
