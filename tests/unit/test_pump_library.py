"""The compiled pump as a library: how it is compiled, opened and refused, and what displbe tells of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from displbe import __version__
from displbe.backend.quota import TokenBucket
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.ops.status import PumpStatus
from displbe.pump import library, native
from displbe.pump.library import describe, open_library
from displbe.pump.settings import DaemonSettings
from displbe.sim.hypervisor import Xen

TREE = Path(__file__).resolve().parents[2]
COMPILERS = ("gcc", "aarch64-linux-gnu-gcc")


@pytest.fixture(scope="module")
def compile_pump() -> ModuleType:
    """packaging/compile_pump.py"""
    spec = importlib.util.spec_from_file_location("compile_pump", TREE / "packaging" / "compile_pump.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["compile_pump"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # make wheel runs the tests beside displbe's sources, without displbe/__init__.py.
    module.__dict__["version"] = lambda: __version__
    return module


def need(*programs: str) -> None:
    """Skip the test if a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")


def compiled(source: str, to: Path, *flags: str) -> Path:
    """Compile a library from C."""
    need("cc")
    command = ["cc", "-shared", "-fPIC", "-x", "c", *flags, "-o", str(to), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return to


# Compiling


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_compilers_analysis_finds_nothing(compile_pump: ModuleType, compiler: str) -> None:
    """GCC's static analyser and all warnings, on this machine's compiler and on Arm's."""
    need(compiler)
    command = [compiler, *compile_pump.FLAGS, "-fanalyzer", '-DPUMP_VERSION="0"', "-c", "-o", "/dev/null"]
    done = subprocess.run([*command, compile_pump.SOURCE], cwd=TREE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("compiler", "machine"), [("gcc", "x86_64"), ("aarch64-linux-gnu-gcc", "aarch64")])
def test_a_library_for_a_machine(
    compile_pump: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, machine: str
) -> None:
    """The compiler decides for which machine it is. It needs nothing but glibc, so that its wheel may say manylinux."""
    need(compiler, "readelf")
    if compiler == "gcc" and not subprocess.check_output(["gcc", "-dumpmachine"], text=True).startswith(machine):
        pytest.skip(f"this machine is no {machine}")
    monkeypatch.setenv("CC", compiler)
    made = tmp_path / "pump.so"
    compile_pump.build(made)
    platform, _, _ = compile_pump.platform_of(made).partition(f"_{machine}")
    major, minor = map(int, platform.removeprefix("manylinux_").split("_"))
    symbols = subprocess.check_output(["readelf", "-W", "--dyn-syms", made], text=True)
    assert f"@GLIBC_{major}.{minor}" in symbols
    assert f"@GLIBC_{major}.{minor + 1} " not in symbols
    assert "pump_version" in symbols
    hardening = subprocess.check_output(["readelf", "-W", "-l", "-d", made], text=True)
    assert "GNU_RELRO" in hardening
    assert "BIND_NOW" in hardening
    assert "RWE" not in hardening


def test_the_same_source_gives_the_same_library(compile_pump: ModuleType, tmp_path: Path) -> None:
    need("cc")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        compile_pump.build(tmp_path / name / "pump.so")
    assert (tmp_path / "one/pump.so").read_bytes() == (tmp_path / "two/pump.so").read_bytes()


def test_a_library_that_needs_others_is_not_manylinux(compile_pump: ModuleType, tmp_path: Path) -> None:
    need("cc", "readelf")
    source = "double sin(double); double f(double x) { return sin(x); }"
    made = compiled(source, tmp_path / "x.so", "-fno-builtin", "-Wl,--no-as-needed", "-lm")
    assert compile_pump.platform_of(made).startswith("linux_")


def test_flags_of_a_distribution(compile_pump: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They come after displbe's own. A level of _FORTIFY_SOURCE that they choose is not defined twice."""
    need("cc")
    monkeypatch.setenv("CFLAGS", "-g -O1 -DA='b c'")
    monkeypatch.setenv("CPPFLAGS", "-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=1")
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,now")
    command = compile_pump.command(["cc"])
    assert command.index("-O2") < command.index("-O1")
    assert "-DA=b c" in command
    assert [flag for flag in command if "_FORTIFY_SOURCE=" in flag] == ["-D_FORTIFY_SOURCE=1"]
    compile_pump.build(tmp_path / "pump.so")


def test_without_a_compiler(compile_pump: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is a reason, in one line, and no library of an earlier build; an error if the library is required."""
    made = tmp_path / "_pump.so"
    monkeypatch.setenv("CC", "no-such-compiler --sysroot=/nowhere")
    for wanted, reason in (("", "there is no C compiler (no-such-compiler)"), ("off", "DISPLBE_PUMP=off")):
        made.write_bytes(b"old")
        monkeypatch.setenv("DISPLBE_PUMP", wanted)
        told = compile_pump.build_if_wanted(made)
        assert told.startswith(reason)
        assert "\n" not in told
        assert not list(tmp_path.iterdir())
    for wanted, reason in (("require", "there is no C compiler"), ("yes", 'DISPLBE_PUMP=yes: it must be "auto"')):
        monkeypatch.setenv("DISPLBE_PUMP", wanted)
        with pytest.raises(compile_pump.CompileError, match=reason):
            compile_pump.build_if_wanted(made)


def test_code_that_does_not_compile(compile_pump: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an error, even where the pump may be left out, and has the compiler's words."""
    need("cc")
    (tmp_path / "pump.c").write_text("int f(void) { return g(); }\n")
    monkeypatch.setattr(compile_pump, "SOURCE", str(tmp_path / "pump.c"))
    made = tmp_path / "_pump.so"
    monkeypatch.delenv("DISPLBE_PUMP", raising=False)
    with pytest.raises(compile_pump.CompileError, match=r"pump\.c:1:"):
        compile_pump.build_if_wanted(made)
    assert not made.exists()


# Opening


def test_the_library_of_this_version_is_opened(compile_pump: ModuleType, tmp_path: Path) -> None:
    need("cc")
    compile_pump.build(tmp_path / "pump.so")
    opened, reason = open_library(tmp_path / "pump.so")
    assert (opened is not None, reason) == (True, "")


def test_a_library_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Each has a reason in one line, with the file and the way out."""
    old = compiled('const char *pump_version(void) { return "0.0.9"; }', tmp_path / "old.so")
    other = compiled("int f(void) { return 1; }", tmp_path / "other.so")
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"\x7fELF")
    for path, reason in (
        (old, f"is of displbe 0.0.9, and this is displbe {__version__}"),
        (other, "pump_version"),
        (damaged, "is damaged, or for another kind of machine"),
        (tmp_path / "none.so", "there is no "),
    ):
        opened, told = open_library(path)
        assert opened is None
        assert reason in told
        assert str(path) in told
        assert "\n" not in told
        assert "install displbe again" in told or "DISPLBE_PUMP=off" in told


def test_another_machines_library_is_refused(
    compile_pump: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = COMPILERS[1]
    need(other)
    if subprocess.check_output([other, "-dumpmachine"]) == subprocess.check_output(["cc", "-dumpmachine"]):
        pytest.skip("this machine is an Arm")
    monkeypatch.setenv("CC", other)
    compile_pump.build(tmp_path / "pump.so")
    opened, reason = open_library(tmp_path / "pump.so")
    assert opened is None
    assert "for another kind of machine" in reason


# Telling


def test_the_words_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "open_library", lambda: (object(), ""))
    assert describe() == "compiled"
    monkeypatch.setattr(library, "open_library", lambda: (None, "there is none"))
    assert describe() == "none: there is none"


OFF = PumpStatus("off", 'the configuration says [daemon] pump = "off"')
HEADLESS = PumpStatus("off", 'the pump serves flips of sink = "drm" only')


@pytest.mark.parametrize(
    ("sink", "pump", "told"),
    [
        ("headless", "auto", HEADLESS),
        ("headless", "off", OFF),
        ("drm", "off", OFF),
        ("drm", "auto", PumpStatus("missing", "no\\x1bfile")),
    ],
)
async def test_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, pump: str, told: PumpStatus
) -> None:
    """The status says why the pump does not run. The library is not even opened if nothing wants it."""
    opened: list[bool] = []

    def open_none(_: object) -> tuple[None, str]:
        opened.append(True)
        return None, "no\x1bfile"

    monkeypatch.setattr("displbe.daemon.open_pump", open_none)
    settings = Settings(sink=sink, daemon=DaemonSettings(pump=pump), control=ControlSettings(socket=""))  # type: ignore[arg-type]
    async with Xen(tmp_path).running() as xen:
        assert (await Daemon(settings, xen.hypervisor(0)).commands.status()).pump == told
    assert bool(opened) == (told.state == "missing")


async def test_the_status_of_a_pump(tmp_path: Path) -> None:
    if not library.LIBRARY.exists():
        pytest.skip("the pump is not compiled")
    async with Xen(tmp_path).running() as xen:
        daemon = Daemon(Settings(control=ControlSettings(socket="")), xen.hypervisor(0))
        assert (await daemon.commands.status()).pump == PumpStatus("on", "")
        assert daemon.pump is not None
        daemon.pump.close()


def test_a_closed_pump_is_not_used() -> None:
    """C would read memory that has been freed."""
    pump, _ = native.open_pump()
    if pump is None:
        pytest.skip("the pump is not compiled")
    connector = pump.add(lambda: None, lambda: None)
    assert pump.give(connector)
    pump.close()
    with pytest.raises(TypeError):
        pump.take(connector)
    with pytest.raises(TypeError):
        pump.unwatch(0)


def test_a_bucket() -> None:
    """The same waits as those of the bucket in Python."""
    pump, _ = native.open_pump()
    if pump is None:
        pytest.skip("the pump is not compiled")
    bucket, plain = native.Bucket(pump, 4, 0.001), TokenBucket(4, 0.001, lambda: 0.0)
    for amount in (1, 3, 1, 8, 0.5):
        assert bucket.take(amount) == pytest.approx(plain.take(amount), abs=5.0)  # a token takes 1000 s
    pump.close()
