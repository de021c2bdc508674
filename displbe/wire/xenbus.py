"""The xenbus states of a backend: all transitions and their pacing, in one table.

Each PV device has two state nodes in XenStore, the frontend's and the backend's. Each side writes its own and reads the other's. (The
toolstack also writes the backend's: 5, after it has set `online` to 0, to ask for the end of the device.) This module only decides the
backend's next state; `backend/device.py` reads, waits, maps rings and writes.

The rules are level-triggered: watches coalesce, so a state may be skipped or seen late. A rule says which frontend states are seen
now, which state the backend goes to, and how long it must have been in its present state. That time is the pacing. It is needed because
others read the backend's state too, and some of them must have seen it. In the following, 1 to 8 are the states of `State`:

* Start: the toolstack creates both nodes at 1 and waits up to 10 s to read exactly 2 (xl create, xl vdispl-attach). The frontend reads
  2, publishes its rings and goes to 3. The backend maps them and goes to 4; then the frontend goes to 4. A guest that is already running
  may be at 3 before the toolstack has read the backend's 2. Therefore the backend stays at 2 for 100 ms before it goes to 4.
* Guest's shutdown: Linux goes to 5 and waits up to 5 s for the backend's 5, and for no other state. Therefore the backend stays at 5
  until the frontend moves on, or for 300 ms. Then it goes to 6, and to 2 again while `online` is 1, so that the next kernel in that guest
  finds it ready. Module removal waits up to 1 s for that 2. kexec waits for 5, then 6, then 2. 9front polls every 50 ms. Therefore
  the backend stays in a state for 100 ms where the frontend does not show that it has seen the state.
* Restart of the backend under a running guest: the rings in the guest's pages are those of the previous daemon and are never served. 5
  and 6 make Linux tear its device down (7) and start over (1). The backend stays at 6 until the frontend has left 4 and 7, without
  a limit, because the frontend does not react to a 2 while it is at 7. A frontend at 3 has not used its rings yet and never goes back
  by itself: it is served as at a start.
* Crash of the guest, and any failure of the backend while connected: the same sequence, 5, 6, 2.
* The end: `online` is 0. The backend releases everything, goes to 6 and stays there. The toolstack waits 10 s for the 6 and removes the
  nodes.
"""

from __future__ import annotations

import enum
import math
from typing import Final, TypeAlias

import msgspec

__all__ = ["KEYBOARD_TRANSITIONS", "TRANSITIONS", "Next", "Rule", "State", "Table", "decide", "parse_state"]


