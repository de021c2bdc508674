"""The conformance suite over the real /dev/xen, in Dom0, which acts as its own guest."""

from __future__ import annotations

from lab.conftest import TREE
from lab.vm import Machine, guest_config


def test_conformance(machine: Machine) -> None:
    conformance(machine)


def conformance(machine: Machine) -> None:
    """Run the whole suite in this machine's Dom0; all of it must pass."""
    stranger = machine.create("stranger", guest_config("idle"))
    try:
        done = machine.run(
            f"cd {TREE} && DISPLBE_HOST=1 DISPLBE_STRANGER={stranger} "
            "python3 -m pytest -q -p no:cacheprovider --tb=short tests/conformance",
            timeout=420,
        )
    finally:
        machine.destroy("stranger")
    print("\n" + done.output[-6000:])
    assert done.code == 0
