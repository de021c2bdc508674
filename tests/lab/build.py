"""Builds what the lab boots: Xen, one Linux kernel for Dom0 and guest, Dom0's disk and the guest's initramfs.

Everything comes from the Debian mirror that this machine already uses. The results lie in the user's
cache folder under a name made from all that went into them, so that a change makes them anew and
nothing else does. No root device, no mount and no emulator is needed to build.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "displbe" / "lab"
KEPT = 3 * 86400
"""Seconds that a piece is kept after its last use: branches of the tree need different ones, in turn."""

SUITE = "trixie"
KERNEL = "7.2"
"""The Linux version of the lab: `linux-source-KERNEL` of backports, or the newest there when that one is gone."""
XEN = "4.20"
PYTHON = "3.13"

HOST_PACKAGES = {
    "qemu-system-aarch64": "qemu-system-arm",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "cpio": "cpio",
    "xz": "xz-utils",
    "gcc": "gcc",
    "make": "make",
    "rsync": "rsync",
}
HEADERS = ("libc6-dev-arm64-cross",)

ROOT_PACKAGES = """
    base-files base-passwd bash coreutils util-linux libc-bin grep sed gawk busybox-static procps strace
    python3 python3-cffi python3-trio python3-structlog python3-pyxs python3-msgspec python3-pyudev
    python3-evdev python3-pil python3-pytest python3-pytest-trio python3-hypothesis
    xen-utils-4.20 xenstore-utils libdrm-tests libatomic1 seatd libseat1
    weston libgl1-mesa-dri python3-pywayland udev xkb-data
""".split()  # noqa: SIM905

PYTHON_NEEDS = ("zlib1g", "libexpat1")
"""The libraries that the suite's Python interpreter loads, beside the C library."""

# gntdev-dmabuf merges neighbouring pages into one segment; without an IOMMU, swiotlb-xen then refuses them, because
# neighbours in Dom0's memory are no neighbours in the machine's. Segments of one page are what it can map.
GNTDEV_RE = re.compile(r"sg_alloc_table_from_pages\(sgt, pages, nr_pages, 0,\s*nr_pages << PAGE_SHIFT,\s*GFP_KERNEL\)")
GNTDEV_LAB = "sg_alloc_table_from_pages_segment(sgt, pages, nr_pages, 0, nr_pages << PAGE_SHIFT, PAGE_SIZE, GFP_KERNEL)"


@dataclass(frozen=True)
class Pieces:
    """The files a run boots."""

    xen: Path
    kernel: Path
    disk: Path
    shim: Path


def log(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command; what it says is shown only when it fails."""
    done = subprocess.run([str(a) for a in argv], check=False, capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode != 0:
        said = done.stdout[-3000:] + done.stderr[-3000:]
        raise SystemExit(f"lab: {' '.join(map(str, argv))}: exit {done.returncode}\n{said}")
    return done.stdout


@contextlib.contextmanager
def only_one(what: str) -> Iterator[None]:
    """Let one process at a time do something of this name: build a piece of one kind, or run apt, which fails beside another apt.

    A block with the same name may not be inside.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{what}.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def host_tools(wanted: Mapping[str, str] = HOST_PACKAGES, headers: Sequence[str] = HEADERS) -> None:
    """Install the host programs that are missing (Debian, root): the packages, by program. With them come those with C headers."""
    with only_one("apt"):
        install_tools(wanted, headers)


def install_tools(wanted: Mapping[str, str], headers: Sequence[str]) -> None:
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not missing:
        return
    log(f"installing {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"])
    packages = [*missing, "debian-archive-keyring", "ca-certificates", *headers]
    run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages], env=env)


def mirror() -> str:
    """The Debian mirror of this machine's own apt configuration."""
    listed = run(["apt-get", "indextargets", "--format", "$(SITE) $(REPO_URI) $(RELEASE)", "Created-By: Packages"])
    for line in listed.splitlines():
        uri = line.split()[1] if len(line.split()) > 1 else ""
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise SystemExit("lab: no Debian mirror in this machine's apt sources")


class Apt:
    """An apt of its own for the lab's suite, which leaves this machine's apt alone."""

    def __init__(self) -> None:
        self.home = CACHE / "apt"
        for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        key = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
        uri = mirror()
        self.source = f"deb [{key}] {uri} {SUITE} main"
        sources = [f"deb [arch=amd64,arm64 {key}] {uri} {suite} main" for suite in (SUITE, f"{SUITE}-backports")]
        (self.home / "sources.list").write_text("\n".join(sources) + "\n")
        self.options = [
            *("-o", f"Dir::Etc::SourceList={self.home}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State={self.home}/state", "-o", f"Dir::Cache={self.home}/cache"),
            *("-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64"),
        ]
        self._run("apt-get", "update", "-q")

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        with only_one("apt"):
            return run([program, *self.options, *arguments], cwd=cwd)

    def version(self, package: str) -> str:
        found = re.search(r"^Version: (\S+)", self._run("apt-cache", "show", package), re.M)
        if found is None:
            raise SystemExit(f"lab: no package {package} in {SUITE}")
        return found[1]

    def fetch(self, package: str, into: Path) -> None:
        """Download a package and unpack it without installing anything."""
        into.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "download", "-q", package, cwd=into)
        (deb,) = into.glob("*.deb")
        run(["dpkg", "-x", deb, into])
        deb.unlink()

    def kernel_source(self) -> str:
        listed = self._run("apt-cache", "search", "^linux-source-")
        found = re.findall(r"^linux-source-(\d+)\.(\d+) ", listed, re.M)
        versions = sorted((int(a), int(b)) for a, b in found)
        wanted = tuple(int(part) for part in KERNEL.split("."))
        major, minor = wanted if wanted in versions else versions[-1]
        return f"linux-source-{major}.{minor}"


