"""make deb: the Debian package, built in a Debian 13 of its own and looked at by its lintian. Needs root, on Debian 12 or 13.

That Debian lies in the user's cache folder, under a name made from what is in it.
"""

from __future__ import annotations

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
TOOLS = ("debhelper", "dh-python", "fakeroot", "lintian")


def build_depends() -> list[str]:
    """What debian/control says, without versions and profiles."""
    control = (TREE / "packaging/debian/control").read_text()
    (listed,) = re.findall(r"^Build-Depends:\n((?: .*\n)+)", control, re.M)
    return [re.split(r"[ (<]", entry.strip())[0] for entry in listed.split(",") if entry.strip()]


def packages() -> list[str]:
    """What is to be in the Debian that builds."""
    virtual = {"debhelper-compat", "dh-sequence-installsysusers", "dh-sequence-python3"}
    return sorted({*TOOLS, *build_depends()} - virtual)


def make_root(made: Path, source: str) -> None:
    print(f"deb: making a {SUITE} to build in; a minute or two, once", file=sys.stderr, flush=True)
    include = f"--include={','.join(packages())}"
    run(["mmdebstrap", "--variant=buildd", include, SUITE, made / "root", source])


def inside(root: Path, *command: str) -> None:
    """Run a command there, in name spaces of its own, as far as that goes on this machine. What it says is ours to say."""
    enter = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", enter, str(root), *command], check=True)


def sources() -> list[str]:
    """The files of the tree: those that git knows, and new ones; without git, all but what building leaves."""
    try:
        listed = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
        return [name for name in names if name and (TREE / name).exists()]
    except (OSError, subprocess.CalledProcessError):
        left = {".venv", "out", ".git", "__pycache__"}
        files = (path.relative_to(TREE) for path in TREE.rglob("*") if path.is_file())
        return [str(path) for path in files if not left & set(path.parts) and not path.parts[0].startswith(".")]


def copy_tree(to: Path) -> None:
    """The sources, with packaging/debian as debian/."""
    for name in sources():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, target)
    shutil.copytree(to / "packaging/debian", to / "debian")


def build(arguments: Sequence[str]) -> None:
    host_tools()
    with only_one():
        apt = Apt()
        key = [apt.version("debhelper"), packages(), Path(__file__).read_text()]
        base = cached("deb", key, lambda made: make_root(made, apt.source)) / "root"
    with tempfile.TemporaryDirectory(prefix="displbe-deb-", dir=base / "tmp") as work:
        place = Path(work)
        copy_tree(place / "displbe")
        os.chmod(place, 0o755)
        there = f"/tmp/{place.name}"
        inside(base, "sh", "-c", f"cd {there}/displbe && dpkg-buildpackage -us -uc {' '.join(arguments)}")
        changes = [path.name for path in place.glob("*.changes")]
        strict = "--allow-root --fail-on=error,warning --display-info --pedantic --tag-display-limit=0"
        lint = f"cd {there} && lintian {strict} {' '.join(changes)}"
        inside(base, "sh", "-c", lint)
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
        for path in place.iterdir():
            if path.is_file():
                shutil.copy(path, OUT)
    print(*sorted(str(path.relative_to(TREE)) for path in OUT.glob("*.deb")))


if __name__ == "__main__":
    build(sys.argv[1:])
