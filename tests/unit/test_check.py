"""`displbectl check`, on machines that are directories of files."""

from __future__ import annotations

import contextlib
import errno
import grp
import gzip
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.drm_model import Board, Monitor
from unit.test_drm_finding import DELL

from displbe.ctl import check
from displbe.ctl.check import run_checks
from displbe.ctl.check_result import CheckResult
from displbe.ctl.machine import Machine
from displbe.ctl.service import Identity, acting_as, service_environment, service_identity
from displbe.ctl.xlconfig import Display, Keyboard, XlConfig, read_xl_config
from displbe.ctl.zero_copy import DMABUF_OPTIONS
from displbe.ops.status import Abilities, Loop, Status, Usage
from displbe.resources import ProcessLimits
from displbe.sinks.drm.libseat import PLAIN
from displbe.sinks.registry import DEBIAN, SINKS
from displbe.xen import gntdev

CONFIGS = Path(__file__).parents[2] / "configs"
GOOD_KERNEL = "\n".join(f"{option}=y" for option in (*check.REQUIRED, *check.USEFUL, *DMABUF_OPTIONS))


class Made:
    """A machine without problems; tests add some."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity: Identity | None = None
        self.is_service_user = True
        self.identity_error = ""
        self.limits = ProcessLimits(4096, 512, 1 << 30)
        self.environment: dict[str, str] = {}
        self.architecture = "aarch64"
        self.xl = "xen_commandline : gnttab_max_maptrack_frames=1024"
        self.write("sys/hypervisor/type", "xen\n")
        self.write("sys/hypervisor/guest_type", "PVH\n")
        self.write("dev/xen/evtchn", "")
        self.write("dev/xen/gntdev", "")
        self.write("dev/xen/xenbus", "")
        self.write("boot/config-6.12", GOOD_KERNEL)
        self.write("sys/class/drm/card0-HDMI-A-1/status", "connected")
        self.write("etc/xen/cockpit.cfg", 'name = "cockpit"\nvdispl = ["connectors=HDMI-A-1:1920x1080"]\n')
        self.write("displbe.toml", "sink = 'headless'\n")

    def write(self, path: str, text: str | bytes) -> None:
        """A file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    def results(self, *guests: str) -> list[CheckResult]:
        """All results."""
        xl = (sys.executable, "-c", f"print({self.xl!r})")
        machine = Machine(
            self.root,
            "6.12",
            xl,
            self.identity,
            is_service_user=self.is_service_user,
            identity_error=self.identity_error,
            limits=self.limits,
            environment=self.environment,
            architecture=self.architecture,
        )
        return list(run_checks(machine, str(self.root / "displbe.toml"), str(self.root / "control"), list(guests)))

    def errors(self, *guests: str) -> list[str]:
        """The texts of the errors."""
        return [result.text for result in self.results(*guests) if result.grade == "error"]

    def warnings(self, *guests: str) -> list[str]:
        """The texts of the warnings, but for the one that no daemon answers: none runs here."""
        return [
            result.text
            for result in self.results(*guests)
            if result.grade == "warning" and "does not answer" not in result.text
        ]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A machine."""
    monkeypatch.setattr(gntdev, "probe", lambda fd: True)
    return Made(tmp_path)


def test_a_machine_that_is_as_it_should_be(made: Made) -> None:
    assert made.errors() == []
    assert made.warnings() == []
    assert any("cockpit on HDMI-A-1" in result.text for result in made.results())


def test_every_problem_has_a_fix(made: Made, tmp_path: Path) -> None:
    for path in ("dev/xen/gntdev", "dev/xen/evtchn", "dev/xen/xenbus", "sys/hypervisor/type", "boot/config-6.12"):
        (tmp_path / path).unlink()
    made.write("displbe.toml", "sink = 'drm'\n[limits]\npages = 900000\n")
    made.write("etc/xen/b.cfg", 'vdispl = ["connectors=DP-7:1x1", "be-alloc=1,connectors=HDMI-A-1:99999x99999"]')
    found = made.results()
    assert sum(result.grade == "error" for result in found) >= 6
    assert all(bool(result.fix) == (result.grade != "ok") for result in found)


@pytest.mark.parametrize("node", ["evtchn", "gntdev"])
def test_device_nodes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode, *, effective_ids: Path(path).name != node)
        assert [what.split()[-1] for what in made.errors()] == [f"/dev/xen/{node}"]
        made.is_service_user = False  # displbe's user may have access where this one has none
        assert made.errors() == []
        assert [what.split()[-1] for what in made.warnings()] == ["user", f"/dev/xen/{node}"]
    (tmp_path / "dev/xen" / node).unlink()
    assert made.errors() == [f"/dev/xen/{node} does not exist"]


def test_xenstore(made: Made, tmp_path: Path) -> None:
    (tmp_path / "dev/xen/xenbus").unlink()
    assert made.errors() == ["there is no XenStore"]


def test_no_xen(made: Made) -> None:
    made.write("sys/hypervisor/type", "kvm")
    assert made.errors() == ["this is no Xen domain"]


@pytest.mark.parametrize("packed", [False, True])
def test_kernel_options(made: Made, tmp_path: Path, packed: bool) -> None:
    text = GOOD_KERNEL.replace("CONFIG_DRM=y", "# CONFIG_DRM is not set")
    text = text.replace("CONFIG_XEN_GNTDEV=y", "CONFIG_XEN_GNTDEV=n")
    (tmp_path / "boot/config-6.12").unlink()
    if packed:
        made.write("proc/config.gz", gzip.compress(text.encode()))
    else:
        made.write("boot/config-6.12", text)
    assert made.errors() == ["the kernel has no CONFIG_XEN_GNTDEV: guests' pages cannot be mapped"]
    assert made.warnings() == ["the kernel has no CONFIG_DRM: the drm sink has no card"]


def test_a_kernel_with_unknown_options(made: Made, tmp_path: Path) -> None:
    (tmp_path / "boot/config-6.12").unlink()
    made.write("proc/config.gz", b"rubbish")
    assert made.errors() == []
    assert made.warnings() == ["the kernel's configuration cannot be read"]


STOCK = "the kernel has neither CONFIG_XEN_GNTDEV_DMABUF nor CONFIG_XEN_GRANT_DMA_ALLOC, on which that depends"
PV = "this is a PV domain, which cannot export dma-bufs"
PVH_X86 = "this is a PVH domain on x86, where Xen refuses the mappings that dma-bufs need"


def stock(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it a stock kernel of most distributions."""
    monkeypatch.setattr(gntdev, "probe", lambda fd: False)
    made.write("boot/config-6.12", "\n".join(f"{option}=m" for option in (*check.REQUIRED, *check.USEFUL)))


