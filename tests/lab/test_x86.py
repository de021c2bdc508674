"""Stock Debian 13 on a PC: its own hypervisor, kernel and systemd, unchanged, with displbe's package, installed by apt as in README.md.

Dom0 is PV, so gntdev cannot export dma-bufs, and each frame is copied. The guests run Debian's kernel as well.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from lab.backend import Held, no_zombie, screens
from lab.documents import ELSEWHERE, IN_A_GUEST, as_told, blocks, commands, unit_of
from lab.figures import Figure
from lab.package import check_devices, debian_package, newer
from lab.pictures import Picture, drawn
from lab.tried import EXACT, SHARED, Tried, weston_sink
from lab.vm import LabError, Machine, Result, guest_config, reference_picture
from lab.x86 import X86

KEY, REL, KEY_A, BTN_LEFT, REL_X = 1, 2, 30, 0x110, 0
WESTON_INI = """
[core]
renderer=pixman
idle-time=0
[output]
name={output}
mode=1024x768
"""
WAYLAND = """
sink = "wayland"
[wayland]
trust-compositor = true
"""
SHORTER = "initcall_blacklist=jent_mod_init,load_system_certificate_list cryptomgr.notests"
"""Arguments of the guests' kernel: without tests of random numbers and ciphers, its boot takes two thirds of the time."""
MEMORY = 256
"""MB of a guest. Debian's kernel needs more than the other lab's."""
WHY = "this kernel is built without CONFIG_XEN_GNTDEV_DMABUF"
MODETEST = "exec modetest -D {bus} -s {name}:1024x768 -F plain < <(exec sleep 1000)"
NODM = """
NODM_ENABLED=true
NODM_X_OPTIONS='-nocursor -nolisten tcp'
NODM_XSESSION=/etc/X11/session
"""
SESSION = """#!/bin/sh
xsetroot -mod 16 8 -fg '#ff8000' -bg '#0040c0'
exec sleep 100000
"""
TROUBLES = "docs/troubleshooting.md"
COPIED = {
    "each frame is copied: the kernel has neither CONFIG_XEN_GNTDEV_DMABUF nor CONFIG_XEN_GRANT_DMA_ALLOC, on which that"
    " depends; this is a PV domain, which cannot export dma-bufs"
}
"""The check's only warning on stock Debian."""
KEYBOARD, MOUSE = "AT Translated Set 2 keyboard", "ImExPS/2 Generic Explorer Mouse"
"""The PC's input devices, as Dom0 names them."""


@pytest.fixture(scope="module")
def machine(out: Path) -> Iterator[Machine]:
    """Xen, with Debian as Dom0."""
    with X86(out=out) as running:
        try:
            yield running
        finally:
            with contextlib.suppress(LabError):
                running.check("journalctl -b >/var/log/journal.log", 120)
                running.keep_logs()


@pytest.fixture(scope="module")
def smpte(machine: Machine) -> Picture:
    """modetest's picture, drawn by Dom0 before displbe takes the card."""
    return reference_picture(machine)


@pytest.fixture(scope="module")
def plain(machine: Machine, smpte: Picture) -> Picture:
    """Another of modetest's pictures."""
    return reference_picture(machine, pattern="plain")


@pytest.fixture(scope="module")
def console(machine: Machine, plain: Picture) -> Picture:
    """Dom0's text console, on the first card's screen."""
    machine.check(
        "printf '\\033[?25lThis is the console of Dom0.\\n' >/dev/tty1"
    )  # without a cursor, which would blink
    machine.sleep(0.5)
    picture = machine.screendump(name="console")
    assert len(picture.colours()) > 1
    return picture


@pytest.fixture(scope="module")
def package(machine: Machine, console: Picture) -> None:
    """The package, installed as in README.md."""
    machine.put("/root/out/deb/displbe_lab_amd64.deb", debian_package("amd64"))
    install = as_told("README.md", "apt install ./out/deb/displbe_*_$(dpkg --print-architecture).deb")
    machine.check(
        f"cd /root && export DEBIAN_FRONTEND=noninteractive && {install.replace('install', 'install -y')}", 120
    )


@pytest.fixture(scope="module")
def before(machine: Machine, package: None) -> Result:
    """The check between the installation and the first start."""
    return machine.run(as_told("README.md", "displbectl check"), 120)


@pytest.fixture(scope="module")
def service(machine: Machine, before: Result) -> None:
    """The service, started as in README.md. The unit and the configuration are the package's."""
    machine.check(as_told("README.md", "systemctl enable --now displbe"), 120)


