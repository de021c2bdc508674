"""The DRM sink on real KMS drivers: two cards, monitors and drivers that come and go, sizes, drawing without flipping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from lab.backend import Backend, backend, no_zombie, screens
from lab.figures import Figure
from lab.flips import goes_on
from lab.pictures import Picture, drawn
from lab.vkms import checksum_of, vkms
from lab.vm import Machine, guest_config


def config(drm: str = "") -> str:
    """displbe's configuration."""
    return f'sink = "drm"\n[log]\nlevel = "debug"\n[drm]\n{drm}\n'


def framed(picture: Picture, width: int, height: int) -> Picture:
    """Return a picture in the middle of a black screen."""
    left, top = (width - picture.width) // 2, (height - picture.height) // 2
    row, stride = picture.width * 3, width * 3
    rgb = bytearray(stride * height)
    for y in range(picture.height):
        at = (top + y) * stride + left * 3
        rgb[at : at + row] = picture.rgb[y * row : (y + 1) * row]
    return Picture(width, height, bytes(rgb))


@pytest.fixture
def names(machine: Machine) -> list[str]:
    """The connectors of the two emulated cards."""
    return [next(iter(machine.connectors(gpu))) for gpu in machine.gpus]


@pytest.fixture(autouse=True)
def _guests(machine: Machine) -> Iterator[None]:
    """Destroy all guests, and check that none of their pages are left."""
    yield
    for name in ("one", "two"):
        machine.destroy(name)
    no_zombie(machine)


def wait_event(displbe: Backend, event: str, timeout: float = 20, count: int = 1, **fields: object) -> None:
    """Wait for this many lines with this event and these fields in displbe's log."""

    def there() -> bool:
        lines = [line for line in displbe.events(event) if fields.items() <= line.items()]
        return len(lines) >= count

    displbe.machine.wait_for(there, timeout, why=f"{event} {fields}")


def test_two_cards(machine: Machine, reference: Callable[..., Picture], names: list[str]) -> None:
    """Two guests on two cards are both shown without copying, and both pictures are right."""
    wanted = reference()
    with backend(machine, config('zero-copy = "require"')) as displbe:
        for guest, name in zip(("one", "two"), names, strict=True):
            machine.create(guest, guest_config("still", screens(name)))
        for guest, gpu in zip(("one", "two"), machine.gpus, strict=True):
            machine.wait_console(guest, "guest: drawing", 60)
            machine.expect_picture(wanted, f"two-cards-{gpu}", gpu)
        assert [line["path"] for line in displbe.events("output on")] == ["zero copy"] * 2


@pytest.fixture(params=["kernel", "udev"])
def source(machine: Machine, request: pytest.FixtureRequest) -> str:
    """The source of monitor events: `udev`, with a running udevd, or the kernel."""
    if request.param == "udev":
        if machine.run("test -e /run/udev/control").code != 0:
            machine.check("/usr/lib/systemd/systemd-udevd --daemon; udevadm trigger; udevadm settle", 90)
    else:
        machine.run("udevadm control --exit", 30)
        machine.wait_for("! pgrep -x systemd-udevd && rm -f /run/udev/control", 30)
    return str(request.param)


def test_monitors_come_and_go(machine: Machine, reference: Callable[..., Picture], source: str, figure: Figure) -> None:
    """A guest on vkms starts without a monitor. The monitor comes, goes and comes; another guest's monitor stays. Each picture is right,
    and appears within a second.
    """
    wanted = reference()
    with vkms(machine, connectors=2) as card:
        first, second = card.connectors
        card.plug(0, False)
        with backend(machine, config()) as displbe:
            machine.create("one", guest_config("flip", screens(first)))
            machine.create("two", guest_config("still", screens(second)))
            rate = goes_on(machine, "one")
            print(f"\nwithout a monitor: {rate:.1f} flips/s")
            assert 4 < rate < 75  # the rate of a monitor; flips that end late end twice a second
            assert [line["source"] for line in displbe.events("events of monitors")] == [source]
            wait_event(displbe, "output dark", connector=first)
            wait_event(displbe, "output on", connector=second, path="copy")
            still = card.checksum(1)
            for count in (1, 2):
                plugged = card.plug(0, True)
                wait_event(displbe, "output on", 10, count, connector=first)
                on = [line["timestamp"] for line in displbe.events("output on") if line["connector"] == first]
                shown = (datetime.fromisoformat(str(on[-1])) - plugged).total_seconds()
                figure(f"monitor plugged in: the picture after {shown:.2f} s")
                assert shown <= 1
                goes_on(machine, "one")
                card.plug(0, False)
                wait_event(displbe, "monitor disconnected", 10, count, connector=first)
                goes_on(machine, "one")
            assert card.checksum(1) == still == checksum_of(wanted)
            assert len(displbe.events("monitor connected")) == 2
            machine.destroy("one")
            machine.create("one", guest_config("still", screens(first)))
            card.plug(0, True)
            machine.wait_console("one", "guest: drawing", 60)
            machine.wait_for(lambda: card.checksum(0) == still, 20, why="the same picture on both connectors")