def copied(made: Made, settings: str) -> list[CheckResult]:
    """Return the results about copies and be-alloc that are no `ok`, with these settings."""
    made.write("displbe.toml", settings)
    return [
        result
        for result in made.results()
        if result.grade != "ok" and ("is copied" in result.text or "be-alloc" in result.text)
    ]


@pytest.mark.parametrize("sink", ["drm", "wayland"])
def test_copies_on_a_stock_pc(made: Made, monkeypatch: pytest.MonkeyPatch, sink: str) -> None:
    """One warning has all reasons. It advises nothing that does not help: no domain on x86 can export dma-bufs."""
    stock(made, monkeypatch)
    made.architecture = "x86_64"
    made.write("sys/hypervisor/guest_type", "PV")
    (found,) = copied(made, f"sink = '{sink}'\n")
    assert (found.grade, found.text) == ("warning", f"each frame is copied: {STOCK}; {PV}")
    assert "trust-compositor" in found.fix
    assert "dom0=pvh" not in found.fix
    assert "CONFIG_" not in found.fix
    (found,) = copied(made, f"sink = '{sink}'\n[guest.a]\nbe-alloc = true\n")
    assert found.text == f"each frame is copied, and there is no be-alloc: {STOCK}; {PV}"
    assert "be-alloc needs a kernel with CONFIG_XEN_GNTDEV_DMABUF and CONFIG_XEN_GRANT_DMA_ALLOC" in found.fix
    made.write("boot/config-6.12", GOOD_KERNEL)
    monkeypatch.setattr(gntdev, "probe", lambda fd: True)
    assert [each.text for each in copied(made, f"sink = '{sink}'\n")] == [f"each frame is copied: {PV}"]
    made.write("sys/hypervisor/guest_type", "PVH")
    assert [each.text for each in copied(made, f"sink = '{sink}'\n")] == [f"each frame is copied: {PVH_X86}"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("sink = 'drm'", "each frame is copied: "),
        ("sink = 'drm'\n[drm]\nzero-copy = 'off'", ""),
        ("sink = 'wayland'", "each frame is copied: "),
        ("sink = 'wayland'\n[wayland]\ntrust-compositor = true", ""),
        ("sink = 'wayland'\n[wayland]\ntrust-compositor = true\nzero-copy = 'off'", ""),
        ("sink = 'wayland'\n[wayland]\nzero-copy = 'off'", ""),
        ("sink = 'wayland'\n[wayland]\ndmabuf = 'never'", ""),
        ("sink = 'x11'", ""),
        ("sink = 'headless'", ""),
        ("sink = 'headless'\n[guest.a]\nbe-alloc = true", "there is no be-alloc: "),
    ],
)
def test_copies_by_sink(made: Made, monkeypatch: pytest.MonkeyPatch, settings: str, text: str) -> None:
    """On Arm, only the kernel's options are missing. Copies that the configuration wants, or that there are not, are no warning."""
    assert copied(made, settings) == []
    stock(made, monkeypatch)
    found = copied(made, settings)
    assert [each.text for each in found] == ([text + STOCK] if text else [])
    assert all(all(option in each.fix for option in DMABUF_OPTIONS) for each in found)
    shared = [each for each in made.results() if "the compositor maps the guests' pages itself" in each.text]
    assert len(shared) == int("trust-compositor" in settings and "zero-copy" not in settings)


