"""The table of xenbus states, driven as guests, toolstacks and failures drive it."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.wire.xenbus import ANY, TRANSITIONS, State, decide, parse_state

FRONTENDS: Final = sorted(ANY, key=lambda state: -1 if state is None else state)
S: Final = State


class Walk:
    """A backend that does what `decide` says, with simulated time."""

    def __init__(self, backend: State, frontend: State | None, *, online: bool = True) -> None:
        self.backend = backend
        self.frontend = frontend
        self.online = online
        self.now = 0.0
        self.since = 0.0
        self.log: list[tuple[float, State]] = []

    def wait(self, seconds: float) -> list[State]:
        """Let time pass; return the states that the backend went to."""
        until = self.now + seconds
        gone_to: list[State] = []
        while True:
            step = decide(self.backend, self.frontend, self.online, self.now - self.since)
            if step.state is None or self.now + step.wait > until:
                self.now = until
                return gone_to
            self.now += step.wait
            self.since = self.now
            self.backend = step.state
            self.log.append((self.now, step.state))
            gone_to.append(step.state)

    def see(self, frontend: State | None) -> list[State]:
        """Change the frontend's state; return the states that the backend goes to at once."""
        self.frontend = frontend
        return self.wait(0)

    def stands(self) -> bool:
        """Whether the backend has nothing more to do."""
        return decide(self.backend, self.frontend, self.online, self.now - self.since).state is None

    def stood(self, state: State) -> float:
        """Return the seconds that a past state stood."""
        start, end = next((a[0], b[0]) for a, b in zip(self.log, self.log[1:], strict=False) if a[1] is state)
        return end - start


def connected() -> Walk:
    """Return a connected device."""
    walk = Walk(S.INITIALISING, S.INITIALISING)
    assert walk.wait(3) == [S.INIT_WAIT]
    assert walk.see(S.INITIALISED) == [S.CONNECTED]
    assert walk.see(S.CONNECTED) == []
    assert walk.wait(3600) == []
    return walk


def test_normal_start() -> None:
    walk = connected()
    assert walk.backend is S.CONNECTED
    assert walk.stands()


def test_a_running_guest_is_quicker_than_the_toolstack() -> None:
    """xl vdispl-attach must have time to read our 2."""
    walk = Walk(S.INITIALISING, S.INITIALISING)
    assert walk.wait(0) == [S.INIT_WAIT]
    assert walk.see(S.INITIALISED) == []
    assert walk.wait(1) == [S.CONNECTED]
    assert walk.stood(S.INIT_WAIT) == pytest.approx(0.1)


def test_guest_shutdown() -> None:
    """Linux only waits for our 5, and goes to 6 when it has seen it."""
    walk = connected()
    assert walk.see(S.CLOSING) == [S.CLOSING]
    assert walk.wait(0.29) == []
    assert walk.see(S.CLOSED) == [S.CLOSED]
    assert walk.wait(0.09) == []
    assert walk.wait(1) == [S.INIT_WAIT]
    assert walk.stands()


def test_module_removal() -> None:
    """Linux stays at 5 and polls for our 2 every 10 ms, for 1 s. A reader that polls every 50 ms also sees each state."""
    walk = connected()
    walk.log.clear()
    start = walk.now
    walk.frontend = S.CLOSING
    assert walk.wait(1) == [S.CLOSING, S.CLOSED, S.INIT_WAIT]
    assert walk.log[-1][0] - start < 0.6  # the rest of the second is left for releasing the guest's resources
    assert walk.stood(S.CLOSING) >= 0.3 - 1e-9
    assert walk.stood(S.CLOSED) >= 0.1
    assert walk.see(S.INITIALISING) == []
    assert walk.see(S.CLOSED) == []
    # the module is loaded again
    assert walk.see(S.INITIALISING) == []
    assert walk.see(S.INITIALISED) == [S.CONNECTED]


