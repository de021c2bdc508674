"""Who may change the screens: other masters, no privileges, a session manager's seat; and what was there before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from lab.backend import backend, no_zombie, screens
from lab.pictures import Picture
from lab.test_drm import config, wait_event
from lab.vm import Machine, guest_config

# Takes another process's file of the card, as a session manager holds one, and drops master through it: again and again for so long.
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
    """The first card's connector."""
    return next(iter(machine.connectors()))


@pytest.fixture(autouse=True)
def _guests(machine: Machine) -> Iterator[None]:
    yield
    machine.destroy("one")
    no_zombie(machine)


@contextlib.contextmanager
def modetest(machine: Machine, name: str, pattern: str) -> Iterator[Callable[[], None]]:
    """Another program that is master and shows a picture; what is given ends it."""
    command = f"exec modetest -D {machine.card().bus} -s {name}:1024x768 -F {pattern} < <(exec sleep 1000)"
    group = machine.start(command)
    try:
        yield lambda: machine.stop(group)
    finally:
        machine.run(f"kill -KILL -- -{group}")


def drop_master(machine: Machine, pid: int, seconds: float) -> None:
    """Take master away from a process."""
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
    """Another program has the card when displbe starts; it ends; later it takes the card, draws, and ends again."""
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
            return  # who takes the card from a session manager's client asks the session manager: test_seat
        drop_master(machine, displbe.pid, 5)
        time.sleep(1)
        with modetest(machine, name, "plain") as end_again:
            machine.expect_picture(plain, "other-master-again", timeout=10)
            taken = "another program is DRM master now: waiting for it to end"
            wait_event(displbe, taken)
            end_again()
        machine.expect_picture(wanted, "other-master-ended-again", timeout=10)
        assert len(displbe.events(taken)) == 1


def test_restored(machine: Machine, reference: Callable[..., Picture], name: str) -> None:
    """Another program's picture was on the screen, and the program runs on (a boot splash): it is there again when displbe ends."""
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
    """A session manager, and its first virtual terminal: its process group."""
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
    """seatd has the card opened for displbe; the virtual terminal is switched away and back, twice, with another master between."""
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
                time.sleep(2)
                assert machine.screendump() == plain
                end()
            machine.check("python3 /tmp/switch.py 1")
            began = time.monotonic()
            machine.expect_picture(wanted, f"seat-back-{turn}", timeout=10)
            print(f"\nthe picture is back after {time.monotonic() - began:.1f} s")
        assert len(displbe.events("the seat is another session's")) == 2


def test_seat_manager_dies(machine: Machine, reference: Callable[..., Picture], name: str) -> None:
    """seatd ends while its client shows a picture: that stays; a new seatd is used when it is there."""
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
