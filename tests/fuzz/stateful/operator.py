"""Operators: commands over the control socket, clients that stall or send garbage, readers of the metrics, reloads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

import trio
from fuzz.configuration import LINES, ODD

from .actor import Actor
from .world import World, WrongBehaviour

__all__ = ["BusyOperator", "ask"]

ANSWER: Final = 15.0
"""Seconds in which a command must be answered: displbe gives up after 10."""
STALLED: Final = 3
"""Clients that stall at a time. (More may keep others out.)"""
COMMANDS: Final = ("status", "trace", "screenshot", "screenshot", "blank", "unblank", "kick", "focus", "nonsense")
GARBAGE: Final = (
    *(b"\n", b"{}\n", b"[]\n", b"\0" * 100, b"\xff\n", b"x" * 9000, b'{"version": 1, "command": 5}\n', b"[" * 4000 + b"\n"),
    *(b'{"version": 1, "command": "status", "x": 1}\n', b'{"version": 99999999999999999999, "command": "status"}\n'),
    *(b'{"version": 1, "command": "status"}', b"GET / HTTP/1.1\r\n\r\n", b'{"version":1,"command":"status"}\n' * 40),
)  # fmt: skip
HTTP: Final = (
    *(b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\n\n", b"POST /x HTTP/1.1\r\n\r\n"),
    *(b"\r\n\r\n", b"x" * 9000, b"GET", b"\0\xff\r\n\r\n", b" \n\n"),
)  # fmt: skip
LIMITS: Final = (
    "pages",
    "buffers",
    "framebuffers",
    "connectors",
    "requests-per-turn",
    "requests-per-second",
    "reconnects-per-second",
)


async def ask(path: str, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Send a command, and return the answer's first line and its body. Raises OSError, trio.BrokenResourceError, trio.TooSlowError."""
    with trio.fail_after(ANSWER):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(json.dumps({"version": 1, **request}).encode() + b"\n")
            data = b""
            while b"\n" not in data:
                data += await _more(stream)
            line, _, body = data.partition(b"\n")
            answer: dict[str, Any] = json.loads(line)
            while len(body) < answer.get("octets", 0):
                body += await _more(stream)
            return answer, body


async def _open(where: str | int) -> trio.SocketStream:
    """Connect to a UNIX socket, or to a TCP port of this machine."""
    if isinstance(where, str):
        return await trio.open_unix_socket(where)
    return await trio.open_tcp_stream("127.0.0.1", where)