def held(machine: Machine) -> Held:
    """Return what displbe holds now."""
    return Held.by(machine, int(machine.check("systemctl show --value -p MainPID displbe")), "displbe")


@pytest.fixture
def idle(machine: Machine, service: None) -> Iterator[Held]:
    """The resources that displbe holds without guests. After the test, without its guests, it must hold the same again."""
    without = held(machine)
    yield without
    for name in ("pv", "pvh", "hvm"):
        machine.destroy(name)
    machine.wait_for(lambda: held(machine) == without, 20, why=f"everything released: {held(machine)} != {without}")
    no_zombie(machine)


def events(machine: Machine, event: str) -> list[dict[str, object]]:
    """Return the lines of displbe's journal with this event."""
    lines = machine.check("journalctl -u displbe -o cat").splitlines()
    return [line for text in lines if text.startswith("{") and (line := json.loads(text))["event"] == event]


def warnings(said: Result) -> set[str]:
    """Return the warnings of a check, which must not have found errors."""
    print(said.output)
    assert said.code == 0
    return set(re.findall(r"^warning (.*)$", said.output, re.M))


def test_devices(machine: Machine, package: None) -> None:
    """apt has installed the package's files, and by its rules udev has given Xen's devices to its group."""
    machine.check("dpkg -V displbe")
    check_devices(machine)


def test_check(machine: Machine, before: Result, service: None) -> None:
    """displbectl warns once that frames are copied; and, while that is so, that displbe does not run."""
    (silent,) = warnings(before) - COPIED
    assert "displbe does not run here" in silent
    assert warnings(before) > COPIED
    running = machine.run("displbectl check", 120)
    assert warnings(running) == COPIED
    for card in ("card0", "card1"):
        for said in (before, running):  # no guest uses it
            assert f"ok      {card}: displbe can be DRM master" in said.output


def told_to_be_copied(machine: Machine, name: str) -> None:
    """Assert that status and log say that the one screen on is copied, and why."""
    told = machine.check("displbectl status")
    if machine.out:
        (machine.out / f"{name}-status.txt").write_text(told)
    assert f"because: {WHY}" in told
    assert "DRM master; no dma-buf has been imported yet" in told
    assert f"path copy: {WHY}" in " ".join(told.split())
    assert events(machine, "frames are copied")[-1]["reason"] == WHY
    shown = events(machine, "output on")[-1]
    assert (shown["path"], shown["reason"]) == ("copy", WHY)


def test_left_alone_without_guests(
    machine: Machine, service: None, console: Picture, smpte: Picture, plain: Picture
) -> None:
    """While no guest uses a card, displbe leaves it to others: the text console is shown and takes what is typed, and any program can be
    DRM master. A guest that comes beside such a program waits for its end.
    """
    typed(machine, console)
    name = next(iter(machine.connectors()))
    group = machine.start(MODETEST.format(bus=machine.card().bus, name=name), "/var/log/beside.log")
    guest_waits(machine, plain)
    machine.stop(group)
    machine.expect_picture(smpte, "after-modetest")
    assert holds_terminal(machine)  # through seatd
    machine.destroy("pv")
    machine.expect_picture(console, "console-after-modetest")
    typed(machine, console)


def guest_waits(machine: Machine, beside: Picture) -> None:
    """Create a guest beside another program that shows this picture. The picture must stay, and the guest must wait."""
    machine.expect_picture(beside, "beside", timeout=60)
    machine.create("pv", guest("still", screens(next(iter(machine.connectors())))))
    machine.wait_console("pv", "guest: drawing", 60)
    machine.wait_for(lambda: "another program is DRM master" in machine.check("displbectl status"), 20)
    assert machine.screendump() == beside


def test_display_manager(machine: Machine, service: None, console: Picture, smpte: Picture) -> None:
    """A display manager of Dom0 before, beside and after a guest. There is no seatd: Xorg opens card and terminal itself, as displbe does.

    One that starts while a guest is shown gets no card, and gets it after the guest has gone.
    """
    machine.put("/etc/default/nodm", NODM)
    machine.put("/etc/X11/session", SESSION)
    machine.check("chmod +x /etc/X11/session")
    desktop = grid_picture(console.width, console.height)
    machine.check("systemctl stop seatd")
    try:
        typed(machine, console)
        machine.check("systemctl start nodm")
        guest_waits(machine, desktop)
        machine.check("systemctl stop nodm", 60)
        machine.expect_picture(smpte, "after-display-manager")
        assert not holds_terminal(machine)
        ended = "journalctl -u nodm -g 'X server .* (quit|killed)' -o cat | wc -l"
        before = int(machine.check(ended))
        machine.check("systemctl start nodm")
        machine.wait_for(lambda: int(machine.check(ended)) > before, 60, why="the X server that gets no card")
        # As it ends, it sets its terminal to text, and the kernel draws the console over any DRM master's picture.
        machine.expect_picture(smpte, "second-display-manager", timeout=15)
        machine.destroy("pv")
        machine.expect_picture(desktop, "display-manager-after-guest", timeout=120)
        machine.check("systemctl stop nodm", 60)
        machine.expect_picture(console, "console-after-display-manager")
        typed(machine, console)
    finally:
        machine.destroy("pv")
        machine.run("systemctl stop nodm", 60)
        machine.check("systemctl start seatd")


