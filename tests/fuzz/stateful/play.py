"""One run: a Xen, a daemon, guests, and all who disturb them, by a seed."""

from __future__ import annotations

import contextlib
import random
import socket
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec
import trio
from scenario.devices import SimDevice, SimNodes
from sinks.compositor import FakeCompositor
from unit.drm_model import Board, no_monitor

from displbe.config import Settings
from displbe.input.evdev.capabilities import Capabilities
from displbe.input.event_codes import EV_KEY
from displbe.input.focus import RESERVATION
from displbe.input.settings import InputSettings
from displbe.ops.service_manager import ServiceManager
from displbe.ops.settings import ControlSettings, LogSettings, MetricsSettings
from displbe.pump.settings import DaemonSettings
from displbe.sim.hypervisor import Xen
from displbe.sinks.base import Sink
from displbe.sinks.drm import hotplug
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.drm.sink import DrmSink
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.headless.sink import HeadlessSink
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.sinks.window_queue import KEPT

from . import virtual
from .actor import Actor
from .environment import UnreliableCompositor, UnreliableMachine, UnreliableScreens
from .faults import Faults
from .guests import HostileGuest
from .journal import Journal
from .neighbours import Neighbour
from .operator import BusyOperator, ask
from .pump import LoopPump
from .toolstack import CarelessToolstack
from .virtual import Steps, Threads
from .watch import Log, Manager, Watch, files, objects, settled
from .world import World, WrongBehaviour

__all__ = ["ACTORS", "SINKS", "Failure", "Options", "Summary", "play"]

SINKS: Final = ("headless", "headless", "wayland", "drm")
HOSTILE: Final = ("guest-1", "guest-2", "guest-3", "guest-4")
ACTORS: Final = ("neighbour", *HOSTILE, "toolstack", "operator", "machine", "screens", "typist")
"""The actors' names, for Options.without."""
EPOCHS: Final = 2
"""Times that the actors come and go: the second time must not leave more than the first."""
PRESENT: Final = 0.8
"""The probability of an actor in a run."""
END: Final = 15.0
"""Seconds in which the daemon must end."""
GROWTH: Final = 6
"""Objects of one type by which the second epoch may differ from the first."""

WITH_PUMP: Final = 0.8
"""The probability of the pump in a run on a card."""
IDLE: Final = 1000
"""Steps of all tasks in 0.2 s without guests. Most of them are those of the metrics' file, every 5 s."""
RESERVED: Final = ("displbe.input.focus.", "displbe.input.bindings.", "displbe.input.evdev.lookup.")
"""Types of objects that outlive a guest for RESERVATION seconds."""


class Options(msgspec.Struct, frozen=True):
    """A run."""

    seed: int
    sink: str = ""
    """Empty: the seed chooses."""
    seconds: float = 8.0
    """The duration of an epoch, in seconds of virtual time."""
    without: tuple[str, ...] = ()
    """Actors that are left out."""


class Summary(msgspec.Struct):
    """The counts of a run that found nothing."""

    sink: str
    pumped: int = 0
    """Flips of all guests that the pump has served."""
    actions: int = 0
    flips: int = 0
    steps: int = 0
    peak: int = 0
    """The most steps between two looks of the watch."""
    seconds: float = 0.0


class Failure(Exception):
    """A run has found a fault; the text is the report."""


class _Typist(Actor):
    """An actor that presses keys and unplugs keyboards."""

    def __init__(self, world: World, name: str, chance: random.Random, nodes: SimNodes) -> None:
        super().__init__(world, name, chance)
        self._nodes = nodes

    def plug(self, number: int) -> SimDevice:
        """Plug a keyboard in."""
        path = f"/dev/input/event{number}"
        return self._nodes.plug(path, SimDevice(path, Capabilities(keys=frozenset(range(1, 128)))))

    async def run(self) -> None:
        """Act until cancelled."""
        while True:
            await trio.sleep(self._chance.choice((0.01, 0.1, 1)))
            number = self._chance.randrange(2)
            device = self._nodes.devices.get(f"/dev/input/event{number}") or self.plug(number)
            if self._chance.random() < 0.1:
                self._nodes.unplug(f"/dev/input/event{number}")
            else:
                for _ in range(self._chance.choice((1, 1, 100))):
                    device.emit((EV_KEY, self._chance.randrange(1, 60), self._chance.randrange(2)))


