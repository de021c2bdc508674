"""The event loop's delay while guests' frames are converted: `python -m tests.bench.converting`.

A computing thread holds the interpreter's lock for 5 ms at a time, and every guest's flips wait for it; so a conversion makes pauses.
"""

from __future__ import annotations

import sys
import threading
import time
from statistics import median

import trio

from displbe.sinks.convert import convert
from displbe.wire.formats import fourcc

WIDTH, HEIGHT = 1920, 1080
SECONDS = 3.0
MOST = 2.0
"""The limit of the median delay in milliseconds, with three guests whose frames are converted. epoll's timeouts are whole milliseconds."""


def convert_on(stop: threading.Event, frames: list[float]) -> None:
    """Convert one frame after another."""
    source, target = memoryview(bytes(WIDTH * HEIGHT * 2)), memoryview(bytearray(WIDTH * HEIGHT * 4))
    while not stop.is_set():
        began = time.perf_counter()
        convert(fourcc("RG16"), target, WIDTH * 4, source, WIDTH * 2, WIDTH * 2, HEIGHT)
        frames.append(time.perf_counter() - began)


async def lateness() -> float:
    """Return the median delay of the loop's wake-ups, in milliseconds."""
    late = []
    until = time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < until:
        await trio.sleep(0.004)
        late.append(time.perf_counter() - began - 0.004)
    return 1000 * median(late)


def main() -> int:
    """Print the delay. 1: it is too long."""
    late = 0.0
    for count in (0, 1, 3):
        stop, frames = threading.Event(), list[float]()
        threads = [threading.Thread(target=convert_on, args=(stop, frames)) for _ in range(count)]
        for thread in threads:
            thread.start()
        late = trio.run(lateness)
        stop.set()
        for thread in threads:
            thread.join()
        took = f", {1000 * median(frames):.0f} ms a frame" if frames else ""
        print(f"{count} guests of 16 bits, {WIDTH}x{HEIGHT}: the loop wakes up {late:.2f} ms late{took}")
    print(f"at most {MOST} ms with {count}")
    return 0 if late <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
