"""The command line, as the shell sees it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from logs import as_in_tests
from PIL import Image

from displbe import __version__, process, startup
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.pump.library import LIBRARY, open_library
from displbe.sim.hypervisor import Xen
from displbe.xen.port import Unavailable
from displbe.xen.single_instance import single_instance

NO_XEN = not any(Path(path).exists() for path in ("/dev/xen/gntdev", "/dev/xen/xenbus", "/run/xenstored/socket"))
WITHOUT_PILLOW = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == 'PIL' else find(name, *rest)
"""


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run displbe in its own process."""
    code = f"{before}\nimport sys; from displbe.startup import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={name: value for name, value in os.environ.items() if "DISPLAY" not in name},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version() -> None:
    done = run("--version")
    pump = "compiled" if LIBRARY.exists() else f"none: {open_library()[1]}"
    assert (done.returncode, done.stdout) == (0, f"displbe {__version__} (pump: {pump})\n")


def test_wrong_use() -> None:
    done = run("--colour")
    assert done.returncode == 2
    assert "usage: displbe" in done.stderr


def test_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "displbe.toml"
    path.write_text("[headless]\nrefresh = 'fast'\n")
    done = run("--config", str(path), "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"displbe: {path}: ")
    assert "$.headless.refresh" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"[wayland]\ntitle = '{guest.name}'\n",
        b"[wayland]\ntitle = '{guest:>999999999999}'\n",
        b"a = " + b"[" * 4000,
        b"a = " + b"9" * 5000,
        b"[limits]\nrequests-per-second = nan\n",
        b'"a\\nb" = 1',
        b"\xff\xfe",
        b"\0" * 200_000,
        None,
    ],
    ids=lambda content: repr(content)[:40],
)
def test_an_odd_configuration(tmp_path: Path, content: bytes | None) -> None:
    """One line, and the exit code after which systemd does not start displbe again."""
    path = tmp_path / "displbe.toml"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    done = run("--config", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"displbe: {path}: ")
    assert done.stderr.count("\n") == 1


def test_no_configuration(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path / "nowhere.toml"))
    assert done.returncode == 2
    assert "No such file" in done.stderr


@pytest.mark.skipif(not NO_XEN, reason="this is a Xen domain")
@pytest.mark.parametrize("check", [True, False])
def test_no_xen(tmp_path: Path, check: bool) -> None:
    path = tmp_path / "displbe.toml"
    path.write_text("sink = 'headless'\n")
    done = run("--config", str(path), *(["--check"] if check else []))
    assert done.returncode == 69
    assert "there is no XenStore here" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = run("demo", "--frames", "3", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert "3 frames of 800x600" in done.stdout
    with Image.open(picture) as image:
        assert image.size == (800, 600)
        assert image.getpixel((700, 100)) != image.getpixel((100, 100))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demonstration_that_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C is not a failure."""
    code = "import sys; from displbe.startup import main; sys.exit(main(sys.argv[1:]))"
    output = tmp_path / "demo.png"
    arguments = ["demo", "--no-window", "--frames", "1000000", "--output", str(output)]
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            assert demo.stderr is not None
            for line in demo.stderr:
                if '"to": "connected"' in line:
                    break
            time.sleep(0.2)
            demo.send_signal(number)
            rest = demo.stderr.read()
            assert demo.wait(30) == 0, rest
        finally:
            demo.kill()
        assert "Traceback" not in rest
        assert ("frames of 800x600 flipped" in demo.stdout.read()) == output.exists()


def test_a_missing_package_is_said_in_a_sentence() -> None:
    done = run("demo", before=WITHOUT_PILLOW)
    assert done.returncode == 69, done.stderr
    assert (
        done.stderr
        == "displbe: the headless sink needs PIL: install python3-pil (Debian), or displbe[headless] (pip)\n"
    )


HOLD = """
import sys, time
from displbe.process import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_daemon(tmp_path: Path) -> None:
    """A second process is refused while the first one lives, however that ends."""
    device = tmp_path / "gntdev"
    device.touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(device)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match="another displbe"), process.only_one(str(device)):
            pass
        first.kill()
        first.wait()
    for _ in range(2):
        with process.only_one(str(device)):
            pass
    with pytest.raises(Unavailable, match="No such file"), process.only_one(str(tmp_path / "nothing")):
        pass


def test_one_that_only_begins_is_waited_for(tmp_path: Path) -> None:
    """Another process that starts holds the lock for a moment, to close stale displays."""
    device = tmp_path / "gntdev"
    device.touch()
    held = threading.Event()

    def begin() -> None:
        with single_instance(str(device)):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=begin)
    thread.start()
    assert held.wait(10)
    with pytest.raises(BlockingIOError), single_instance(str(device)):
        pass
    with process.only_one(str(device)):
        pass
    thread.join()


def test_what_stays_for_good_is_not_looked_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of the garbage collector delays the rings by the number of objects that it scans."""
    frozen: list[int] = []

    async def serve(*arguments: object) -> None:
        frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(process, "serve", serve)
    monkeypatch.setattr(process, "only_one", contextlib.nullcontext)
    monkeypatch.setattr("displbe.xen.host.Host", lambda path: None)
    monkeypatch.setattr("displbe.daemon.Daemon", lambda *arguments, **more: SimpleNamespace(lag=None))
    path = tmp_path / "displbe.toml"
    path.write_text("sink = 'headless'\n")
    try:
        assert startup.main(["--config", str(path)]) == 0
    finally:
        gc.unfreeze()
        as_in_tests()
    assert frozen[0] > 10_000


async def test_signals_end_the_daemon_in_order(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        folder.mkdir()
        async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
            ended = trio.Event()

            async def serve(daemon: Daemon, ended: trio.Event) -> None:
                await process.serve(daemon, "")
                ended.set()

            nursery.start_soon(
                serve, Daemon(Settings(sink="headless", control=ControlSettings(socket="")), xen.hypervisor(0)), ended
            )
            await trio.sleep(0.1)
            os.kill(os.getpid(), number)
            with trio.fail_after(3):
                await ended.wait()


def test_nothing_is_imported_that_is_not_needed() -> None:
    """TLS, asynchronous loggers and pretty tracebacks take ten MiB. They can still be imported afterwards, and are the real ones."""
    code = """
from displbe.lean_imports import import_lean
import_lean()
import sys
import displbe.process, displbe.daemon, displbe.xen.host
from displbe.sinks import drm, headless
import displbe.sinks.drm.sink, displbe.sinks.headless.sink
found = {'asyncio', 'ssl', 'hmac', '_hashlib', 'idna', 'rich', 'PIL', 'cffi', 'evdev', 'pywayland', 'xcffib', 'prometheus_client'}
print(*sorted(found & set(sys.modules)))
import ssl, trio
assert ssl.MemoryBIO is trio._ssl._stdlib_ssl.MemoryBIO
import asyncio
asyncio.run(asyncio.sleep(0))
"""
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("\n", "", 0)
