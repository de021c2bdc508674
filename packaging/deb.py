"""make deb: builds the Debian package for amd64 and arm64 in a separate Debian 13, checks both with lintian, and tests this machine's: the
package is installed there, and its unit runs the demonstration under a separate systemd, as the unit's user with the unit's restrictions.
The other machine's package is built with a cross compiler. Needs root, on Debian 12 or 13.

The separate Debian is in the user's cache folder, under a name derived from its contents. This machine gets mmdebstrap, which installs it,
and nothing else: no compiler, and nothing of .venv. So this file and lab/build.py need Python alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "tests"))

from lab.build import SUITE, Apt, cached, host_tools, only_one, run  # noqa: E402

OUT = TREE / "out" / "deb"
TOOLS = ("debhelper", "dh-python", "fakeroot", "lintian", "man-db", "python3-pil", "python3-pyxs", "systemd")
BOOT = """
set -e
root=$0
mount --make-rprivate /
mount --bind $root $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/dev
mkdir $root/dev/shm
for node in null zero full random urandom tty; do touch $root/dev/$node; mount --bind /dev/$node $root/dev/$node; done
mount -t tmpfs tmpfs $root/sys/fs/cgroup
mount -t cgroup2 cgroup $root/sys/fs/cgroup
exec chroot $root env -i container=deb PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 \\
    /usr/lib/systemd/systemd --system --unit=try.service --log-target=console --show-status=no
"""
"""A script that starts a systemd in its own namespaces. It runs only try.service, and ends with it."""
TRY = """
[Unit]
DefaultDependencies=no
SuccessAction=exit
FailureAction=exit
FailureActionExitStatus=1
[Service]
Type=oneshot
StandardOutput=file:/tmp/try.log
StandardError=inherit
ExecStart=/bin/sh -ex /tmp/try.sh
"""
STEPS = """
dpkg -i /tmp/displbe.deb
man -w displbe displbe.toml displbectl
displbe --version | grep -F '(pump: compiled)'
systemctl start displbe || { systemctl status --no-pager -l displbe; journalctl --no-pager -n 50 || true; exit 1; }
systemctl show -p Result displbe | grep -x Result=success
test "$(stat -c %U:%a /var/lib/displbe/demo.png)" = displbe:600
"""
CROSS = {"amd64": "gcc-x86-64-linux-gnu", "arm64": "gcc-aarch64-linux-gnu"}
"""The architectures of the packages, and the cross compilers for them."""
ELF = {"amd64": "Advanced Micro Devices X86-64", "arm64": "AArch64"}
"""The architectures as readelf names them."""
PUMP = "usr/lib/python3/dist-packages/displbe/pump/_pump.so"
INSTEAD = """
[Unit]
ConditionPathExists=
DefaultDependencies=no
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=/usr/bin/displbe demo --no-window --output /var/lib/displbe/demo.png
"""
"""A drop-in for displbe's unit, which then runs the demonstration, because there is no Xen here."""


def machine() -> str:
    """Return Debian's name of this machine's architecture."""
    return run(["dpkg", "--print-architecture"]).strip()


def others() -> list[str]:
    """Return the architectures for which packages are cross-built here."""
    return [name for name in CROSS if name != machine()]


def build_depends() -> list[str]:
    """Return the build dependencies of debian/control, without versions, architectures and profiles."""
    control = (TREE / "packaging/debian/control").read_text()
    (listed,) = re.findall(r"^Build-Depends:\n((?: .*\n)+)", control, re.M)
    return [re.split(r"[ :(<]", entry.strip())[0] for entry in listed.split(",") if entry.strip()]


def packages() -> list[str]:
    """Return the packages to install in the separate Debian: with those that compile C for the other architectures."""
    virtual = {"debhelper-compat", "dh-sequence-installsysusers", "dh-sequence-python3"}
    cross = [package for name in others() for package in (CROSS[name], f"libc6-dev:{name}")]
    return sorted({*TOOLS, *build_depends(), *cross} - virtual)


def make_root(made: Path, source: str) -> None:
    """Install the separate Debian."""
    print(f"deb: installing {SUITE} to build in; takes a minute or two, once", file=sys.stderr, flush=True)
    include = f"--include={','.join(packages())}"
    architectures = f"--architectures={','.join([machine(), *others()])}"
    run(["mmdebstrap", "--variant=buildd", architectures, include, SUITE, made / "root", source])


def inside(root: Path, *command: str) -> None:
    """Run a command in the separate Debian, in its own mount and PID namespaces, with the output of this process."""
    enter = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", enter, str(root), *command], check=True)


