"""The control socket: parsing of requests, and hostile clients."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from displbe.ops import clients, control
from displbe.ops.clients import MAX_CLIENTS
from displbe.ops.control import MAX_LINE, Answer, CommandError, Control, LineSplitter, Request, parse_request
from displbe.ops.settings import ControlSettings

LINE = st.binary(max_size=200).filter(lambda line: b"\n" not in line)
LARGE = bytes(range(256)) * 16384  # far more than a socket buffers


# Parsing


@given(st.lists(LINE), LINE, st.data())
def test_lines_come_out_whole_however_they_come_in(lines: list[bytes], rest: bytes, data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    parser = LineSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert found == lines
    assert parser.feed(b"\n") == [rest]


@given(st.integers(1, 3 * MAX_LINE), st.integers(1, 5000))
def test_a_line_without_end_is_refused_before_it_grows(length: int, piece: int) -> None:
    parser = LineSplitter()
    stream = b"x" * length
    fed = 0
    try:
        for start in range(0, length, piece):
            assert parser.feed(stream[start : start + piece]) == []
            fed = start + piece
    except CommandError:
        assert fed + piece > MAX_LINE
    else:
        assert length <= MAX_LINE


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        request = parse_request(line)
    except CommandError:
        return
    assert request.version == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["version", "command", "guest", "connector", "colour"]), JSON | st.just(1)))
def test_any_json_is_a_request_or_refused(document: dict[str, Any]) -> None:
    text = {key: document.get(key) for key in ("command", "guest", "connector") if key in document}
    good = (
        "colour" not in document
        and document.get("version") == 1
        and type(document["version"]) is not bool
        and "command" in document
        and all(isinstance(value, str) for value in text.values())
    )
    try:
        line = msgspec.json.encode(document)
    except (UnicodeEncodeError, OverflowError):
        return
    if good:
        assert parse_request(line) == Request(1, **text)  # type: ignore[arg-type]
    else:
        with pytest.raises(CommandError):
            parse_request(line)


@given(st.text(), st.text(), st.text())
def test_requests_come_back(command: str, guest: str, connector: str) -> None:
    request = Request(1, command, guest, connector)
    try:
        line = msgspec.json.encode(request)
    except UnicodeEncodeError:
        return
    assert parse_request(line) == request


def test_deep_json_is_refused() -> None:
    with pytest.raises(CommandError):
        parse_request(b'{"version":1,"command":' + b"[" * 4000)


# The socket


class Served:
    """A control socket with a few commands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Request] = []
        self.release = trio.Event()
        self.control = Control(
            ControlSettings(socket=str(path)),
            {
                "say": self._say,
                "fail": self._fail,
                "break": self._break,
                "screenshot": self._large,
                "trace": self._wait,
                "wait": self._wait,
            },
        )

    async def _say(self, request: Request) -> Answer:
        self.asked.append(request)
        return Answer(request.guest.encode(), {"length": len(request.guest)})

    async def _fail(self, request: Request) -> Answer:
        raise CommandError("it cannot be done")

    async def _break(self, request: Request) -> Answer:
        raise ZeroDivisionError

    async def _large(self, request: Request) -> Answer:
        return Answer(LARGE)

    async def _wait(self, request: Request) -> Answer:
        await self.release.wait()
        return Answer()

    async def connect(self) -> trio.SocketStream:
        """Connect a client."""
        return await trio.open_unix_socket(self.path)

    async def ask(self, command: str, guest: str = "") -> tuple[dict[str, Any], bytes]:
        """Send a request over a connection of its own; return the answer."""
        async with await self.connect() as client:
            await client.send_all(line(command, guest))
            return await answer(client)


def line(command: str, guest: str = "") -> bytes:
    """Return a request."""
    return json.dumps({"version": 1, "command": command, "guest": guest}).encode() + b"\n"


async def answer(client: trio.SocketStream) -> tuple[dict[str, Any], bytes]:
    """Receive an answer; return its header and its body."""
    data = b""
    with trio.fail_after(20):
        while b"\n" not in data:
            more = await client.receive_some()
            assert more, "the connection was ended"
            data += more
        head, _, body = data.partition(b"\n")
        facts = json.loads(head)
        while len(body) < facts.get("octets", 0):
            body += await client.receive_some()
    return facts, body


async def ended(client: trio.SocketStream) -> bool:
    """Return whether the daemon closes the connection soon."""
    with trio.move_on_after(10):
        try:
            while await client.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True
    return False


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """A control socket that is served."""
    monkeypatch.setattr(control, "COMMAND_INTERVAL", 0.0)
    monkeypatch.setattr(clients, "ACCEPT_INTERVAL", 0.0)
    made = Served(tmp_path / "control")
    async with trio.open_nursery() as nursery:
        await nursery.start(made.control.run)
        yield made
        nursery.cancel_scope.cancel()
    assert not made.path.exists()
    assert made.control.clients.count == 0