def test_kexec() -> None:
    """The new kernel goes to 5, 6, 1 and waits for our 5, 6, 2, up to 5 s for each."""
    walk = connected()
    assert walk.see(S.CLOSING) == [S.CLOSING]
    assert walk.see(S.CLOSED) == [S.CLOSED]
    assert walk.wait(0.09) == []  # the guest has time to read the 6
    assert walk.see(S.INITIALISING) == []
    assert walk.wait(1) == [S.INIT_WAIT]
    assert walk.see(S.INITIALISED) == [S.CONNECTED]


@pytest.mark.parametrize("frontend", [S.INITIALISING, S.INIT_WAIT, S.CLOSED, S.RECONFIGURING, S.RECONFIGURED])
def test_a_frontend_that_left_without_a_word(frontend: State) -> None:
    """The frontend may have skipped 5, or we may have missed it: the device is closed, and ready again when the frontend is."""
    walk = connected()
    assert walk.see(frontend)[0] is S.CLOSING
    walk.wait(10)
    assert walk.backend is (S.CLOSED if frontend is S.RECONFIGURING else S.INIT_WAIT)


def test_guest_crash() -> None:
    """The frontend's state stays 4 until the toolstack takes the device away."""
    walk = connected()
    walk.online = False
    assert walk.wait(10) == [S.CLOSED]
    assert walk.see(None) == []


def test_the_frontend_vanishes() -> None:
    walk = connected()
    assert walk.see(None) == [S.CLOSING, S.CLOSED]
    assert walk.wait(3600) == []


def test_daemon_restart_under_a_running_guest() -> None:
    """The daemon starts at UNKNOWN, whatever state the last daemon left; it stays at 6 while the guest holds the old rings."""
    walk = Walk(S.UNKNOWN, S.CONNECTED)
    assert walk.wait(0) == [S.CLOSING]
    assert walk.wait(3600) == [S.CLOSED]
    assert walk.stood(S.CLOSING) >= 0.1
    assert walk.see(S.RECONFIGURING) == []
    assert walk.wait(3600) == []
    assert walk.see(S.INITIALISING) == [S.INIT_WAIT]
    assert walk.wait(1) == []
    assert walk.see(S.INITIALISED) == [S.CONNECTED]


def test_daemon_restart_while_the_guest_tears_down() -> None:
    walk = Walk(S.UNKNOWN, S.RECONFIGURING)
    assert walk.wait(3600) == [S.CLOSING, S.CLOSED]
    assert walk.see(S.INITIALISING) == [S.INIT_WAIT]


def test_daemon_restart_before_the_rings_were_used() -> None:
    """A frontend at 3 never goes back by itself, so the daemon continues the handshake."""
    walk = Walk(S.UNKNOWN, S.INITIALISED)
    assert walk.wait(1) == [S.INIT_WAIT, S.CONNECTED]
    assert walk.stood(S.INIT_WAIT) >= 0.1


def test_failure_on_our_side_while_connected() -> None:
    """The device goes to 5 by itself; Linux sees 6, tears down (7) and starts anew (1)."""
    walk = connected()
    walk.backend, walk.since = S.CLOSING, walk.now
    assert walk.wait(5) == [S.CLOSED]
    assert walk.see(S.RECONFIGURING) == []
    assert walk.see(S.INITIALISING) == [S.INIT_WAIT]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("backend", State)
def test_the_toolstack_ends_the_device(backend: State, frontend: State | None) -> None:
    """The toolstack waits 10 s for the 6, which stays; the only state before it is 5."""
    walk = Walk(backend, frontend, online=False)
    assert set(walk.wait(1)) <= {S.CLOSING, S.CLOSED}
    assert walk.backend is S.CLOSED
    assert walk.stands()
    for later in FRONTENDS:
        assert walk.see(later) == []


def test_the_toolstack_writes_our_5() -> None:
    """libxl sets online to 0 and our state to 5 itself."""
    for frontend in FRONTENDS:
        walk = Walk(S.CLOSING, frontend, online=False)
        assert walk.wait(1) == [S.CLOSED]


