"""SIGHUP and systemd: the changes of the configuration that a reload applies, and the messages to the service manager."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from scenario.cards import Screens, hypervisor_on, machine_on, pump_of
from scenario.devices import SimDevice
from scenario.world import World, flip_on, spec, until

from displbe import daemon, process
from displbe.backend.guests import GuestSettings
from displbe.config import Settings, differences, load
from displbe.daemon import Daemon
from displbe.input.evdev.capabilities import Capabilities
from displbe.input.event_codes import EV_KEY
from displbe.ops.service_manager import ServiceManager
from displbe.ops.settings import ControlSettings
from displbe.pump.native import SystemCalls, open_pump
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.wire.errors import first_leaf
from displbe.xen.port import Unavailable


class Manager:
    """systemd's notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard: list[str] = []

    async def listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Receive notifications until cancelled."""
        await self._socket.bind(str(self.path))
        task_status.started()
        with self._socket:
            while True:
                self.heard += (await self._socket.recv(4096)).decode().splitlines()

    def last(self, key: str) -> str:
        """Return the last value of KEY=…"""
        return next((line.partition("=")[2] for line in reversed(self.heard) if line.startswith(f"{key}=")), "")


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A service manager."""
    made = Manager(tmp_path / "notify")
    async with trio.open_nursery() as nursery:
        await nursery.start(made.listen)
        yield made
        nursery.cancel_scope.cancel()


async def test_status_and_sighup(
    screens: Screens, tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STATUS_PERIOD", 0.02)
    config = tmp_path / "displbe.toml"
    sink = "headless" if screens == "headless" else "drm"
    same = f"sink = '{sink}'\n[daemon]\npump = '{pump_of(screens)}'\n[control]\nsocket = ''\n"
    config.write_text(same)
    async with (
        machine_on(screens, tmp_path, monkeypatch) as board,
        Xen(tmp_path).running() as xen,
        trio.open_nursery() as nursery,
    ):
        made = Daemon(
            load(str(config)), hypervisor_on(xen, board), ServiceManager({"NOTIFY_SOCKET": str(manager.path)})
        )
        nursery.start_soon(process.serve, made, str(config))
        await until(lambda: "READY=1" in manager.heard)
        assert manager.last("STATUS").startswith("serving")
        async with Guest.booted(xen, 1, spec()) as guest:
            with trio.fail_after(10):
                await guest.display.connected.wait()
            await until(lambda: manager.last("STATUS") == "serving 1 guests, 1 of 1 devices connected, 0 flips/s")
            async with flip_on(guest) as times:
                await until(lambda: len(times) > 3)
                del manager.heard[:]
                config.write_text(f"{same}[limits]\npages = 7\n")
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: "READY=1" in manager.heard)
                assert manager.heard.index("RELOADING=1") < manager.heard.index("READY=1")
                assert manager.last("MONOTONIC_USEC").isdigit()
                assert made.quotas.limits.pages == 7
                wanted = len(times) + 3
                await until(lambda: len(times) > wanted)  # the guest does not notice
            assert guest.display.history.count(guest.display.history[-1]) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: "STOPPING=1" in manager.heard)