async def _more(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(65536)
    if not data:
        raise trio.BrokenResourceError("closed")
    return bytes(data)


class BusyOperator(Actor):
    """An actor that controls the daemon, with and without sense."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self._stalled = 0
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Act until cancelled."""
        acts = (
            self._command,
            self._command,
            self._at_once,
            self._at_once,
            self._garbage,
            self._stall,
            self._metrics,
            self._reload,
        )
        async with trio.open_nursery() as self._nursery:
            while True:
                await trio.sleep(self._chance.choice((0, 0.01, 0.05, 0.1, 0.3)))
                await self._chance.choice(acts)()

    async def _command(self) -> None:
        """Send a command about a guest, but never one that the protected guest would notice."""
        chance, world = self._chance, self._world
        command = chance.choice(COMMANDS)
        guest = chance.choice((*map(str, world.guests), *world.guests.values(), "", "good", "nobody"))
        if command in ("blank", "kick") and guest in ("good", ""):
            guest = "nobody"
        if command == "blank" or command == "kick":
            world.touched.add(guest)
        connector = chance.choice(("", "", "", "0", "1", "shared-0", "x"))
        self._note(f"{command} {guest!r} {connector!r}")
        request = {"command": command} | ({"guest": guest, "connector": connector} if command != "status" else {})
        begun = trio.current_time()
        try:
            answer, body = await ask(world.settings.control.socket, request)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            if not world.faults.active and world.faults.ended_at < begun - 2:
                raise WrongBehaviour(f"the command {command} was not answered: {error!r}") from error
            return
        if command == "status" and not (answer["ok"] and json.loads(body)["version"]):
            raise WrongBehaviour(f"status was answered with {answer}")
        if (
            command == "screenshot"
            and (guest, connector) == ("good", "")
            and not answer["ok"]
            and not world.faults.active
        ):
            raise WrongBehaviour(f"a screenshot of the good guest was answered with {answer}")

    async def _at_once(self) -> None:
        """Send several commands about one guest at the same time, from several clients."""
        chance, world = self._chance, self._world
        if not world.guests:
            return
        served = [device.domid for device in world.daemon.displays.devices.values() if device.is_served]
        domids = [domid for domid in served if domid in world.guests] or list(world.guests)
        domid = str(chance.choice(domids))
        commands = [
            chance.choice(("screenshot", "screenshot", "kick", "kick", "blank", "unblank", "trace")) for _ in range(3)
        ]
        self._note(f"{', '.join(commands)} {domid} at once")
        world.touched.add(domid)
        async with trio.open_nursery() as nursery:
            for command in commands:
                nursery.start_soon(self._try, {"command": command, "guest": domid})

    async def _try(self, request: dict[str, str]) -> None:
        try:
            await ask(self._world.settings.control.socket, request)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self._note(f"no answer: {error!r}")

    async def _garbage(self) -> None:
        line = self._chance.choice(GARBAGE)
        self._note(f"garbage {line[:40]!r}")
        await self._talk(self._world.settings.control.socket, line, self._chance.choice((0, 0.01)))

    async def _stall(self) -> None:
        """Connect, ask for something large or for nothing, and read nothing for a while."""
        if self._stalled < STALLED:
            self._stalled += 1
            line = self._chance.choice((b"", b"{", b'{"version":1,"command":"screenshot","guest":"good"}\n' * 30))
            self._note(f"stalls after {line[:40]!r}")
            self._nursery.start_soon(self._stalling, line, self._chance.choice((0.1, 3, 20)))
        await trio.lowlevel.checkpoint()

    async def _stalling(self, line: bytes, seconds: float) -> None:
        try:
            await self._talk(self._world.settings.control.socket, line, seconds)
        finally:
            self._stalled -= 1

    async def _metrics(self) -> None:
        request, seconds = self._chance.choice(HTTP), self._chance.choice((0, 0, 0.01, 0.5, 7))
        metrics = self._world.settings.metrics
        if self._chance.random() < 0.5:
            self._note(f"metrics {request[:40]!r}")
            self._nursery.start_soon(self._talk, metrics.socket, request, seconds)
        else:
            self._note(f"metrics over TCP {request[:40]!r}")
            self._nursery.start_soon(self._talk, int(metrics.listen.rpartition(":")[2]), request, seconds)
        await trio.lowlevel.checkpoint()

    async def _talk(self, where: str | int, data: bytes, seconds: float) -> None:
        """Send bytes; read what comes, if anything, and close."""
        try:
            with trio.move_on_after(ANSWER):
                async with await _open(where) as stream:
                    await stream.send_all(data)
                    await trio.sleep(seconds)
                    with trio.move_on_after(seconds):
                        await stream.receive_some(65536)
        except (OSError, trio.BrokenResourceError):
            pass

    async def _reload(self) -> None:
        """Reload a configuration: the present one, other limits, or one with odd lines."""
        chance, path = self._chance, self._world.folder / "displbe.toml"
        self._write_configuration(path)
        self._note("reloads")
        begun = trio.current_time()
        with trio.move_on_after(ANSWER) as waiting:
            await self._world.daemon.reload(str(path))
        if waiting.cancelled_caught and not self._world.faults.active and self._world.faults.ended_at < begun:
            raise WrongBehaviour("a reload has not ended")
        if chance.random() < 0.5:
            path.write_text("[limits]\n")
            await self._world.daemon.reload(str(path))

    def _write_configuration(self, path: Path) -> None:
        chance = self._chance
        match chance.randrange(5):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                path.write_bytes(chance.randbytes(300))
            case 2:
                self._world.limits_changed = True
                limit = chance.choice(LIMITS)
                path.write_text(
                    f"[limits]\n{limit} = {chance.choice(('0', '1', '2.0', '1000', '1e9', '4294967295', '-1'))}\n"
                )
            case 3:
                guest = chance.choice(("alpha", "beta", "nobody"))
                lines = (
                    "be-alloc = true",
                    "screenshot = false",
                    "connectors = ['shared-0', 'x']",
                    "input = 'K:/dev/input/event0'",
                )
                path.write_text(f"[guest.{guest}]\n{chance.choice(lines)}\n[input]\nfocus = '{guest}'\n")
            case _:
                self._world.limits_changed = True
                lines_of_all = list(LINES)
                for _ in range(chance.randrange(1, 4)):
                    at = chance.randrange(len(lines_of_all))
                    lines_of_all[at] = f"{lines_of_all[at].partition('=')[0]}= {chance.choice(ODD)}"
                path.write_text("\n".join(lines_of_all), errors="surrogateescape")
