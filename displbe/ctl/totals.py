"""Checks that the files, threads and copies of all configured guests together fit into the limits of the service and of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from displbe.backend.quota import CHARGES, FRAMES, OWN_FILES, OWN_MEMORY, OWN_THREADS, THREADS, Total
from displbe.config import Settings
from displbe.resources import UNLIMITED, ProcessLimits
from displbe.wire.pgdir import pages_of
from displbe.wire.ring import PAGE_SIZE

from .check_result import CheckResult, failed, passed, warning
from .guests import Guests, outputs
from .xlconfig import XlConfig

__all__ = ["total_results"]

MEBI: Final = 1 << 20
PIXEL: Final = 4
"""Bytes of a pixel in a copy."""


def total_results(settings: Settings, limits: ProcessLimits, guests: Guests) -> Iterator[CheckResult]:
    """Check the guests of the xl configurations, and those that only displbe's configuration names. The latter count with the connectors
    that it gives them, or one, of 1920x1080. `limits` are those of the daemon.
    """
    connectors = [min(len(outputs(settings, guest)), settings.limits.connectors) for guest in guests.values()]
    copies = [_copies(settings, guest) for guest in guests.values()]
    for name in settings.guest.keys() - {guest.name for guest in guests.values()}:
        connectors.append(max(1, len(settings.guest[name].connectors)))
        copies.append(connectors[-1] * _copy(settings, 1920, 1080))
    for path, need in zip(guests, copies, strict=False):
        if need > settings.limits.copy_pages:
            yield failed(
                f"{path}: copies of its screens need {need} pages; {settings.limits.copy_pages} are allowed",
                f"raise copy-pages in [limits] to {need}; without copies (zero copy), it is not needed",
            )
    pools = Total(settings.xen.maptrack, 1, limits).pools
    of_connector = CHARGES["connectors"]
    files = sum(
        settings.limits.buffers * CHARGES["buffers"]["files"] + count * of_connector["files"] for count in connectors
    )
    yield _fits(
        f"files of {len(copies)} guests",
        files,
        pools["files"].limit,
        f"lower buffers in [limits]; or set LimitNOFILE={files + OWN_FILES} in displbe.service (systemctl edit displbe)",
    )
    threads = sum(THREADS + count * of_connector["threads"] for count in connectors)
    yield _fits(
        f"threads of {len(copies)} guests",
        threads,
        pools["threads"].limit,
        f"set TasksMax={threads + OWN_THREADS} in displbe.service (systemctl edit displbe)",
    )
    pages = sum(min(need, settings.limits.copy_pages) for need in copies)
    pages += sum(guest.be_alloc for guest in settings.guest.values()) * settings.limits.alloc_pages
    pages += sum(connectors) * of_connector["memory"]
    machine = -(-2 * pages * PAGE_SIZE // MEBI)
    service = -(-(pages * PAGE_SIZE + OWN_MEMORY) // MEBI)
    yield _fits(
        f"pages for the copies of {len(copies)} guests",
        pages,
        pools["memory"].limit,
        f"lower copy-pages in [limits]; or give this machine at least {machine} MiB of memory, and displbe.service at least"
        f" MemoryMax={service}M (systemctl edit displbe)",
    )


def _fits(what: str, need: int, room: int, fix: str) -> CheckResult:
    if need <= room:
        limit = room if room < UNLIMITED // 2 else "no limit"
        return passed(f"the {what} ({need}) fit into the limits of the service and of this machine ({limit})")
    return warning(f"the {what} may be {need}; displbe may have {room} for guests, and refuses the rest", fix)


def _copies(settings: Settings, guest: XlConfig) -> int:
    """Return the pages of the copies that a guest's screens need, if all its frames are copied."""
    return sum(
        _copy(settings, width, height, name) for display in guest.displays for name, width, height in display.connectors
    )


def _copy(settings: Settings, width: int, height: int, name: str = "") -> int:
    """Return the pages of the copies that one screen of this size in pixels needs. A screen that `rotate` turns may need one frame more."""
    frames = 1 if settings.sink in ("headless", "x11") else FRAMES
    if settings.sink == "drm" and settings.drm.screen(name).rotate not in ("auto", "0"):
        frames += 1
    return pages_of(frames * width * height * PIXEL)
