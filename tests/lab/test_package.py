"""The Debian package in Dom0, with Debian's Python and a real systemd: the unmodified unit, its user, its devices by the udev rules.

systemd is not Dom0's init here. It runs in namespaces of its own, and treats the service as it does elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from lab.backend import LOG, no_zombie, screens
from lab.package import check_devices, debian_package
from lab.pictures import Picture
from lab.vm import LabError, Machine, Result, guest_config

BOOT = """
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /usr/lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
"""
TARGET = "[Unit]\nDescription=Nothing but what is asked for\nDefaultDependencies=no\n"
# Dom0's own init has started the units that displbe.service is ordered after. Without DefaultDependencies, it needs no basic.target.
ORDER = "[Unit]\nDefaultDependencies=no\n"
# Under emulation, a start takes fifteen times as long, and so may a turn of the event loop.
SLOW = f"[Service]\nWatchdogSec=30s\nTimeoutStopSec=60s\nStandardError=append:{LOG}\n"
CAPABILITIES = r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\t0+\n"


class Service:
    """displbe.service."""

    def __init__(self, machine: Machine, manager: int) -> None:
        self.machine = machine
        self._enter = f"nsenter -t {manager} -m -p -C -r -w"

    def systemctl(self, command: str, timeout: float = 90) -> str:
        """Run systemctl on the service. Return its output. Raises LabError."""
        return self.machine.check(f"{self._enter} systemctl --no-pager {command} displbe.service", timeout)

    def run(self, command: str) -> Result:
        """Run a command in the namespaces in which systemctl works."""
        return self.machine.run(f"{self._enter} {command}")

    def ask(self, name: str) -> str:
        """Return a property of the service."""
        return self.systemctl(f"show --value -p {name}").strip()

    @property
    def pid(self) -> int:
        """The process id of displbe, in Dom0's own namespace."""
        return int(self.machine.check("pgrep -o -u displbe"))


@pytest.fixture(scope="module")
def package(machine: Machine) -> Iterator[None]:
    """The package, installed by dpkg, with udev, the package's rules, and the groups that udev's package would have made."""
    machine.put("/tmp/displbe.deb", debian_package("arm64"))
    machine.check("systemd-sysusers")
    if machine.run("test -e /run/udev/control").code != 0:
        machine.check("/usr/lib/systemd/systemd-udevd --daemon")
    machine.check("udevadm trigger --action=add; udevadm settle", 90)
    # Dom0's packages were unpacked without dpkg, so their scripts have not run.
    machine.check("type diff || ln -s busybox /usr/bin/diff")
    machine.check("dpkg --force-depends --force-confnew -i /tmp/displbe.deb && udevadm settle", 180)
    yield
    machine.check("dpkg --force-depends -P displbe", 120)
    machine.check("chown root:root /dev/xen/{gntdev,evtchn,xenbus}; chmod 600 /dev/xen/{gntdev,evtchn,xenbus}")


@pytest.fixture(scope="module")
def service(machine: Machine, package: None, reference: Callable[..., Picture]) -> Iterator[Service]:
    """The running service. The reference picture is drawn before."""
    reference()
    drop_in = "/etc/systemd/system/displbe.service.d/lab.conf"
    for path, text in (
        ("/root/boot-systemd.sh", BOOT),
        ("/etc/systemd/system/lab.target", TARGET),
        (drop_in, ORDER + SLOW),
        ("/etc/displbe/displbe.toml", 'sink = "drm"\n'),
    ):
        machine.put(path, text)
    group = machine.start(
        "exec unshare --mount --pid --fork --cgroup bash /root/boot-systemd.sh", "/var/log/systemd.log"
    )
    try:
        find = "pgrep -f -- '--unit=lab[.]target'"
        machine.wait_for(find, 30, why="systemd")
        manager = int(machine.check(find).split()[-1])
        made = Service(machine, manager)
        machine.wait_for(lambda: ready(made), 60, why="systemd's readiness")
        try:
            made.systemctl("start", 120)
        except LabError as error:
            raise LabError(f"{error}\n{machine.run(f'tail -c 5000 /var/log/systemd.log {LOG}').output}") from error
        yield made
        made.systemctl("stop", 120)
        assert made.ask("Result") == "success"
        machine.run(f"kill -KILL {manager}")
    finally:
        machine.run(f"kill -KILL -- -{group}; rm -f {drop_in} /etc/systemd/system/lab.target")


def ready(service: Service) -> bool:
    try:
        return bool(service.ask("LoadState") == "loaded")
    except LabError:
        return False


def test_files(machine: Machine, package: None) -> None:
    """The package's files are installed, the programs use Debian's Python, the pump can be loaded, and a user without rights can read
    version and manual pages.
    """
    machine.check("dpkg -V displbe")
    assert machine.check("head -n 1 /usr/bin/displbe").split() == ["#!", "/usr/bin/python3"]
    as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    said = machine.check(f"cd /; {as_nobody} /usr/bin/displbe --version")
    assert re.fullmatch(r"displbe [\d.]+ \(pump: compiled\)\n", said)
    assert machine.check(f"cd /; {as_nobody} /usr/bin/displbectl --version").startswith("displbectl ")
    machine.check(
        "busybox zcat /usr/share/man/man8/displbe.8.gz /usr/share/man/man1/displbectl.1.gz | grep -q 'SH OPTIONS'"
    )