class State(enum.IntEnum):
    """enum xenbus_state (xen/include/public/io/xenbus.h). UNKNOWN also stands for values that are no state."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def parse_state(value: bytes | None) -> State | None:
    """Parse a state node of XenStore. Return None when the node is missing, UNKNOWN when its value is no state."""
    if value is None:
        return None
    return State(int(value)) if len(value) == 1 and b"0" <= value <= b"8" else State.UNKNOWN


class Rule(msgspec.Struct, frozen=True):
    """A transition of the backend to `then`, when the frontend is in one of the states `frontend` (None: its node is missing)."""

    frontend: frozenset[State | None]
    then: State
    why: str
    """The reason for the log and for protocol/states.md."""
    after: float = 0.0
    """Seconds that the backend must have been in its present state."""
    online: bool = True
    """The value of the `online` node for which the rule holds."""


ANY: Final = frozenset((None, *State))


def _all_but(*states: State | None) -> frozenset[State | None]:
    return ANY - frozenset(states)


def _only(*states: State | None) -> frozenset[State | None]:
    return frozenset(states)


S = State
_OFFLINE_CLOSED = Rule(ANY, S.CLOSED, "the toolstack ends the device", online=False)
_READY = (
    Rule(_only(S.CONNECTED, S.CLOSING, S.RECONFIGURING), S.CLOSING, "rings of an earlier backend"),
    Rule(_all_but(S.CONNECTED, S.CLOSING, S.RECONFIGURING), S.INIT_WAIT, "ready for a frontend"),
    _OFFLINE_CLOSED,
)

Table: TypeAlias = dict[State, tuple[Rule, ...]]

TRANSITIONS: Final[Table] = {
    # States that displbe never writes, found at the start or written by others: start over. The caller also passes UNKNOWN for a 4
    # that a previous daemon has written, because this daemon has nothing mapped for it.
    S.UNKNOWN: _READY,
    S.INITIALISING: _READY,
    S.INITIALISED: _READY,
    S.RECONFIGURING: _READY,
    S.RECONFIGURED: _READY,
    S.INIT_WAIT: (
        Rule(_only(S.INITIALISED), S.CONNECTED, "the frontend has published its rings", after=0.1),
        _OFFLINE_CLOSED,
    ),
    S.CONNECTED: (
        # A value that is no state changes nothing: the rings still work.
        Rule(_all_but(S.INITIALISED, S.CONNECTED, S.UNKNOWN), S.CLOSING, "the frontend has left"),
        Rule(_all_but(S.CLOSING), S.CLOSED, "the toolstack ends the device", online=False),
        Rule(_only(S.CLOSING), S.CLOSING, "the frontend has left, and the toolstack ends the device", online=False),
    ),
    S.CLOSING: (
        Rule(_only(S.CLOSING), S.CLOSED, "the frontend has had time to see it", after=0.3),
        Rule(_only(None, S.CLOSED), S.CLOSED, "the frontend is closed or gone"),
        Rule(_all_but(S.CLOSING, S.CLOSED, None), S.CLOSED, "the frontend has had time to poll it", after=0.1),
        Rule(_only(S.CLOSING), S.CLOSED, "the frontend has had time to see it", after=0.3, online=False),
        Rule(_all_but(S.CLOSING), S.CLOSED, "the toolstack ends the device", online=False),
    ),
    S.CLOSED: (
        # 4 and 7: the frontend still uses the old rings; wait for it without a limit. None: the toolstack is removing the device.
        Rule(_only(S.INITIALISING, S.CLOSED), S.INIT_WAIT, "ready for the next frontend", after=0.1),
        Rule(
            _all_but(S.INITIALISING, S.CLOSED, S.CONNECTED, S.RECONFIGURING, None),
            S.INIT_WAIT,
            "ready again",
            after=0.15,
        ),
    ),
}
"""Backend state -> its rules. If no rule fits, the backend stays in its state."""

KEYBOARD_TRANSITIONS: Final[Table] = TRANSITIONS | {
    S.INIT_WAIT: (
        Rule(
            _only(S.INITIALISED, S.CONNECTED),
            S.CONNECTED,
            "the frontend has published its page",
            after=0.1,
        ),
        _OFFLINE_CLOSED,
    ),
}
"""The transitions for `vkbd`. Its Linux frontend (xen-kbdfront) publishes its page in its probe, before it has read the backend's state,
and answers the backend's 2 with its 4. So it may be at 4 before the backend has mapped or bound anything. It never goes back to 1: after
the backend's 5 it goes to 6, keeps its page and port, and goes from 6 to 4 when the backend goes to 2.
"""


class Next(msgspec.Struct, frozen=True):
    """The decision: go to `state` in `wait` seconds (0: now), or stay (`state` is None)."""

    state: State | None = None
    wait: float = math.inf
    why: str = ""


_STAY: Final = Next()


def decide(backend: State, frontend: State | None, online: bool, age: float, transitions: Table = TRANSITIONS) -> Next:
    """Return the backend's next state. It has been in the state `backend` for `age` seconds. The first rule that fits decides."""
    for rule in transitions[backend]:
        if rule.online == online and frontend in rule.frontend:
            return Next(rule.then, max(0.0, rule.after - age), rule.why)
    return _STAY
