"""DRM mastership: other masters, no privileges, a session manager's seat, and the picture that was on the screen before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from lab.backend import backend, no_zombie, screens
from lab.pictures import Picture
from lab.test_drm import config, wait_event
from lab.vm import Machine, guest_config

# Takes another process's file of the card, as a session manager holds it, and drops master through it, repeatedly for some seconds.
DROP_MASTER = """
import ctypes, fcntl, os, sys, time
pid, node, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
for name in os.listdir(f"/proc/{pid}/fd"):
    if os.readlink(f"/proc/{pid}/fd/{name}") == node:
        theirs = libc.syscall(438, os.pidfd_open(pid), int(name), 0)
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.ioctl(theirs, 0x641F, 0)
            except OSError:
                pass
            if time.monotonic() >= until:
                break
            time.sleep(0.005)
"""
SWITCH = """
import fcntl, os, sys
with open("/dev/tty0") as console:
    fcntl.ioctl(console, 0x5606, int(sys.argv[1]))
"""
POWERLESS = "setpriv --bounding-set=-all --inh-caps=-all"
"""Root without any capability, as systemd/displbe.service runs it."""


@pytest.fixture
def name(machine: Machine) -> str:
    """The name of the first card's connector."""
    return next(iter(machine.connectors()))


@pytest.fixture(autouse=True)
def _guests(machine: Machine) -> Iterator[None]:
    yield
    machine.destroy("one")
    no_zombie(machine)


@contextlib.contextmanager
def modetest(machine: Machine, name: str, pattern: str) -> Iterator[Callable[[], None]]:
    """Run another program that is DRM master and shows a picture. The block gets a function that ends it."""
    command = f"exec modetest -D {machine.card().bus} -s {name}:1024x768 -F {pattern} < <(exec sleep 1000)"
    group = machine.start(command)
    try:
        yield lambda: machine.stop(group)
    finally:
        machine.run(f"kill -KILL -- -{group}")


def drop_master(machine: Machine, pid: int, seconds: float) -> None:
    """Take DRM mastership away from a process for some seconds."""
    machine.put("/tmp/drop.py", DROP_MASTER)
    command = f"python3 /tmp/drop.py {pid} {machine.card().node} {seconds}"
    if seconds:
        machine.start(command, "/tmp/drop.log")
    else:
        machine.check(command)


@pytest.mark.parametrize(
    ("prefix", "seat"),
    [("", False), (POWERLESS, False), (POWERLESS, True)],
    ids=["root", "without-capabilities", "through-a-seat"],
)
def test_other_master(machine: Machine, reference: Callable[..., Picture], name: str, prefix: str, seat: bool) -> None:
    """Another program is DRM master when displbe starts, and ends; later it takes the card, draws, and ends again."""
    plain, wanted = reference(pattern="plain"), reference()
    with (
        modetest(machine, name, "plain") as end,
        seatd(machine) if seat else contextlib.nullcontext(),
        contextlib.ExitStack() as stack,
    ):
        machine.expect_picture(plain, "other-master-first")
        displbe = stack.enter_context(backend(machine, config(), prefix=prefix))
        machine.create("one", guest_config("still", screens(name)))
        machine.wait_console("one", "guest: drawing", 60)
        wait_event(displbe, "output dark", reason="another program is DRM master")
        assert machine.screendump() == plain
        end()
        machine.expect_picture(wanted, "other-master-ended", timeout=10)
        assert bool(displbe.events("the card is opened anew")) == bool(prefix)

        if seat:
            return  # a program takes the card from a session manager's client through the session manager: test_seat
        drop_master(machine, displbe.pid, 5)
        machine.sleep(1)
        with modetest(machine, name, "plain") as end_again:
            machine.expect_picture(plain, "other-master-again", timeout=10)
            taken = "another program is DRM master now: waiting for it to end"
            wait_event(displbe, taken)
            end_again()
        machine.expect_picture(wanted, "other-master-ended-again", timeout=10)
        assert len(displbe.events(taken)) == 1


def test_restored(machine: Machine, reference: Callable[..., Picture], name: str) -> None:
    """The picture of another program that still runs (a boot splash) is on the screen again when displbe has ended."""
    plain, wanted = reference(pattern="plain"), reference()
    with modetest(machine, name, "plain"):
        machine.expect_picture(plain, "splash")
        drop_master(machine, int(machine.check("pgrep -x modetest")), 0)
        with backend(machine, config()):
            machine.create("one", guest_config("still", screens(name)))
            machine.wait_console("one", "guest: drawing", 60)
            machine.expect_picture(wanted, "splash-hidden", timeout=10)
        machine.expect_picture(plain, "splash-restored", timeout=5)


@contextlib.contextmanager
def seatd(machine: Machine) -> Iterator[int]:
    """Run a session manager, with its first virtual terminal in front. The block gets its process group."""
    machine.put("/tmp/switch.py", SWITCH)
    machine.check("python3 /tmp/switch.py 1; rm -f /run/seatd.sock")
    group = machine.start("exec seatd", "/var/log/seatd.log")
    try:
        machine.wait_for("test -S /run/seatd.sock", 10)
        yield group
    finally:
        machine.run(f"kill -KILL -- -{group}")


@pytest.mark.parametrize("prefix", ["", POWERLESS], ids=["root", "without-capabilities"])
def test_seat(machine: Machine, reference: Callable[..., Picture], name: str, prefix: str) -> None:
    """seatd opens the card for displbe. The virtual terminal is switched away and back, twice, with another master in between."""
    plain, wanted = reference(pattern="plain"), reference()
    with seatd(machine), backend(machine, config(), prefix=prefix) as displbe:
        machine.create("one", guest_config("still", screens(name)))
        machine.wait_console("one", "guest: drawing", 60)
        machine.expect_picture(wanted, "seat", timeout=10)
        for turn in (1, 2):
            machine.check("python3 /tmp/switch.py 2")
            wait_event(displbe, "the seat is another session's", count=turn)
            with modetest(machine, name, "plain") as end:
                machine.expect_picture(plain, f"seat-away-{turn}", timeout=10)
                machine.sleep(2)
                assert machine.screendump() == plain
                end()
            machine.check("python3 /tmp/switch.py 1")
            began = machine.clock
            machine.expect_picture(wanted, f"seat-back-{turn}", timeout=10)
            print(f"\nthe picture is back after {machine.clock - began:.1f} s")
        assert len(displbe.events("the seat is another session's")) == 2


def test_seat_manager_dies(machine: Machine, reference: Callable[..., Picture], name: str) -> None:
    """seatd ends while displbe shows a picture: the picture stays, and displbe uses a new seatd when there is one."""
    wanted = reference()
    with seatd(machine) as group, backend(machine, config()) as displbe:
        machine.create("one", guest_config("still", screens(name)))
        machine.wait_console("one", "guest: drawing", 60)
        machine.expect_picture(wanted, "seat", timeout=10)
        machine.stop(group, "KILL")
        wait_event(displbe, "seat lost")
        machine.expect_picture(wanted, "seat-lost", timeout=10)
        with seatd(machine):
            wait_event(displbe, "the card is opened through the seat")
            machine.expect_picture(wanted, "seat-found", timeout=10)
