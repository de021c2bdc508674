"""displbe in a driver domain, which has no more rights in XenStore than any guest. It shows the guests' screens."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import LOG, TREE
from lab.conftest import project
from lab.figures import Figure
from lab.pictures import Picture, drawn
from lab.tried import EXACT, Tried
from lab.vm import SAME, SLOWER, LabError, Machine, guest_config
from PIL import Image

CONFIG = 'sink = "headless"\n[log]\nlevel = "debug"\n[headless]\ndirectory = "/run/pictures"\noutputs = ["Virtual-1"]\n'
CONFIG += "[guest.closed]\nscreenshot = false\n"
CTL = f"cd {TREE}; python3 -m displbe.ctl"
WATCHES = """
import os, struct, time
device, number = os.open("/dev/xen/xenbus", os.O_RDWR), 0
try:
    while True:
        body = b"/nowhere\\0%d\\0" % number
        os.write(device, struct.pack("=4I", 4, number, 0, len(body)) + body)  # XS_WATCH
        number += 1
except OSError as error:
    print(number, error.strerror, flush=True)
time.sleep(1000)
"""
SCREEN = "vdispl=['backend=domd,be-alloc=0,connectors=Virtual-1:1024x768']"


class DriverDomain:
    """The domain `domd`, which boots from Dom0's second disk. It gets commands through XenStore, and answers on its console."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._asked = 0
        machine.check("mkdir -p /mnt && mount /dev/vdb /mnt")
        machine.put_tree(project(), f"/mnt{TREE}")
        machine.put("/mnt/etc/displbe/displbe.toml", CONFIG)
        machine.put("/mnt/root/watches.py", WATCHES)
        machine.check("umount /mnt")
        # The toolstack's own script needs more tools than this root file system has.
        script = (
            '#!/bin/sh\n[ "$1" = add ] && xenstore-write $XENBUS_PATH/physical-device $(stat -L -c %t:%T /dev/vdb) '
        )
        machine.put("/root/block-domd", script + "$XENBUS_PATH/hotplug-status connected\nexit 0\n")
        machine.check("chmod +x /root/block-domd")
        boot = f"console=hvc0 root=/dev/xvda rw vkms.create_default_dev=0 init=/init.domd {SAME}"
        self.domid = machine.create(
            "domd",
            f'type="pvh"\nkernel="/domu/vmlinuz"\nmemory=512\nvcpus=1\ndriver_domain=1\nextra={json.dumps(boot)}\n'
            'disk=["format=raw,vdev=xvda,access=rw,backendtype=phy,script=/root/block-domd,target=/dev/vdb"]\n',
        )
        machine.wait_console("domd", "domd: up", 90)

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a bash command in the domain. Return its output. Raises LabError if it fails."""
        self._asked += 1
        node = f"/local/domain/{self.domid}/data/run"
        self.machine.check(f"xenstore-write {node} {shlex.quote(f'{self._asked} {command}')}")
        end = f"domd: end {self._asked} "
        console = self.machine.wait_console("domd", end, timeout)
        said, _, code = console.partition(f"domd: begin {self._asked}\n")[2].rpartition(end)
        if not code.startswith("0"):
            raise LabError(f"in the driver domain: {command}: exit {code}\n{said[-4000:]}")
        return said

    def log(self) -> str:
        """Return displbe's log."""
        return self.run(f"cat {LOG}")

    def wait_log(self, text: str, timeout: float = 60) -> None:
        """Wait for a line of displbe's log."""
        self.run(
            f"for try in {{1..{timeout * 2 * SLOWER:.0f}}}; do grep -q {text!r} {LOG} && exit 0; sleep 0.5; done; exit 1",
            timeout + 30,
        )

    def held(self) -> str:
        """Return the resources that displbe holds, as the kernel counts them: fds, mappings, ports."""
        pid = "$(cat /run/displbe.pid)"
        return self.run(
            f"ls /proc/{pid}/fd | wc -l; grep -c xen/gntdev /proc/{pid}/maps; grep -c evtchn:python3 /proc/interrupts; true"
        )


@pytest.fixture(scope="module")
def machine(out: Path) -> Iterator[Machine]:
    """A machine of its own: three domains need more memory, and Xen's usual policy on Arm, SILO, lets guests share nothing."""
    with Machine(out=out, memory=3072, second_disk=True, xenargs="xsm=dummy") as running:
        try:
            yield running
        finally:
            running.keep_logs()


@pytest.fixture(scope="module")
def domd(machine: Machine) -> Iterator[DriverDomain]:
    """The driver domain, in which displbe runs."""
    domain = DriverDomain(machine)
    start = f"cd {TREE}; echo $BASHPID >/run/displbe.pid; exec python3 -m displbe --config /etc/displbe/displbe.toml"
    domain.run(f"mkdir -p /var/log /run/displbe; ({start}) >{LOG} 2>&1 & sleep 0.1")
    domain.wait_log("ready")
    yield domain
    print(f"\ndriver domain: displbe's log\n{domain.log()}")