async def test_the_watchdog_is_fed_by_the_loop_that_serves(tmp_path: Path) -> None:
    """While the event loop stands still, systemd gets no WATCHDOG=1, so that it starts another daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ear:
        ear.bind(str(tmp_path / "notify"))

        def heard() -> list[str]:
            lines: list[str] = []
            try:
                while True:
                    lines += ear.recv(4096).decode().splitlines()
            except BlockingIOError:
                return lines

        health = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
        settings = Settings(sink="headless", control=ControlSettings(socket=""))
        async with Xen(tmp_path).running() as xen, trio.open_nursery() as nursery:
            await nursery.start(Daemon(settings, xen.hypervisor(0), health).run)
            for _ in range(3):
                await until(lambda: "WATCHDOG=1" in heard())
                heard()
                time.sleep(0.2)  # noqa: ASYNC251
                assert "WATCHDOG=1" not in heard()
            nursery.cancel_scope.cancel()
        heard()
        await trio.sleep(0.1)
        assert heard() == []


async def test_the_watchdog_is_not_fed_while_the_pump_hangs(tmp_path: Path) -> None:
    """A card's driver may never return from a commit. While the pump serves all flips, nothing else would notice that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ear:
        ear.bind(str(tmp_path / "notify"))
        fed: list[bool] = []

        def heard() -> bool:
            count = 0
            try:
                while True:
                    count += b"WATCHDOG=1" in ear.recv(4096)
            except BlockingIOError:
                return count > 0

        def hang(fd: int, data: Any, size: int) -> int:
            time.sleep(0.1)
            heard()
            time.sleep(0.2)
            fed.append(heard())
            return -errno.EIO

        pump, reason = open_pump(SystemCalls(hang, lambda *_: 0, lambda *_: 0, lambda *_: 0))
        if pump is None:
            pytest.skip(reason)
        health = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
        async with Xen(tmp_path).running() as xen, trio.open_nursery() as nursery:
            daemon = Daemon(Settings(sink="headless", control=ControlSettings(socket="")), xen.hypervisor(0), health)
            daemon.pump = pump
            await nursery.start(daemon.run)
            await until(heard)
            file = os.eventfd(1)
            pump.watch_ports(file)
            await until(lambda: fed == [False])
            await until(heard)
            nursery.cancel_scope.cancel()
        os.close(file)


def said(lines: list[Any]) -> dict[str, Any]:
    """Return the log line of the only reload."""
    (line,) = [line for line in lines if "configuration" in line["event"]]
    return dict(line)


async def test_what_a_reload_changes(world: World, tmp_path: Path) -> None:
    config = tmp_path / "displbe.toml"
    path = world.settings.control.socket
    sink, pump = world.settings.sink, world.settings.daemon.pump
    same = f"sink = '{sink}'\n[daemon]\npump = '{pump}'\n[control]\nsocket = '{path}'\n[headless]\nrefresh = 1000\n"
    config.write_text(same)
    with structlog.testing.capture_logs() as lines:
        await world.daemon.reload(str(config))
    assert said(lines) == {
        "event": "configuration reloaded",
        "log_level": "warning",
        "applied": [],
        "takes_a_restart": [],
    }
    more = same.replace("1000", "60").replace(f"'{sink}'", "'wayland'") + "[limits]\npages = 5\n[input]\nfocus = 'a'\n"
    config.write_text(more + "[guest.a]\nconnectors = ['DP-1']\n[log]\nlevel = 'info'\n")
    for applied in (["guest.a", "input.focus", "limits.pages"], []):  # changes that take a restart are logged each time
        with structlog.testing.capture_logs() as lines:
            await world.daemon.reload(str(config))
        line = said(lines)
        assert sorted(line["applied"]) == applied
        assert line["takes_a_restart"] == ["headless.refresh", "sink"]
    assert world.daemon.focus.preferred == "a"
    async with world.booted(1, spec()) as guest:
        world.tools.write("/local/domain/1/name", "a", [("n", 0), ("r", 1)])
        with trio.fail_after(10):
            await guest.display.connected.wait()
        assert world.daemon.sink.claimed("DP-1") is not None
        assert world.device(1).quota.limits.pages == 5


async def test_another_keyboard_from_the_next_connection_on(tmp_path: Path) -> None:
    """When `[guest.NAME] input` changes, the guest keeps its device until it reconnects; then it has only the other one."""
    first, second = "/dev/input/event0", "/dev/input/event1"
    keys = Capabilities(keys=frozenset(range(1, 128)))
    async with World.running(tmp_path, guests={"a": GuestSettings(input=f"K:{first}")}) as world:
        devices = [world.nodes.plug(path, SimDevice(path, keys)) for path in (first, second)]
        config = tmp_path / "displbe.toml"
        config.write_text(f"[guest.a]\ninput = 'K:{second}'\n")
        async with world.typist(1, "K:name=none", "a") as guest:
            await until(lambda: any(reader.grabbed for reader in devices[0].readers))
            await world.daemon.reload(str(config))
            devices[0].emit((EV_KEY, 30, 1))
            await until(lambda: guest.pressed == {30})
            world.daemon.inputs.devices[1, 0].kick()
            await until(lambda: not guest.pressed and any(reader.grabbed for reader in devices[1].readers))
            await until(lambda: guest.connected.is_set() and not devices[0].readers)
            devices[0].emit((EV_KEY, 48, 1))
            devices[1].emit((EV_KEY, 46, 1))
            await until(lambda: guest.pressed == {46})


