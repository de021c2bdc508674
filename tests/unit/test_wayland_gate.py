"""The gate that keeps frames back from a compositor that does not answer, and what is remembered of failed imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.wayland.buffers import BufferState, DmabufHistory, ImportHistory
from displbe.sinks.wayland.sync_gate import GateState, SyncGate


class Line:
    """A connection: what it has been asked, and whether its socket takes everything."""

    def __init__(self) -> None:
        self.keeps_up = True
        self.questions: list[Callable[[], None]] = []

    def call_after_sync(self, processed: Callable[[], None]) -> None:
        self.questions.append(processed)


@given(
    steps=st.lists(
        st.sampled_from(["frame", "reported frame", "sync", "answer", "block", "unblock", "forget", "reset"]),
        max_size=40,
    )
)
def test_the_gate(steps: list[str]) -> None:
    """At most one question is outstanding, and a frame is kept back only until its answer."""
    opened: list[int] = []
    gate = SyncGate(lambda: opened.append(1))
    line: Any = Line()
    held = False
    for step in steps:
        before = gate.state
        match step:
            case "frame" | "reported frame":
                reported = step == "reported frame"
                passed = gate.passes(line, reported=reported)
                assert passed == (reported or (before is GateState.OPEN and line.keeps_up))
                held = not passed
            case "sync":
                gate.sync(line)
                assert gate.state is (GateState.SYNCING if before is GateState.OPEN else before)
            case "answer" if line.questions:
                count = len(opened)
                line.questions.pop()()
                assert len(opened) == count + held
                held = False
            case "block" | "unblock":
                line.keeps_up = step == "unblock"
            case "forget":
                gate.forget_frame()
                held = False
            case "reset":
                gate.reset()
                line.questions.clear()
                held = False
        assert (gate.state is GateState.HOLDING) == held
        assert len(line.questions) == (gate.state is not GateState.OPEN)


def test_what_one_guest_loses_by_is_not_tried_again_for_it() -> None:
    dmabufs = DmabufHistory()
    one, other = ImportHistory(dmabufs), ImportHistory(dmabufs)
    one.refuse(BufferState.SHM, "no")
    assert (one.refusal(BufferState.SHM), one.refusal(BufferState.DMABUF)) == ("no", "")
    assert other.refusal(BufferState.SHM) == ""
    dmabufs.refusal = "it ended"
    assert other.refusal(BufferState.DMABUF) == one.refusal(BufferState.DMABUF) == "it ended"
    assert other.refusal(BufferState.SHM) == ""
