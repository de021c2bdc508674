"""The pump, proved by a model checker: pump_proof.c says what of it, and for which guests and cards.

A proof that is true for the wrong reason, because an assumption excludes what happens, proves nothing. So each proof has paths that must
be reachable, and must fail when a check is taken out of the pump.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest
from proof.cbmc import Model, Property, tools

HERE: Final = Path(__file__).parent
PUMP: Final = HERE.parents[1] / "displbe/pump"
SIZES: Final = "CONNECTORS = 64, WATCHES = 32, PORTS = 64, EVENTS = 16, QUEUE = 512,"
SMALL: Final = "CONNECTORS = 2, WATCHES = 2, PORTS = 2, EVENTS = 2, QUEUE = 8,"
"""Tables small enough for all of their states to be looked at. The pump's sizes come from these names only."""
REACHABLE: Final = "reachable: "
PAGE: Final = {name: f"guest_{name}" for name in ("load", "store", "read_slot", "write_slot")}
CLOCK: Final = {"now": "any_now"}
HAND: Final = {"hand": "any_hand"}
TOKENS: Final = {"take_tokens": "any_take_tokens"}
REPORT: Final = {"publish.0": 26}


class Proof(msgspec.Struct, frozen=True):
    """How one function of pump_proof.c is checked. Calls that are replaced are proved by themselves."""

    replaced: dict[str, str] = {}
    unwind: int = 9
    loops: dict[str, int] = {}
    options: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()


PROOFS: Final = {
    "accesses": Proof(options=("--pointer-overflow-check",)),
    "serve": Proof({**PAGE, **CLOCK, **TOKENS}, loops=REPORT, options=("--pointer-overflow-check",)),
    "request": Proof({**PAGE, **CLOCK, **TOKENS}, loops=REPORT),
    "shown": Proof({**PAGE, **CLOCK}, unwind=17, loops=REPORT),
    "hand": Proof(),
    "ports": Proof({**HAND, "pump_request": "any_request"}),
    "card": Proof({**HAND, "serve_flip_event": "any_flip_event"}),
    "flip_event": Proof({**HAND, "pump_shown": "any_request"}),
    "times": Proof({**HAND, **CLOCK}, options=("--conversion-check",)),
    "run": Proof(
        {"serve_times": "any_times", "serve_ports": "any_file", "serve_card": "any_file"}, loops={"wait_for_room.0": 3}
    ),
    "messages": Proof(),
    "take": Proof(loops=REPORT),
    "peek": Proof(
        unwind=5,
        loops={"replay.0": 6, "replay.1": 13},
        changes=(
            ("WORDS = (offsetof(struct pump_connector, edition) - REPORTED) / 4", "WORDS = 2"),
            ("_Static_assert(WORDS == 25,", "_Static_assert(1,"),
        ),
    ),
    "tokens": Proof(),
    "watch": Proof(),
    "copy": Proof(CLOCK),
    "now": Proof(options=("--conversion-check",)),
    "after": Proof(CLOCK, options=("--conversion-check",)),
    "wait": Proof({"do_job": "any_job", "after": "any_after"}),
}

