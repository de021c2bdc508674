"""displbectl on real Xen: check, status, screenshot, trace, blank, unblank and kick, with a guest that flips."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab.backend import TREE, Backend, backend, no_zombie, screens
from lab.pictures import Picture, drawn
from lab.vm import Machine, guest_config
from PIL import Image

CTL = f"cd {TREE} && python3 -m displbe.ctl --socket /run/displbe/control"
CHECK = f"{CTL} check --config /etc/displbe/displbe.toml"
CONFIG = 'sink = "drm"\n[control]\nsocket = "/run/displbe/control"\n[drm]\nzero-copy = "require"\n'
WANTED = drawn(1024, 768, 0)
"""The picture that the guest shows with each flip."""


@pytest.fixture(scope="module")
def displbe(machine: Machine) -> Iterator[Backend]:
    machine.check("mkdir -p /run/displbe")
    with backend(machine, CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def guest(machine: Machine, displbe: Backend) -> Iterator[str]:
    """Run a guest that flips, and goes on when its card has gone and come back. Give its connector."""
    connector = next(iter(machine.connectors()))
    machine.create("flip", guest_config("survive", screens(connector)))
    machine.wait_console("flip", "survive: card 1", 60)
    yield connector
    machine.destroy("flip")
    no_zombie(machine)


def connector(machine: Machine) -> Any:
    """Return the status of the guest's connector, with that of its device; empty while the guest is not connected."""
    status = json.loads(machine.check(f"{CTL} status --json"))
    (guest,) = status["guests"]
    (device,) = guest["devices"]
    assert guest["name"] == "flip"
    if device["backend"] != "connected" or device["frontend"] != "connected":
        return {}
    return device["connectors"][0] | {"connections": device["connections"]}


def flips_without_copies(machine: Machine, connections: int, rate: float = 5) -> bool:
    """Return whether the guest has its connection number `connections`, and flips at this rate without copies."""
    said = connector(machine)
    return bool(
        said and (said["connections"], said["path"]) == (connections, "zero copy") and said["flips"]["fps_1s"] > rate
    )


def test_check(machine: Machine) -> None:
    """Before displbe runs, the check finds no error, and displbe can be DRM master. With an error, the exit code is 1."""
    name = next(iter(machine.connectors()))
    machine.put("/etc/displbe/displbe.toml", CONFIG)
    machine.put("/tmp/guest.cfg", f"name='flip'\n{guest_config('flip', screens(name))}")
    said = machine.check(f"{CHECK} /tmp/guest.cfg")
    print(said)
    assert "can be DRM master" in said
    assert "gntdev supports dma-bufs" in said
    assert "ok      XenStore can be opened" in said
    assert "ok      XenStore answers; this is domain 0" in said
    assert f"flip on {name}" in said
    machine.put("/tmp/elsewhere.cfg", "name='far'\nvdispl=['backend=DomD,connectors=A:64x64']\n")
    assert "backend=DomD, which is not this domain" in machine.check(f"{CHECK} /tmp/elsewhere.cfg")
    machine.put("/tmp/bad.cfg", f"name='flip'\n{screens('DP-99')}\nvkb=['backend-type=linux,unique-id=K:nonsense']\n")
    wrong = machine.run(f"{CHECK} /tmp/bad.cfg")
    assert wrong.code == 1
    assert "no connector DP-99" in wrong.output
    assert "nonsense is neither a device" in wrong.output


def test_status(machine: Machine, displbe: Backend, guest: str) -> None:
    machine.wait_for(lambda: flips_without_copies(machine, 1), 60, every=1, why="flips in the status")
    said = connector(machine)
    assert (said["output"], said["shown"]) == (guest, "1024x768 XR24")
    assert said["refused"] == said["rescued"] == 0
    assert said["flips"]["latency"]["p50"] < 1
    text = machine.check(f"{CTL} status && {CTL} top --count 1")
    print(text)
    assert "DRM master; dma-bufs can be imported" in text
    text = machine.check(CHECK)
    print(text)
    assert "displbe runs and answers" in text
    assert "ok      card0: displbe is DRM master" in text


def test_screenshot_and_trace(machine: Machine, displbe: Backend, guest: str) -> None:
    """The screenshot is the guest's picture, pixel by pixel, as on the monitor; the trace has its requests."""
    machine.check(f"{CTL} screenshot flip /tmp/shot.png")
    with Image.open(io.BytesIO(machine.get("/tmp/shot.png"))) as image:
        rgb = image.convert("RGB")
        assert Picture(rgb.width, rgb.height, rgb.tobytes()).differs(WANTED) == 0
    machine.expect_picture(WANTED, "operator", timeout=5)
    trace = machine.check(f"{CTL} trace flip")
    assert "DBUF_CREATE" in trace or trace.count("PG_FLIP") > 4000
    assert trace.count("PG_FLIP") > 10
    assert "-> ok after" in trace


def test_blank(machine: Machine, displbe: Backend, guest: str) -> None:
    """A blanked monitor does not show the guest's picture, and the guest flips on; after `unblank`, the picture is there again."""
    machine.expect_picture(WANTED, "operator-before-blank")
    machine.check(f"{CTL} blank flip")
    before = connector(machine)
    assert before["blanked"]
    assert before["path"] == ""
    machine.wait_for(lambda: unlike(machine.screendump()), 10, why="a dark monitor")
    for _ in range(5):
        assert unlike(machine.screendump(name="operator-blank"))
        machine.sleep(0.3)
    machine.wait_for(
        lambda: connector(machine)["flips"]["shown"] > before["flips"]["shown"] + 30, 20, why="flips while dark"
    )
    assert unlike(machine.screendump())
    machine.check(f"{CTL} unblank flip")
    machine.wait_for(lambda: flips_without_copies(machine, 1), 20, why="the guest's own pages again")
    machine.expect_picture(WANTED, "operator-unblanked")


def unlike(seen: Picture) -> bool:
    """Return whether a picture has almost nothing in common with the guest's."""
    return seen.differs(WANTED) > 0.9 * seen.width * seen.height


def test_kick(machine: Machine, displbe: Backend, guest: str) -> None:
    """The guest's driver connects anew, and its picture is on the monitor again, without copies."""
    machine.check(f"{CTL} kick flip")
    machine.wait_console("flip", "survive: card 2", 60)
    machine.wait_for(lambda: flips_without_copies(machine, 2), 30, every=1, why="the guest's new connection")
    machine.expect_picture(WANTED, "operator-kicked")