def cached(kind: str, ingredients: object, build: Callable[[Path], None]) -> Path:
    """The folder of what `build` makes from these ingredients; made once, kept whole or not at all."""
    digest = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
    done = CACHE / f"{kind}-{digest}"
    with only_one(kind):
        make_once(kind, done, build)
    return done


def make_once(kind: str, done: Path, build: Callable[[Path], None]) -> None:
    """Make a folder of the cache, if it is not there. Others of its kind that nothing has used for long go."""
    if not done.exists():
        for old in CACHE.glob(f"{kind}-*"):
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{kind}-") as work:
            made = Path(work) / "made"
            made.mkdir()
            build(made)
            made.rename(done)
    os.utime(done)


def build_kernel(apt: Apt, source: str, made: Path) -> None:
    work = made.parent
    log(f"building {source} for arm64; some minutes, once")
    apt.fetch(source, work / "deb")
    (archive,) = (work / "deb" / "usr" / "src").glob("linux-source-*.tar.xz")
    run(["tar", "-xJf", archive, "-C", work, "--exclude=*/amd/include/*", "--exclude=*/Documentation/*/*"])
    (tree,) = work.glob("linux-source-*")
    gntdev = tree / "drivers/xen/gntdev-dmabuf.c"
    text, changes = GNTDEV_RE.subn(GNTDEV_LAB, gntdev.read_text())
    if changes != 1:
        raise SystemExit(f"lab: {source}: gntdev-dmabuf.c has changed; look at GNTDEV_RE")
    gntdev.write_text(text)
    make = ["make", "-C", str(tree), "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", f"-j{os.cpu_count()}"]
    run([*make, "tinyconfig"])
    env = {**os.environ, "ARCH": "arm64", "CROSS_COMPILE": "aarch64-linux-gnu-"}
    run(["scripts/kconfig/merge_config.sh", "-m", ".config", HERE / "kernel.config"], cwd=tree, env=env)
    run([*make, "olddefconfig"])
    run([*make, "Image"])
    shutil.copy(tree / "arch/arm64/boot/Image", made / "Image")
    shutil.copy(tree / ".config", made / "config")


def build_root(apt: Apt, kernel: Path, made: Path) -> None:
    """Dom0's root: Debian packages unpacked without running their scripts, and the guest's pieces under /domu."""
    log(f"building Dom0's root from {SUITE}, arm64")
    root = made.parent / "root"
    include = f"--include={','.join(ROOT_PACKAGES)}"
    run(["mmdebstrap", "--architectures=arm64", "--variant=extract", include, SUITE, root, apt.source])
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    (root / "etc/machine-id").write_text("")
    # What the packages' scripts would have done.
    for name in ("run", "lock"):
        shutil.rmtree(root / "var" / name, ignore_errors=True)
    links = {"usr/bin/awk": "busybox", "usr/bin/sh": "bash", "var/run": "/run", "var/lock": "/run/lock"}
    for link, target in links.items():
        (root / link).unlink(missing_ok=True)
        (root / link).symlink_to(target)
    compile_python(apt, root, made.parent)
    for name, place in (("dom0-init.sh", "init.dom0"), ("domd-init.sh", "init.domd"), ("remote.py", "remote.py")):
        shutil.copy(HERE / "dom0" / name, root / place)
        (root / place).chmod(0o755)
    build_guest(root, kernel, made.parent)
    for junk in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt"):
        shutil.rmtree(root / junk, ignore_errors=True)
    run(["mke2fs", "-q", "-t", "ext4", "-d", root, made / "dom0.img", "1600M"])