def try_package(root: Path, deb: Path) -> None:
    """Install the package and run its unit. Raises SystemExit with the output when that fails."""
    drop_in = root / "etc/systemd/system/displbe.service.d"
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "try.conf").write_text(INSTEAD)
    (root / "etc/systemd/system/try.service").write_text(TRY)
    (root / "tmp/try.sh").write_text(STEPS)
    shutil.copy(deb, root / "tmp/displbe.deb")
    log = root / "tmp/try.log"
    log.unlink(missing_ok=True)
    try:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc"]
        done = subprocess.run(
            [*namespaces, "sh", "-c", BOOT, str(root)], check=False, capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            output = log.read_text() if log.exists() else ""
            raise SystemExit(
                f"deb: the test of the package failed: exit {done.returncode}\n{output}{done.stdout}{done.stderr}"
            )
    finally:
        inside(root, "dpkg", "-P", "displbe")
        shutil.rmtree(drop_in)
        shutil.rmtree(root / "var/lib/displbe", ignore_errors=True)


def key() -> str:
    """Return a hash of all files that the package is built from."""
    digest = hashlib.sha256()
    for name in sorted(name for name in sources() if not name.startswith("tests/")):
        digest.update(f"{name}\0".encode() + (TREE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def is_current() -> bool:
    """Return whether out/deb has the packages of this tree in its present state."""
    made, packages = OUT / "key", (list(OUT.glob(f"displbe_*_{name}.deb")) for name in CROSS)
    return made.exists() and made.read_text() == key() and all(packages)


def built(architecture: str) -> Path:
    """Return the package of this tree in its present state for an architecture, built if needed."""
    build([])
    return package(OUT, architecture)


def package(folder: Path, architecture: str) -> Path:
    """Return the package for an architecture in a folder, in which its debug symbols may be, too."""
    (deb,) = folder.glob(f"displbe_*_{architecture}.deb")
    return deb


def inspect(root: Path, deb: Path, architecture: str) -> None:
    """Check the architecture and the dependencies of a package with the pump, with readelf in the separate Debian. Raises SystemExit."""
    field = {name: run(["dpkg-deb", "-f", deb, name]).strip() for name in ("Architecture", "Depends")}
    with tempfile.TemporaryDirectory(prefix="displbe-deb-", dir=root / "tmp") as folder:
        run(["dpkg-deb", "-x", deb, folder])
        header = run(["chroot", root, "readelf", "-h", f"/tmp/{Path(folder).name}/{PUMP}"])
    (found,) = re.findall(r"^  Machine: +(.*)$", header, re.M)
    libc = re.findall(r"libc6 \(>= [\d.]+\)", field["Depends"])
    tied = re.findall(r"python3 \(<<[^)]*\)", field["Depends"])
    print(f"deb: {deb.name}: {field['Architecture']}, pump for {found}, needs {field['Depends']}", file=sys.stderr)
    if (field["Architecture"], found) != (architecture, ELF.get(architecture, found)) or not libc or tied:
        raise SystemExit(f"deb: {deb.name} must be for {architecture}, need libc6, and not need one version of Python")


def sources() -> list[str]:
    """Return the files of the tree: tracked and new files; without git, all files but build products."""
    try:
        listed = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
        return [name for name in names if name and (TREE / name).exists()]
    except (OSError, subprocess.CalledProcessError):
        products = {".venv", "out", ".git", "__pycache__"}
        files = (path.relative_to(TREE) for path in TREE.rglob("*") if path.is_file())
        return [str(path) for path in files if not products & set(path.parts) and not path.parts[0].startswith(".")]


def copy_tree(to: Path) -> None:
    """Copy the sources, with packaging/debian as debian/."""
    for name in sources():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, target)
    shutil.copytree(to / "packaging/debian", to / "debian")


def install_host_tools() -> None:
    """Install on this machine what makes the separate Debian."""
    host_tools({"mmdebstrap": "mmdebstrap"}, headers=())


def debian() -> Path:
    """Return the root of the separate Debian, from the cache where it is there."""
    install_host_tools()
    apt = Apt()
    made_of = [apt.version("debhelper"), machine(), packages()]
    return cached("deb", made_of, lambda made: make_root(made, apt.source)) / "root"


def build(arguments: Sequence[str]) -> None:
    """Build the package into out/deb, if the one there is not that of this tree. With `arguments`, for dpkg-buildpackage, build it always.

    Raises SystemExit, or CalledProcessError when a step fails; the step has printed the reason.
    """
    with only_one("package"):
        if arguments or not is_current():
            base = debian()
            with tempfile.TemporaryDirectory(prefix="displbe-deb-", dir=base / "tmp") as work:
                build_in(base, Path(work), arguments)
    print(*sorted(str(path.relative_to(TREE)) for path in OUT.glob("*.deb")))


def build_in(base: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Build, check and test in a folder of the separate Debian. `arguments` are for dpkg-buildpackage."""
    made_of = key()
    copy_tree(folder / "displbe")
    os.chmod(folder, 0o755)
    inner = f"/tmp/{folder.name}"
    more = " ".join(arguments)
    for options in ("", *(f"--build=any --host-arch={other} --build-profiles=cross,nocheck" for other in others())):
        inside(base, "sh", "-c", f"cd {inner}/displbe && dpkg-buildpackage -us -uc {options} {more}")
    print("deb: lintian", file=sys.stderr, flush=True)
    strict = "--allow-root --fail-on=error,warning --display-info --pedantic --tag-display-limit=0"
    for changes in sorted(folder.glob("*.changes")):
        inside(base, "sh", "-c", f"cd {inner} && lintian {strict} {changes.name}")
    for architecture in (machine(), *others()):
        inspect(base, package(folder, architecture), architecture)
    print("deb: installing the package and running its unit", file=sys.stderr, flush=True)
    try_package(base, package(folder, machine()))
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file():
            shutil.copy(path, OUT)
    if not arguments:
        (OUT / "key").write_text(made_of)


if __name__ == "__main__":
    build(sys.argv[1:])
