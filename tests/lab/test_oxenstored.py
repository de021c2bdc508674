"""K4 and the conformance suite on oxenstored, the XenStore written in OCaml, which Debian's init script prefers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import TREE, backend, no_zombie, screens
from lab.conftest import project
from lab.test_conformance import conformance
from lab.test_hostile import CONFIG, hostile
from lab.vm import Machine, guest_config, reference_picture


@pytest.fixture(scope="module")
def computer(out: Path) -> Iterator[Machine]:
    """Xen and Dom0 with oxenstored."""
    with Machine(out=out, gpus=("gpu0", "gpu1"), bootargs="lab.store=oxenstored") as running:
        assert "oxenstored" in running.check("ps -e -o comm")
        running.put_tree(project(), TREE)
        yield running


def test_conformance(computer: Machine) -> None:
    conformance(computer)


def test_forged(computer: Machine) -> None:
    """A guest that creates its own `unique-id` is refused. One that connects and leaves is served, and a Linux guest's picture is shown."""
    wanted = reference_picture(computer)
    first, second = (next(iter(computer.connectors(gpu))) for gpu in ("gpu0", "gpu1"))
    with backend(computer, CONFIG) as displbe:
        idle = displbe.held()
        try:
            computer.create("still", guest_config("still", screens(first)))
            lines = hostile(computer, f"cycle:5,storm:3,forge:{first},forge:{second}", 120)
            assert lines[0] == "cycle: 5 times"
            assert [line for line in lines if line.startswith("forge")] == [
                "forge: refused: 0/unique-id was written by the guest"
            ] * 2
            computer.expect_picture(wanted, "oxenstored")
        finally:
            for name in ("hostile", "still"):
                computer.destroy(name)
        computer.wait_for(lambda: displbe.held() == idle, 30, why="everything released")
    no_zombie(computer)