async def test_answers(served: Served) -> None:
    assert await served.ask("say", "cockpit\x1b") == ({"ok": True, "octets": 8, "facts": {"length": 8}}, b"cockpit\x1b")
    assert await served.ask("fail") == ({"ok": False, "error": "it cannot be done"}, b"")
    assert await served.ask("wait\n")
    head, _ = await served.ask("dance")
    assert not head["ok"]
    assert "there are: break, fail, say, screenshot, trace, wait" in head["error"]
    assert (await served.ask("screenshot"))[1] == LARGE


async def test_many_requests_on_one_connection(served: Served) -> None:
    async with await served.connect() as client:
        for number in range(50):
            await client.send_all(line("say", str(number)))
            assert (await answer(client))[1] == str(number).encode()
        await client.send_all(line("fail"))
        assert not (await answer(client))[0]["ok"]
        await client.send_all(line("say"))
        assert (await answer(client))[0]["ok"]


async def test_who_may_connect(served: Served) -> None:
    mode = os.stat(served.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


async def test_a_socket_left_by_a_daemon_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "control"
    for _ in range(2):  # the second run finds the socket of the first
        with trio.socket.socket(trio.socket.AF_UNIX) as left:
            if not path.exists():
                await left.bind(str(path))
        async with trio.open_nursery() as nursery:
            made = Served(path)
            await nursery.start(made.control.run)
            assert (await made.ask("say"))[0]["ok"]
            nursery.cancel_scope.cancel()
        assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("precious")
    await Control(ControlSettings(socket=str(path)), {}).run()
    assert path.read_text() == "precious"


async def test_where_no_socket_can_be(tmp_path: Path) -> None:
    await Control(ControlSettings(socket=str(tmp_path / "nowhere" / "control")), {}).run()
    await Control(ControlSettings(socket=""), {}).run()


async def test_another_daemons_socket_stays(served: Served) -> None:
    await Control(ControlSettings(socket=str(served.path)), {}).run()
    assert (await served.ask("say"))[0]["ok"]


async def test_a_successors_socket_stays(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        first, second = Served(tmp_path / "control"), Served(tmp_path / "control")
        scope = trio.CancelScope()

        async def run_first(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await first.control.run(task_status=task_status)

        await nursery.start(run_first)
        os.unlink(first.path)
        await nursery.start(second.control.run)
        scope.cancel()
        await trio.sleep(0.05)
        assert (await second.ask("say"))[0]["ok"]
        nursery.cancel_scope.cancel()


# Hostile clients


async def test_rubbish_ends_the_connection(served: Served) -> None:
    for rubbish in (b"\0\xff\n", b"{}\n", b'{"version": 2, "command": "say"}\n', b"x" * (MAX_LINE + 1), b"\n" * 10):
        async with await served.connect() as client:
            await client.send_all(rubbish)
            assert not (await answer(client))[0]["ok"]
            assert await ended(client)
    assert (await served.ask("say"))[0]["ok"]


async def test_half_a_line_and_gone(served: Served) -> None:
    for data in (b"", b'{"version"', line("screenshot"), line("wait") * 3):
        async with await served.connect() as client:
            await client.send_all(data)
    served.release.set()
    assert (await served.ask("say"))[0]["ok"]


async def test_a_client_that_hangs_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 0.05)
    async with await served.connect() as client:
        await client.send_all(b'{"version"')
        assert await ended(client)
    assert (await served.ask("say"))[0]["ok"]


async def test_a_client_that_takes_no_answer_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CHUNK_TIMEOUT", 0.05)
    async with await served.connect() as client:
        await client.send_all(line("screenshot"))
        assert (await served.ask("say"))[0]["ok"]  # others are served meanwhile
        with trio.fail_after(10):
            while served.control.clients.count:
                await trio.sleep(0.01)


async def test_a_client_that_takes_an_answer_by_drops_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT", 0.2)
    async with await served.connect() as client:
        await client.send_all(line("screenshot"))
        taken = 0
        with trio.fail_after(20):
            while more := await client.receive_some(1000):
                taken += len(more)
                await trio.sleep(0.01)
        assert taken < len(LARGE)
    assert (await served.ask("say"))[0]["ok"]


async def test_a_command_that_is_held_up_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a guest delays forever must delay neither its client nor other commands."""
    monkeypatch.setattr(control, "COMMAND_TIMEOUT", 0.1)
    for command in ("wait", "trace"):
        head, _ = await served.ask(command)
        assert not head["ok"]
        assert "is busy" in head["error"]
    async with await served.connect() as client:
        await client.send_all(line("trace"))
        assert not (await answer(client))[0]["ok"]
        await client.send_all(line("say"))
        assert (await answer(client))[0]["ok"]
    assert (await served.ask("screenshot"))[1] == LARGE


async def test_only_so_many_clients(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is served, and the one that has been idle for longest is told why it is disconnected."""
    monkeypatch.setattr(clients, "GRACE", 0.05)
    connected = [await served.connect() for _ in range(MAX_CLIENTS)]
    for client in connected:  # all are served
        await client.send_all(line("say"))
        assert (await answer(client))[0]["ok"]
    await connected[0].send_all(line("say"))  # now it is the second that has been idle for longest
    assert (await answer(connected[0]))[0]["ok"]
    async with await served.connect() as late:
        await late.send_all(line("say"))
        assert (await answer(late))[0]["ok"]
        assert served.control.clients.count == MAX_CLIENTS
        head, _ = await answer(connected[1])
        assert head == {"ok": False, "error": control.FAREWELL}
        assert await ended(connected[1])
    for client in (connected[0], *connected[2:]):
        await client.send_all(line("say"))
        assert (await answer(client))[0]["ok"]
    for client in connected:
        await client.aclose()


async def test_twelve_idle_clients_shut_nobody_out(served: Served) -> None:
    idle = [await served.connect() for _ in range(12)]
    await idle[0].send_all(b'{"version"')  # half a request does not count
    for _ in range(3):
        with trio.fail_after(10):
            assert (await served.ask("say"))[0]["ok"]
    for client in idle:
        await client.aclose()


async def test_a_client_that_is_served_is_not_idle(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven wait for the answer to a command, for longer than the grace; the eighth is idle. One after the other gets its place."""
    monkeypatch.setattr(clients, "GRACE", 0.05)
    busy = [await served.connect() for _ in range(MAX_CLIENTS - 1)]
    for client in busy:
        await client.send_all(line("wait"))
    async with await served.connect():
        for _ in range(5):
            await trio.sleep(0.06)
            assert (await served.ask("say"))[0]["ok"]
    one_more = await served.connect()
    await one_more.send_all(line("wait"))
    late = await served.connect()
    await late.send_all(line("say"))
    with trio.move_on_after(0.3) as waited:
        await answer(late)
    assert waited.cancelled_caught, "a client that is served was disconnected, or there were too many"
    served.release.set()
    assert (await answer(late))[0]["ok"]
    for client in (*busy, one_more):
        assert (await answer(client))[0]["ok"]
        await client.aclose()
    await late.aclose()


async def test_clients_that_come_without_end_shut_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them connects again as soon as it is disconnected."""
    monkeypatch.setattr(clients, "GRACE", 0.05)

    async def again() -> None:
        while True:
            async with await served.connect() as client:
                await ended(client)

    async with trio.open_nursery() as nursery:
        for _ in range(2 * MAX_CLIENTS):
            nursery.start_soon(again)
        await trio.sleep(0.2)
        for _ in range(5):
            with trio.fail_after(10):
                assert (await served.ask("say"))[0]["ok"]
        nursery.cancel_scope.cancel()


async def test_a_flood_is_served_at_a_bounded_rate(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "COMMAND_INTERVAL", 0.02)

    async def flood(client: trio.SocketStream) -> None:
        with trio.move_on_after(0.5):
            try:
                while True:
                    await client.send_all(line("say", "flood") * 50)
            except trio.BrokenResourceError:
                pass

    clients = [await served.connect() for _ in range(4)]
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(flood, client)
    count, seconds = len(served.asked), trio.current_time() - begun
    assert count <= seconds / 0.02 + len(clients) + 1
    for client in clients:
        await client.aclose()


async def test_a_mistake_of_ours_ends_one_connection(served: Served) -> None:
    async with await served.connect() as client:
        await client.send_all(line("break"))
        assert await ended(client)
    assert (await served.ask("say"))[0]["ok"]


async def test_no_more_files(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE in accept(): it is tried again."""
    real = trio.SocketListener.accept
    failures = [OSError(errno.EMFILE, "Too many open files")]

    async def accept(self: trio.SocketListener) -> trio.SocketStream:
        client = await real(self)
        if failures:
            client.socket.close()
            raise failures.pop()
        return client

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    # The first connection may be accepted by the call of accept() that began before the patch.
    async with await served.connect(), await served.connect():
        assert (await served.ask("say"))[0]["ok"]
    assert not failures