WITHOUT: Final = {
    "the slot of a request": ("serve", "c->req_cons & (REQUEST_SLOTS - 1), slot", "c->req_cons, slot"),
    "the slot of a response": ("serve", "c->rsp_prod & (REQUEST_SLOTS - 1), resp", "c->rsp_prod, resp"),
    "the slot of an event": ("shown", "c->in_prod % EVENT_SLOTS", "c->in_prod & EVENT_SLOTS"),
    "room for an event": ("shown", "load(c->events, IN_CONS) < EVENT_SLOTS", "load(c->events, IN_CONS) <= EVENT_SLOTS"),
    "the number of framebuffers": ("serve", "i < c->framebuffer_count", "i <= c->framebuffer_count"),
    "a private copy": ("serve", "find(c, slot[1])", "find(c, *(const volatile uint64_t *)(c->ring + HEADER + 8))"),
    "one request": ("serve", "load(c->ring, REQ_PROD) == c->req_cons + 1", "load(c->ring, REQ_PROD) != c->req_cons"),
    "the status": ("serve", "{ slot[0] & 0xFFFFFF }", "{ slot[0] }"),
    "the notification": ("serve", "return load(c->ring, RSP_EVENT) ==", "return load(c->ring, RSP_EVENT) !="),
    "a fence": (
        "serve",
        "__atomic_thread_fence(__ATOMIC_SEQ_CST);\n\treturn load(c->ring, RSP",
        "return load(c->ring, RSP",
    ),
    "a response before its index": (
        "serve",
        "write_slot(c->ring, c->rsp_prod & (REQUEST_SLOTS - 1), response);\n\tstore(c->ring, RSP_PROD, ++c->rsp_prod);",
        "store(c->ring, RSP_PROD, ++c->rsp_prod);\n\twrite_slot(c->ring, (c->rsp_prod - 1) & 31, response);",
    ),
    "the last look's fence": (
        "request",
        "__atomic_thread_fence(__ATOMIC_SEQ_CST);\n\treturn load(c->ring, REQ",
        "return load(c->ring, REQ",
    ),
    "an event before its index": (
        "shown",
        "write_slot(c->events, c->in_prod % EVENT_SLOTS, event);\n\tstore(c->events, IN_PROD, ++c->in_prod);",
        "store(c->events, IN_PROD, ++c->in_prod);\n\twrite_slot(c->events, (c->in_prod - 1) % EVENT_SLOTS, event);",
    ),
    "nothing changed": (
        "serve",
        "\tif (!has_token(c->bucket, t)",
        "\tc->told = 0; if (!has_token(c->bucket, t)",
    ),
    "the slot of a record": ("serve", "c->traced++ % TRACED * RECORD", "c->traced++ * RECORD"),
    "arming": ("request", "store(c->ring, REQ_EVENT, c->req_cons + 1)", "store(c->ring, REQ_EVENT, c->req_cons)"),
    "the slot of a time": ("shown", "c->shown_at[c->counted % TIMES]", "c->shown_at[c->counted]"),
    "the last bucket": ("shown", " && bucket < BUCKETS - 1", ""),
    "the smallest event": ("card", "size < DRM_EVENT || size > got", "size > got"),
    "the largest event": ("card", "size < DRM_EVENT || size > got - at", "size < DRM_EVENT"),
    "the size of a flip's event": ("card", "kind == FLIP_COMPLETE && size >= FLIP_EVENT", "kind == FLIP_COMPLETE"),
    "room for events": ("card", "ROOM = QUEUE - PORTS - CONNECTORS - 1", "ROOM = QUEUE - 1"),
    "room for ports": ("ports", "ROOM = QUEUE - PORTS - CONNECTORS - 1", "ROOM = QUEUE - 1"),
    "room for times": ("times", "ROOM = QUEUE - PORTS - CONNECTORS - 1", "ROOM = QUEUE - 1"),
    "the longest wait": ("times", "next - t > 86400 ? -1 : ", ""),
    "room at the end": ("run", "if (p->stopping || w->fd < 0", "if (w->fd < 0"),
    "an unwatched file": ("run", "w->fd < 0 || ", ""),
    "room for messages": ("messages", "count < room && ", ""),
    "the slot of a message": ("messages", "taken++ % QUEUE", "taken++"),
    "the slot of a new message": ("hand", "q->written % QUEUE", "q->written"),
    "a token taken": ("serve", "take_tokens(c->bucket, t, 1);", ""),
    "a report of a flip": ("serve", "publish(c);\n\tif (wanted)", "if (wanted)"),
    "a report of an event": ("shown", "c->shown++;\n\tpublish(c);", "c->shown++;"),
    "another place for the next report": ("peek", "(edition / 2 + 1) & 1][i], words", "edition / 2 & 1][i], words"),
    "the beginning of a report": (
        "peek",
        "__atomic_store_n(&c->edition, edition + 1, __ATOMIC_RELEASE);\n",
        "__atomic_store_n(&c->edition, edition, __ATOMIC_RELEASE);\n",
    ),
    "the end of a report": (
        "peek",
        "__atomic_store_n(&c->edition, edition + 1, __ATOMIC_RELEASE);\n",
        "__atomic_store_n(&c->edition, edition + 2, __ATOMIC_RELEASE);\n",
    ),
    "a last look at the edition": ("peek", "(edition & ~1U) > 2", "(edition & ~1U) > 3"),
    "the newest report": ("peek", "c->reports[edition / 2 & 1]", "c->reports[~edition / 2 & 1]"),
    "every entry": ("take", "i = p->count; i-- > 0;", "i = 0; i < p->count; i++"),
    "every connector's place": ("take", "room = p->count < CONNECTORS", "room = 1"),
    "the last row": ("copy", "y < copy->rows", "y <= copy->rows"),
    "the end of the last row": (
        "copy",
        "job->pixels, copy->row * copy->rows",
        "job->pixels, copy->row * (copy->rows + 1)",
    ),
    "the longest time": ("after", "(seconds < 86400 ? seconds : 86400)", "seconds"),
}
"""What a changed pump lacks, the proof that must fail, and the change."""


def check(folder: Path, name: str, *changes: tuple[str, str]) -> list[Property]:
    """Return the properties of a proof, of a pump with these changes."""
    source = (PUMP / "pump.c").read_text()
    proof = PROOFS[name]
    for old, new in ((SIZES, SMALL), *proof.changes, *changes):
        assert source.count(old) == 1, f"pump.c has changed: {old!r} is in it {source.count(old)} times"
        source = source.replace(old, new)
    (folder / "changed.c").write_text(source)
    model = Model.compiled(
        tools(),
        folder / "pump.gb",
        *('-DPUMP_VERSION="0"', f'-DPUMP_C="{folder}/changed.c"', "-I", PUMP, HERE / "pump_proof.c"),
    )
    return model.check(f"prove_{name}", proof.replaced, proof.unwind, proof.loops, proof.options)


def failed(properties: list[Property]) -> list[str]:
    """Return what is not proved."""
    return [
        f"{each.name}: {each.description}"
        for each in properties
        if not each.holds and not each.description.startswith(REACHABLE)
    ]


LONG: Final = ("shown", "run", "times", "copy", "tokens", "after")
"""Proofs that take more than five seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in PROOFS]
)
def test_proved(name: str, tmp_path: Path) -> None:
    properties = check(tmp_path, name)
    assert not failed(properties)
    paths = [each for each in properties if each.description.startswith(REACHABLE)]
    assert paths
    assert not [path.description for path in paths if path.holds], "these paths are excluded by the assumptions"


@pytest.mark.slow
@pytest.mark.parametrize("lacking", WITHOUT)
def test_not_proved_without(lacking: str, tmp_path: Path) -> None:
    name, old, new = WITHOUT[lacking]
    assert failed(check(tmp_path, name, (old, new)))