def test_devices(machine: Machine, package: None) -> None:
    """By the package's rules, udev has given Xen's devices to the group, except privcmd, which only root may open."""
    check_devices(machine)


def test_begins_without_the_modules_devices(machine: Machine, service: Service) -> None:
    """The unit's conditions do not require devices that modules create later: without gntdev, the service retries until it is there."""
    machine.check("mv /dev/xen/gntdev /dev/xen/away")
    try:
        service.systemctl("restart --no-block")
        machine.wait_for(lambda: int(service.ask("NRestarts")) > 0, 120, why="another try")
        assert service.ask("ConditionResult") == "yes"
        machine.check(f"grep -q '/dev/xen/gntdev: No such file' {LOG}")
    finally:
        machine.check("mv /dev/xen/away /dev/xen/gntdev")
    machine.wait_for(lambda: service.ask("ActiveState") == "active", 120, why="displbe's readiness")


def test_user(machine: Machine, service: Service) -> None:
    """The service runs as its own user, in the groups of the unit, without any capability, under systemd's system call filter."""
    status = machine.check(f"cat /proc/{service.pid}/status")
    user, group = machine.check("id -u displbe; id -g displbe").split()
    assert re.search(rf"^Uid:(\t{user}){{4}}$", status, re.M)
    assert re.search(rf"^Gid:(\t{group}){{4}}$", status, re.M)
    groups = machine.check("getent group video render input displbe-xen displbe | cut -d: -f3").split()
    (theirs,) = re.findall(r"^Groups:\t(.*)$", status, re.M)
    assert {group, *theirs.split()} == set(groups)
    assert len(re.findall(CAPABILITIES, status)) == 5
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)
    mounts = machine.check(f"cat /proc/{service.pid}/mounts")
    assert re.search(r"^\S+ / \S+ ro[, ]", mounts, re.M)


def test_operator(machine: Machine, service: Service) -> None:
    """A member of the group displbe can use displbectl, but cannot open Xen's devices. Other users can do neither."""
    group = machine.check("id -g displbe").strip()
    nobody = "cd /; setpriv --reuid 65534 --regid 65534"
    assert "no guest has a device here" in machine.check(f"{nobody} --groups {group} displbectl status")
    for groups in (f"--groups {group}", "--clear-groups"):
        assert machine.run(f"{nobody} {groups} dd if=/dev/xen/xenbus count=0").code != 0
    stranger = machine.run(f"{nobody} --clear-groups displbectl status")
    assert stranger.code == 1
    assert "only root and the group" in stranger.output


def test_check(machine: Machine, service: Service) -> None:
    """The check, run by root, opens files as the service's user, and reports a file that only root may open."""
    said = service.run("displbectl check")
    print(said.output)
    assert said.code == 0
    assert "checked as the user displbe" in said.output
    assert "ok      /dev/xen/gntdev can be opened" in said.output
    assert "card0 cannot be used" not in said.output
    machine.check("chgrp root /dev/xen/gntdev")
    try:
        said = service.run("displbectl check")
        assert said.code == 1
        assert "error   displbe has no access to /dev/xen/gntdev" in said.output
    finally:
        machine.check("chgrp displbe-xen /dev/xen/gntdev")


def test_only_one(machine: Machine, service: Service) -> None:
    """A second daemon ends with exit code 69 and a message while another one runs."""
    second = machine.run("displbe")
    assert second.code == 69
    assert "another displbe runs in this domain" in second.output


def test_picture(machine: Machine, service: Service, reference: Callable[..., Picture]) -> None:
    """The service shows a guest's picture without a copy, the pump serves its flips, and displbectl reports both."""
    connector = next(iter(machine.connectors()))
    machine.create("still", guest_config("still", screens(connector)))
    try:
        machine.wait_console("still", "guest: drawing", 60)
        machine.expect_picture(reference(), "guest-package")
        told = machine.check("displbectl status")
        assert re.search(r"^guest still, domain \d+$", told, re.M)
        assert "path      zero copy" in told
        assert re.search(r"^  pump +on$", told, re.M)
    finally:
        machine.destroy("still")
    no_zombie(machine)


def test_killed(machine: Machine, service: Service, reference: Callable[..., Picture]) -> None:
    """After `kill -9`, systemd starts the service again, and the guest, which ran on, has its picture back. The guest's display was closed
    before the new daemon looked at it: the daemon found no rings of an earlier backend.
    """
    connector = next(iter(machine.connectors()))
    machine.create("still", guest_config("twice", screens(connector), seconds=20))
    found = f"grep -c 'rings of an earlier backend' {LOG}"
    rings = machine.run(found).output
    try:
        machine.wait_console("still", "guest: drawing", 60)
        machine.expect_picture(reference(), "guest-package-before")
        before, restarts = service.pid, int(service.ask("NRestarts"))
        machine.check(f"kill -KILL {before}")
        machine.wait_for(lambda: int(service.ask("NRestarts")) == restarts + 1, 60, why="the restart")
        machine.wait_for(lambda: service.ask("ActiveState") == "active", 90, why="displbe's readiness")
        assert service.pid != before
        machine.wait_console("still", "guest: drawing", 120, count=2)
        machine.expect_picture(reference(), "guest-package-after")
        assert machine.run(found).output == rings
    finally:
        machine.destroy("still")
    no_zombie(machine)
