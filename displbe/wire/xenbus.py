"""Xenbus states: every transition a backend makes, and when, in one table.

Each PV device has two nodes in XenStore, `state` of the frontend and `state` of the backend. Each side writes only its own
and reads the other's. (The toolstack too writes the backend's: 5, after it has set `online` to 0, to ask for an end.)
This module only decides what our state is to become; who reads, waits, maps rings and writes is in `backend/device.py`.

What is seen is levels, not events: a state may be skipped or come late, since watches coalesce. So a rule names what is seen
now, what our state becomes, and how long our present state must have stood before. That is the pacing. It is needed because
other frontends look at our state too, and some must have seen it:

* Start: the toolstack creates both nodes at 1 and waits up to 10 s to read exactly 2 (xl create, xl vdispl-attach); the
  frontend reads 2, publishes its rings and goes to 3; we map them and go to 4; then it goes to 4. A guest that already runs
  may be at 3 before the toolstack has read our 2: so 2 stands for 100 ms before it becomes 4.
* Guest's shutdown: Linux goes to 5 and waits up to 5 s, looking for nothing but our 5; so 5 stands until the frontend moves on, or
  300 ms. Then 6, and 2 again while `online` is 1, so that the next kernel in that guest finds us ready. Module removal waits up to
  1 s for that 2. kexec waits for 5, then 6, then 2. 9front polls every 50 ms: so a state stands for 100 ms where the frontend
  does not say that it has seen it.
* Our own restart under a running guest: the rings in the guest's pages are those of the daemon that was, and are never served.
  5 and 6 make Linux tear its device down (7) and start anew (1). Until it has left 4 and 7 our 6 stands, however long it
  takes, because a 2 that comes while it is at 7 is not seen. A frontend at 3 has not used its rings yet and never goes back
  by itself: it is answered as at a start.
* Crash, and any failure on our side while connected: the same way, 5, 6, 2.
* The end: `online` is 0. Release, 6, and stay there; the toolstack removes the nodes (it waits 10 s for the 6).
"""

from __future__ import annotations

import enum
import math
from typing import Final, TypeAlias

import msgspec

__all__ = ["KEYBOARD_TRANSITIONS", "TRANSITIONS", "Next", "Rule", "State", "Table", "decide", "parse_state"]


class State(enum.IntEnum):
    """enum xenbus_state (xen/include/public/io/xenbus.h). UNKNOWN also stands for what is no state at all."""

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
    """A state as it stands in XenStore; None when the node is missing, UNKNOWN when it holds no state."""
    if value is None:
        return None
    return State(int(value)) if len(value) == 1 and b"0" <= value <= b"8" else State.UNKNOWN


class Rule(msgspec.Struct, frozen=True):
    """From a backend state: when the frontend is in one of `frontend` (None: its node is missing), then `then`."""

    frontend: frozenset[State | None]
    then: State
    why: str
    after: float = 0.0
    """Seconds that our present state must have stood."""
    online: bool = True


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
    # States that this backend never writes, found in the store or written there by others: start anew. A 4 that is not
    # ours, since nothing is mapped, is UNKNOWN too: a daemon before us wrote it.
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
        # A state that is no state changes nothing: the rings are what counts.
        Rule(_all_but(S.INITIALISED, S.CONNECTED, S.UNKNOWN), S.CLOSING, "the frontend has left"),
        Rule(_all_but(S.CLOSING), S.CLOSED, "the toolstack ends the device", online=False),
        Rule(_only(S.CLOSING), S.CLOSING, "the frontend has left, and the toolstack ends the device", online=False),
    ),
    S.CLOSING: (
        Rule(_only(S.CLOSING), S.CLOSED, "the frontend has had time to see it", after=0.3),
        Rule(_only(None, S.CLOSED), S.CLOSED, "the frontend is closed or gone"),
        Rule(_all_but(S.CLOSING, S.CLOSED, None), S.CLOSED, "seen by those who poll", after=0.1),
        Rule(_only(S.CLOSING), S.CLOSED, "the frontend has had time to see it", after=0.3, online=False),
        Rule(_all_but(S.CLOSING), S.CLOSED, "the toolstack ends the device", online=False),
    ),
    S.CLOSED: (
        # 4 and 7: the frontend still holds the old rings; wait for it, without limit. None: the toolstack is removing it.
        Rule(_only(S.INITIALISING, S.CLOSED), S.INIT_WAIT, "ready for the next frontend", after=0.1),
        Rule(
            _all_but(S.INITIALISING, S.CLOSED, S.CONNECTED, S.RECONFIGURING, None),
            S.INIT_WAIT,
            "ready again",
            after=0.15,
        ),
    ),
}
"""What our state becomes. A state without a rule that fits stands."""

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
"""The same for `vkbd`, whose Linux frontend (xen-kbdfront) publishes its page from its probe, before it has looked at our state, and
answers our 2 with its 4. So it may be at 4 before anything was bound. It never goes back to 1: after our 5 it is at 6, keeps its page
and port, and goes from there to 4 when our 2 comes.
"""


class Next(msgspec.Struct, frozen=True):
    """What to do: go to `state` after `wait` seconds (now when 0), or stay (`state` None)."""

    state: State | None = None
    wait: float = math.inf
    why: str = ""


_STAY: Final = Next()


def decide(
    backend: State, frontend: State | None, online: bool, stood: float, transitions: Table = TRANSITIONS
) -> Next:
    """What our state becomes, given how long the present one has stood (seconds). The first rule that fits decides."""
    for rule in transitions[backend]:
        if rule.online == online and frontend in rule.frontend:
            return Next(rule.then, max(0.0, rule.after - stood), rule.why)
    return _STAY
