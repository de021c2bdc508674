"""Converting frames does not hold up the other threads of the process."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from displbe.sinks import convert as convert_module
from displbe.sinks.convert import AT_ONCE, CONVERTED, convert
from displbe.wire.formats import fourcc


def test_converting_leaves_the_interpreter_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one thread converts at a time. It pauses after every few rows, and no other thread converts during the pause."""
    code, width, height = fourcc("RG16"), 640, 240
    entry = CONVERTED[code]
    planes, active, most, converted, turns = entry.planes, 0, 0, 0, []

    def counted(row: bytes) -> list[bytes]:
        nonlocal active, most, converted
        active += 1
        converted += len(row)
        time.sleep(0)  # another thread would run here
        most = max(most, active)
        made = planes(row)
        active -= 1
        return made

    def pause(seconds: float) -> None:
        nonlocal converted
        assert active == 0
        turns.append((converted, seconds))
        converted = 0

    monkeypatch.setattr(entry, "planes", counted)
    monkeypatch.setattr(convert_module, "time", SimpleNamespace(sleep=pause))
    source = memoryview(bytes(width * height * 2))

    def work() -> None:
        convert(code, memoryview(bytearray(width * height * 4)), width * 4, source, width * 2, width * 2, height)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert sum(done for done, _ in turns) == 3 * width * height * 2
    assert all(0 < done <= AT_ONCE and seconds > 0 for done, seconds in turns)
    assert converted == 0
