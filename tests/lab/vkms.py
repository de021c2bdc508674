"""Cards of Linux's virtual KMS driver in Dom0, made through configfs, with any number of connectors, whose monitors can be plugged and
unplugged.

The cards have no screen to look at. The driver makes a checksum of each frame that a CRTC shows.
"""

from __future__ import annotations

import contextlib
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from lab.pictures import Picture
from lab.vm import Machine

__all__ = ["Vkms", "checksum_of", "encoded", "vkms"]

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

    def plug(self, index: int, connected: bool) -> datetime:
        """Plug a monitor in or out. Return the time just before, by Dom0's clock, in UTC like displbe's log."""
        status = 1 if connected else 2
        file = f"/sys/kernel/config/vkms/{self.name}/connectors/k{index}/status"
        return datetime.fromtimestamp(float(self.machine.check(f"date +%s.%N; echo {status} > {file}")), UTC)

    def checksum(self, index: int = 0) -> str:
        """Return the checksum of a CRTC's frame. The CRTC must be on, and its picture must not change."""
        number = self.card.removeprefix("card")
        folder = f"/sys/kernel/debug/dri/{number}/crtc-{index}/crc"
        read = f"echo auto > {folder}/control; exec 3< {folder}/data; head -n 3 <&3 | tail -n 1"
        return self.machine.check(f"timeout 30 bash -c '{read}'").split()[-1]


@contextlib.contextmanager
def vkms(machine: Machine, name: str = "lab", connectors: int = 1) -> Iterator[Vkms]:
    """Make a card that exists while the block lasts."""
    made = machine.check(MAKE.format(name=name, last=connectors - 1)).split()
    try:
        yield Vkms(machine, name, made[0], tuple(sorted(entry.partition("-")[2] for entry in made[1:])))
    finally:
        machine.run(REMOVE.format(name=name))


def checksum_of(picture: Picture, fourcc: str = "XR24") -> str:
    """Return the result of `Vkms.checksum` for a screen that shows this picture from a buffer of this format.

    drivers/gpu/drm/vkms/vkms_composer.c computes crc32_le from 0 over the rows. Each pixel is four u16: alpha, red, green, blue.
    vkms_formats.c widens smaller components by fixed-point arithmetic: 8 bits to v * 257, 5 bits to v * (65535 / 31), rounded.
    """
    bits = (5, 6, 5) if fourcc == "RG16" else (8, 8, 8)
    pixels = array("H", [0xFFFF]) * (4 * picture.width * picture.height)
    for channel, width in enumerate(bits):
        ratio = (0xFFFF << 32) // ((1 << width) - 1)
        levels = [((value >> 8 - width) * ratio + (1 << 31)) >> 32 for value in range(256)]
        pixels[channel + 1 :: 4] = array("H", [levels[value] for value in picture.rgb[channel::3]])
    return f"0x{~zlib.crc32(pixels.tobytes(), 0xFFFFFFFF) & 0xFFFFFFFF:08x}"


def encoded(picture: Picture, fourcc: str, stride: int) -> bytes:
    """Return a picture's pixels as they lie in a buffer (little-endian)."""
    red, green, blue = (picture.rgb[channel::3] for channel in range(3))
    if fourcc == "RG16":
        pixels = array("H", [r >> 3 << 11 | g >> 2 << 5 | b >> 3 for r, g, b in zip(red, green, blue, strict=True)])
        data = pixels.tobytes()
    else:
        packed = bytearray(b"\xff" * (4 * picture.width * picture.height))
        packed[0::4], packed[1::4], packed[2::4] = blue, green, red
        data = bytes(packed)
    row = len(data) // picture.height
    return b"".join(data[at : at + row].ljust(stride, b"\x55") for at in range(0, len(data), row))
