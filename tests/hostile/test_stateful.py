"""The stateful fuzzer (tests/fuzz/stateful): two runs on each sink find nothing, and it finds old faults that are put back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.stateful.mutations import MUTATIONS

TESTS = Path(__file__).parents[1]
FIRST = 3
"""The seed of the first run."""


def fuzz(*arguments: str) -> tuple[int, str]:
    """Run the fuzzer; return its exit code and its output."""
    command = [sys.executable, "-m", "fuzz.stateful", "--seed", str(FIRST), *arguments]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH", ""), str(TESTS))))
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("sink", ["headless", "wayland", "drm"])
def test_a_run_finds_nothing(sink: str) -> None:
    code, said = fuzz("--runs", "1", "--virtual", "3", "--sink", sink)
    assert code == 0, said
    assert "flips of the good guest" in said


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ["commands", "reservations"])
def test_an_old_fault_is_found(mutation: str) -> None:
    """Few runs suffice, and the report says how to run the seed that failed again. A third one ("connectors") needs up to a dozen runs:
    too many, and too much left to chance, for each time.
    """
    assert mutation in MUTATIONS
    code, said = fuzz("--runs", "14", "--mutation", mutation)
    assert code == 1, said
    assert "replay: --seed" in said
