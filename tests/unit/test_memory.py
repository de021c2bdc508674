"""Memory that is borrowed, and the watch that finds memory that is used without being borrowed (tests/memory_watch.py)."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from memory_watch import MemoryWatch, content, watched

from displbe.display.buffers import _copy
from displbe.sinks.base import Geometry, Part
from displbe.sinks.frame_copy import copy_frame, frame_checksum, frame_rows, same_frame
from displbe.sinks.headless.output import _Memory
from displbe.wire.formats import fourcc
from displbe.xen.memory import (
    PAGE_SIZE,
    Mapping,
    Memory,
    PrivateMemory,
    Unmapped,
    close_in_thread,
    copy_rows,
    same_rows,
)

SIZE = 4 * PAGE_SIZE
SHAPE = Geometry(64, 64, fourcc("XR24"), 256, 0)
WHOLE = Part(0, 0, 64, 64)


@pytest.fixture
def memory() -> PrivateMemory:
    """Memory that is full of `a`."""
    made = PrivateMemory(SIZE)
    with made.borrow() as view:
        view[:] = b"a" * SIZE
    return made


def test_memory_is_unmapped_when_it_is_closed(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    assert content(memory) == b"a" * SIZE
    assert memory.close()
    assert memory.close(), "a second time"
    assert memory_watch.unmapped == 1
    with pytest.raises(Unmapped), memory.borrow():
        pytest.fail("borrowed")
    assert memory_watch.closed_while_borrowed == []


def test_what_is_borrowed_stays_mapped(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    with memory.borrow() as first:
        with memory.borrow() as second:
            assert memory.borrowers == 2
            assert not memory.close()
            with pytest.raises(Unmapped), memory.borrow():
                pytest.fail("lent after it was closed")
            assert bytes(second[:2]) == b"aa"
        assert memory_watch.unmapped == 0
        assert not memory.close(0.01), "waits no longer than asked"
        assert bytes(first[-2:]) == b"aa"
    assert memory_watch.unmapped == 1
    assert memory.close()
    assert [place.split(":")[0] for place in memory_watch.closed_while_borrowed] == ["unit/test_memory.py"] * 2


def test_read_only_memory() -> None:
    fd = os.memfd_create("pages")
    os.ftruncate(fd, 2 * PAGE_SIZE)
    mapping = Mapping(fd, [(PAGE_SIZE, PAGE_SIZE), (0, PAGE_SIZE)], writable=False)
    os.pwrite(fd, b"end", 0)
    os.close(fd)
    with mapping.borrow() as view:
        assert view.readonly
        assert bytes(view[PAGE_SIZE : PAGE_SIZE + 3]) == b"end"
    assert mapping.close()


def test_a_close_waits_for_a_borrower_in_another_thread(memory: PrivateMemory) -> None:
    borrowed, end = threading.Event(), threading.Event()

    def borrow() -> None:
        with memory.borrow() as view:
            borrowed.set()
            assert end.wait(5)
            assert bytes(view) == b"a" * SIZE

    thread = threading.Thread(target=borrow)
    thread.start()
    assert borrowed.wait(5)
    assert not memory.close(0.01)
    threading.Timer(0.05, end.set).start()
    assert memory.close(5)
    thread.join()


def test_an_exception_whose_traceback_holds_a_view(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    """The memory stays mapped until the exception is handled, and no longer."""

    def fail() -> None:
        with memory.borrow() as view:
            part = view[PAGE_SIZE:]
            raise ZeroDivisionError(len(part))

    try:
        fail()
    except ZeroDivisionError:
        assert not memory.close()
        assert memory_watch.unmapped == 0
    assert memory_watch.unmapped == 1


@pytest.mark.parametrize("short", [False, True])
def test_copying_keeps_no_view_when_it_fails(memory: PrivateMemory, short: bool) -> None:
    """Also while its exception is handled: who handles it may wait for the memory to be unmapped."""
    rows = frame_rows(SHAPE, WHOLE)
    target = PrivateMemory(SIZE)
    for work in (copy_frame, same_frame):
        try:
            with memory.borrow() as view, target.borrow() as to:
                work(rows, view, to[: SIZE // 2] if short else to, 256)
        except ValueError:
            assert short
            assert memory.borrowers == 0
    with memory.borrow() as view:
        frame_checksum(rows, view)
    assert memory.close()
    assert target.close()


# The watch finds what is wrong


def test_a_view_that_outlives_its_block_is_found(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    """The memory stays mapped nevertheless, until the view is gone."""
    with memory.borrow() as view:
        part = view[10:20]
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert [line.split(":")[0] for line in memory_watch.violations] == [
        "a view outlives its block, at unit/test_memory.py"
    ]
    assert not memory.close()
    assert bytes(part) == b"a" * 10
    assert memory_watch.unmapped == 0
    del part
    assert memory_watch.unmapped == 1
    memory_watch.violations.clear()


def test_a_view_in_a_circle_of_references_is_found(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    """The garbage collector unmaps then, in whatever thread it runs."""
    circle: list[object] = []
    with memory.borrow() as view:
        circle += [circle, view.cast("I")]
    assert len(memory_watch.violations) == 1
    memory_watch.violations.clear()
    assert not memory.close()
    circle = []
    gc.collect()
    assert memory_watch.unmapped == 1
    assert memory.close()


AFTER_CLOSE = """
import sys
from memory_watch import watched
from displbe.xen._libc import ffi
from displbe.xen.memory import PrivateMemory

