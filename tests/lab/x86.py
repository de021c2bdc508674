"""The x86 machine: Xen, Debian 13's own kernel as PV Dom0, and systemd, inside qemu-system-x86_64.

It is booted once. Its state is then kept in the user's cache folder, and each later machine continues from there: Xen, Linux and systemd
take one and a half minutes of the emulator's time. To try things by hand: `python3 tests/lab/x86.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.build import cached, log, run
from lab.build_x86 import Installed, installed
from lab.vm import COUNTED, SAME, Card, LabError, Machine, main

__all__ = ["X86"]

GPUS: Final = {"gpu0": 0x10, "gpu1": 0x11}
"""The cards' QEMU ids, and their slots on the PCI bus."""


@dataclass
class X86(Machine):
    """The emulated PC, as it was after its boot. Dom0's card0 is gpu0.

    The state fits this one machine: other cards, devices, disks, arguments and sizes of memory are not possible. Dom0's second disk, for
    guests, is as Dom0's own one was before its first boot, and cannot be written. The third is for one guest at a time.
    """

    gpus: Sequence[str] = tuple(GPUS)
    boot_from: Installed | None = None
    """Boot these pieces instead, and write to their disk."""

    def card(self, device: str | None = None) -> Card:
        place = f"0000:00:{GPUS[device or self.gpus[0]]:02x}.0"
        nodes = self.check("readlink -f /sys/class/drm/card[0-9]").split()
        name = next(Path(node).name for node in nodes if f"/{place}/" in node)
        return Card(name, f"pci:{place}")

    def _until_ready(self) -> None:
        if self.boot_from:
            super()._until_ready()
        # A machine that is stopped and continued while it reads its state does not answer.
        while self.qmp("query-status")["status"] == "inmigrate":
            time.sleep(0.05)

    def _command(self) -> Iterator[str]:
        yield "qemu-system-x86_64"
        if self.boot_from:
            pieces, keep = self.boot_from, "off"
        else:
            pieces, state = booted()
            keep = "on"
            yield from ("-incoming", f"exec:cat {state}")
        yield from arguments(pieces)
        yield from ("-drive", f"file={pieces.disk},format=raw,cache=unsafe,snapshot={keep},if=none,id=disk1")
        yield from ("-drive", f"file={pieces.unused},format=raw,cache=unsafe,readonly=on,if=none,id=disk2")
        yield from ("-device", "virtio-blk-pci,drive=disk1,addr=0x08", "-device", "virtio-serial-pci,addr=0x09")
        yield from ("-device", "virtio-blk-pci,drive=disk2,addr=0x0a")
        yield from ("-drive", f"file={pieces.guest},format=raw,cache=unsafe,snapshot=on,if=none,id=disk3")
        yield from ("-device", "virtio-blk-pci,drive=disk3,addr=0x0b")
        # A port whose host end is not connected when the machine continues would end Dom0's remote end.
        yield from self._remote_port(wait=True)


def arguments(pieces: Installed) -> Iterator[str]:
    """The emulator's arguments that do not depend on the run."""
    # smap to pks: with them, a PV Dom0 ends early under emulation. rdtscp: the emulator reports it to Xen as rdtsc, and a PVH guest that
    # uses it stands still ("Insn mismatch"). xsave: with it, vector registers of a program in a guest are wrong now and then.
    yield from ("-M", "pc", "-cpu", "max,-smap,-smep,-la57,-pku,-pks,-rdtscp,-xsave", "-vga", "none")
    yield from ("-kernel", str(pieces.xen))
    # eager-fpu: switched late, the state of AVX gets lost between domains under emulation, and programs crash.
    yield from ("-append", "console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M noreboot spec-ctrl=eager-fpu=1")
    # nohz=off: the clock of an idle machine goes on by a tick at most while a disk's answer is waited for.
    boot = f"root=/dev/vda rw console=hvc0 nohz=off systemd.show_status=no {SAME}"
    yield from ("-initrd", f"{pieces.kernel} {boot},{pieces.initrd}")
    for name, slot in GPUS.items():
        yield from ("-device", f"virtio-gpu-pci,id={name},addr={slot:#x}")


def booted() -> tuple[Installed, Path]:
    """Return what the machine was booted from, with its disk as it is now, and its state; from the cache where they are there."""
    pieces = installed()
    version = run(["qemu-system-x86_64", "--version"]).splitlines()[0]
    made_of = [version, *COUNTED, X86.memory, *arguments(pieces)]
    made = cached("x86-booted", made_of, lambda made: boot(pieces, made))
    return replace(pieces, disk=made / "disk.img"), made / "state"


def boot(pieces: Installed, made: Path) -> None:
    """Boot the machine on a copy of the disk, and write its state beside it."""
    log("booting Debian with Xen; some minutes, once")
    disk = made / "disk.img"
    run(["cp", "--sparse=always", pieces.disk, disk])
    with X86(boot_from=replace(pieces, disk=disk), patience=1200) as machine:
        machine.check("systemctl is-system-running --wait && udevadm settle && sync", 120)
        machine.qmp("migrate", uri=f"exec:cat >{made / 'state'}")
        while (status := machine.qmp("query-migrate")["status"]) not in ("completed", "failed"):
            time.sleep(0.2)
        if status == "failed":
            raise LabError("QEMU cannot write the machine's state")


if __name__ == "__main__":
    main(X86)