def typed(machine: Machine, console: Picture) -> None:
    """Assert that the text console is shown, and shows what is typed."""
    machine.expect_picture(console, "console-beside")
    assert not holds_terminal(machine)
    press(machine, ("key", "x", 1), ("key", "x", 0))
    machine.wait_for(lambda: machine.screendump() != console, 20, why="the key on the console")
    press(machine, ("key", "backspace", 1), ("key", "backspace", 0))
    machine.expect_picture(console, "console-beside")


def holds_terminal(machine: Machine) -> bool:
    """Return whether the terminal in front is in graphics mode (KDGETMODE): seatd has a client."""
    mode = "import array, fcntl; m = array.array('i', [0]); fcntl.ioctl(open('/dev/tty0'), 0x4B3B, m); print(m[0])"
    return machine.check(f'python3 -c "{mode}"').strip() == "1"


def test_terminals(machine: Machine, idle: Held, console: Picture, smpte: Picture) -> None:
    """Ctrl+Alt+F2 on the PC's keyboard leaves the guest's screen for the text console of another terminal, and Ctrl+Alt+F1 comes back."""
    machine.check("printf '\\033[?25lThe second console.\\n' >/dev/tty2")
    machine.create("pv", guest("still", screens(next(iter(machine.connectors())))))
    machine.wait_console("pv", "guest: drawing", 60)
    machine.expect_picture(smpte, "first-terminal")
    for _ in range(2):
        switch_terminal(machine, 2)
        machine.wait_for(lambda: machine.screendump() != smpte, 20, why="the second terminal")
        machine.sleep(1)
        second = machine.screendump(name="second-terminal")
        press(machine, ("key", "x", 1), ("key", "x", 0))
        machine.wait_for(partial(differs, machine, second), 20, why="the key on the second terminal")
        press(machine, ("key", "backspace", 1), ("key", "backspace", 0))
        assert len(second.colours()) > 1
        assert second not in (console, smpte)
        switch_terminal(machine, 1)
        machine.expect_picture(smpte, "first-terminal-again")


def differs(machine: Machine, picture: Picture) -> bool:
    """Return whether the first screen shows another picture."""
    return machine.screendump() != picture


def switch_terminal(machine: Machine, number: int) -> None:
    """Press the keys, and wait until the terminal is in front."""
    keys = ("ctrl", "alt", f"f{number}")
    press(machine, *(("key", key, 1) for key in keys))
    press(machine, *(("key", key, 0) for key in reversed(keys)))
    machine.wait_for(f"grep -qx tty{number} /sys/class/tty/tty0/active", 20, why=f"terminal {number}")


def guest(
    work: str, lines: str = "", kind: str = "pv", *, memory: int = MEMORY, seconds: int = 600, extra: str = ""
) -> str:
    """Return the xl configuration of a guest with Debian's kernel. See guest_config."""
    return guest_config(work, lines, kind=kind, memory=memory, seconds=seconds, extra=f"{SHORTER} {extra}")


def show(
    machine: Machine,
    picture: Picture,
    kind: str,
    tried: Tried | None = None,
    lines: str = "",
    extra: str = "",
    work: str = "still",
) -> str:
    """Create a guest of a kind, named after it, on the first card. `lines` are more of its configuration, `extra` is for its kernel.

    Assert that its picture is shown, and copied. Return how long that took.
    """
    connector, created = next(iter(machine.connectors())), machine.clock
    machine.create(kind, guest(work, f"{screens(connector)}\n{lines}", kind=kind, extra=extra))
    machine.wait_console(kind, "guest: drawing", 60)
    machine.expect_picture(picture, kind)
    took = f"the picture was there {machine.clock - created:.0f} s after xl create"
    told_to_be_copied(machine, kind)
    if tried is not None:
        tried(machine, kind, connector, "DRM", "copy", EXACT)
    return took