class _Run:
    """The parts of a run."""

    def __init__(self, options: Options, folder: Path, journal: Journal) -> None:
        self.options = options
        self.folder = folder
        self.journal = journal
        self.log = Log()
        self.steps = Steps()
        self.faults = Faults(self.chance("faults"), 1)
        self.threads = Threads(self.chance("threads"), self.faults.no_thread)
        self.sink_name = options.sink or self.chance("sink").choice(SINKS)
        self.summary = Summary(self.sink_name)
        self.compositor = FakeCompositor()
        self.board = Board(4)
        self.nodes = SimNodes()
        self.pump: LoopPump | None = None

    def chance(self, name: str) -> random.Random:
        """Return the random numbers of one actor. Those of the others do not change when it is left out."""
        return random.Random(f"{self.options.seed} {name}")

    # Parts

    def settings(self) -> Settings:
        """Return the daemon's configuration."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return Settings(
            sink=self.sink_name,  # type: ignore[arg-type]
            control=ControlSettings(socket=str(self.folder / "control")),
            metrics=MetricsSettings(
                textfile=str(self.folder / "displbe.prom"),
                socket=str(self.folder / "metrics"),
                listen=f"127.0.0.1:{port}",
                interval=5,
            ),
            log=LogSettings(traces=""),
            daemon=DaemonSettings(pump="auto" if self.chance("pump").random() < WITH_PUMP else "off"),
            input=InputSettings(devices=["*"]),
        )

    def make_sink(self, name: str, settings: Any) -> Sink:
        """Make the sink in place of sinks.registry.make_sink."""
        chance = self.chance("sink settings")
        match name:
            case "wayland":
                return WaylandSink(
                    WaylandSettings(
                        zero_copy="auto" if chance.random() < 0.5 else "off",
                        on_close="ignore" if chance.random() < 0.5 else "detach",
                    ),
                    self.compositor.opened,
                )
            case "drm":
                devices = self.folder / "dri"
                devices.mkdir(exist_ok=True)
                (devices / "card0").touch()
                return DrmSink(DrmSettings(), self.board.open, devices, lambda: None)
        return HeadlessSink(HeadlessSettings())

    def actors(self, world: World) -> dict[str, Actor]:
        """Return the actors of this run, by their names."""
        made: dict[str, Actor] = {name: HostileGuest(world, name, self.chance(name)) for name in HOSTILE}
        made["neighbour"] = Neighbour(world, "neighbour", self.chance("neighbour"), self.steps)
        made["toolstack"] = CarelessToolstack(world, "toolstack", self.chance("toolstack"))
        made["operator"] = BusyOperator(world, "operator", self.chance("operator"))
        made["machine"] = UnreliableMachine(world, "machine", self.chance("machine"))
        made["typist"] = _Typist(world, "typist", self.chance("typist"), self.nodes)
        if self.sink_name == "wayland":
            made["screens"] = UnreliableCompositor(world, "screens", self.chance("screens"), self.compositor)
        elif self.sink_name == "drm":
            made["screens"] = UnreliableScreens(world, "screens", self.chance("screens"), self.board)
        present = self.chance("present")
        return {
            name: made[name]
            for name in ACTORS
            if present.random() < PRESENT and name in made and name not in self.options.without
        }

    # The run

    async def supervised(self) -> None:
        """Run everything, as long as time goes on. Raises as `main` does."""
        try:
            with trio.CancelScope() as self.steps.scope:
                await self.main()
        finally:
            if self.steps.circling:
                raise WrongBehaviour(f"tasks go round in circles: {self.steps.circling.most_common(12)}")

    async def main(self) -> None:
        """Run everything. Raises an exception group with the reason of a failure."""
        manager = Manager(self.folder / "notify")
        async with Xen(self.folder).running() as xen, trio.open_nursery() as nursery:
            self.compositor.nursery = nursery
            await nursery.start(manager.listen)
            world = World(xen, self.folder, self.settings(), self.faults, self.journal)
            if world.settings.daemon.pump == "auto" and self.sink_name == "drm":
                self.pump = LoopPump(world.hypervisor, self.board)
            with patch("displbe.daemon.open_pump", lambda calls: (self.pump, "")):
                daemon = world.make_daemon(ServiceManager(manager.environment), self.folder, self.nodes)
            scope, ended = trio.CancelScope(), trio.Event()

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                try:
                    with scope:
                        await daemon.run(task_status=task_status)
                except Exception as error:
                    raise WrongBehaviour(f"the daemon ended: {_leaf(error)!r}") from error
                finally:
                    ended.set()
                if not scope.cancel_called:
                    raise WrongBehaviour("the daemon ended")

            await nursery.start(serve)
            watch = Watch(world, self.log, manager, self.steps)
            await self._guests(world, watch)
            self.summary.peak = watch.peak
            self.journal.note("play", "the daemon shall end")
            scope.cancel()
            with trio.move_on_after(END):
                await ended.wait()
            if not ended.is_set():
                raise WrongBehaviour(f"the daemon has not ended within {END:.0f} s")
            self.summary.seconds = trio.current_time()
            nursery.cancel_scope.cancel()

    async def _guests(self, world: World, watch: Watch) -> None:
        """Let all guests come and go."""
        good = Neighbour(world, "good", self.chance("good"), self.steps)
        before = objects()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            with trio.CancelScope() as protected:
                async with trio.open_nursery() as inner:
                    flipping = trio.Event()
                    inner.start_soon(good.run_protected, flipping)
                    await flipping.wait()
                    await trio.sleep(2)
                    await self._epochs(world)
                    protected.cancel()
            self.journal.note("play", "all guests have gone")
            await settled(world, self.log)
            world.daemon.focus.give("")
            await self._idle(RESERVATION + 3)
            answer, _ = await ask(world.settings.control.socket, {"command": "status"})
            if not answer["ok"]:
                raise WrongBehaviour(f"the last status was answered with {answer}")
            nursery.cancel_scope.cancel()
        self._compare(before, objects(), "are left after all guests have gone")
        self.summary.flips += good.flips

    async def _idle(self, seconds: float) -> None:
        """Wait. Raises WrongBehaviour when the daemon does not rest."""
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            before = self.steps.count
            await trio.sleep(0.2)
            if self.steps.count - before > IDLE:
                raise WrongBehaviour(f"{self.steps.count - before} steps of all tasks in 0.2 s without guests")

    async def _epochs(self, world: World) -> None:
        """Let the actors come and go, and compare what is left each time."""
        quiet = str(world.hypervisor.ledger)
        actors = self.actors(world)
        self.journal.note("play", f"{self.sink_name}: {', '.join(actors)}")
        counts = []
        for number in range(EPOCHS):
            await self._epoch(actors)
            self._calm()
            (self.folder / "plain.toml").write_text("")
            await world.daemon.reload(str(self.folder / "plain.toml"))
            world.limits_changed = False
            self.journal.note("play", f"epoch {number + 1} has ended")
            await trio.sleep(6)
            newcomer = Neighbour(world, f"newcomer-{number}", self.chance("newcomer"), self.steps)
            await newcomer.works()
            with trio.move_on_after(30):
                while str(world.hypervisor.ledger) != quiet:
                    await trio.sleep(0.1)
            if str(world.hypervisor.ledger) != quiet:
                raise WrongBehaviour(f"held after the others have gone: {world.hypervisor.ledger}, and before: {quiet}")
            await trio.sleep(KEPT + 1)  # then the windows of guests that do not come back are closed
            counts.append(objects())
        for kind in [kind for kind in counts[-1] if kind.startswith(RESERVED)]:
            del counts[-1][kind]
        self._compare(counts[0], counts[-1], "were added by the second epoch")

    async def _epoch(self, actors: dict[str, Actor]) -> None:
        """Let the actors act. Guests end last: nothing may hinder their ends."""
        async with trio.open_nursery() as guests:
            async with trio.open_nursery() as others:
                for name, actor in actors.items():
                    nursery = guests if isinstance(actor, HostileGuest | Neighbour) else others
                    nursery.start_soon(actor.run, name=name)
                await trio.sleep(self.options.seconds)
                others.cancel_scope.cancel()
            self._calm()
            await trio.sleep(0.2)
            guests.cancel_scope.cancel()

    def _calm(self) -> None:
        """Put the screens in order."""
        self.compositor.there = self.compositor.shows_at_once = self.compositor.releases = True
        for client in self.compositor.clients:
            client.stopped = False
        self.compositor.refresh()
        self.board.present, self.board.other_master = True, False
        self.board.faults.clear()
        self.board.cards = [card for card in self.board.cards if card.fd >= 0]

    def _compare(self, before: Counter[str], after: Counter[str], what: str) -> None:
        grown = {kind: count for kind, count in (after - before).items() if count > GROWTH}
        if grown:
            raise WrongBehaviour(f"objects {what}: {grown}")

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let the daemon run on simulated parts while the block lasts."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error")
            stack.enter_context(self.log.listening())
            stack.enter_context(self.faults.installed())
            stack.enter_context(virtual.simulated(self.threads, self.board.vblank))
            stack.enter_context(patch("displbe.daemon.make_sink", self.make_sink))
            stack.enter_context(patch.object(hotplug, "_monitor", no_monitor))
            yield


def play(options: Options, folder: Path, journal: Path) -> Summary:
    """Run once. Raises Failure."""
    run = _Run(options, folder, Journal(journal))
    before = files()
    try:
        with run.installed():
            virtual.run(run.supervised, options.seed, run.steps)
        if run.log.wrong:
            raise WrongBehaviour(run.log.wrong[0])
        more = Counter(files()) - Counter(before)
        del more[str(journal.resolve())]
        if more:
            raise WrongBehaviour(f"files are left open: {dict(more)}")
    except BaseException as error:
        raise Failure(_report(options, run, error)) from error
    finally:
        run.journal.close()
    run.summary.actions, run.summary.steps = run.journal.count, run.steps.count
    run.summary.pumped = run.pump.flips if run.pump is not None else 0
    return run.summary


def _report(options: Options, run: _Run, error: BaseException) -> str:
    leaf = _leaf(error)
    shown = "".join(traceback.format_exception(leaf)) if not isinstance(leaf, WrongBehaviour) or leaf.__cause__ else ""
    without = f" --without {','.join(options.without)}" if options.without else ""
    again = f"--seed {options.seed} --sink {run.sink_name} --virtual {options.seconds:g}{without}"
    return f"{leaf if isinstance(leaf, WrongBehaviour) else repr(leaf)}\n{shown}replay: {again}\n{run.journal.report()}"


def _leaf(error: BaseException) -> BaseException:
    """Return the exception of a group that says most: one about the daemon's behaviour, else the first one."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_leaf(inner) for inner in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, WrongBehaviour)), leaves[0])
