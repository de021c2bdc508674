"""Linux guests as windows of a real Weston in Dom0: zero copy, software renderers, shells, and the end of Weston."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from lab.backend import TREE, Backend, Held, backend, no_zombie, screens
from lab.figures import Figure
from lab.flips import flips, goes_on
from lab.pictures import Picture, drawn
from lab.tried import EXACT, SHARED, Tried, weston_sink
from lab.vm import Machine, guest_config
from lab.weston import SOCKET, Weston, weston

GRANT_FILE = Path(__file__).parent / "grant_file.py"
LINES = 6
"""modetest writes one line for 60 flips."""


def config(wayland: str = "") -> str:
    """Return displbe's configuration."""
    if "trust-compositor" not in wayland:
        wayland = f"trust-compositor = true\n{wayland}"
    return f'sink = "wayland"\n[log]\nlevel = "debug"\n[wayland]\ndisplay = "{SOCKET}"\n{wayland}\n'


@pytest.fixture(scope="module")
def pictures(reference: Callable[..., Picture]) -> tuple[Picture, Picture]:
    """Return the two pictures that modetest flips between; they are taken before Weston takes the card."""
    return reference(), reference(pattern="plain")


@pytest.fixture(autouse=True)
def _guests(machine: Machine) -> Iterator[None]:
    """Destroy all guests, and check that none of their pages are left."""
    yield
    for name in ("one", "two", "hostile"):
        machine.destroy(name)
    no_zombie(machine)


def screen(machine: Machine, mode: str = "1024x768") -> str:
    """Return a guest's vdispl line for Weston's output."""
    return screens(next(iter(machine.connectors())), mode)


def way(displbe: Backend) -> str:
    """Return the way in which the last framebuffer was given to the compositor."""
    return str(displbe.events("framebuffer attached")[-1]["way"])


def note(tried: Tried, machine: Machine, displbe: Backend, how: str) -> None:
    """Take down that the guest `one` was shown."""
    shown = {"shm": SHARED}.get(way(displbe), way(displbe))
    tried(machine, "one", next(iter(machine.connectors())), weston_sink(machine, how), shown, EXACT)


def released(displbe: Backend, compositor: Weston, idle: Held) -> None:
    """Wait until neither displbe nor Weston holds anything of a guest's."""
    machine = displbe.machine
    machine.wait_for(lambda: displbe.held() == idle, 20, why=f"everything released: {idle}")
    machine.wait_for(lambda: compositor.mappings() == 0, 10, why="Weston's mappings of guests' pages to end")


@pytest.mark.parametrize("renderer", ["pixman", "gl"])
def test_picture(machine: Machine, pictures: tuple[Picture, Picture], renderer: str, tried: Tried) -> None:
    """The monitor shows the guest's picture, and Weston maps the guest's own pages.

    Weston also maps them when it draws with GL, because its GL is in software here, so that it must not get a dma-buf.
    """
    with weston(machine, renderer=renderer) as compositor, backend(machine, config()) as displbe:
        idle = displbe.held()
        machine.create("one", guest_config("still", screen(machine)))
        machine.wait_console("one", "guest: drawing", 60)
        machine.expect_picture(pictures[0], f"weston-{renderer}")
        assert way(displbe) == "shm"
        print("\n", displbe.events("framebuffer attached")[-1]["reason"])
        assert compositor.mappings() == 1
        assert compositor.imports() == 0
        note(tried, machine, displbe, renderer)
        machine.destroy("one")
        released(displbe, compositor, idle)
        assert compositor.running


def test_a_compositor_that_is_not_trusted(machine: Machine, pictures: tuple[Picture, Picture], tried: Tried) -> None:
    """By default the compositor gets no file of gntdev: frames are copied. The reason is tried here: such a file in the hands of a program
    without any right maps and copies the guest's XenStore page, which is granted to Dom0 for another purpose.
    """
    with weston(machine) as compositor, backend(machine, config("trust-compositor = false")) as displbe:
        domid = machine.create("one", guest_config("still", screen(machine)))
        machine.wait_console("one", "guest: drawing", 60)
        machine.expect_picture(pictures[0], "weston-not-trusted")
        assert way(displbe) == "copy"
        note(tried, machine, displbe, "pixman, not trusted")
        assert "trust-compositor allows it" in str(displbe.events("framebuffer attached")[-1]["reason"])
        assert compositor.mappings() == 0
        assert "gntdev" not in machine.check(f"ls -l /proc/{compositor.pid}/fd")
        machine.put("/tmp/grant_file.py", GRANT_FILE.read_text())
        said = json.loads(machine.check(f"python3 /tmp/grant_file.py {domid} 0"))
    print("\n", said)
    assert {found["open gntdev"] for found in said.values()} == {"Permission denied"}
    assert said["writable"]["map"].startswith("ok"), "is trust-compositor still needed?"
    assert said["writable"]["copy"] == said["readable"]["copy"] == "ok status 0"
    assert said["readable"]["map"] == "Permission denied"