def test_pv(machine: Machine, idle: Held, smpte: Picture, figure: Figure, tried: Tried) -> None:
    """The monitor shows the picture of a PV guest with Debian's kernel, and again after `xl reboot`. Status and log say why it is copied.

    A guest that is destroyed while it draws leaves nothing.
    """
    figure(show(machine, smpte, "pv", tried))
    assert events(machine, "displbe starts")[-1]["reason"] == WHY
    shown = len(events(machine, "output on"))
    machine.check("xl reboot pv")
    machine.wait_console("pv", "guest: drawing", 120, count=2)
    machine.expect_picture(smpte, "pv-rebooted")
    assert len(events(machine, "output on")) == shown + 1
    assert held(machine) != idle


def test_pvh_and_attached(machine: Machine, idle: Held, smpte: Picture, figure: Figure, tried: Tried) -> None:
    """A PVH guest is shown in the same way. Beside it, `xl vdispl-attach` gives a running PV guest a screen, on the second card.

    `xl vdispl-detach` takes the one screen away, and leaves the other.
    """
    figure(show(machine, smpte, "pvh", tried))
    second = next(iter(machine.connectors("gpu1")))
    alone, gone = held(machine), len(events(machine, "device gone"))
    machine.create("pv", guest("twice"))
    machine.wait_console("pv", "guest: up", 60)
    machine.check(f"xl vdispl-attach pv backend=0 be-alloc=0 connectors={second}:1024x768")
    machine.wait_console("pv", "guest: drawing", 60)
    machine.expect_picture(smpte, "attached", "gpu1")
    machine.expect_picture(smpte, "beside-attached", "gpu0")
    machine.check("xl vdispl-detach pv 0")
    assert len(events(machine, "device gone")) == gone + 1
    machine.wait_for(lambda: held(machine) == alone, 20, why="the second card left to others")
    machine.expect_picture(smpte, "after-detached", "gpu0")


def press(machine: Machine, *events: tuple[str, str, int]) -> None:
    """Use the PC's keyboard and mouse: keys and buttons (with 1 or 0), and motions. It ignores them while it stands still."""
    machine.qmp("cont")
    machine.qmp("input-send-event", events=[input_event(*event) for event in events])
    machine.sleep(0.1)


def input_event(kind: str, name: str, value: int) -> dict[str, object]:
    """Return an event as QMP has it."""
    match kind:
        case "key":
            return {"type": kind, "data": {"down": bool(value), "key": {"type": "qcode", "data": name}}}
        case "btn":
            return {"type": kind, "data": {"down": bool(value), "button": name}}
    return {"type": kind, "data": {"axis": name, "value": value}}


def test_input(machine: Machine, idle: Held) -> None:
    """Keys, a motion and a button of the PC's own keyboard and mouse arrive in a guest, to which a reloaded configuration gives both.

    The guest's screen stays off: Linux's drm_xen_front has no console.
    """
    machine.check(
        f"printf '\\n[guest.pv]\\ninput = \"K:name={KEYBOARD};P:name={MOUSE}\"\\n' >>/etc/displbe/displbe.toml"
        " && systemctl reload displbe"
    )
    lines = screens(next(iter(machine.connectors()))) + "\nvkb=['backend=0,backend-type=linux,unique-id=K:none']"
    machine.create("pv", guest("input", lines, extra="do=print"))
    machine.wait_console("pv", "events: ready", 60)
    machine.wait_for(lambda: len(events(machine, "input device opened")) == 2, 20, why="open devices")
    press(machine, ("key", "a", 1), ("key", "a", 0))
    press(machine, ("rel", "x", 5), ("btn", "left", 1))
    press(machine, ("btn", "left", 0))  # the mouse sends only its latest state
    machine.wait_console("pv", f"input: Xen Virtual Pointer: {KEY} {BTN_LEFT} 0", 20)
    read = re.findall(r"^input: Xen Virtual (\w+): ([1-9].*)$", machine.console("pv"), re.M)
    assert [told for device, told in read if device == "Keyboard"] == [f"{KEY} {KEY_A} 1", f"{KEY} {KEY_A} 0"]
    wanted = [f"{REL} {REL_X} 5", f"{KEY} {BTN_LEFT} 1", f"{KEY} {BTN_LEFT} 0"]
    assert [told for device, told in read if device == "Pointer"] == wanted
    assert "switched off by the guest" in machine.check("displbectl status")


