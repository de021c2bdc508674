"""Checks whether each frame is copied, and whether be-alloc works. One result has all reasons."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from displbe.config import Settings
from displbe.xen import gntdev

from .check_result import CheckResult, passed, warning
from .machine import Machine

__all__ = ["DMABUF_OPTIONS", "zero_copy_results"]

DMABUF_OPTIONS: Final = ("CONFIG_XEN_GNTDEV_DMABUF", "CONFIG_XEN_GRANT_DMA_ALLOC")
"""Without the first option, gntdev has no dma-bufs. It depends on the second (drivers/xen/Kconfig)."""
KERNELS: Final = "README.md, under What the kernel needs, says which kernels have that"
TRUST: Final = "trust-compositor = true in [wayland]; docs/weston.md says what else that allows"


def zero_copy_results(machine: Machine, settings: Settings, options: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check what the sink needs to show guests' pages without a copy, and what be-alloc needs. `options`: the kernel's; empty: unknown."""
    supported = _supports_dmabufs(machine)
    if supported:
        yield passed("gntdev supports dma-bufs")
    kernel = _kernel_reason(options, supported)
    domain = _domain_reason(machine)
    if settings.sink == "wayland" and _shares_pages(settings):
        yield passed("the compositor maps the guests' pages itself (trust-compositor): no dma-bufs are needed")
    losses, reasons, ways_out = [], [], []
    if _uses_dmabufs(settings) and (kernel or domain):
        losses.append("each frame is copied")
        reasons = [kernel, domain]
        ways_out.append(_way_out(machine, settings))
    if kernel and any(guest.be_alloc for guest in settings.guest.values()):
        losses.append("there is no be-alloc")
        reasons = reasons or [kernel]
        ways_out.append(f"be-alloc needs a kernel with {' and '.join(DMABUF_OPTIONS)}; {KERNELS}")
    if losses:
        yield warning(
            f"{', and '.join(losses)}: {'; '.join(filter(None, reasons))}", ". ".join(dict.fromkeys(ways_out))
        )


def _supports_dmabufs(machine: Machine) -> bool | None:
    """Return whether gntdev has dma-bufs; None: it cannot be opened, which the check of the device nodes reports."""
    try:
        fd = gntdev.open_gntdev(str(machine.path("/dev/xen/gntdev")))
    except OSError:
        return None
    try:
        return gntdev.probe(fd)
    finally:
        os.close(fd)


def _kernel_reason(options: Mapping[str, str], supported: bool | None) -> str:
    """Return why the kernel has no dma-bufs of guests' pages; empty: it has them, or that is not known."""
    if supported or (supported is None and not options):
        return ""
    first, second = (options.get(option) in ("y", "m") for option in DMABUF_OPTIONS)
    if not options or first:
        return "gntdev does not support dma-bufs"
    if second:
        return f"the kernel has no {DMABUF_OPTIONS[0]}"
    return f"the kernel has neither {DMABUF_OPTIONS[0]} nor {DMABUF_OPTIONS[1]}, on which that depends"


def _domain_reason(machine: Machine) -> str:
    """Return why a domain of this type cannot export dma-bufs of guests' pages; empty: it can.

    On x86, no domain can. Linux refuses it in a PV domain. In others it asks for GNTMAP_device_map (drivers/xen/gntdev-dmabuf.c,
    dmabuf_exp_from_refs), which Xen refuses to them (xen/common/grant_table.c, map_grant_ref: "No device mapping in HVM domain").
    """
    kind = machine.text("/sys/hypervisor/guest_type")
    if kind == "PV":
        return "this is a PV domain, which cannot export dma-bufs"
    if kind and machine.is_x86:
        return f"this is a {kind} domain on x86, where Xen refuses the mappings that dma-bufs need"
    return ""


def _uses_dmabufs(settings: Settings) -> bool:
    """Return whether the sink can avoid copies, and needs dma-bufs for that."""
    if settings.sink == "drm":
        return settings.drm.zero_copy != "off"
    wayland = settings.wayland
    is_wanted = wayland.zero_copy != "off" and wayland.dmabuf != "never"
    return settings.sink == "wayland" and is_wanted and not _shares_pages(settings)


def _shares_pages(settings: Settings) -> bool:
    """Return whether a compositor may map the guests' pages itself."""
    return settings.wayland.zero_copy != "off" and settings.wayland.trust_compositor


def _way_out(machine: Machine, settings: Settings) -> str:
    """Return what avoids copies."""
    shared = TRUST if settings.sink == "wayland" else f'sink = "wayland" with {TRUST}'
    if machine.is_x86:
        return f"on x86, only a Wayland compositor avoids copies: {shared}. Or live with the copies"
    return f"use a kernel with {' and '.join(DMABUF_OPTIONS)}; {KERNELS}. Or {shared}"
