"""The compiled pump serves what Python serves, and in the same way; it leaves the rest to Python untouched (fuzz/pump.py)."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path
from typing import Any, Final

import pytest
from fuzz.pump import compile_pump, drive
from hypothesis import given, settings
from hypothesis import strategies as st

from displbe.pump.library import ffi
from displbe.pump.native import Bucket, Copier, Pump, SystemCalls
from displbe.xen.memory import copy_rows

MUTANTS: Final = {
    "an event's id of 32 bits": ("c->next_id & 0xFFFF", "c->next_id"),
    "an event's slot modulo 64": ("c->in_prod % EVENT_SLOTS", "c->in_prod & 63"),
    "an event of the newest cookie's neighbour": (
        "c->next_id & 0xFFFF, c->token",
        "c->next_id & 0xFFFF, c->latest + 64",
    ),
    "an event without room": ("load(c->events, IN_CONS) < EVENT_SLOTS", "load(c->events, IN_CONS) <= EVENT_SLOTS"),
    "no notification of an event": ("p->calls.notify(c->evtchn, c->event_port);", ""),
    "the notification of a response inverted": ("load(c->ring, RSP_EVENT) ==", "load(c->ring, RSP_EVENT) !="),
    "a response's status": ("{ slot[0] & 0xFFFFFF }", "{ slot[0] & 0xFFFFFFFF }"),
    "a response in the next slot": ("c->rsp_prod & (REQUEST_SLOTS - 1), resp", "(c->rsp_prod + 1) & 31, resp"),
    "no token taken": ("take_tokens(c->bucket, t, 1);", ""),
    "a flip without a token": ("!has_token(c->bucket, t) || !show", "!show"),
    "any operation": ("(slot[0] >> 16 & 0xFF) != PG_FLIP || !fb", "!fb"),
    "a refused commit": (
        "return p->calls.commit(c->card, c->atomic) == 0;",
        "p->calls.commit(c->card, c->atomic); return 1;",
    ),
    "the serial number of the last flip": (
        "c->atomic->user_data = c->serial + 1;",
        "c->atomic->user_data = c->serial;",
    ),
    "a second flip under way": ("c->state != PUMP_IDLE || !one_waits(c)", "!one_waits(c)"),
    "one of several requests": (
        "load(c->ring, REQ_PROD) == c->req_cons + 1 &&",
        "load(c->ring, REQ_PROD) != c->req_cons &&",
    ),
    "no last look": ("!serve(p, c) || final_check(c)", "!serve(p, c)"),
    "the port stays masked": ("p->calls.rearm(c->evtchn, c->port);", ""),
    "a flip that is not reported": ("publish(c);\n\tif (wanted)", "if (wanted)"),
    "an event that is not reported": ("c->shown++;\n\tpublish(c);", "c->shown++;"),
    "an event that is reported too early": ("c->shown++;\n\tpublish(c);", "publish(c);\n\tc->shown++;"),
    "the report before the last one": ("c->reports[edition / 2 & 1]", "c->reports[~edition / 2 & 1]"),
    "a record without its request": ("memcpy(record + 24, slot, SLOT);", ""),
    "a change before the flip is left to Python": ("fb = find(c, slot[1]);", "fb = find(c, slot[1]); c->told = 1;"),
}
"""Faults, as changes of pump.c, each of which some script must find. A missing barrier is not among them: x86 does not show it."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compile_pump(tmp_path_factory.mktemp("pump") / "pump.so")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600))
def test_the_same_as_python(library: Any, data: bytes) -> None:
    drive(library, data)


def test_random_scripts(library: Any) -> None:
    chance = random.Random(13)
    assert sum(drive(library, chance.randbytes(1000)) for _ in range(60)) > 300, "too little of it was the pump's"


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    mutant = compile_pump(tmp_path / "pump.so", MUTANTS[fault])
    chance = random.Random(1)
    scripts = [chance.randbytes(1000) for _ in range(300)]
    with pytest.raises(AssertionError):
        _drive_all(mutant, scripts)


def _drive_all(library: Any, scripts: list[bytes]) -> None:
    for script in scripts:
        drive(library, script)


# Copy mode

