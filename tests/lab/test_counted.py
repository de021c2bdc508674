"""The cost of a flip and its delays, in a machine that counts instructions: the figures do not depend on the host, so they are assertions.

Instructions are not time: there are no cache misses, so that a copy looks cheaper here than it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from lab.backend import TREE, Backend, backend, no_zombie, screens
from lab.conftest import project
from lab.counted import Window, bare, bare_pid, flipping_guest, flipping_guests, install, window
from lab.figures import Figure
from lab.vm import LabError, Machine, guest_config
from lab.weston import SOCKET, weston

FLIPS: Final = 600
"""Flips of a window. It is as long as the longest period of the work that goes on beside them, a look at all monitors in ten seconds."""
OUTPUTS: Final = 8
FAST: Final = "Virtual-10"
"""The second connector of the second card. Its screen has 240 refreshes per second."""
STATUS: Final = "python3 -m displbe.ctl --socket /run/displbe/control status"
PATHS: Final = {"zero copy": ("zero-copy", "require"), "copy": ("copy", "off")}
"""A path -> the bare backend's word for it, and displbe's `[drm] zero-copy`."""

# The limits. Figures of one revision differ by less than 1 %.
PUMPED: Final = {"zero copy": 1.3, "copy": 1.3}
"""displbe's CPU time per flip with the pump, at most, as a multiple of the bare backend's.

Without copies, 1.24 has been measured: the trace, the times, the request rate and the locks. A wake-up of the event loop in each second
would add 0.1.
"""
IN_PYTHON: Final = {"zero copy": 8.0, "copy": 1.6}
"""The same without the pump."""
WAYLAND: Final = {"1024x768": 1.0, "1920x1080": 1.0}
"""displbe's CPU time per flip in milliseconds as a window of Weston, which maps the guest's own pages.

displ_be, which copies, takes 2.10 at 1024x768, and about 4.8 at 1920x1080, by the cost of the bare backend's copies.
"""
MORE: Final = {"auto": 2000.0, "off": 5000.0}
"""`pump` -> microseconds that displbe's latest flip may be later than the bare backend's latest flip. The goal with the pump is 1000, which
was just met (995) by one of four guests that share the only processor. Without the pump, a flip may wait for
a turn of the event loop; turns of 3.4 ms have been seen."""
DISTURBED: Final = {"status": 1000.0, "storm": 1000.0, "buffers": 1500.0}
"""What goes on meanwhile -> microseconds that 99 of 100 flips may be late with the pump. Without its real-time priority, 1,700 (`status`)
to 4,700 (`buffers`) were measured, with it 50 to 930: while Xen maps the pages of a large buffer, nothing else runs.

A few of the others miss a refresh: the emulated card answers by the host's clock, and Linux waits up to 50 ms for it.
"""
PROPORTION: Final = 1.1
"""CPU time per flip with eight screens at most, as a multiple of that with one screen."""
GUESTS: Final = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def computer(out: Path) -> Iterator[Machine]:
    """Xen and Dom0 on a clock of counted instructions, a card with eight screens, and one with a fast screen."""
    boot = f"video={FAST}:1024x768@240"
    with Machine(out=out, gpus=("gpu0", "gpu1"), outputs=OUTPUTS, bootargs=boot, memory=2560) as running:
        running.put_tree(project(), TREE)
        install(running)
        assert names(running, "gpu1")[1] == FAST
        for name in (*names(running)[1:], FAST):
            running.check(f"echo on >/sys/class/drm/card?-{name}/status")  # QEMU has no monitor for it
        running.check("mkdir -p /run/displbe")
        try:
            yield running
        finally:
            with contextlib.suppress(LabError):
                running.keep_logs()


@pytest.fixture(autouse=True)
def _guests(computer: Machine) -> Iterator[None]:
    """Destroy all guests, and check that none of their pages are left."""
    yield
    destroy(computer)
    no_zombie(computer)


def destroy(machine: Machine) -> None:
    """Destroy all guests."""
    for name in GUESTS:
        machine.destroy(name)


def names(machine: Machine, gpu: str = "gpu0") -> list[str]:
    """Return the names of a card's connectors. Unlike Machine.connectors this does not undo that a connector is forced on."""
    card = machine.card(gpu).name
    listed = machine.check(f"cd /sys/class/drm; ls -d {card}-* | sort -V").split()
    return [name.removeprefix(f"{card}-") for name in listed]