def test_without_displbe(machine: Machine, service: None) -> None:
    """What xl says when displbe does not run, and what a guest's kernel says when displbe refuses its screen, is what people can search for
    in the document.
    """
    machine.put("/root/guests/pv.cfg", f'name="pv"\n{guest("still", screens("HDMI-A-7"))}')
    machine.check("systemctl stop displbe", 60)
    said = machine.run("xl create /root/guests/pv.cfg", 120)
    print(said.output)
    assert said.code != 0
    assert 15 < said.seconds < 45
    begin, end = as_told(TROUBLES, "unable to add device with path …/backend/vdispl/… - rc -9").split("…")[0::2]
    assert re.search(f"{begin}.*/backend/vdispl/.*{end}", said.output)
    assert not machine.exists("pv")
    machine.check(as_told(TROUBLES, "systemctl enable --now displbe"), 60)
    machine.create("pv", guest("still", screens("HDMI-A-7"), extra="loglevel=7"))
    try:
        kernel = machine.wait_console("pv", as_told(TROUBLES, "Timeout connecting to device: device/vdispl/0"))
        print(kernel)
        assert as_told(TROUBLES, "Waiting for devices to initialise: 25s...20s...") in kernel
        assert as_told(TROUBLES, "Device with no driver: device/vdispl/0") in kernel
        assert "no connector HDMI-A-7; there are: " in machine.check("displbectl status")
    finally:
        machine.destroy("pv")


SHOWN_WITHOUT_A_READER = ["xl create -p GUEST.cfg; id=$(xl domid GUEST)", "xl unpause GUEST"]
"""The first and the last of the commands with which a guest of a driver domain is created."""
LAST = ["displbectl kick DOMID", "displbectl kick GUEST", "xl destroy DOMID", "xl -vvv create GUEST.cfg"]
NOTHING_TO_SAY = {
    "displbectl reopen GUEST": "no window to open",
    "journalctl -u displbe -g 'option without effect|shortcuts|monitor'": "No entries",
    "xenstore-read backend/vdispl/DOMID/0/error": "couldn't read path",
}
"""Commands that end with exit code 1 here, with this: the guest has no window, and there is no such message and no error."""


def test_commands_of_the_documents(machine: Machine, idle: Held) -> None:
    """Every command that a document tells an operator to run does what it is for, beside a guest that is shown."""
    connector = next(iter(machine.connectors()))
    machine.put("/root/told/pv.cfg", f'name="pv"\n{guest("still", screens(connector))}')
    told = commands()
    shared = next(command for command in told if command.startswith("xenstore-chmod") and "$id" in command)
    first = [SHOWN_WITHOUT_A_READER[0], shared, SHOWN_WITHOUT_A_READER[1]]
    rest = sorted(told - {*first, *LAST, *ELSEWHERE, *IN_A_GUEST})
    assert len(rest) > 30
    names = {
        "GUEST.cfg": "pv.cfg",
        "GUEST": "pv",
        "DRIVERDOMAIN": "Domain-0",
        "FILE.png": "shot.png",
        "FILE": "/etc/displbe/displbe.toml",
        "USER": "nobody",
        "OPERATOR": "nobody",
        "card0-HDMI-A-1": f"{machine.card().name}-{connector}",
    }

    def typed_as(command: str) -> str:
        for name, value in names.items():
            command = re.sub(rf"(?<![\w/]){re.escape(name)}(?![\w.])|(?<=/){re.escape(name)}(?=/)", value, command)
        return command

    machine.check(f"cd /root/told; {'; '.join(map(typed_as, first))}", 60)
    machine.wait_console("pv", "guest: drawing", 60)
    domid = machine.domid("pv")
    names |= {"DOMID": str(domid), "N": str(domid), "rN": f"r{domid}", "rD": "r0"}
    failed = []
    for command in (*rest, *LAST):
        words = f"exec </dev/null; cd /root/told; DEBIAN_FRONTEND=noninteractive; set -o pipefail; {typed_as(command)}"
        done = machine.run(words, 60)
        print(f"{typed_as(command)}: {done.code}\n{done.output}")
        said = NOTHING_TO_SAY.get(command, "")
        if done.code != bool(said) or said not in done.output or "Traceback" in done.output:
            failed.append((words, done.code, done.output))
    assert not failed
    machine.wait_console("pv", "guest: drawing", 60)