def read_without_borrowing(address):
    return ffi.cast("char *", address)[5]

with watched():
    memory = PrivateMemory(8192)
    with memory.borrow() as view:
        address = ffi.cast("uintptr_t", ffi.from_buffer(view))
    print(read_without_borrowing(address), flush=True)
    memory.close()
    read_without_borrowing(address)
    print("read after it was unmapped", flush=True)
"""


def test_an_access_after_the_end_ends_the_process_with_its_place() -> None:
    """What the mode is for: such a read does not go unnoticed, as it would where other memory is mapped there by then."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", AFTER_CLOSE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGSEGV, process.stderr
    assert process.stdout == "b'\\x00'\n"
    assert "in read_without_borrowing" in process.stderr
    assert faulthandler.is_enabled(), "pytest prints the place in the same way"


async def test_unmapping_in_the_loop_is_found(memory_watch: MemoryWatch) -> None:
    made = _Memory(3)
    with made.memory.borrow() as view:
        assert bytes(view[:1]) == b"\0"
    made.close()
    assert [line.rsplit(":", 1)[0] for line in memory_watch.violations] == [
        "munmap of 12288 bytes in the event loop, at sinks/headless/output.py",
    ]
    memory_watch.violations.clear()
    made = _Memory(3)
    await trio.to_thread.run_sync(made.close)
    assert memory_watch.violations == []


def test_memory_that_is_never_unmapped_is_found(memory: PrivateMemory) -> None:
    with watched() as watch:
        picture = _copy(frame_rows(SHAPE, WHOLE), memory)
    assert [line.rsplit(":", 1)[0] for line in watch.violations] == [
        "never unmapped: memory made at display/buffers.py"
    ]
    picture.close()
    memory.close()


# Closing in threads


async def test_closing_off_the_loop(memory: PrivateMemory) -> None:
    threads = trio.CapacityLimiter(1)
    used: list[object] = []

    def close(wait: float) -> bool:
        used.append((threads.borrowed_tokens, threading.current_thread() is threading.main_thread()))
        return memory.close(wait)

    await close_in_thread(close, threads)
    assert used == [(1, False)]


async def test_closing_waits_for_borrowers_and_leaves_the_threads_to_others(memory: PrivateMemory) -> None:
    """While memory is borrowed for long, its guest's threads are free most of the time."""
    threads = trio.CapacityLimiter(1)
    closed = trio.Event()
    loan = memory.borrow()
    loan.__enter__()

    async def close() -> None:
        await close_in_thread(memory.close, threads)
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with trio.fail_after(5):
            for _ in range(20):
                await trio.to_thread.run_sync(int, limiter=threads)
                await trio.sleep(0.005)
        assert not closed.is_set()
        loan.__exit__()
        with trio.fail_after(5):
            await closed.wait()
    assert memory.close()


async def test_a_cancelled_close_closes(memory: PrivateMemory, memory_watch: MemoryWatch) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await close_in_thread(memory.close)
    assert memory_watch.unmapped == 1
    other = PrivateMemory(SIZE)
    with other.borrow() as view:
        with trio.move_on_after(0.1) as scope:
            await close_in_thread(other.close)
        assert scope.cancelled_caught, "the wait ends"
        assert view[0] == 0
    assert memory_watch.unmapped == 2