async def test_input_without_its_package(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload that would give a guest devices which cannot be opened is refused as a whole."""
    monkeypatch.setattr(daemon, "find_spec", lambda name: None)
    config = tmp_path / "displbe.toml"
    config.write_text("[limits]\npages = 7\n[guest.a]\ninput = 'K:/dev/input/event0'\n")
    before = world.daemon.quotas.limits
    with structlog.testing.capture_logs() as lines:
        await world.daemon.reload(str(config))
    assert said(lines)["event"] == "configuration not reloaded: the old one stays"
    assert "need evdev" in said(lines)["reason"]
    assert world.daemon.quotas.limits is before


async def test_limits_are_for_guests_that_come_later(world: World, tmp_path: Path) -> None:
    config = tmp_path / "displbe.toml"
    config.write_text("[limits]\nframebuffers = 1\n")
    async with world.guest(1) as early:
        await world.daemon.reload(str(config))
        for _ in range(2):
            await early.display.create_framebuffer(64, 48)
        async with world.guest(2, spec("DP-1")):
            assert world.device(1).quota.limits.framebuffers == 128
            assert world.device(2).quota.limits.framebuffers == 1


ODD = (
    "[limits]\npages = 'many'\n",
    "[limits\n",
    "[wayland]\ntitle = '{guest.name}'\n",
    "[wayland]\ntitle = '{guest:>999999999999}'\n",
    "a = " + "[" * 4000,
    "a = " + "9" * 5000,
    "[limits]\nrequests-per-second = nan\n",
    "[limits]\npages = 7\n[xen]\nmaptrack = -1\n",
    None,
)
"""Wrong files; None: there is no file."""


async def test_a_wrong_configuration_changes_nothing(world: World, tmp_path: Path) -> None:
    config = tmp_path / "displbe.toml"
    for text in ODD:
        if text is None:
            config.unlink()
        else:
            config.write_text(text)
        before = world.daemon.quotas.limits
        with structlog.testing.capture_logs() as lines:
            await world.daemon.reload(str(config))
        assert said(lines)["event"] == "configuration not reloaded: the old one stays"
        assert str(config) in said(lines)["reason"]
        assert world.daemon.quotas.limits is before


async def test_rings_are_served_while_a_configuration_is_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk delays the reload only; a second SIGHUP waits for it; the end of the daemon does not."""
    reading, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(path: str) -> Settings:
        trio.from_thread.run_sync(reading.set, trio_token=token)
        release.wait(10)
        return load(path)

    monkeypatch.setattr(daemon, "load", slow)
    config = tmp_path / "displbe.toml"
    config.write_text("[limits]\npages = 7\n")
    async with trio.open_nursery() as nursery, world.guest(1) as guest:
        nursery.start_soon(world.daemon.reload, str(config))
        nursery.start_soon(world.daemon.reload, str(config))
        with trio.fail_after(5):
            await reading.wait()
            await guest.display.create_framebuffer(64, 48)
        assert world.daemon.quotas.limits.pages != 7
        release.set()
        await until(lambda: world.daemon.quotas.limits.pages == 7)
    release.clear()
    with trio.move_on_after(0.1) as scope:
        await world.daemon.reload(str(config))
    release.set()
    assert scope.cancelled_caught


async def test_a_directory_for_pictures_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(
        sink="headless",
        headless=HeadlessSettings(directory=str(tmp_path / "file" / "pictures")),
        control=ControlSettings(socket=""),
    )
    async with Xen(tmp_path).running() as xen:
        with pytest.raises(BaseExceptionGroup) as error:
            await Daemon(settings, xen.hypervisor(0)).run()
    found = first_leaf(error.value)
    assert isinstance(found, Unavailable)
    assert "directory in [headless]" in str(found)


def test_differences() -> None:
    before = Settings(guest={"a": GuestSettings(), "b": GuestSettings()})
    after = Settings(
        sink="headless",
        guest={"b": GuestSettings(be_alloc=True), "c": GuestSettings()},
        control=ControlSettings(socket="/elsewhere"),
    )
    assert differences(before, after) == ["sink", "control.socket", "guest.a", "guest.b", "guest.c"]
    assert differences(before, before) == []