def png(domd: DriverDomain, name: str) -> Picture:
    """Return the picture that the headless sink has written in the driver domain."""
    packed = base64.b64decode(domd.run(f"base64 -w0 /run/pictures/{name}.png; echo"))
    with Image.open(io.BytesIO(packed)) as image:
        rgb = image.convert("RGB")
        return Picture(rgb.width, rgb.height, rgb.tobytes())


def test_picture_and_detach(machine: Machine, out: Path, domd: DriverDomain, figure: Figure, tried: Tried) -> None:
    """displbe shows a guest's picture, answers the toolstack's detach in time, and keeps nothing mapped."""
    idle = domd.held()
    try:
        machine.create("shown", guest_config("survive", SCREEN))
        machine.wait_console("shown", "survive: card 1", 90)
        assert domd.held() != idle
        took = machine.timed("xl vdispl-detach shown 0")
        figure(f"detached after {took:.1f} s")
        assert took < 3  # libxl gives a backend 10 s, then reports a failure
        domd.run("for try in {1..40}; do test -e /run/pictures/Virtual-1.png && exit 0; sleep 0.5; done; exit 1")
        seen = png(domd, "Virtual-1")
        seen.save(out / "driver-domain.png")
        assert seen.differs(drawn(1024, 768, 0)) == 0
        tried(machine, "shown", "none", "headless, in a driver domain", "copy", EXACT)
        machine.wait_for(lambda: domd.held() == idle, 30, why="everything released")
    finally:
        machine.destroy("shown")


def test_death_of_a_guest(machine: Machine, domd: DriverDomain, figure: Figure) -> None:
    """displbe notices that a guest is destroyed, twice, without `@releaseDomain`, which a driver domain may not watch."""
    idle = domd.held()
    for turn in range(2):
        machine.create("dying", guest_config("survive", SCREEN))
        machine.wait_console("dying", "survive: card 1", 90)
        took = machine.timed("xl destroy dying")
        machine.wait_for(lambda: not machine.exists("dying"), 30, why="the end of the guest")
        figure(f"destroyed after {took:.1f} s")
        assert took < 3
        machine.wait_for(lambda: domd.held() == idle, 30, why=f"everything released after the {turn + 1}. guest")
    machine.wait_for(lambda: "(null)" not in machine.check("xl list"), 30, why="the end of a dead guest")
    listed = machine.check(f"xenstore-ls /local/domain/{domd.domid}/backend/vdispl || true")
    assert "state" not in listed, listed
    log = domd.log()
    assert "Traceback" not in log
    wrong = [line for line in log.splitlines() if '"level": "error"' in line]
    assert not wrong, wrong


def test_name_of_a_guest(machine: Machine, domd: DriverDomain) -> None:
    """displbe cannot read a guest's name until Dom0 allows it. Until then it makes no screenshots, which the configuration may forbid."""
    domid = machine.create("shown", guest_config("survive", SCREEN))
    try:
        machine.wait_console("shown", "survive: card 1", 90)
        domd.wait_log("name is not known here")
        domd.run(f"{CTL} screenshot {domid} /run/shot.png 2>&1 | grep 'name is not known here'")
        machine.check(f"xenstore-chmod /local/domain/{domid}/name n0 r{domid} r{domd.domid}")
        domd.run(f"{CTL} kick {domid}")
        machine.wait_console("shown", "survive: card 2", 90)
        again = f"for try in {{1..20}}; do {CTL} screenshot shown /run/shot.png && exit 0; sleep 0.5; done; exit 1"
        domd.run(again, 180)
        domd.run(f"{CTL} status | grep 'guest shown, domain {domid}'")
    finally:
        machine.destroy("shown")


def test_watches_that_are_used_up(machine: Machine, domd: DriverDomain) -> None:
    """When XenStore's quota of watches is used up, a guest's `error` node says so; when there is room again, guests are served.

    This test is the last one, because it leaves errors in the log.
    """
    wait = "for try in {1..60}; do test -s /run/watches && exit 0; sleep 0.5; done; exit 1"
    domd.run(f"python3 /root/watches.py >/run/watches 2>&1 & echo $! >/run/watches.pid; {wait}")
    count, _, why = domd.run("cat /run/watches").partition(" ")
    print(f"\ndriver domain: after {count} more watches: {why}")
    assert int(count) <= 128
    try:
        machine.put("/root/guests/late.cfg", f"name='late'\n{guest_config('survive', SCREEN)}")
        creating = machine.start("xl create /root/guests/late.cfg", "/tmp/late.log")
        home = f"/local/domain/{domd.domid}/backend/vdispl"
        told = f"for id in $(xenstore-list {home}); do xenstore-read {home}/$id/0/error; done | grep -q quota"
        machine.wait_for(told, 60, why="the device's error node")
        domd.wait_log("XenStore refuses to watch")
    finally:
        domd.run("kill $(cat /run/watches.pid)")
    machine.wait_for(
        lambda: not machine.running(creating), 90, why="xl's end"
    )  # xl has given up, or the guest was served just in time
    machine.destroy("late")
    try:
        machine.create("late", guest_config("survive", SCREEN))
        machine.wait_console("late", "survive: card 1", 90)
    finally:
        machine.destroy("late")
