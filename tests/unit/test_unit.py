"""The service: what systemd says of its exposure, and that each point left has its reason in the unit; its user, devices and folders."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNIT = SYSTEMD / "displbe.service"
MOST = 1.5
LEFT = {
    "DeviceAllow",
    "MemoryDenyWriteExecute",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateUsers",
    "RestrictAddressFamilies_AF_NETLINK",
    "RestrictAddressFamilies_AF_UNIX",
    "RestrictRealtime",
    "RootDirectoryOrRootImage",
    "SupplementaryGroups",
    "SystemCallFilter_resources",
}
"""What `systemd-analyze security` counts, of Debian 12's systemd and of 13's."""


def settings() -> dict[str, list[str]]:
    """The unit's lines."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


def analysed() -> list[dict[str, object]]:
    """The points of `systemd-analyze security`."""
    command = ["systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_exposure() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST * 10:.0f}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-200:])
    assert done.returncode == 0
    (exposure,) = re.findall(r"exposure level for .*?: .*?([\d.]+)", re.sub(r"\x1b\S*?[m\\]", "", done.stdout))
    assert float(exposure) <= MOST


def test_the_pump_may_have_a_priority() -> None:
    """The lowest real-time priority, and the system call for it, which an earlier line forbids."""
    found = settings()
    assert found["LimitRTPRIO"] == ["1"]
    calls = found["SystemCallFilter"]
    (forbidden,) = (place for place, calls in enumerate(calls) if calls.startswith("~"))
    assert calls.index("sched_setscheduler") > forbidden


def test_each_point_left_has_its_reason() -> None:
    """A comment in the unit begins with its name."""
    left = {str(point["json_field"]) for point in analysed() if point["exposure"]}
    assert left == LEFT
    reasons = "\n".join(re.findall(r"^# ([\w, ]+): ", UNIT.read_text(), re.M))
    for name in left:
        assert name.removesuffix("OrRootImage").partition("_")[0] in re.findall(r"\w+", reasons), name


def test_who_it_is() -> None:
    """The user that sysusers.d makes, without capabilities, in groups that udev's own rules give devices to, and that are made."""
    unit = settings()
    (user,) = unit["User"]
    made = (SYSTEMD / "displbe.sysusers").read_text()
    assert re.findall(r"^u (\S+) - ", made, re.M) == [user]
    assert re.findall(r"^g (\S+) -$", made, re.M) == unit["SupplementaryGroups"][0].split()
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert unit["SupplementaryGroups"] == ["displbe-xen video render input"]


def test_devices_are_those_of_the_rules() -> None:
    """Xen's devices that the unit allows are those that the rules give, and no others: to a group that the daemon alone is in. Whose
    group the sockets have, an operator's, must not have them.
    """
    allowed = {line.split()[0].removeprefix("/dev/") for line in settings()["DeviceAllow"]}
    rules = (SYSTEMD / "60-displbe.rules").read_text()
    ((given, group),) = re.findall(r'^SUBSYSTEM=="misc", KERNEL=="(\S+)", GROUP="(\S+)", MODE="0660"$', rules, re.M)
    assert group != settings()["Group"][0]
    assert group in settings()["SupplementaryGroups"][0].split()
    assert set(given.split("|")) == {name for name in allowed if name.startswith("xen/")}
    assert allowed - set(given.split("|")) == {"char-drm", "char-input"}


def test_its_condition_is_decided_before_it_is_looked_at() -> None:
    """systemd looks once: what a module or xenstored makes later must be no condition. The modules are loaded before it starts."""
    unit = settings()
    assert [(key, unit[key]) for key in unit if key.startswith("Condition")] == [
        ("ConditionPathExists", ["/dev/xen/xenbus"])
    ]
    modules = {"modprobe@xen_gntdev.service", "modprobe@xen_evtchn.service"}
    assert modules <= set(" ".join(unit["Wants"]).split())
    assert modules <= set(" ".join(unit["After"]).split())


@pytest.mark.parametrize(("key", "folder"), [("RuntimeDirectory", "/run"), ("StateDirectory", "/var/lib")])
def test_folders(key: str, folder: str) -> None:
    """What the unit makes is what tmpfiles.d makes, of the same mode."""
    unit = settings()
    (name,), (mode,) = unit[key], unit[f"{key}Mode"]
    assert f"\nd {folder}/{name} {mode} displbe displbe -\n" in (SYSTEMD / "displbe.tmpfiles").read_text()


def test_systemd_reads_it(tmp_path: Path) -> None:
    """No line that systemd does not understand, but for two that Debian 12's does not know yet; its program and pages are not here."""
    text = UNIT.read_text().replace("/usr/bin/displbe ", "/bin/true ").replace("Documentation=", "#")
    unit = tmp_path / "displbe.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "displbe.service" in line]
    assert [line for line in said if "'RestartSteps'" not in line and "'RestartMaxDelaySec'" not in line] == []