def test_unbound(machine: Machine, reference: Callable[..., Picture], names: list[str]) -> None:
    """The card's driver is unbound and bound again, twice. The guest goes on flipping, and its picture returns; the other card's stays.

    The test uses copy mode, because Linux's virtio-gpu hangs in the kernel when it is unbound while it holds a dma-buf of another device.
    """
    wanted, plain = reference(), reference(pattern="plain")
    device = machine.check(f"cd /sys/class/drm/{machine.card().name}/device; ls -d virtio*").strip()
    driver = "/sys/bus/virtio/drivers/virtio_gpu"
    with backend(machine, config('zero-copy = "off"')) as displbe:
        machine.create("one", guest_config("flip", screens(names[0])))
        machine.create("two", guest_config("still", screens(names[1])))
        machine.wait_console("two", "guest: drawing", 60)
        goes_on(machine, "one")
        for count in (2, 3):
            machine.check(f"echo {device} > {driver}/unbind")
            rate = goes_on(machine, "one")
            print(f"\nwithout a card: {rate:.1f} flips/s")
            assert 4 < rate < 75
            machine.expect_picture(wanted, "unbound-other", machine.gpus[1])
            machine.check(f"echo {device} > {driver}/bind")
            wait_event(displbe, "output on", 10, count, connector=names[0])
            goes_on(machine, "one")
            machine.wait_for(lambda: machine.screendump() in (wanted, plain), 10, why="the picture")
        assert displbe.events("background task failed") == []


def test_size_without_a_mode(machine: Machine, names: list[str]) -> None:
    """A guest of 1000x700 has black borders: the monitor has no such mode, and the plane neither scales nor leaves a part free."""
    with backend(machine, config()) as displbe:
        machine.create("one", guest_config("draw", screens(names[0], "1000x700"), mode="1000x700", extra="do=2"))
        machine.wait_console("one", "draw: step 2", 60)
        wait_event(displbe, "output on", path="copy")
        seen = machine.screendump()
        machine.expect_picture(framed(drawn(1000, 700, 2), seen.width, seen.height), "framed", timeout=10)
        print(f"\n1000x700 in {seen.width}x{seen.height}")


@pytest.mark.parametrize("zero_copy", ["off", "require"])
def test_drawing_without_flipping(machine: Machine, names: list[str], zero_copy: str, figure: Figure) -> None:
    """A guest draws into the frame that it shows, and each square appears. While it draws nothing, displbe uses little CPU time.

    This also holds without copies, where this card's host reads a frame only when it is told to.
    """
    with backend(machine, config(f'zero-copy = "{zero_copy}"')) as displbe:
        machine.create("one", guest_config("draw", screens(names[0]), extra="do=4"))
        for step in range(5):
            machine.wait_console("one", f"draw: step {step}", 60)
            if step in (0, 2, 4):
                machine.expect_picture(drawn(1024, 768, step), f"drawn-{zero_copy}-{step}", timeout=10)
        machine.sleep(2)
        before = sum(displbe.cpu_seconds())
        machine.sleep(10)
        used = (sum(displbe.cpu_seconds()) - before) / 10
        figure(f"a still picture: {used:.3f} s of CPU time a second")
        assert used < 0.2  # five comparisons, and the card's looks


def test_kept(machine: Machine, names: list[str]) -> None:
    """With `on-exit = "keep"`, the last frame stays on the screen when the guest has gone, and when displbe has ended."""
    with backend(machine, config('on-exit = "keep"')) as displbe:
        machine.create("one", guest_config("draw", screens(names[0]), extra="do=0"))
        machine.wait_console("one", "draw: step 0", 60)
        machine.expect_picture(drawn(1024, 768, 0), "before-keep", timeout=10)
        assert displbe.events("output on")[-1]["path"] == "zero copy"
        machine.destroy("one")
        machine.expect_picture(drawn(1024, 768, 0), "kept-without-guest", timeout=5)
    machine.expect_picture(drawn(1024, 768, 0), "kept-without-displbe", timeout=5)
