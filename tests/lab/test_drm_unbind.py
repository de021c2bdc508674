"""A card's driver is unbound while it scans out a guest's pages, in a machine of its own. The kernel does not let displbe end then.

Linux 7.2's virtio-gpu waits for the device's answer before it releases an imported dma-buf (virtgpu_dma_buf_free_obj), also when the
device has been removed. The thread that closes the file then waits for ever. Nothing shows this in advance, so displbe can only make sure
that no other thread waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import TREE, Backend, backend, screens
from lab.conftest import project
from lab.figures import Figure
from lab.flips import goes_on
from lab.test_drm import config, wait_event
from lab.vm import LabError, Machine, guest_config, reference_picture


@pytest.fixture(scope="module")
def computer(out: Path) -> Iterator[Machine]:
    """Xen and Dom0 with two cards."""
    with Machine(out=out, gpus=("gpu0", "gpu1")) as running:
        running.put_tree(project(), TREE)
        yield running


def test_unbound_without_copies(computer: Machine, figure: Figure) -> None:
    """The other guest goes on flipping, and the card that comes back shows the picture again. displbe cannot end."""
    with pytest.raises(LabError, match="end after SIGTERM"):
        unbind_and_bind(computer, figure)


def unbind_and_bind(computer: Machine, figure: Figure) -> None:
    """Unbind one guest's card and bind it again, beside a guest that flips on another card."""
    wanted = reference_picture(computer)
    names = [next(iter(computer.connectors(gpu))) for gpu in computer.gpus]
    device = computer.check(f"cd /sys/class/drm/{computer.card().name}/device; ls -d virtio*").strip()
    driver = "/sys/bus/virtio/drivers/virtio_gpu"
    with backend(computer, config('zero-copy = "require"')) as displbe:
        computer.create("one", guest_config("still", screens(names[0])))
        computer.create("two", guest_config("flip", screens(names[1])))
        computer.wait_console("one", "guest: drawing", 60)
        computer.expect_picture(wanted, "before-unbind", timeout=10)
        goes_on(computer, "two")
        whole = use(computer, displbe)
        unbind = computer.run(f"timeout 20 bash -c 'echo {device} > {driver}/unbind'", 40)
        print(f"\nunbind: {unbind}")
        wait_event(displbe, "card gone")
        print(f"the other guest: {goes_on(computer, 'two'):.1f} flips/s")
        wait_event(displbe, "the card's driver hangs: it does not let its file be closed")
        tasks = f"for t in /proc/{displbe.pid}/task/*; do cat $t/wchan; echo; grep State $t/status; done"
        print(computer.run(tasks).output)
        hanging = use(computer, displbe)
        figure(f"a card hangs: {hanging:.3f} of a CPU, {whole:.3f} before")
        assert hanging < min(2 * whole, 0.8)
        bind = computer.run(f"timeout 20 bash -c 'echo {device} > {driver}/bind'", 40)
        print(f"bind: {bind}")
        wait_event(displbe, "output on", 10, 2, connector=names[0])
        computer.expect_picture(wanted, "after-bind", timeout=10)
        print(f"the other guest: {goes_on(computer, 'two'):.1f} flips/s")


def use(computer: Machine, displbe: Backend) -> float:
    """Return the share of a CPU that displbe uses, measured over 6 seconds in which the test does nothing."""
    before, began = sum(displbe.cpu_seconds()), computer.clock
    computer.sleep(6)
    return (sum(displbe.cpu_seconds()) - before) / (computer.clock - began)