def test_shutdown_while_the_toolstack_ends_the_device() -> None:
    """The guest must still see the 5: without it, Linux waits 5 s."""
    walk = connected()
    walk.online = False
    walk.log.clear()
    walk.frontend = S.CLOSING
    assert walk.wait(1) == [S.CLOSING, S.CLOSED]
    assert walk.stood(S.CLOSING) >= 0.3 - 1e-9
    assert walk.stands()


@pytest.mark.parametrize(
    "value", [b"", b"9", b"4 ", b" 4", b"+4", b"04", b"44", b"-1", b"x", b"4\0", b"\xb2", b"4" * 4096]
)
def test_what_is_no_state(value: bytes) -> None:
    assert parse_state(value) is S.UNKNOWN


def test_states() -> None:
    assert parse_state(None) is None
    assert [parse_state(b"%d" % number) for number in range(9)] == list(State)


def test_rubbish_changes_nothing() -> None:
    walk = connected()
    assert walk.see(parse_state(b"rubbish")) == []
    assert walk.wait(3600) == []
    walk = Walk(S.INIT_WAIT, parse_state(b"rubbish"))
    assert walk.wait(3600) == []


# Properties of every row.


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("backend", State)
def test_everything_comes_to_rest(backend: State, frontend: State | None, online: bool) -> None:
    walk = Walk(backend, frontend, online=online)
    walk.wait(2)
    assert walk.stands()
    assert len(walk.log) <= 4
    assert {state for _, state in walk.log} <= {S.INIT_WAIT, S.CONNECTED, S.CLOSING, S.CLOSED}


def test_connected_only_with_an_online_frontend_at_3() -> None:
    for backend, frontend, online in product(State, FRONTENDS, (True, False)):
        step = decide(backend, frontend, online, math.inf)
        if step.state is S.CONNECTED:
            assert (backend, frontend, online) == (S.INIT_WAIT, S.INITIALISED, True)


def test_no_row_hides_another() -> None:
    """At most one row applies, so their order has no meaning, and the table in protocol/states.md can be read row by row."""
    for backend, rules in TRANSITIONS.items():
        for one, other in combinations(rules, 2):
            assert one.online != other.online or not one.frontend & other.frontend, (backend, one.why, other.why)


def test_no_row_goes_to_itself() -> None:
    assert set(TRANSITIONS) == set(State)
    assert not [rule for backend, rules in TRANSITIONS.items() for rule in rules if rule.then is backend]


STEPS: Final = st.lists(
    st.tuples(st.sampled_from(FRONTENDS), st.booleans(), st.floats(0, 0.5)), min_size=1, max_size=30
)


@given(st.sampled_from(State), STEPS)
def test_whatever_the_others_do(start: State, steps: list[tuple[State | None, bool, float]]) -> None:
    """Each state follows from the one before by a row of the table, not too early, and in the end nothing more happens."""
    walk = Walk(start, None)
    for frontend, online, seconds in steps:
        walk.frontend, walk.online = frontend, online
        before, since, seen = walk.backend, walk.since, len(walk.log)
        walk.wait(seconds)
        for moment, state in walk.log[seen:]:
            rows = [rule for rule in TRANSITIONS[before] if rule.online == online and frontend in rule.frontend]
            assert [rule.then for rule in rows] == [state]
            assert moment - since >= rows[0].after - 1e-9
            assert state is not S.CONNECTED or (online and frontend is S.INITIALISED)
            before, since = state, moment
    walk.wait(2)
    assert walk.stands()


@given(st.sampled_from(State), st.sampled_from(FRONTENDS), st.booleans(), st.floats(0, 10))
def test_waiting_is_never_negative(backend: State, frontend: State | None, online: bool, stood: float) -> None:
    step = decide(backend, frontend, online, stood)
    assert step.wait >= 0
    assert (step.state is None) == (step.wait == math.inf)
    assert (step.state is None) == (step.why == "")


def test_states_md_is_current() -> None:
    check = [sys.executable, "-m", "protocol.states", "--check"]
    done = subprocess.run(check, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
