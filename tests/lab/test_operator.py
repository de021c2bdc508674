"""displbectl on real Xen: the preflight, the status of a guest that flips, its picture, its requests; blanked, kicked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab.backend import TREE, Backend, backend, no_zombie, screens
from lab.vm import Machine, guest_config

CTL = f"cd {TREE} && python3 -m displbe.ctl --socket /run/displbe/control"
CONFIG = 'sink = "drm"\n[control]\nsocket = "/run/displbe/control"\n[drm]\nzero-copy = "require"\n'


@pytest.fixture(scope="module")
def displbe(machine: Machine) -> Iterator[Backend]:
    machine.check("mkdir -p /run/displbe")
    with backend(machine, CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def guest(machine: Machine, displbe: Backend) -> Iterator[str]:
    """The connector of a guest that flips."""
    connector = next(iter(machine.connectors()))
    machine.create("flip", guest_config("flip", screens(connector), seconds=600))
    machine.wait_console("flip", "freq:", 60)
    yield connector
    machine.destroy("flip")
    no_zombie(machine)


def connector(machine: Machine) -> Any:
    """What the status says of the guest's connector."""
    status = json.loads(machine.check(f"{CTL} status --json"))
    (guest,) = status["guests"]
    (device,) = guest["devices"]
    assert (guest["name"], device["backend"], device["frontend"]) == ("flip", "connected", "connected")
    return device["connectors"][0] | {"connections": device["connections"]}


def test_check(machine: Machine) -> None:
    """Before displbe runs: nothing is wrong with this machine, and the card can be had."""
    machine.put("/etc/displbe/displbe.toml", CONFIG)
    machine.put("/tmp/guest.cfg", guest_config("flip", screens(next(iter(machine.connectors())))))
    said = machine.check(f"{CTL} check --config /etc/displbe/displbe.toml /tmp/guest.cfg")
    print(said)
    assert "can be DRM master" in said
    assert "gntdev has dma-bufs" in said
    assert "good  XenStore" in said
    wrong = machine.run(f"{CTL} check --config /etc/displbe/displbe.toml /etc/passwd /tmp/guest.cfg /tmp/none.cfg")
    assert "No such file" in wrong.output


def test_status(machine: Machine, displbe: Backend, guest: str) -> None:
    machine.wait_for(lambda: connector(machine)["flips"]["fps_1s"] > 30, 30, every=1, why="flips in the status")
    said = connector(machine)
    assert (said["output"], said["path"], said["shown"]) == (guest, "zero copy", "1024x768 XR24")
    assert said["refused"] == said["rescued"] == 0
    assert said["flips"]["latency"]["p50"] < 0.1
    text = machine.check(f"{CTL} status; {CTL} top --count 1; {CTL} check --config /etc/displbe/displbe.toml || true")
    print(text)
    assert "DRM master; dma-bufs can be imported" in text
    assert "displbe runs and answers" in text


def test_screenshot_and_trace(machine: Machine, displbe: Backend, guest: str) -> None:
    machine.check(f"{CTL} screenshot flip /tmp/shot.png")
    counted = machine.check(
        "python3 -c \"from PIL import Image; i = Image.open('/tmp/shot.png'); print(i.size, len(i.getcolors(99999)))\""
    )
    assert counted.startswith("(1024, 768)")
    trace = machine.check(f"{CTL} trace flip")
    assert "DBUF_CREATE" in trace or trace.count("PG_FLIP") > 4000
    assert trace.count("PG_FLIP") > 10
    assert "-> ok after" in trace


def test_blank_and_kick(machine: Machine, displbe: Backend, guest: str) -> None:
    machine.check(f"{CTL} blank flip")
    before = connector(machine)
    assert before["blanked"]
    assert before["path"] == ""
    machine.wait_for(
        lambda: connector(machine)["flips"]["shown"] > before["flips"]["shown"] + 30, 20, why="flips while dark"
    )
    machine.check(f"{CTL} unblank flip")
    machine.wait_for(lambda: connector(machine)["path"] == "zero copy", 10, why="the picture again")
    machine.check(f"{CTL} kick flip")
    machine.wait_for(
        lambda: '"connections":2' in machine.check(f"{CTL} status --json").replace(" ", ""),
        20,
        why="the guest's new connection",
    )
