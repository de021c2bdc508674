"""`python -m tests.fuzz`: hostile bytes for every parser of what a guest writes, and for the configuration.

    --seconds N       all targets one after the other, N seconds together: coverage-guided where atheris is installed, else at random
    --requests N      N random requests through the whole request path; prints their number and rate
    --target NAME     one target only
    --seed N          seed of the random numbers

atheris keeps its corpus in out/fuzz/TARGET, and starts with it the next time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

CORPUS: Final = Path("out/fuzz")
START: Final = 1.5
"""Seconds that a guided target needs to start."""
NAMES: Final = (
    *("requests", "card", "decode", "directory", "rings", "store", "keys"),
    *("page", "vkbd", "unique_id", "evdev", "keymap", "config", "pump"),
)
"""Return all targets. They are imported late."""
SESSION: Final = 4000
"""Requests between two connections."""


def targets() -> Any:
    """Return the module of the targets. It is imported late, so that atheris can instrument what it imports."""
    sys.path.append(str(Path(__file__).parents[1]))  # for the model of a card
    return importlib.import_module(".targets", __package__)


def guided(name: str, seconds: float) -> None:
    """Run one target under atheris, which ends this process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["displbe"]):
        module = targets()
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(module.SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [f"-max_total_time={max(1, round(seconds))}", "-max_len=4096", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *flags, f"-artifact_prefix={CORPUS}/{name}-"], module.TARGETS[name])
    atheris.Fuzz()


def blind(name: str, seconds: float, chance: random.Random) -> int:
    """One target with random bytes, some of them changed seeds: how often it was called."""
    module = targets()
    call, seeds = module.TARGETS[name], module.SEEDS[name]
    calls, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(chance.randbytes(chance.choice((8, 64, 500, 4000))))
        if chance.random() < 0.5:
            data = bytearray(chance.choice(seeds))
            for _ in range(chance.randrange(1, 9)):
                if data:
                    data[chance.randrange(len(data))] = chance.getrandbits(8)
        try:
            call(bytes(data))
        except BaseException:
            print(f"{name} fails with {bytes(data)!r}", file=sys.stderr)
            raise
        calls += 1
    return calls


def many_requests(count: int, seed: int) -> None:
    """Send this number of requests, with a new connection every few thousand."""
    import trio

    module = targets()
    rig = importlib.import_module(".rig", __package__)
    chance = random.Random(seed)

    async def main() -> int:
        served = 0
        while served < count:
            machine = rig.Machine()
            data = chance.randbytes(64 * SESSION)
            be_alloc = chance.random() < 0.5
            async with machine.running(), rig.Rig.connected(machine, be_alloc=be_alloc) as connected:
                slots = module.requests_of(module.Choices(data), machine.directories)
                served += await module.drive(connected, slots, min(SESSION, count - served))
            machine.close()
        return served

    begun = time.monotonic()
    served = trio.run(main)
    seconds = time.monotonic() - begun
    print(f"{served} requests answered in {seconds:.1f} s, {served / seconds:.0f} a second; no exception, nothing held")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--target", default="")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.guided:
        guided(options.target, options.seconds)
        return 0
    if options.requests:
        print(f"seed {options.seed}")
        many_requests(options.requests, options.seed)
        return 0
    names = [options.target] if options.target else list(NAMES)
    # The request path gets most of the time.
    shares = {
        name: options.seconds * (0.4 if name == "requests" and len(names) > 1 else 1 / len(names)) for name in names
    }
    if len(names) > 1:
        shares |= {name: options.seconds * 0.6 / (len(names) - 1) for name in names if name != "requests"}
    for name in names:
        if find_spec("atheris") is None:
            calls = blind(name, shares[name], random.Random(options.seed))
            print(f"{name}: {calls} calls by chance (seed {options.seed}; atheris is not installed)")
            continue
        command = [
            sys.executable,
            "-m",
            __package__ or "tests.fuzz",
            "--guided",
            "--target",
            name,
            "--seconds",
            str(shares[name] - START),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if run.returncode:
            print(run.stdout + run.stderr, file=sys.stderr)
            return 1
        told = dict(line[6:].split(":", 1) for line in run.stderr.splitlines() if line.startswith("stat::"))
        coverage = [line for line in run.stderr.splitlines() if " cov: " in line][-1:]
        print(
            f"{name}: {told.get('number_of_executed_units', '?').strip()} calls, {''.join(coverage).split('exec/s')[0].strip()}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
