"""Cards of Linux's virtual KMS driver in Dom0, made through configfs: as many connectors as wanted, plugged and unplugged at will.

They have no screen to look at; what a CRTC shows is known by the checksum that the driver makes of each frame.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lab.vm import Machine

__all__ = ["Vkms", "vkms"]

MAKE = """
mountpoint -q /sys/kernel/config || mount -t configfs c /sys/kernel/config
before=$(ls -d /sys/class/drm/card? ) ; cd /sys/kernel/config/vkms && mkdir {name} && cd {name}
for i in $(seq 0 {last}); do
    mkdir planes/p$i crtcs/c$i encoders/e$i connectors/k$i
    echo 1 > planes/p$i/type
    ln -s $PWD/crtcs/c$i planes/p$i/possible_crtcs/; ln -s $PWD/crtcs/c$i encoders/e$i/possible_crtcs/
    ln -s $PWD/encoders/e$i connectors/k$i/possible_encoders/; echo 1 > connectors/k$i/status
done
echo 1 > enabled
for card in /sys/class/drm/card?; do case " $before " in *$card*) ;; *) basename $card; cd $card; ls -d card*-* ;; esac; done
"""
REMOVE = """
cd /sys/kernel/config/vkms/{name} && echo 0 > enabled
rm -f planes/*/possible_crtcs/* encoders/*/possible_crtcs/* connectors/*/possible_encoders/*
rmdir planes/* crtcs/* encoders/* connectors/*; cd ..; rmdir {name}
"""


@dataclass(frozen=True)
class Vkms:
    """One card."""

    machine: Machine
    name: str
    card: str
    connectors: tuple[str, ...]

    def plug(self, index: int, connected: bool) -> None:
        """Plug a monitor in, or out."""
        status = 1 if connected else 2
        self.machine.check(f"echo {status} > /sys/kernel/config/vkms/{self.name}/connectors/k{index}/status")

    def checksum(self, index: int = 0) -> str:
        """What a CRTC shows, as the checksum of a frame; it must be on, and its picture still."""
        number = self.card.removeprefix("card")
        folder = f"/sys/kernel/debug/dri/{number}/crtc-{index}/crc"
        read = f"echo auto > {folder}/control; exec 3< {folder}/data; head -n 3 <&3 | tail -n 1"
        return self.machine.check(f"timeout 10 bash -c '{read}'").split()[-1]


@contextlib.contextmanager
def vkms(machine: Machine, name: str = "lab", connectors: int = 1) -> Iterator[Vkms]:
    """A card, as long as it is wanted."""
    made = machine.check(MAKE.format(name=name, last=connectors - 1)).split()
    try:
        yield Vkms(machine, name, made[0], tuple(sorted(entry.partition("-")[2] for entry in made[1:])))
    finally:
        machine.run(REMOVE.format(name=name))