def test_commands_for_a_guest(machine: Machine, idle: Held, smpte: Picture) -> None:
    """The documents' commands for a guest, typed on its console, in a guest with Debian."""
    lines = f"{screens(next(iter(machine.connectors())))}\nvkb=['backend=0,backend-type=linux']\ndisk=['phy:/dev/vdb,xvda,r']"
    machine.create("pv", guest("debian", lines, memory=320, extra="do=shell"))
    console = as_told(TROUBLES, "xl console GUEST").replace("GUEST", "pv")
    machine.wait_console("pv", "# ", 60)
    said = ""
    for number, command in enumerate(IN_A_GUEST):
        shown = command.startswith("modetest")
        words = command.replace("eventN", "event0")
        if shown:
            words = f"sleep 5 | {words}"
        elif command.startswith("evtest"):
            words = f"timeout 1 {words}"
        type_in_guest(machine, console, f'{words}; echo "done {number}: $?"')
        if shown:
            machine.expect_picture(smpte, "modetest-as-told", timeout=5)
        code = 124 if command.startswith("evtest") else 0
        said = machine.wait_console("pv", f"done {number}: {code}", 20)
    print(said)
    assert re.search(r"card0/device/driver -> .*/vdispl\b", said)
    assert "Xen Virtual Keyboard" in said


def type_in_guest(machine: Machine, console: str, line: str) -> None:
    """Type a line on a guest's console with xl, which reads the terminal that `script` gives it."""
    machine.run(f"(sleep 1; echo {shlex.quote(line)}; sleep 3) | timeout 3 script -qec '{console}' /dev/null")


def test_page_for_a_pc(machine: Machine, idle: Held, console: Picture) -> None:
    """The page for a PC, from its first command to its last: a guest's desktop is shown, and takes the PC's keyboard and mouse.

    test_upgrade's package and service are the page's, too. See there, "In the tests", for what is different.
    """
    xen, listed, install, enable, _, config, names, table, check, create, desktop, shutdown = blocks(
        "docs/debian-pc.md"
    )
    assert install.splitlines() == [
        as_told("README.md", "make deb && apt install ./out/deb/displbe_*_$(dpkg --print-architecture).deb"),
        "displbectl check",
    ]
    assert enable == "systemctl enable --now displbe\n"
    machine.check(f"DEBIAN_FRONTEND=noninteractive; {xen}", 60)
    assert "Domain-0" in machine.check(listed)
    emulated = {
        "HDMI-A-1:1920x1080": f"{next(iter(machine.connectors()))}:1024x768",
        "memory = 1024": "memory = 512",
        "/srv/desktop.img": "/dev/vdc",
        "console=hvc0": f"console=hvc0 {SHORTER}",
    }
    for told, here in emulated.items():
        assert told in config
        config = config.replace(told, here)
    machine.put("/etc/xen/desktop.cfg", config)
    present = machine.check(names)
    assert all(name in present for name in (KEYBOARD, MOUSE))
    assert all(name in table for name in (KEYBOARD, MOUSE))
    machine.put("/root/table", table)
    machine.check("cat /root/table >>/etc/displbe/displbe.toml")
    machine.check(check, 120)
    start, login = create.splitlines()
    machine.check(start, 90)
    try:
        machine.wait_console("desktop", "login: ", 240)
        type_in_guest(machine, login, "root")
        machine.wait_console("desktop", ":~# ", 60)
        type_in_guest(machine, login, desktop.strip())
        machine.wait_for(lambda: "shows 1024x768" in machine.check("displbectl status"), 120, why="the desktop")
        machine.sleep(5)
        before = machine.screendump(name="desktop")
        assert before.size == (1024, 768)
        press(machine, ("rel", "x", 50), ("rel", "y", 50))
        machine.wait_for(partial(differs, machine, before), 20, why="the guest's pointer")
        machine.check("displbectl screenshot desktop /root/desktop.png")
        for value in (1, 0):  # this ends Weston
            press(machine, *(("key", key, value) for key in ("ctrl", "alt", "backspace")))
        machine.wait_for(lambda: "switched off by the guest" in machine.check("displbectl status"), 30, why="its end")
        machine.check(shutdown)
        machine.wait_for(lambda: not machine.exists("desktop"), 120, why="the guest's end")
        machine.expect_picture(console, "console-after-desktop", timeout=30)
    finally:
        machine.destroy("desktop")
        machine.check("rm /etc/xen/desktop.cfg")


def test_destroyed_under_flips(machine: Machine, idle: Held, smpte: Picture) -> None:
    """A guest that is destroyed while it flips leaves nothing, and a new one of its name is shown. Its connector is named with the card's
    place, which stays when the cards get other numbers.
    """
    screen = screens(f"pci-0000_00_10.0/{next(iter(machine.connectors()))}")
    machine.create("pv", guest("flip", screen))
    machine.wait_console("pv", "freq:", 60)
    machine.destroy("pv")
    machine.wait_for(lambda: held(machine) == idle, 20, why="everything released")
    no_zombie(machine)
    show(machine, smpte, "pv")