def test_why_gntdev_has_no_dmabufs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gntdev says counts more than the file with the kernel's options, which may be missing, or another kernel's."""
    drm = "sink = 'drm'"
    made.write("boot/config-6.12", GOOD_KERNEL.replace("CONFIG_XEN_GNTDEV_DMABUF=y", ""))
    assert copied(made, drm) == []
    monkeypatch.setattr(gntdev, "probe", lambda fd: False)
    assert [each.text for each in copied(made, drm)] == [
        "each frame is copied: the kernel has no CONFIG_XEN_GNTDEV_DMABUF"
    ]
    made.write("boot/config-6.12", GOOD_KERNEL)
    assert [each.text for each in copied(made, drm)] == ["each frame is copied: gntdev does not support dma-bufs"]
    (made.root / "boot/config-6.12").unlink()
    assert [each.text for each in copied(made, drm)] == ["each frame is copied: gntdev does not support dma-bufs"]
    (made.root / "dev/xen/gntdev").unlink()
    assert copied(made, drm) == []


def test_gntdevs_limit(made: Made) -> None:
    made.write("sys/module/xen_gntdev/parameters/limit", "1000")
    (said,) = made.errors()
    assert "maps only 1000 pages at once" in said


def test_maptrack_and_quotas(made: Made) -> None:
    made.write("displbe.toml", "sink = 'headless'\n[guest.cockpit]\n[guest.a]\n[guest.b]\n[guest.c]\n[guest.d]\n")
    assert "5 guests may map 49152 pages each; together they may map 196608" in made.warnings()
    made.write("displbe.toml", "sink = 'headless'\n")
    for name in "abcd":
        made.write(f"etc/xen/{name}.cfg", f'name = "{name}"\nvdispl = ["connectors={name}:64x64"]')
    assert "5 guests may map 49152 pages each; together they may map 196608" in made.warnings()
    made.xl = "xen_commandline : gnttab_max_maptrack_frames=4096 dom0=pvh"
    assert made.errors() == ["Xen has 1048576 maptrack entries, but the configuration says 262144"]
    made.write("displbe.toml", "sink = 'headless'\n[xen]\nmaptrack = 1048576\n")
    assert made.errors() == []


@pytest.mark.parametrize(
    ("sink", "room"),
    [
        ("sink = 'drm'\n[drm]\nzero-copy = 'off'", 196608),
        ("sink = 'drm'", 98304),
        ("sink = 'drm'\n[drm]\nzero-copy = 'require'", 98304),
        ("sink = 'wayland'", 98304),
        ("sink = 'x11'", 196608),
        ("sink = 'headless'", 196608),
    ],
)
def test_a_page_that_is_mapped_twice_counts_twice(made: Made, sink: str, room: int) -> None:
    made.write("displbe.toml", f"{sink}\n[limits]\npages = 1000000\n")
    assert f"1 guests may map 1000000 pages each; together they may map {room}" in made.warnings()


@pytest.mark.parametrize(("sink", "guests"), [("drm", 2), ("wayland", 2), ("headless", 4)])
def test_the_number_of_guests_whose_default_quotas_fit(made: Made, sink: str, guests: int) -> None:
    def quotas(count: int) -> list[str]:
        made.write("displbe.toml", f"sink = '{sink}'\n" + "".join(f"[guest.g{number}]\n" for number in range(count)))
        return [
            found.grade for found in made.results() if "maptrack" in found.text or "together they may map" in found.text
        ]

    assert quotas(guests) == ["ok"]
    assert quotas(guests + 1) == ["warning"]


def test_a_wrong_configuration(made: Made) -> None:
    made.write("displbe.toml", "sink = 'cinema'\n")
    assert any("$.sink" in what for what in made.errors())


def test_packages(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert made.errors() == ["Python has no PIL"]
    made.write("displbe.toml", "sink = 'headless'\n[input]\ndevices = ['*']\n[metrics]\nlisten = 'a:1'\n")
    assert made.errors() == ["Python has no PIL", "Python has no evdev", "Python has no prometheus_client"]
    for sink, package in (("wayland", "python3-pywayland"), ("x11", "python3-xcffib")):
        made.write("displbe.toml", f"sink = '{sink}'\n")
        (fix,) = (result.fix for result in made.results() if "Python has no" in result.text)
        assert fix == f"install {package} (Debian), or displbe[{sink}] (pip)"


def test_cards(made: Made) -> None:
    made.write("displbe.toml", "sink = 'drm'\n")
    (said,) = made.errors()
    assert said.startswith("no usable DRM device")
    made.write("dev/dri/card0", "")
    assert any(what.startswith("card0 cannot be used") for what in made.warnings())


def test_a_card_and_its_outputs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of connectors, monitors and places are listed; `[drm] device` may be a place."""
    board = Board(connectors=2)
    board.monitors[1], board.bus_path = Monitor([(64, 48)], DELL), "pci-0000:03:00.0"
    board.paths[1] = b"mst:69-1-8"
    monkeypatch.setattr(check, "DrmDevice", lambda path: board.open(path, PLAIN))
    made.write("dev/dri/card0", "")
    made.write("dev/dri/card1", "")
    place = made.root / "dev" / "dri" / "by-path" / "pci-0000:03:00.0-card"
    place.parent.mkdir()
    place.symlink_to("../card1")
    made.write("displbe.toml", "sink = 'drm'\n[drm]\ndevice = 'pci-0000:03:00.0'\n")
    said = [result.text for result in made.results()]
    assert "card1: displbe can be DRM master" in said
    assert "card1 (pci-0000:03:00.0) has Virtual-1, Virtual-2 (path:mst:69-1-8, edid:DEL-A0B1-3XK9T)" in said
    assert not any(what.startswith("card0") for what in said)
    board.faults["probe"] = [errno.EIO]
    assert "card1 (pci-0000:03:00.0): probe connector: Input/output error" in made.warnings()
    assert all(card.fd < 0 for card in board.cards)


