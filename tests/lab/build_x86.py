"""Builds what the x86 lab boots: Debian 13's own packages, installed as on a PC, with Debian's kernel, modules and initramfs.

The root file system is installed natively, on amd64: the packages' scripts run. The guests' kernel is Dom0's; their initramfs has
Debian's modules.
"""

from __future__ import annotations

import gzip
import lzma
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.build import HERE, SUITE, XEN, Apt, cached, host_tools, log, packed, run
from lab.documents import blocks
from lab.pictures import drawn

__all__ = ["Installed", "installed"]

HOST_PACKAGES: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "gcc": "gcc",
    "depmod": "kmod",
}
PACKAGES: Final = (
    *("linux-image-amd64", "xen-system-amd64", "initramfs-tools", "zstd"),
    *("systemd-sysv", "udev", "dbus", "kmod", "procps", "busybox-static", "libdrm-tests", "python3"),
    # What displbe's package depends on, and recommends: the machine has no network.
    *("libatomic1", "python3-cffi", "python3-msgspec", "python3-pyxs", "python3-structlog", "python3-trio"),
    *("libseat1", "python3-evdev", "python3-pil", "python3-pyudev", "python3-pywayland"),
    # HVM guests and the framebuffers of QEMU; compositors, an X server and a display manager, for Dom0 and for guests.
    *("qemu-system-xen", "weston", "xkb-data", "xserver-xorg-core", "x11-xserver-utils", "nodm"),
    # What the documents tell readers to use or to install.
    *("adduser", "evtest", "psmisc", "python3-xcffib", "seatd"),
)
INITRAMFS: Final = "MODULES=list\n", "virtio_pci\nvirtio_blk\nxen_blkfront\next4\n"
"""The initramfs's configuration, and the modules that mount the root."""
GUEST_MODULES: Final = ("drm_xen_front", "evdev", "xen_blkfront", "ext4", "crc32c_generic", "bochs")
"""The guest's modules. xen-kbdfront and the console are built into Debian's kernel."""
APPLETS: Final = (
    "sh mount cat echo sleep ls poweroff reboot kill head tail grep dmesg true mkfifo usleep dd modprobe uname chroot"
)
SIZE: Final = "2600M"
PAGE: Final = "docs/debian-pc.md"


@dataclass(frozen=True)
class Installed:
    """The files that the machine boots."""

    xen: Path
    kernel: Path
    initrd: Path
    disk: Path
    unused: Path
    """The disk before the first boot."""
    guest: Path
    """The guest's disk that docs/debian-pc.md makes."""


def installed() -> Installed:
    """Return Debian with Xen and the lab's files, from the cache where it is there."""
    host_tools(HOST_PACKAGES)
    debian = cached("x86-debian", [PACKAGES, INITRAMFS, SUITE], install)
    files = [(path.name, path.read_text()) for path in (Path(__file__), *sources())]
    made = cached("x86-disk", [debian.name, files], lambda made: build_disk(debian, made))
    guest = cached("x86-guest", [guest_disk_commands(), SUITE], build_guest_disk)
    xen, kernel, initrd, disk = (made / name for name in ("xen", "vmlinuz", "initrd.img", "disk.img"))
    return Installed(xen, kernel, initrd, disk, unused=disk, guest=guest / "desktop.img")


def guest_disk_commands() -> list[str]:
    """Return the commands with which docs/debian-pc.md makes a guest's disk: mmdebstrap's, and that for its file."""
    (block,) = (block for block in blocks(PAGE) if "mmdebstrap --include" in block)
    return [line for line in block.splitlines() if "/srv/desktop" in line]


def build_guest_disk(made: Path) -> None:
    """Make the disk as the page says, from the lab's mirror, beside its place on a PC."""
    log("making the guest's disk of the page; some minutes, once")
    for command in guest_disk_commands():
        words = command.replace("/srv/desktop", str(made / "desktop"))
        if words.startswith("mmdebstrap "):
            words = words.replace("mmdebstrap ", "mmdebstrap --quiet ") + f" {shlex.quote(Apt().source)}"
        run(["sh", "-ec", words])
    shutil.rmtree(made / "desktop")


def sources() -> list[Path]:
    """Return the lab's files for Dom0 and its guests."""
    folders = (HERE / "x86", HERE / "x86/desktop", HERE / "domu")
    return [HERE / "dom0/remote.py", *(p for folder in folders for p in sorted(folder.iterdir()) if p.is_file())]