def left_alone(machine: Machine, domid: int) -> None:
    """Assert that a guest is connected to QEMU's keyboard, and that displbe has nothing of the guest but its screen."""
    assert machine.check(f"xenstore-read backend/vkbd/{domid}/0/state").strip() == "4"
    (guest,) = json.loads(machine.check("displbectl status --json"))["guests"]
    assert [device["kind"] for device in guest["devices"]] == ["vdispl"]


def test_hvm(machine: Machine, idle: Held, smpte: Picture, figure: Figure, tried: Tried) -> None:
    """An HVM guest is shown. Its keyboard is QEMU's, which goes on when displbe ends its own connections.

    QEMU's VGA is card0 there, and displbe's screen is card1, with the connector Virtual-2, as the document says.
    """
    figure(show(machine, smpte, "hvm", tried, "vnc=0\nvga='stdvga'", "also=vga also=input", "twice"))
    said = machine.wait_console("hvm", "events: ready", 60)
    assert as_told(TROUBLES, "weston --drm-device=card1")
    assert re.search(r"card0/device/driver -> .*/bochs-drm\b", said)
    assert re.search(r"card1/device/driver -> .*/vdispl\b", said)
    assert as_told(TROUBLES, "its connector is `Virtual-2`")
    assert "on connectors Virtual-2" in said
    domid = machine.domid("hvm") or 0
    left_alone(machine, domid)
    machine.check("displbectl kick hvm")
    machine.wait_for('displbectl status --json | grep -q \'"backend": *"connected"\'', 20)
    left_alone(machine, domid)
    machine.check("xl qemu-monitor-command hvm 'sendkey a'")
    machine.wait_console("hvm", f": {KEY} {KEY_A} 0", 20)


def test_upgrade(machine: Machine, idle: Held, smpte: Picture) -> None:
    """A newer package is installed under a running guest: displbe restarts, and the guest, which runs on, has its picture again."""
    machine.put("/root/newer.deb", newer(debian_package("amd64")))
    screen = screens(next(iter(machine.connectors())))
    domid = machine.create("pv", guest("twice", screen, seconds=15))
    machine.wait_console("pv", "guest: drawing", 60)
    machine.expect_picture(smpte, "before-upgrade")
    pid = machine.check("systemctl show --value -p MainPID displbe")
    machine.check("cd /root && DEBIAN_FRONTEND=noninteractive apt install -y ./newer.deb", 120)
    assert machine.check("dpkg-query -W -f '${Version}' displbe").endswith("+lab1")
    assert machine.check("systemctl is-active displbe; systemctl show --value -p MainPID displbe") != f"active\n{pid}"
    machine.wait_console("pv", "guest: drawing", 10, count=2)
    machine.expect_picture(smpte, "after-upgrade")
    assert machine.domid("pv") == domid


def test_suspended_saved_restored(machine: Machine, idle: Held, smpte: Picture) -> None:
    """A guest that is suspended and resumed stays connected. A guest that is saved and restored is a new domain: its driver connects again.

    Its programs then find a new card, as after a restart of displbe.
    """
    screen = screens(next(iter(machine.connectors())))
    domid = machine.create("pv", guest("twice", screen, seconds=10))
    machine.wait_console("pv", "guest: drawing", 60)
    machine.expect_picture(smpte, "before-suspend")
    changes = events(machine, "state")
    machine.check("xl suspend pv && xl resume pv && xl save -c pv /root/pv.save")
    machine.wait_console("pv", "guest: drawing", 60, count=2)
    machine.expect_picture(smpte, "after-suspend")
    assert events(machine, "state") == changes
    machine.check("xl save pv /root/pv.save")
    machine.wait_for(lambda: held(machine) == idle, 20, why="everything released while it is saved")
    assert machine.screendump(name="saved") != smpte
    machine.check("xl restore /root/pv.save && rm /root/pv.save")
    machine.expect_picture(smpte, "restored")
    assert {line["domid"] for line in events(machine, "state")[len(changes) :]} == {domid, domid + 1}