def test_a_card_whose_master_is_the_running_displbe(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's status says so; without it, the master is another program."""
    board = Board()
    monkeypatch.setattr(check, "DrmDevice", lambda path: board.open(path, PLAIN))
    made.write("displbe.toml", "sink = 'drm'\n")
    made.write("dev/dri/card0", "")
    master = board.open(str(made.root / "dev/dri/card0"), PLAIN)
    assert "card0: another program is DRM master" in made.warnings()
    for told, wanted in (("DRM master; and more", "ok"), ("another program is DRM master", "warning")):
        with answering(made.root / "control", told):
            (said,) = (result for result in made.results() if "DRM master" in result.text)
        assert (said.grade, said.text.startswith("card0: displbe is")) == (wanted, wanted == "ok")
    master.close()


@contextlib.contextmanager
def answering(path: Path, card0: str) -> Iterator[None]:
    """Answer one request for the status, as a daemon that says this of its card."""
    none, abilities = Usage(0, 0), Abilities({}, {"card0": card0})
    body = msgspec.json.encode(Status("1", 0, "drm", none, {}, none, Loop(0, 0), abilities, "", ()))

    def answer() -> None:
        with ear.accept()[0] as client:
            client.recv(1000)
            client.sendall(msgspec.json.encode({"ok": True, "octets": len(body)}) + b"\n" + body)

    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(path))
        ear.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_names_of_monitors_and_docks(made: Made) -> None:
    """They may come later. xl ends a name at a colon."""
    made.write("displbe.toml", "sink = 'drm'\n")
    for name in ("edid_DEL-A0B1", "path_mst_69-1-8", "pci-0000_03_00.0/HDMI-A-1"):
        made.write("etc/xen/cockpit.cfg", f'name = "cockpit"\nvdispl = ["connectors={name}:1920x1080"]\n')
        assert not any("connector" in what for what in made.errors())
    made.write("etc/xen/cockpit.cfg", 'name = "cockpit"\nvdispl = ["connectors=edid:DEL-A0B1:1920x1080"]\n')
    assert any("at its first colon: write edid_DEL-A0B1" in what for what in made.errors())