async def test_threads_that_borrow_while_others_close(memory_watch: MemoryWatch) -> None:
    """Each memory is unmapped once, after all that had borrowed it are done; nobody reads anything else meanwhile."""
    rounds, size = 90, 16 * PAGE_SIZE
    current: list[Mapping] = []
    refused = 0
    ends = threading.Event()

    def read(seed: int) -> None:
        nonlocal refused
        dice = random.Random(seed)
        while not ends.wait(1e-4):
            memory: Memory = current[-1]
            try:
                with memory.borrow() as view:
                    byte = bytes(view[:1])
                    with view[dice.randrange(size // 2) :] as part:
                        assert bytes(part).strip(byte) == b"", "another memory"
            except Unmapped:
                refused += 1

    def make(number: int) -> None:
        made = PrivateMemory(size)
        with made.borrow() as view:
            view[:] = bytes([number % 251 + 1]) * size
        current.append(made)

    make(0)
    async with trio.open_nursery() as nursery:
        for seed in range(4):
            nursery.start_soon(trio.to_thread.run_sync, read, seed)
        for number in range(1, rounds):
            before = current[-1]
            if number % 3:
                make(number)
                await close_in_thread(before.close)
            else:  # readers find it closed
                await close_in_thread(before.close)
                make(number)
        ends.set()
    await close_in_thread(current[-1].close)
    assert memory_watch.unmapped == rounds
    assert all(memory.borrowers == 0 for memory in current)
    assert refused


def test_the_cost_of_a_loan(memory: PrivateMemory) -> None:
    """A copy of a frame takes one loan of each of its two memories: microseconds, where the copy takes hundreds."""

    def borrow() -> None:
        with memory.borrow():
            pass

    assert min(timeit.repeat(borrow, number=1000, repeat=5)) / 1000 < 100e-6
    memory.close()


# Rows of pixels

STRIDES = pytest.mark.parametrize(("to_stride", "of_stride"), [(4, 4), (4, 6), (6, 4), (7, 7)])
"""Of rows of 4 bytes."""


def image(stride: int, rows: int = 3) -> bytearray:
    """An image whose last row ends with its pixels."""
    return bytearray(range(1, 1 + stride * (rows - 1) + 4))


@STRIDES
def test_rows_are_copied_without_their_gaps(to_stride: int, of_stride: int) -> None:
    to, of = bytearray(len(image(to_stride))), image(of_stride)
    copy_rows(memoryview(to), to_stride, memoryview(of), of_stride, 4, 3)
    for row in range(3):
        assert to[row * to_stride :][:4] == of[row * of_stride :][:4]
        assert not any(to[row * to_stride + 4 : (row + 1) * to_stride]), "a gap may be the picture's border"


@STRIDES
def test_rows_are_the_same_when_their_pixels_are(to_stride: int, of_stride: int) -> None:
    one, other = bytearray(len(image(to_stride))), image(of_stride)
    copy_rows(memoryview(one), to_stride, memoryview(other), of_stride, 4, 3)
    for at in range(len(one)):
        is_gap = at % to_stride >= 4
        one[at] ^= 0xFF
        same = same_rows(memoryview(one), to_stride, memoryview(other), of_stride, 4, 3)
        assert same is is_gap
        one[at] ^= 0xFF
    assert same_rows(memoryview(one), to_stride, memoryview(other), of_stride, 4, 3)


@pytest.mark.parametrize("use", [copy_rows, same_rows])
@pytest.mark.parametrize(
    ("to", "to_stride", "of", "of_stride", "row", "rows"),
    [
        (15, 6, 16, 6, 4, 3),  # a byte too small
        (16, 6, 15, 6, 4, 3),
        (11, 4, 16, 6, 4, 3),
        (16, 3, 16, 6, 4, 3),  # rows over one another
        (16, 6, 16, 3, 4, 3),
        (16, 6, 16, 6, 0, 3),
        (16, 6, 16, 6, -4, 3),
        (16, 6, 16, 6, 4, 0),
        (16, 6, 16, 6, 4, -1),
    ],
)
def test_nothing_beyond_the_memory_is_touched(
    use: Callable[..., object], to: int, to_stride: int, of: int, of_stride: int, row: int, rows: int
) -> None:
    one, other = bytearray(to), bytearray(of)
    with pytest.raises(ValueError, match="image"):
        use(memoryview(one), to_stride, memoryview(other), of_stride, row, rows)