COPY_MUTANTS: Final = {
    "rows without their gaps": (
        "job->pixels + y * copy->stride, copy->row)",
        "job->pixels + y * copy->row, copy->row)",
    ),
    "the target's stride": ("to + y * copy->target_stride", "to + y * copy->stride"),
    "the last row": ("job->pixels, copy->row * copy->rows", "job->pixels, copy->row * (copy->rows - 1)"),
    "a copy of the gaps": (
        "memcpy(to + y * copy->target_stride, job->pixels + y * copy->stride, copy->row);",
        "memcpy(to + y * copy->target_stride, job->pixels + y * copy->stride, y + 1 < copy->rows ? copy->stride : copy->row);",
    ),
    "the front buffer": ("uint8_t *to = copy->target[copy->back & 1];", "uint8_t *to = copy->target[1 ^ copy->back];"),
    "the front framebuffer": ("copy->fb[copy->back & 1];", "copy->fb[1 ^ copy->back];"),
    "a swap after an error": ("} else {\n\t\tk->copy.back ^= 1;", "}\n\t{\n\t\tk->copy.back ^= 1;"),
}
"""Faults of the copying, as changes of pump.c, each of which some frame must show."""


def copy_frames(library: Any, row: int, gap: int, target_gap: int, rows: int, answers: list[int]) -> None:
    """Have the pump serve flips in copy mode, with these answers of the card. Check the dumb buffers and commits against Python's copying.

    Sizes are in bytes. Raises AssertionError.
    """
    commits: list[tuple[int, ...]] = []
    atomic, value = ffi.new("struct pump_atomic *"), ffi.new("uint64_t *")

    def commit(fd: int, argument: Any) -> int:
        commits.append((fd, value[0], atomic.flags, atomic.user_data))
        return -answers[len(commits) - 1]

    pump = Pump(library, SystemCalls(lambda *_: -errno.EAGAIN, lambda *_: 0, lambda *_: 0, commit))
    copier, bucket = Copier(pump), Bucket(pump, 100, 1)
    stride, pitch = row + gap, row + target_gap
    frame = bytes(at * 7 % 251 + 1 for at in range(stride * rows))
    pages = [bytearray(4096) for _ in range(2)]
    targets, wanted = ([bytearray(pitch * rows) for _ in range(2)] for _ in range(2))
    kept = [ffi.from_buffer(each) for each in (frame, *pages, *targets)]
    connector = pump.add(lambda: None, lambda: None)
    connector.ring, connector.events = (ffi.cast("uint8_t *", page) for page in kept[1:3])
    connector.bucket, connector.copier = bucket.struct, copier.handle
    table = ffi.new("struct pump_framebuffer[]", [(64, 0, 0, ffi.cast("uint8_t *", kept[0]))])
    connector.framebuffers, connector.framebuffer_count = table, 1
    trace = ffi.new("uint8_t[]", 4096 * 88)
    connector.trace = trace
    copy = ffi.new(
        "struct pump_copy *", {"stride": stride, "target_stride": pitch, "row": row, "rows": rows, "back": 1}
    )
    copy.atomic, copy.fb_value, copy.card, copy.fb = atomic, value, 5, (30, 31)
    copy.target = [ffi.cast("uint8_t *", target) for target in kept[3:]]
    copier.set(copy)
    back, expected = 1, []
    for count, answer in enumerate(answers):
        struct.pack_into("<HB5xQ", pages[0], 64 + count * 64, count, 0x15, 64)
        struct.pack_into("<I", pages[0], 0, count + 1)
        connector.state = library.PUMP_IDLE
        assert library.pump_request(pump.handle, connector)
        copied, _ = copier.wait(0)
        copy_rows(memoryview(wanted[back]), pitch, memoryview(frame), stride, row, rows)
        assert targets == wanted
        expected.append((5, 30 + back, 0x201, count + 1))
        assert commits == expected
        back ^= not answer
        assert (copied.frames, copied.error, copied.back, copied.cookie) == (1, answer, back, 64)
        assert copied.serial == (count + 1 if answer else 0)
        assert copier.resting
    pump.close()


SIDES: Final = st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4)


@settings(max_examples=100, deadline=None)
@given(sides=st.tuples(*SIDES), answers=st.lists(st.sampled_from([0, 0, errno.EACCES]), min_size=1, max_size=4))
def test_frames_are_copied_as_in_python(library: Any, sides: tuple[int, int, int, int], answers: list[int]) -> None:
    copy_frames(library, *sides, answers)


@pytest.mark.parametrize("fault", COPY_MUTANTS)
def test_a_fault_of_the_copying_is_found(fault: str, tmp_path: Path) -> None:
    mutant = compile_pump(tmp_path / "pump.so", COPY_MUTANTS[fault])
    with pytest.raises(AssertionError):  # noqa: PT012 - one of the frames shows it
        for gap, target_gap in ((0, 0), (1, 1), (1, 2), (0, 3)):
            copy_frames(mutant, 8, gap, target_gap, 4, [0, errno.EACCES, 0])