def config(path: str, pump: str = "auto") -> str:
    """Return displbe's configuration."""
    return (
        f'sink = "drm"\n[daemon]\npump = "{pump}"\n[control]\nsocket = "/run/displbe/control"\n'
        f'[drm]\nzero-copy = "{PATHS[path][1]}"\n'
    )


@contextlib.contextmanager
def bare_guest(machine: Machine, path: str, devices: list[list[str]], gpu: str = "gpu0") -> Iterator[tuple[int, int]]:
    """Let a guest flip that the bare backend serves. Yield the guest's domid and the backend's process id."""
    with bare(machine, machine.card(gpu).name, PATHS[path][0], len(devices)):
        domid = flipping_guest(machine, "one", devices)
        yield domid, bare_pid(machine)
    machine.destroy("one")


@pytest.fixture(scope="module")
def yardstick(computer: Machine) -> dict[str, Window]:
    """Measure the bare backend, with one screen, on each path."""
    measured = {}
    for path in PATHS:
        with bare_guest(computer, path, [names(computer)[:1]]) as guest:
            measured[path] = window(computer, *guest, f"bare-{PATHS[path][0]}", FLIPS)
    return measured


@contextlib.contextmanager
def programs(machine: Machine) -> Iterator[None]:
    """Run displbectl status again and again while the block lasts.

    It has the lowest priority: on the only processor, the kernel's worker that ends a commit would wait for it, and miss the refresh.
    """
    group = machine.start(f"cd {TREE}; while :; do nice -n 19 {STATUS}; done")
    try:
        yield
    finally:
        machine.stop(group, "KILL")


@contextlib.contextmanager
def short_slices(machine: Machine) -> Iterator[None]:
    """Let Xen switch between domains after 0.1 ms while the block lasts, so that a guest of great weight runs as soon as it is notified.

    Otherwise Xen shares the only processor in slices of up to 10 ms, and the guest sees its events that late.
    """
    machine.check("xl sched-credit2 -s -r 100")
    try:
        yield
    finally:
        machine.run("xl sched-credit2 -s -r 1000")


@pytest.mark.parametrize("pump", ["auto", "off"])
@pytest.mark.parametrize("path", PATHS)
def test_cost(computer: Machine, yardstick: dict[str, Window], path: str, pump: str, figure: Figure) -> None:
    """A flip costs at most so many times the bare backend's. With the pump, none is much later than the bare backend's latest flip."""
    with backend(computer, config(path, pump)) as displbe:
        domid = flipping_guest(computer, "one", [names(computer)[:1]])
        found = window(computer, domid, displbe.pid, f"pump-{pump}-{PATHS[path][0]}", FLIPS)
        computer.destroy("one")
        assert displbe.events("output on")[-1]["path"] == path
    ratio = found.cpu / yardstick[path].cpu
    figure(f"{path}, pump = {pump}: {found}; {ratio:.2f} times the bare backend's CPU time: {yardstick[path]}")
    assert ratio <= (PUMPED if pump == "auto" else IN_PYTHON)[path]
    assert found.late[-1] <= yardstick[path].late[-1] + MORE[pump]


def connections(displbe: Backend) -> int:
    """Return the number of connections that guests have made."""
    return sum(line["to"] == "connected" for line in displbe.events("state"))


