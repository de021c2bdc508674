"""The commands and units that README.md and docs/ tell their readers to use. What the lab runs, it takes from there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Final

__all__ = ["ELSEWHERE", "IN_A_GUEST", "as_told", "blocks", "commands", "unit_of"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = """
adduser apt apt-get cat dmesg displbe displbectl echo evtest fuser grep journalctl ls lsmod modetest modprobe pip systemctl udevadm weston
xenstore-chmod xenstore-read xenstore-write xl
"""
IN_A_GUEST: Final = (
    "modprobe drm_xen_front",
    "dmesg | grep -i xen",
    "lsmod | grep drm_xen_front",
    "ls -l /sys/class/drm/card?/device/driver",
    "modetest -M xendrm-du -s Virtual-1:1024x768",
    "evtest /dev/input/eventN",
)
"""The commands for a guest."""
ELSEWHERE: Final = {
    # Other cases run them.
    "apt install ./out/deb/displbe_*_$(dpkg --print-architecture).deb": "tests/lab/test_x86.py: package",
    "echo 'u weston -' | systemd-sysusers -": "tests/lab/test_x86.py: weston_shown",
    "systemctl enable --now displbe": "tests/lab/test_x86.py: service",
    "weston --drm-device=card1": "tests/lab/test_x86.py: test_hvm",
    "xl console GUEST": "tests/lab/test_x86.py: test_commands_for_a_guest",
    "xl create": "tests/lab/vm.py: create",
    "xl restore": "tests/lab/test_x86.py: test_suspended_saved_restored",
    "xl resume": "tests/lab/test_x86.py: test_suspended_saved_restored",
    "xl save -c": "tests/lab/test_x86.py: test_suspended_saved_restored",
    "xl suspend": "tests/lab/test_x86.py: test_suspended_saved_restored",
    "xl vdispl-detach": "tests/lab/test_x86.py: test_pvh_and_attached",
    "xl console desktop": "tests/lab/test_x86.py: test_page_for_a_pc",
    "xl create /etc/xen/desktop.cfg": "tests/lab/test_x86.py: test_page_for_a_pc",
    "xl shutdown desktop": "tests/lab/test_x86.py: test_page_for_a_pc",
    "displbectl check /etc/xen/desktop.cfg": "tests/lab/test_x86.py: test_page_for_a_pc",
    "displbectl trace --file FILE": "tests/scenario/test_operator.py: test_traces_are_kept_when_devices_are_shut_off",
    # Not run by a case.
    "apt install make": "for a new machine, before this repository's commands",
    "apt install mmdebstrap": "tests/lab/build_x86.py installs it, on the machine that makes the disks",
    "apt-get install make python3": "for a new machine, before this repository's commands",
    "displbe does not run here": "a message",
    "displbectl check [GUEST.cfg …]": "the syntax of a command that is run",
    "displbectl focus": "the name of a command that is run with a guest",
    "displbectl reopen": "the name of a command that is run with a guest",
    "displbectl top": "endless",
    "pip install": "the name of a command",
    "pip install 'displbe[drm,input]'": "the lab has no network; packaging/wheel.py installs a wheel in this way",
    "pip install 'displbe[wayland]'": "the lab has no network; packaging/wheel.py installs a wheel in this way",
    "pip install --force-reinstall": "the lab has no network",
    "systemctl edit displbe": "an editor; the lab writes the same file",
    "xenstore-write drivers/displbe/status ready": "displ_be's",
}
"""The other commands that are not run in Dom0 by test_commands_of_the_documents, with the reason."""


def as_told(document: str, command: str) -> str:
    """Return a command, which a document must tell its readers to run."""
    assert command in (REPOSITORY / document).read_text(), f"{document} does not say: {command}"
    return command


def unit_of(document: str, after: str) -> str:
    """Return the unit, or the drop-in, that a document shows after these words."""
    (unit,) = re.findall(re.escape(after) + r"\n\n((?:    .*\n)+)", (REPOSITORY / document).read_text())
    return textwrap.dedent(unit)


def blocks(document: str) -> list[str]:
    """Return what a document shows as code, block by block."""
    return [
        textwrap.dedent(block) for block in re.findall(r"(?<=\n\n)((?:    .*\n)+)", (REPOSITORY / document).read_text())
    ]


def commands() -> set[str]:
    """Return all commands of the documents: a program's name and more words, as code in a sentence or as a line of its own."""
    found = set()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        text = path.read_text()
        inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)
        lines = re.findall(r"^    (?:make deb && )?(.*?)\s*(?:\s#.*)?$", text, re.M)
        found |= {" ".join(code.replace(r"\|", "|").split()) for code in (*inline, *lines)}
    return {code for code in found if " " in code and code.split()[0] in PROGRAMS.split()}
