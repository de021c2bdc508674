"""`python -m fuzz.stateful` (in tests/): runs with several guests at once, which all misbehave, on the whole daemon.

    --seconds N       runs for N seconds
    --seed N          the seed of the first run; the next ones have the next numbers
    --runs N          at most N runs
    --sink NAME       headless, wayland or drm; by default the seed chooses
    --virtual N       seconds of virtual time of each half of a run
    --without A,B     actors that are left out
    --shrink          after a failure, leave out actors and time as long as the run still fails
    --mutation NAME   puts an old fault back into displbe (mutations.py)

A run that fails prints its reason, the command line that runs its seed again, and the last actions of each actor. The report and all
actions are in out/fuzz. The runs are made in a process of their own, so that a signal that ends it is reported too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from .mutations import mutated
from .play import ACTORS, Failure, Options, play

FOLDER: Final = Path(__file__).parents[3] / "out" / "fuzz"
HANG: Final = 300.0
"""Seconds of real time after which a run hangs."""


def child(options: argparse.Namespace) -> int:
    """Make the runs, one after the other."""
    faulthandler.enable()
    end = time.monotonic() + options.seconds
    with mutated(options.mutation):
        for seed in range(options.seed, options.seed + options.runs):
            print(f"seed {seed}", flush=True)
            faulthandler.dump_traceback_later(HANG, exit=True)
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="displbe-fuzz-") as folder:
                try:
                    without = tuple(filter(None, options.without.split(",")))
                    one = Options(seed, options.sink, options.virtual, without)
                    summary = play(one, Path(folder), FOLDER / f"stateful-{options.tag}.actions")
                except Failure as failure:
                    print(f"failed {json.dumps(str(failure))}", flush=True)
                    return 1
            took = time.monotonic() - begun
            print(
                f"done {seed} on {summary.sink}: {summary.actions} actions, {summary.flips} flips of the good guest,"
                f" {summary.pumped} flips by the pump,"
                f" {summary.steps} steps (at most {summary.peak}), {summary.seconds:.0f} s in {took:.1f} s",
                flush=True,
            )
            if time.monotonic() > end:
                break
    return 0


def supervise(options: argparse.Namespace, *, quiet: bool = False) -> tuple[int, str]:
    """Run a child. Return the seed of the run that failed and its report, or an empty text."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    keys = ("seconds", "seed", "runs", "virtual", "sink", "without", "mutation", "tag")
    arguments = [f"--{key}={getattr(options, key)}" for key in keys]
    command = [sys.executable, "-m", f"{__package__}", "--child", *arguments]
    tail: list[str] = []
    seed, report, runs = "", "", 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.rstrip().partition(" ")
            match word:
                case "seed":
                    seed, tail = rest, []
                case "failed":
                    report = json.loads(rest)
                case "done":
                    runs += 1
                    if not quiet:
                        print(rest, flush=True)
                case _:
                    tail.append(line)
    if process.returncode and not report:
        actions = (FOLDER / f"stateful-{options.tag}.actions").read_text().splitlines()[-40:]
        how = f"ended by signal {-process.returncode}" if process.returncode < 0 else "hangs or fails"
        report = f"the process {how}\n{''.join(tail)}\nreplay: --seed {seed}\n" + "\n".join(actions)
    if report:
        (FOLDER / f"stateful-{seed}.txt").write_text(report)
        report = f"seed {seed}: {report}"
    (FOLDER / f"stateful-{options.tag}.actions").unlink(missing_ok=True)
    return int(seed or options.seed), report


def shrink(options: argparse.Namespace, seed: int, report: str) -> str:
    """Leave out actors, and then time, as long as the run still fails. Return the report of the smallest run that fails."""
    options.seed, options.runs = seed, 1

    def fails() -> bool:
        nonlocal report
        _, found = supervise(options, quiet=True)
        report = found or report
        return bool(found)

    for actor in ACTORS:
        before, options.without = options.without, ",".join(filter(None, (options.without, actor)))
        if not fails():
            options.without = before
        print(f"shrinking: without {options.without or 'nobody'}", flush=True)
    while options.virtual > 0.5:
        options.virtual /= 2
        if not fails():
            options.virtual *= 2
            break
    return report


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.stateful")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--sink", default="", choices=["", "headless", "wayland", "drm"])
    parser.add_argument("--virtual", type=float, default=8.0)
    parser.add_argument("--without", default="")
    parser.add_argument("--mutation", default="")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--tag", default=str(int(time.time() * 1000)), help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    seed, report = supervise(options)
    if report and options.shrink:
        report = shrink(options, seed, report)
    if report:
        print(report, file=sys.stderr)
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
