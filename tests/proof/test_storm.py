"""The pump under the compiler's sanitizers, in a storm of hostile guests, card events and changes of owner (pump_storm.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
SOURCE: Final = HERE.parents[1] / "displbe/pump/pump.c"
SECONDS: Final = 4


# gcc warns that its thread sanitizer does not see fences. The pages' fences are for guests, which it does not see either.
@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_storm(sanitizer: str, tmp_path: Path) -> None:
    program = tmp_path / "storm"
    flags = ("-std=gnu11", "-g", "-O1", "-fno-inline", "-Wall", "-Wextra", "-Werror", "-Wno-tsan")
    checks = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    names = ('-DPUMP_VERSION="0"', f'-DPUMP_C="{SOURCE}"')
    subprocess.run(["cc", *flags, *checks, *names, "-o", program, HERE / "pump_storm.c"], check=True)
    done = subprocess.run(
        [program, str(SECONDS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