def test_a_compositor(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write("displbe.toml", f"sink = 'wayland'\n[wayland]\ndisplay = '{tmp_path}/wayland-7'\n")
    assert made.errors() == [f"{tmp_path}/wayland-7: No such file or directory"]
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(tmp_path / "wayland-7"))
        ear.listen()
        assert made.errors() == []
        made.write("displbe.toml", "sink = 'wayland'\n")
        made.environment = {"WAYLAND_DISPLAY": f"{tmp_path}/wayland-7"}
        assert made.errors() == []


def test_the_compositors_socket_is_that_of_displbes_user(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("displbe.ctl.machine.acting_as", contextlib.nullcontext)
    made.identity = Identity("displbe", 990, 991, (991, 992))
    made.write("displbe.toml", "sink = 'wayland'\n")
    assert "/run/user/990/wayland-0: No such file or directory" in made.errors()


def test_an_x_server(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":8")  # of the caller, which displbe does not get
    made.write("displbe.toml", "sink = 'x11'\n")
    assert made.errors() == ["no X server is configured"]
    made.environment = {"DISPLAY": ":4"}
    (said,) = made.errors()
    assert "X4" in said
    made.write("displbe.toml", "sink = 'x11'\n[x11]\ndisplay = ':3'\n")
    (said,) = made.errors()
    assert "X3" in said


def test_guests(made: Made) -> None:
    made.write(
        "displbe.toml", "sink = 'headless'\n[headless]\noutputs = ['A', 'B']\n[guest.cockpit]\nconnectors = ['A']\n"
    )
    assert made.errors() == []
    made.write("etc/xen/second.cfg", 'name = "second"\nvdispl = ["be-alloc=1,connectors=C:64x64;A:32x32"]')
    made.write("etc/xen/third.cfg", 'name = "third"\nvdispl = ["connectors=HDMI"]')
    made.write("etc/xen/none.cfg", 'name = "no display"\n')
    said = " ".join(made.errors())
    assert "be-alloc=1, which second is not allowed" in said
    assert "there is no output C" in said
    assert "connector 'HDMI' is not ID:WIDTHxHEIGHT" in said
    assert "cockpit, second all use the output A" in made.warnings()


def test_guests_of_another_domain(made: Made) -> None:
    """Devices of another backend domain are reported, and not counted here, if it is known which domain this is."""
    made.write(
        "etc/xen/cockpit.cfg", 'name="a"\nvdispl=["backend=DomD,connectors=A:1x1", "backend=0,connectors=B:1x1"]'
    )
    assert made.warnings() == []
    made.write("proc/xen/capabilities", "control_d\n")
    (said,) = made.warnings()
    assert "backend=DomD, which is not this domain" in said
    assert any("a on B" in result.text for result in made.results())
    made.write("proc/xen/capabilities", "")
    (said,) = made.warnings()
    assert "backend=0, which is not this domain" in said
    made.write("displbe.toml", "sink = 'headless'\n[guest.a]\n")
    assert any("cannot read guests' names" in what for what in made.warnings())


def keyboard(made: Made, unique_id: str) -> None:
    """Give the guest a vkb line."""
    vkb = f'vkb = ["backend-type=linux,unique-id={unique_id}"]'
    made.write("etc/xen/cockpit.cfg", f'name = "cockpit"\nvdispl = ["connectors=HDMI-A-1:64x64"]\n{vkb}\n')


@pytest.mark.parametrize(
    ("unique_id", "said"),
    [
        ("nonsense", "none of K:ID, P:ID and T:ID"),
        ("", "it names no device"),
        ("K:nonsense", "nonsense is neither a device nor one of the guest's connectors"),
        ("P:HDMI-A-1", "screens of the headless sink have no input"),
        ("K:/dev/input/event0", "no guest may have /dev/input/event0"),
    ],
)
def test_keyboards_that_do_not_work(made: Made, unique_id: str, said: str) -> None:
    keyboard(made, unique_id)
    (found,) = made.errors()
    assert said in found


def test_keyboards(made: Made, tmp_path: Path) -> None:
    """Named by node, link or device name; allowed by patterns, or by the guest's own settings."""
    for number, name in enumerate(("Fine Keyboard", "Poor Mouse")):
        made.write(f"dev/input/event{number}", "")
        made.write(f"sys/class/input/event{number}/device/name", f"{name}\n")
    (tmp_path / "dev/input/by-id").mkdir()
    (tmp_path / "dev/input/by-id/usb-mouse").symlink_to("../event1")
    keyboard(made, "K:name=Fine Keyboard;P:by-id/usb-mouse")
    made.write("displbe.toml", "sink = 'headless'\n[input]\ndevices = ['name=Fine*', 'event1']\n")
    assert (made.errors(), made.warnings()) == ([], [])
    assert any(result.text == "[input] devices: name=Fine* is event0" for result in made.results())
    made.write("displbe.toml", "sink = 'headless'\n[input]\ndevices = ['name=Fine*']\n")
    (said,) = made.errors()
    assert "no guest may have by-id/usb-mouse" in said
    made.write("displbe.toml", "sink = 'headless'\n[guest.cockpit]\ninput = 'P:by-id/usb-mouse'\n")
    assert (made.errors(), made.warnings()) == ([], [])
    (tmp_path / "dev/input/event1").unlink()
    made.write("displbe.toml", "sink = 'headless'\n[input]\ndevices = ['name=*', 'by-id/*']\n")
    (first, second) = made.warnings()
    assert "there is no by-id/* at present" in first
    assert "there is no by-id/usb-mouse at present" in second


def test_keyboards_of_others(made: Made) -> None:
    """displbe does not serve those of QEMU; xl refuses a vkb line without backend-type."""
    made.write("etc/xen/q.cfg", 'name = "q"\nvkb = ["backend-type=qemu"]')
    assert made.errors() == []
    made.write("etc/xen/q.cfg", 'name = "q"\nvkb = ["unique-id=K:nonsense"]')
    (said,) = made.errors()
    assert "backend-type must be linux" in said


def test_files_are_opened_as_displbes_user(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are opened as displbe's user; what only root may read (xl, guests' configurations) is read as root."""
    acting: list[Identity] = []
    opened: list[bool] = []

    @contextlib.contextmanager
    def acting_as(identity: Identity | None) -> Iterator[None]:
        assert identity is not None
        acting.append(identity)
        yield
        acting.pop()

    def look(path: str, mode: int, *, effective_ids: bool) -> bool:
        opened.append(bool(acting) and effective_ids)
        return True

    def not_acting(machine: Machine) -> str:
        assert not acting
        return ""

    monkeypatch.setattr("displbe.ctl.machine.acting_as", acting_as)
    monkeypatch.setattr(os, "access", look)
    monkeypatch.setattr(gntdev, "probe", lambda fd: bool(acting))
    monkeypatch.setattr(Machine, "xl_info", not_acting)
    made.identity = Identity("displbe", 990, 991, (991, 992))
    made.write("dev/input/event0", "")
    made.write("displbe.toml", "sink = 'headless'\n[headless]\ndirectory = '/tmp'\n[input]\ndevices = ['*']\n")
    said = [result.text for result in made.results()]
    assert "checked as the user displbe, which displbe.service names" in said
    assert "gntdev supports dma-bufs" in said
    assert len(opened) == 5  # evtchn, gntdev, xenbus, the folder, the input device
    assert all(opened)


def test_a_missing_user(made: Made) -> None:
    made.is_service_user, made.identity_error = False, "displbe.service runs as displbe, but there is no such user"
    assert made.errors() == [made.identity_error]


def test_the_user_that_the_service_runs_as() -> None:
    """As systemd says: groups by name and number, and those that the user has in any case."""
    user, group = pwd.getpwuid(0), grp.getgrgid(0)

    def says(**unit: str) -> Identity | None:
        return service_identity(["printf", "%s\n", *(f"{key}={value}" for key, value in unit.items())])

    assert says(User="root", Group=group.gr_name, SupplementaryGroups="12345 23456") == Identity(
        user.pw_name, 0, 0, tuple(sorted({*os.getgrouplist("root", 0), 12345, 23456}))
    )
    assert says(User="0", Group="", SupplementaryGroups="") is not None
    assert says(User="", Group="", SupplementaryGroups="") is None
    assert service_identity(["/nonexistent"]) is None
    with pytest.raises(LookupError, match="nobody-at-all, but there is no such user"):
        says(User="nobody-at-all")
    with pytest.raises(LookupError, match="the group nothing-at-all"):
        says(User="root", Group="nothing-at-all")


def test_the_environment_of_the_service() -> None:
    """As systemctl prints it: with the assignments of drop-ins, those with spaces in quotes."""

    def says(**unit: str) -> dict[str, str] | None:
        return service_environment(["printf", "%s\n", *(f"{key}={value}" for key, value in unit.items())])

    assert says(LoadState="loaded", Environment='DISPLAY=:0 "A=b c=\\"d\\"" WAYLAND_DISPLAY=/run/weston/wayland-0') == {
        "DISPLAY": ":0",
        "A": 'b c="d"',
        "WAYLAND_DISPLAY": "/run/weston/wayland-0",
    }
    assert says(LoadState="loaded", Environment="") == {}
    assert says(LoadState="loaded", Environment='"A=') == {}
    assert says(LoadState="not-found", Environment="") is None
    assert service_environment(["/nonexistent"]) is None


@pytest.mark.parametrize("fails", [False, True])
def test_acting_as_another(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Groups are set first, while the process is root; everything is restored at the end, also after a failure."""
    done: list[tuple[str, object]] = []
    for name, now in (("geteuid", 0), ("getegid", 0), ("getgroups", [0, 4])):
        monkeypatch.setattr(os, name, lambda now=now: now)
    for name in ("seteuid", "setegid", "setgroups"):
        monkeypatch.setattr(os, name, lambda value, name=name: done.append((name, value)))
    with contextlib.suppress(RuntimeError), acting_as(Identity("displbe", 990, 991, (991, 992))):
        assert done == [("setgroups", (991, 992)), ("setegid", 991), ("seteuid", 990)]
        done.clear()
        if fails:
            raise RuntimeError
    assert done == [("seteuid", 0), ("setegid", 0), ("setgroups", [0, 4])]


def test_a_connector_that_the_card_has_not(made: Made) -> None:
    made.write("displbe.toml", "sink = 'drm'\n")
    made.write("etc/xen/a.cfg", 'name = "a"\nvdispl = ["connectors=DP-9:64x64"]')
    assert any("there is no connector DP-9" in what for what in made.errors())


def test_guests_that_are_too_large(made: Made, tmp_path: Path) -> None:
    made.write("displbe.toml", "sink = 'headless'\n[limits]\npages = 100\nconnectors = 1\n[guest.nobody]\n")
    made.write("a.cfg", 'name = "a"\nvdispl = ["connectors=A:640x480;B:64x64"]')
    said = " ".join(made.errors(str(tmp_path / "a.cfg")))
    assert "it has 2 connectors; 1 are allowed" in said
    assert "two buffers of its largest screen need 600 pages; 100 are allowed" in said
    assert any("settings for nobody" in what for what in made.warnings(str(tmp_path / "a.cfg")))
    assert any("No such file" in what for what in made.warnings(str(tmp_path / "none.cfg")))


def test_the_example_is_right(made: Made) -> None:
    example = str(CONFIGS / "guest.cfg")
    assert "no guest may have" in " ".join(made.errors(example))
    made.write("displbe.toml", "sink = 'headless'\n[input]\ndevices = ['by-id/*', 'name=Logi*']\n")
    assert made.errors(example) == []
    guest = read_xl_config((CONFIGS / "guest.cfg").read_text("utf-8"))
    connectors = (("HDMI-A-1", 1920, 1080), ("HDMI-A-2", 1280, 720))
    keyboard = Keyboard("0", "K:/dev/input/by-id/usb-Keyboard-event-kbd;P:name=Logitech USB Mouse")
    assert guest == XlConfig("cockpit", (Display("0", False, connectors),), (keyboard,))


def totals(made: Made) -> list[str]:
    """Return the ways out of the warnings about files, threads and copies of all guests together."""
    return [result.fix for result in made.results() if result.grade == "warning" and "refuses the rest" in result.text]


def test_files_threads_and_copies_of_all_guests(made: Made) -> None:
    """One guest is named by its xl configuration, the others by displbe's."""
    fit = [result.text for result in made.results() if "of this machine" in result.text]
    assert [text.partition(" fit ")[0] for text in fit] == [
        "the files of 1 guests (132)",
        "the threads of 1 guests (3)",
        "the pages for the copies of 1 guests (2153)",
    ]
    made.write("displbe.toml", "sink = 'wayland'\n" + "".join(f"[guest.g{number}]\n" for number in range(30)))
    made.limits = ProcessLimits(4096, 512, 900 << 20)
    (files, copies) = totals(made)
    assert "set LimitNOFILE=4348 in displbe.service" in files  # 31 * (128 + 4) + 256
    assert "give this machine at least 1503 MiB of memory, and displbe.service at least MemoryMax=1008M" in copies
    made.limits = ProcessLimits(4348, 512, 1008 << 20, 1503 << 19)
    assert totals(made) == []
    made.limits = ProcessLimits(4096, 128, 1 << 30)
    made.write(
        "displbe.toml",
        "sink = 'headless'\n[limits]\nbuffers = 8\ncopy-pages = 100\n[guest.a]\n[guest.b]\nbe-alloc = true\n",
    )
    assert totals(made) == []
    made.write("displbe.toml", "sink = 'headless'\n" + "".join(f"[guest.g{number}]\n" for number in range(21)))
    assert "set TasksMax=130 in displbe.service" in totals(made)[0]  # 22 * (2 + 1) + 64


def test_copies_of_one_guest(made: Made, tmp_path: Path) -> None:
    """Two screens of 3840x2160 fit, and eight do not; the result says how many pages they need."""
    made.write("displbe.toml", "sink = 'drm'\n[limits]\npages = 90000\n")
    for count, said in ((2, []), (8, ["copies of its screens need 194400 pages; 81920 are allowed"])):
        connectors = ";".join("HDMI-A-1:3840x2160" for number in range(count))
        made.write("a.cfg", f'name = "a"\nvdispl = ["connectors={connectors}"]')
        found = [
            what.partition(": ")[2] for what in made.errors(str(tmp_path / "a.cfg")) if "copies of its screens" in what
        ]
        assert found == said


@given(st.text())
def test_any_text_is_a_guest_or_refused(text: str) -> None:
    for whole in (text, f'vdispl = ["{text}"]', f'vdispl = ["connectors={text}"]', f'vkb = ["backend-type={text}"]'):
        try:
            read_xl_config(whole)
        except ValueError:
            pass


PACKAGES = ["pyxs", *DEBIAN]
"""Python packages that the installation may lack."""


@pytest.mark.parametrize("missing", [[], PACKAGES], ids=["", "without packages"])
@pytest.mark.parametrize("sink", sorted(SINKS))
def test_the_command_works_on_any_machine(tmp_path: Path, sink: str, missing: list[str]) -> None:
    """With or without Xen, and without the packages that displbe needs: the checks of every sink end, and an error is exit code 1."""
    path = tmp_path / "displbe.toml"
    path.write_text(f"sink = '{sink}'\n")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); from displbe.ctl.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "check", "--config", str(path), str(CONFIGS / "guest.cfg")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"DISPLAY": ":987"},
    )
    assert done.stderr == ""
    assert done.returncode == int("error " in done.stdout)
    assert "displbe does not answer" in done.stdout
    told = [package for package in missing if f"Python has no {package}" in done.stdout]
    assert told == (["pyxs", *SINKS[sink][2]] if missing else [])