def compile_python(apt: Apt, root: Path, work: Path) -> None:
    """The extract variant compiles no .pyc: without them the imports take three times as long under emulation.

    Dom0's Python in this machine's own instructions does it, with the libraries of its suite.
    """
    host = run(["dpkg", "--print-architecture"]).strip()
    tools = work / "python"
    for package in (
        f"python{PYTHON}-minimal",
        f"libpython{PYTHON}-minimal",
        f"libpython{PYTHON}-stdlib",
        "libc6",
        *PYTHON_NEEDS,
    ):
        apt.fetch(f"{package}:{host}", tools)
    (loader,) = [found for found in (tools / "usr/lib").glob("*-linux-gnu/ld-linux*") if found.is_file()]
    interpreter: list[str | Path] = [loader, "--library-path", loader.parent, tools / f"usr/bin/python{PYTHON}"]
    library = root / f"usr/lib/python{PYTHON}"
    places = [library, root / "usr/lib/python3/dist-packages"]
    compileall: list[str | Path] = ["-m", "compileall", "-q", "-s", root, "-p", "/"]
    run([*interpreter, *compileall, *places], env={**os.environ, "PYTHONHOME": str(tools / "usr")})


def build_guest(root: Path, kernel: Path, work: Path) -> None:
    """The guest: the same kernel, and an initramfs of busybox, modetest and the libraries modetest needs."""
    initramfs = work / "initramfs"
    for folder in ("bin", "proc", "sys", "dev", "lib", "tmp"):
        (initramfs / folder).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", initramfs / "bin/busybox")
    applets = "sh mount cat echo sleep ls poweroff reboot kill head tail grep dmesg true mkfifo usleep dd"
    for applet in applets.split():
        (initramfs / "bin" / applet).symlink_to("busybox")
    shutil.copy(root / "usr/bin/modetest", initramfs / "bin/modetest")
    compile_arm = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    for source in sorted((HERE / "domu").glob("*.c")):
        run([*compile_arm, "-o", initramfs / "bin" / source.stem, source])
    library = root / "usr/lib/aarch64-linux-gnu"
    for name in ("libdrm.so.2", "libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1"):
        shutil.copy((library / name).resolve(), initramfs / "lib" / name)
    shutil.copy(HERE / "domu" / "init.sh", initramfs / "init")
    (initramfs / "init").chmod(0o755)
    domu = root / "domu"
    domu.mkdir()
    (domu / "initrd.img").write_bytes(packed(initramfs))
    shutil.copy(kernel, domu / "vmlinuz")


def packed(tree: Path) -> bytes:
    """Return a folder as an initramfs."""
    listing = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    cpio = ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"]
    data = subprocess.run(cpio, input=listing.encode(), cwd=tree, capture_output=True, check=True).stdout
    return gzip.compress(data, mtime=0)


def domain_files() -> list[Path]:
    """What of this folder goes into Dom0 and the guest."""
    return [p for folder in ("dom0", "domu") for p in sorted((HERE / folder).iterdir()) if p.is_file()]


def build() -> Pieces:
    """Everything the lab needs, from the cache where it is there.

    A build that is asked for with all pieces in the cache asks no mirror: `index.json` remembers
    which of the mirror's versions went into them.
    """
    host_tools()
    with only_one("pieces"):
        texts = [HERE / "build.py", HERE / "kernel.config", HERE / "udmabuf_shim.c", *domain_files()]
        key = hashlib.sha256(b"\0".join(path.read_bytes() for path in texts)).hexdigest()
        index = CACHE / "index.json"
        if index.exists():
            known = json.loads(index.read_text())
            if known["key"] == key and all(Path(p).exists() for p in known["pieces"].values()):
                for path in known["pieces"].values():
                    os.utime(Path(path).parent)
                return Pieces(**{name: Path(p) for name, p in known["pieces"].items()})
        pieces = build_all()
        paths = {name: str(p) for name, p in vars(pieces).items()}
        index.write_text(json.dumps({"key": key, "pieces": paths}, indent=1))
        return pieces


def build_all() -> Pieces:
    apt = Apt()
    source = apt.kernel_source()
    config = (HERE / "kernel.config").read_text()
    wanted = [source, apt.version(source), config, GNTDEV_LAB]
    kernel = cached("kernel", wanted, lambda made: build_kernel(apt, source, made))
    hypervisor = f"xen-hypervisor-{XEN}-arm64:arm64"

    def build_xen(made: Path) -> None:
        apt.fetch(hypervisor, made.parent / "deb")
        shutil.copy(made.parent / "deb" / "boot" / f"xen-{XEN}-arm64", made / "xen")

    xen = cached("xen", [apt.version(hypervisor)], build_xen)
    files = [p.read_text() for p in domain_files()]
    versions = [apt.version(f"{p}:arm64") for p in (f"python{PYTHON}", f"xen-utils-{XEN}", "libdrm-tests")]
    contents = [kernel.name, ROOT_PACKAGES, versions, files]
    root = cached("root", contents, lambda made: build_root(apt, kernel / "Image", made))

    def build_shim(made: Path) -> None:
        run(["gcc", "-shared", "-fPIC", "-O2", "-o", made / "shim.so", HERE / "udmabuf_shim.c", "-ldl"])

    shim = cached("shim", [(HERE / "udmabuf_shim.c").read_text()], build_shim)
    return Pieces(xen=xen / "xen", kernel=kernel / "Image", disk=root / "dom0.img", shim=shim / "shim.so")


if __name__ == "__main__":
    for name, path in vars(build()).items():
        print(f"{name}: {path}")
