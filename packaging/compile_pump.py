"""Builds the compiled part of displbe: displbe/pump/_pump.so, and the module with its declarations for cffi, displbe/pump/_pump_abi.py.

hatch_build.py calls this module for wheels and for editable installations. By hand, `compile_pump.py` builds both files in this tree, and
`compile_pump.py --output FILE` only the library.

These variables of the environment are used: CC (default: cc; a cross compiler makes a library for its machine), CPPFLAGS, CFLAGS and
LDFLAGS, which come after displbe's own flags and so override them, READELF (default: readelf), and DISPLBE_PUMP: "off" builds no library,
"require" makes a missing compiler an error, "auto" (the default) builds the library if there is a compiler.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["FLAGS", "LIBRARY", "CompileError", "build", "build_if_wanted", "command", "declare", "platform_of"]

TREE: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = "displbe/pump/pump.c"
HEADER: Final = TREE / "displbe/pump/pump.h"
ABI: Final = TREE / "displbe/pump/_pump_abi.py"
LIBRARY: Final = TREE / "displbe/pump/_pump.so"
FLAGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2")
SHARED: Final = (
    *("-g0", "-fPIC", "-shared", "-fstack-protector-strong"),
    *("-Wl,-z,relro,-z,now", "-Wl,--as-needed", "-Wl,-z,defs"),
)
FORTIFY: Final = ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2")
MACHINES: Final = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""ELF's `e_machine` -> the machine's name in a wheel's tag. displbe's other machines are named by `uname`."""
OLDEST: Final = {"x86_64": (2, 5), "aarch64": (2, 17)}
"""The machines for which displbe's wheels may have a manylinux tag (PEP 600), and their first glibc for which there is one."""
GLIBC: Final = re.compile(r"(libc|libpthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+")


class CompileError(Exception):
    """The library cannot be built; the text has the compiler's output."""


def version() -> str:
    """Return displbe's version, without importing displbe: its dependencies may be missing while it is built."""
    (found,) = re.findall(r'^__version__ = "(.*)"$', (TREE / "displbe/__init__.py").read_text(), re.M)
    return str(found)


def declare() -> None:
    """Write _pump_abi.py from the declarations between the lines `/* cdef */` and `/* end */` of pump.h."""
    from cffi import FFI

    (declarations,) = re.findall(r"^/\* cdef \*/$(.*?)^/\* end \*/$", HEADER.read_text(), re.M | re.S)
    ffi = FFI()
    ffi.cdef(declarations)
    ffi.set_source("displbe.pump._pump_abi", None)
    ffi.emit_python_code(str(ABI))


def command(compiler: list[str]) -> list[str]:
    """Return the command that compiles the library, without `-o`. It must run in the folder of the tree."""
    given = {name: shlex.split(os.environ.get(name, "")) for name in ("CPPFLAGS", "CFLAGS", "LDFLAGS")}
    theirs = [*given["CPPFLAGS"], *given["CFLAGS"]]
    # To define it twice with different values is a warning, and an error with -Werror.
    fortify = () if any("_FORTIFY_SOURCE" in flag for flag in (*compiler, *theirs)) else FORTIFY
    defined = f'-DPUMP_VERSION="{version()}"'
    return [*compiler, *FLAGS, *SHARED, *fortify, *theirs, defined, SOURCE, *given["LDFLAGS"]]


def build(output: Path) -> None:
    """Compile the library into a file. Raises CompileError. The old file is replaced, not changed: a process may have mapped it."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise CompileError(f"there is no C compiler ({compiler[0]})")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".pump-") as folder:
        made = Path(folder) / output.name
        done = subprocess.run(
            [*command(compiler), "-o", made], cwd=TREE, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != 0:
            raise CompileError(f"{compiler[0]} cannot compile {SOURCE}:\n{done.stdout.decode(errors='replace')}")
        made.replace(output)


def build_if_wanted(output: Path) -> str:
    """Build the library into a file as DISPLBE_PUMP says. Return why it was not built; empty: it was. Raises CompileError.

    If it was not built, the file is removed: a library of an earlier build may not fit.
    """
    wanted = os.environ.get("DISPLBE_PUMP") or "auto"
    if wanted not in ("auto", "off", "require"):
        raise CompileError(f'DISPLBE_PUMP={wanted}: it must be "auto", "off" or "require"')
    output.unlink(missing_ok=True)
    if wanted == "off":
        return "DISPLBE_PUMP=off"
    (compiler, *_) = shlex.split(os.environ.get("CC") or "cc")
    if wanted == "auto" and shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler}); DISPLBE_PUMP=require makes this an error"
    build(output)
    return ""


def platform_of(library: Path) -> str:
    """Return the platform of a wheel with this library: `manylinux_2_N_MACHINE` for the oldest glibc that has all symbols that the library
    uses (PEP 600), or `linux_MACHINE` if it needs more than glibc, or if that cannot be found out.
    """
    with library.open("rb") as file:
        header = file.read(20)
    order = "little" if header[5] == 1 else "big"
    machine = MACHINES.get(int.from_bytes(header[18:20], order), os.uname().machine)  # type: ignore[arg-type]
    readelf = os.environ.get("READELF") or "readelf"
    if machine not in OLDEST or shutil.which(readelf) is None:
        return f"linux_{machine}"
    listed = subprocess.run([readelf, "-W", "-d", "-V", library], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listed)
    versions = [re.fullmatch(r"GLIBC_(\d+)\.(\d+)[.\d]*", name) for name in re.findall(r"Name: (\S+)", listed)]
    if not all(map(GLIBC.fullmatch, needed)) or not all(versions):
        return f"linux_{machine}"
    major, minor = max([OLDEST[machine], *((int(found[1]), int(found[2])) for found in versions if found)])
    return f"manylinux_{major}_{minor}_{machine}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="build only the library, into this file")
    arguments = parser.parse_args()
    try:
        if arguments.output is not None:
            build(arguments.output)
            return
        declare()
        missing = build_if_wanted(LIBRARY)
    except CompileError as error:
        sys.exit(f"compile_pump: {error}")
    print(f"no pump: {missing}" if missing else f"{LIBRARY.relative_to(TREE)}: {platform_of(LIBRARY)}")


if __name__ == "__main__":
    main()