def install(made: Path) -> None:
    """Install the packages as the folder `root`."""
    log(f"installing {SUITE} for x86; some minutes, once")
    # The initramfs is configured before the kernel's package makes it.
    settings, modules = (made.parent / name for name in ("settings", "modules"))
    for path, text in zip((settings, modules), INITRAMFS, strict=True):
        path.write_text(text)
    hooks = [
        "--essential-hook=mkdir -p $1/etc/initramfs-tools/conf.d",
        f"--essential-hook=copy-in {settings} /etc/initramfs-tools/conf.d",
        f"--essential-hook=copy-in {modules} /etc/initramfs-tools",
    ]
    quiet = ["--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-confold"]
    include = f"--include={','.join(PACKAGES)}"
    command = ["mmdebstrap", "--architectures=amd64", "--variant=apt", *quiet, *hooks, include]
    run([*command, SUITE, made / "root", Apt().source])


def build_disk(debian: Path, made: Path) -> None:
    """Make the disk of a copy of Debian with the lab's files, and copy what is booted beside it."""
    root = made.parent / "root"
    run(["cp", "-a", debian / "root", root])
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw 0 0\n")
    with open(root / "etc/default/xen", "a") as defaults:
        defaults.write('XENCONSOLED_ARGS="--log=all --log-dir=/var/log/xen"\n')
    (root / "etc/default/nodm").write_text("NODM_ENABLED=false\n")  # until a case configures it
    shutil.copytree(HERE / "x86/desktop", root / "desktop")
    drawn(1024, 768, 3).save(root / "desktop/picture.png")
    shutil.copy(HERE / "dom0/remote.py", root / "remote.py")
    units = root / "etc/systemd/system"
    shutil.copy(HERE / "x86/lab.service", units)
    (units / "multi-user.target.wants/lab.service").symlink_to("../lab.service")
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    shutil.copy(kernel, made / "vmlinuz")
    shutil.copy(initrd, made / "initrd.img")
    (made / "xen").write_bytes(gzip.decompress((root / f"boot/xen-{XEN}-amd64.gz").read_bytes()))
    guest = root / "domu"
    guest.mkdir()
    (guest / "vmlinuz").symlink_to(f"/boot/{kernel.name}")
    (guest / "initrd.img").write_bytes(guest_initramfs(root, kernel.name.removeprefix("vmlinuz-"), made.parent))
    for junk in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / junk, ignore_errors=True)
    run(["mke2fs", "-q", "-t", "ext4", "-d", root, made / "disk.img", SIZE])


def guest_initramfs(root: Path, version: str, work: Path) -> bytes:
    """Return the guest's initramfs: busybox, modetest, the lab's programs, and Debian's modules."""
    tree = work / "initramfs"
    for folder in ("bin", "proc", "sys", "dev", "lib", "lib64", "tmp", "disk"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin")
    for applet in APPLETS.split():
        (tree / "bin" / applet).symlink_to("busybox")
    # libdrm's headers, without its package, are those of the other lab's compiler.
    compile_x86 = [
        "gcc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
        "-idirafter",
        "/usr/aarch64-linux-gnu/include",
    ]
    for source in sorted((HERE / "domu").glob("*.c")):
        run([*compile_x86, "-o", tree / "bin" / source.stem, source])
    shutil.copy(root / "usr/bin/modetest", tree / "bin")
    library = root / "usr/lib/x86_64-linux-gnu"
    for name in ("libdrm.so.2", "libc.so.6", "libm.so.6"):
        shutil.copy((library / name).resolve(), tree / "lib" / name)
    shutil.copy((library / "ld-linux-x86-64.so.2").resolve(), tree / "lib64" / "ld-linux-x86-64.so.2")
    copy_modules(root, version, tree)
    for file, name in (("x86/init.sh", "init"), ("x86/debian.sh", "debian"), ("domu/init.sh", "work")):
        shutil.copy(HERE / file, tree / name)
        (tree / name).chmod(0o755)
    return packed(tree)


def copy_modules(root: Path, version: str, tree: Path) -> None:
    """Copy the guest's modules, with all that they depend on."""
    folder = f"usr/lib/modules/{version}"
    needed = {
        line.split()[1]
        for module in GUEST_MODULES
        for line in run(["modprobe", "-d", root, "-S", version, "--show-depends", module]).splitlines()
        if line.startswith("insmod ")
    }
    for name in needed:
        inside = f"{folder}/{name.split(f'/modules/{version}/')[1]}"
        target = tree / inside.removeprefix("usr/").removesuffix(".xz")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.decompress((root / inside).read_bytes()))  # modprobe would take three seconds for that
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(root / folder / name, tree / "lib/modules" / version)
    run(["depmod", "-b", tree, version])