def test_a_dmabuf(machine: Machine) -> None:
    """Weston's GL renderer imports a dma-buf (a udmabuf) and shows it. This Weston has no screen.

    /dev/dri is hidden. Where there is a card, Mesa's software GL uses it (kms_swrast) and cannot map what it has imported, so that Weston
    14 crashes when it draws. Without a card it maps the dma-buf itself.
    """
    done = machine.run(
        f"cd {TREE} && unshare --mount sh -c 'mount -t tmpfs none /dev/dri && LIBGL_ALWAYS_SOFTWARE=1 exec python3 -m pytest -q"
        " -p no:cacheprovider -o faulthandler_timeout=0 --tb=short tests/sinks/test_weston.py -k test_a_dmabuf'",
        timeout=120,
    )
    print("\n" + done.output[-6000:])
    assert done.code == 0
    assert "1 passed" in done.output, "not skipped"


def test_drawing_without_flipping(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """A guest draws into the frame that it shows: the drawing appears."""
    with weston(machine), backend(machine, config()):
        machine.create("one", guest_config("draw", screen(machine), extra="do=3"))
        machine.wait_console("one", "draw: step 3", 60)
        machine.expect_picture(drawn(1024, 768, 3), "weston-drawn")


def test_killed_stopped_and_started_again(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """The guest goes on flipping without Weston, and its picture returns with Weston."""
    with weston(machine) as compositor, backend(machine, config()) as displbe:
        machine.create("one", guest_config("flip", screen(machine)))
        print(f"\nshown: {goes_on(machine, 'one'):.1f} flips/s")
        for turn in (1, 2):
            compositor.kill()
            rate = goes_on(machine, "one")
            print(f"without Weston: {rate:.1f} flips/s")
            assert rate < 75
            began = machine.clock
            compositor.start()
            machine.wait_for(lambda: machine.screendump() in pictures, 20, why="the picture")
            print(f"picture {machine.clock - began:.1f} s after Weston was started")
            goes_on(machine, "one")
            assert len(displbe.events("connected to the compositor")) == turn + 1
        memory = displbe.memory()
        compositor.signal("STOP")
        rate = goes_on(machine, "one")
        rate = goes_on(machine, "one")
        print(f"Weston stopped: {rate:.1f} flips/s, {displbe.memory() - memory} kB more resident")
        assert rate < 75
        assert displbe.memory() - memory < 1024
        compositor.signal("CONT")
        goes_on(machine, "one")
        machine.wait_for(lambda: machine.screendump() in pictures, 20, why="the picture")
        assert len(displbe.events("connected to the compositor")) == 3
        assert "timed-out" not in machine.console("one")


def test_a_compositor_that_comes_later(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """displbe and the guest are started before the compositor."""
    with backend(machine, config()) as displbe:
        machine.run(f"rm -f {SOCKET}")
        machine.create("one", guest_config("still", screen(machine)))
        machine.wait_console("one", "guest: drawing", 60)
        assert displbe.events("waiting for the compositor")
        with weston(machine):
            machine.expect_picture(pictures[0], "weston-later")


def test_ivi_shell(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """The connector's name is the surface's ivi id. Weston's controller tiles surfaces."""
    with weston(machine, shell="ivi"), backend(machine, config()) as displbe:
        # The controller ignores surfaces that come before its own user interface, which shows images.
        machine.wait_for(lambda: len(machine.screendump().colours()) > 10, 60, why="the controller's user interface")
        machine.create("one", guest_config("still", screens("5001")))
        machine.wait_console("one", "guest: drawing", 60)
        machine.wait_for(lambda: displbe.events("output on"), 30, why="the surface")
        assert displbe.events("output on")[-1]["role"] == "ivi-application"
        wanted = pictures[0].colours()

        def there() -> bool:
            return wanted <= machine.screendump(name="weston-ivi").colours()

        machine.wait_for(there, 30, why="the picture's colours")


def test_a_hostile_neighbour(machine: Machine, pictures: tuple[Picture, Picture]) -> None:
    """A guest sends odd strides, oversized framebuffers, floods. Weston goes on, and the other guest's window shows its picture again."""
    with weston(machine, shell="desktop") as compositor, backend(machine, config()) as displbe:
        idle = displbe.held()
        machine.create("one", guest_config("flip", screen(machine)))
        quiet, mapped = goes_on(machine, "one"), compositor.mappings()
        todo = "do=windows:3,flood:10 initcall_blacklist=xen_drv_init"
        machine.create("hostile", guest_config("hostile", screens("their-window"), extra=todo))
        # Two SET_CONFIGs of each of 30 windows, two a second.
        console = machine.wait_console("hostile", "guest: done", 300)
        lines = re.findall(r"hostile: (\w+: .*)", console)
        print("\n" + "\n".join(lines))
        assert "windows: 18 shown, 12 refused, 0 requests without an answer" in [line.strip() for line in lines]
        assert any(line.startswith("flood: ") and line.strip().endswith("backend state 4") for line in lines)
        machine.screendump(name="weston-hostile")
        machine.destroy("hostile")
        machine.wait_for(lambda: compositor.mappings() == mapped, 20, why="the end of Weston's mappings of its pages")
        after = goes_on(machine, "one")
        print(
            f"the other guest: {quiet:.1f} flips/s before, {after:.1f} after, {min(flips(machine, 'one')):.1f} at worst"
        )
        # Compare below the desktop's panel, which covers windows that are not active.
        below = [picture.crop(0, 64, 1024, 704) for picture in pictures]
        machine.wait_for(
            lambda: machine.screendump(name="weston-after-hostile").crop(0, 64, 1024, 704) in below,
            20,
            why="the picture",
        )
        assert compositor.running
        connected = [line["guest"] for line in displbe.events("connected to the compositor")]
        assert connected.count("one") == 1
        assert "timed-out" not in machine.console("one")
        machine.destroy("one")
        released(displbe, compositor, idle)


class Cost(NamedTuple):
    """The cost of a flipping guest: flips per second, and milliseconds of displbe's CPU time per flip."""

    rate: float
    user: float
    system: float


def cost(machine: Machine, displbe: Backend, mode: str) -> Cost:
    """Let a guest flip for a while, and return what that costs."""
    machine.create("one", guest_config("flip", screen(machine, mode), mode=mode))
    machine.wait_console("one", "freq:", 60, count=2)
    before, seen = displbe.cpu_seconds(), len(flips(machine, "one"))
    machine.wait_for(lambda: len(flips(machine, "one")) >= seen + LINES, 240, why="flips")
    after, rates = displbe.cpu_seconds(), flips(machine, "one")[seen:]
    user, system = (1000 * (now - then) / (60 * len(rates)) for now, then in zip(after, before, strict=True))
    found = Cost(median(rates), user, system)
    machine.destroy("one")
    return found


def test_costs(machine: Machine, figure: Figure) -> None:
    """A flip without a copy costs the same for any size, and at most 0.6 of one with a copy. Weston limits the rate, not displbe."""
    machine.put("/root/bare_client.py", (Path(__file__).with_name("bare_client.py")).read_text())
    costs: dict[tuple[str, str], Cost] = {}
    with weston(machine):
        command = f"cd {TREE}; export WAYLAND_DISPLAY={SOCKET} PYTHONPATH=.; python3 /root/bare_client.py 1024 768 120"
        bare = float(
            machine.check(command, 60)
        )  # frames per second that Weston requests from a client that does nothing else
        for zero_copy, modes in (("auto", ("640x480", "1920x1080", "1024x768")), ("off", ("1024x768",))):
            with backend(machine, config(f'zero-copy = "{zero_copy}"\nscale = "none"')) as displbe:
                for mode in modes:
                    now = costs[zero_copy, mode] = cost(machine, displbe, mode)
                    assert way(displbe) == ("copy" if zero_copy == "off" else "shm")
                    figure(
                        f"{mode} {way(displbe)}: {now.rate:.1f} flips/s, CPU per flip {now.user:.2f} + {now.system:.2f} ms"
                        f" (user + system); Weston asks a bare client for {bare:.1f} frames/s"
                    )
    assert 0.9 <= costs["auto", "1920x1080"].user / costs["auto", "640x480"].user <= 1.1
    assert sum(costs["auto", "1024x768"][1:]) <= 0.6 * sum(costs["off", "1024x768"][1:])
    assert costs["auto", "1024x768"].rate >= 0.92 * max(bare, 15)