def test_desktops(machine: Machine, idle: Held, tried: Tried) -> None:
    """Debian's Xorg and Weston in guests with a disk, each on a card: their pictures, pixel by pixel."""
    grid = grid_picture(1024, 768)
    for name, gpu, todo in (("pv", "gpu0", "xorg"), ("pvh", "gpu1", "weston")):
        lines = f"{screens(next(iter(machine.connectors(gpu))))}\ndisk=['phy:/dev/vdb,xvda,r']"
        machine.create(name, guest("debian", lines, kind=name, memory=320, extra=f"do={todo}"))
    for name, gpu, picture in (("pv", "gpu0", grid), ("pvh", "gpu1", drawn(1024, 768, 3))):
        machine.wait_console(name, "guest: drawing", 30)
        machine.expect_picture(picture, f"desktop-{name}", gpu)
        program = {"pv": "Xorg", "pvh": "Weston"}[name]
        tried(machine, name, next(iter(machine.connectors(gpu))), "DRM", "copy", f"{program} in the guest: {EXACT}")


def grid_picture(width: int, height: int) -> Picture:
    """Return what `xsetroot -mod 16 8` in x86/desktop/run.sh draws."""
    line, ground = b"\xff\x80\x00", b"\x00\x40\xc0"
    between = b"".join(line if x % 16 == 0 else ground for x in range(width))
    return Picture(width, height, b"".join(line * width if y % 8 == 0 else between for y in range(height)))


@contextlib.contextmanager
def weston_shown(machine: Machine) -> Iterator[None]:
    """Run Weston in Dom0, as a service, and displbe as its client, as docs/weston.md says. Weston opens the card through seatd."""
    drop_in = unit_of("docs/weston.md", "(../configs/desktop.conf)):").rstrip()
    also = as_told("docs/weston.md", "Environment=WAYLAND_DISPLAY=/run/weston/wayland-0")
    output = next(iter(machine.connectors()))
    for path, text in (
        ("/etc/xdg/weston/weston.ini", WESTON_INI.format(output=output)),
        ("/etc/systemd/system/weston.service", unit_of("docs/weston.md", "for example with this service:")),
        ("/etc/systemd/system/displbe.service.d/weston.conf", f"{drop_in}\n{also}\n"),
        ("/root/wayland.toml", WAYLAND),
    ):
        machine.put(path, text)
    machine.check(as_told("docs/weston.md", "echo 'u weston -' | systemd-sysusers -"))
    machine.check("systemctl daemon-reload")
    try:
        before = machine.screendump()
        machine.check("systemctl start weston", 60)  # beside a displbe that no guest uses
        machine.wait_for(lambda: machine.screendump() != before, 20, why="the compositor's screen")
        machine.sleep(2)
        compositor = machine.screendump(name="compositor")
        machine.create("pv", guest("still", screens(output)))  # it waits for the end of the compositor
        machine.wait_console("pv", "guest: drawing", 60)
        assert "another program is DRM master" in machine.check("displbectl status")
        assert machine.screendump() == compositor
        machine.destroy("pv")
        machine.check("mv /etc/displbe/displbe.toml /root && mv /root/wayland.toml /etc/displbe/displbe.toml")
        machine.check("systemctl restart displbe", 60)
        yield
    finally:
        machine.destroy("pv")
        machine.check(
            "systemctl stop displbe weston && mv /root/displbe.toml /etc/displbe && systemctl start displbe", 60
        )


def test_weston(machine: Machine, service: None, smpte: Picture, tried: Tried) -> None:
    """A guest in Weston in Dom0: without a copy, because Weston maps the guest's pages itself. The check warns of nothing."""
    with weston_shown(machine):
        checked = machine.run("displbectl check", 120)
        assert warnings(checked) == set()
        assert "ok      /run/weston/wayland-0 accepts connections" in checked.output
        screen = screens(next(iter(machine.connectors())))
        machine.create("pv", guest("still", screen))
        machine.wait_console("pv", "guest: drawing", 60)
        machine.expect_picture(smpte, "weston")
        told = machine.check("displbectl status")
        print(told)
        assert "path zero copy: the compositor maps the guest's pages itself" in " ".join(told.split())
        tried(machine, "pv", next(iter(machine.connectors())), weston_sink(machine, "pixman"), SHARED, EXACT)
        assert machine.check("grep -c xen/gntdev /proc/$(systemctl show --value -p MainPID weston)/maps").strip() == "1"
    no_zombie(machine)


def test_removed(machine: Machine, service: None, smpte: Picture, console: Picture) -> None:
    """displbe ends when its package is removed under a guest. The monitor then shows Dom0's text console, as before displbe was started."""
    show(machine, smpte, "pv")
    machine.check("DEBIAN_FRONTEND=noninteractive apt remove -y displbe", 60)
    assert machine.run("pgrep -u displbe").code == 1
    machine.expect_picture(console, "console-again")
    machine.destroy("pv")
    no_zombie(machine)