def test_undisturbed(computer: Machine, figure: Figure) -> None:
    """What the interpreter does makes no flip late: displbectl status runs in a loop, a neighbour floods its ring, and it creates large
    buffers, all on one processor.
    """
    second = names(computer, "gpu1")[0]
    with short_slices(computer), backend(computer, config("zero copy")) as displbe:
        domid = flipping_guest(computer, "one", [names(computer)[:1]])
        computer.check(f"cd {TREE}; {STATUS}")
        computer.check("xl sched-credit2 -d one -w 65535")
        with programs(computer):
            found = {"status": window(computer, domid, displbe.pid, "status", FLIPS)}
        storm = "do=flood:600 initcall_blacklist=xen_drv_init"
        computer.create("two", guest_config("hostile", screens(second), extra=storm))
        computer.wait_for(lambda: connections(displbe) == 2, 30, why="the neighbour")
        found["storm"] = window(computer, domid, displbe.pid, "storm", FLIPS)
        computer.destroy("two")
        large = "do=create:3840x2160 initcall_blacklist=xen_drv_init xen_gntalloc.limit=65536"
        computer.create("two", guest_config("flips", screens(second), extra=large))
        computer.wait_console("two", "flips: created 2", 60)
        found["buffers"] = window(computer, domid, displbe.pid, "buffers", FLIPS)
    for name, latest in DISTURBED.items():
        figure(f"beside {name}: {found[name]}")
        assert found[name].late[1] <= latest, name
        assert found[name].rate > 59, name


def test_four_guests(computer: Machine, figure: Figure) -> None:
    """The CPU time grows in proportion to the screens: eight of four guests cost eight times one, and no flip is late."""
    screens = names(computer)
    guests = {name: [screens[2 * number : 2 * number + 2]] for number, name in enumerate(GUESTS)}
    with bare(computer, computer.card().name, PATHS["zero copy"][0], len(guests)):
        domids = flipping_guests(computer, guests)
        plain = [window(computer, domid, bare_pid(computer), "bare-eight", FLIPS // 4) for domid in domids]
    destroy(computer)
    with backend(computer, config("zero copy")) as displbe:
        domid = flipping_guest(computer, "one", [screens[:1]])
        single = window(computer, domid, displbe.pid, "one", FLIPS // 2)
        computer.destroy("one")
        domids = flipping_guests(computer, guests)
        found = [window(computer, domid, displbe.pid, "eight", FLIPS // 4) for domid in domids]
        destroy(computer)
    for one in found:
        share = one.cpu / len(found)  # all guests flip in each guest's window
        figure(f"{one}; {share / single.cpu:.2f} times the CPU time per flip of one screen")
        assert one.rate > 59
        assert share <= PROPORTION * single.cpu
    latest = max(one.late[-1] for one in plain)
    figure(f"bare backend: latest flip {latest:.0f} us")
    assert max(one.late[-1] for one in found) <= latest + MORE["auto"]


def test_fast_screen(computer: Machine, figure: Figure) -> None:
    """No flip of a screen with 240 refreshes per second is late."""
    with bare_guest(computer, "zero copy", [[FAST]], "gpu1") as guest:
        plain = window(computer, *guest, "bare-240", FLIPS, "gpu1")
    with backend(computer, config("zero copy")) as displbe:
        domid = flipping_guest(computer, "one", [[FAST]])
        found = window(computer, domid, displbe.pid, "240", FLIPS, "gpu1")
        computer.destroy("one")
    figure(f"{found}; bare backend: {plain}")
    assert plain.rate > 239
    assert found.rate > 239
    assert found.late[-1] <= plain.late[-1] + MORE["auto"]


def test_weston(computer: Machine, figure: Figure) -> None:
    """The cost of a flip of a window, whose pages Weston maps itself, is the same for each size."""
    with weston(computer, mode="1920x1080"):
        settings = f'sink = "wayland"\n[wayland]\ndisplay = "{SOCKET}"\ntrust-compositor = true\nscale = "none"\n'
        for mode, most in WAYLAND.items():
            with backend(computer, settings) as displbe:
                domid = flipping_guest(computer, "one", [names(computer)[:1]], mode)
                found = window(computer, domid, displbe.pid, f"weston-{mode}", FLIPS // 4)
                computer.destroy("one")
                figure(f"{mode}: {found}")
                assert found.cpu <= most
