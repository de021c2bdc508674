"""Hatchling's build hook. It generates Python modules:

* for the Wayland protocols that pywayland or Debian's package of it lacks, from their XML. pywayland has a scanner, but its output
  differs between versions; these modules work with all versions from 0.4.18 on.
* for the C functions that displbe calls, from their declarations. If cffi parsed these at run time, each start would be delayed.

It also compiles the pump (packaging/compile_pump.py). A wheel with the pump is for one kind of machine; DISPLBE_PUMP=off, or a machine
without a C compiler, makes a wheel for all machines, without the pump.
"""

from __future__ import annotations

import keyword
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cffi import FFI
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "packaging"))

import compile_pump  # noqa: E402

TARGET = HERE / "displbe/sinks/wayland/protocol"
OURS = HERE / "protocol/wayland"
PROTOCOLS = {
    "xdg_shell": ("stable/xdg-shell/xdg-shell.xml",),
    "viewporter": ("stable/viewporter/viewporter.xml",),
    "presentation_time": ("stable/presentation-time/presentation-time.xml",),
    # wayland-protocols 1.35 moved it.
    "linux_dmabuf": (
        "stable/linux-dmabuf/linux-dmabuf-v1.xml",
        "unstable/linux-dmabuf/linux-dmabuf-unstable-v1.xml",
    ),
    "xdg_output": ("unstable/xdg-output/xdg-output-unstable-v1.xml",),
    "ivi_application": ("ivi-application.xml",),
    "fractional_scale": ("staging/fractional-scale/fractional-scale-v1.xml",),
    "xdg_decoration": ("unstable/xdg-decoration/xdg-decoration-unstable-v1.xml",),
    "idle_inhibit": ("unstable/idle-inhibit/idle-inhibit-unstable-v1.xml",),
    "shortcuts_inhibit": ("unstable/keyboard-shortcuts-inhibit/keyboard-shortcuts-inhibit-unstable-v1.xml",),
}
ELSEWHERE = {"xdg_toplevel": "xdg_shell"}
"""Interface that another protocol refers to -> the module above that has it. All others are in pywayland's module of the core protocol."""
DECLARATIONS = ("displbe/xen/libc.h", "displbe/xen/libatomic.h", "displbe/sinks/drm/libseat.h")
KINDS = {
    "int": "Int",
    "uint": "Uint",
    "fixed": "Fixed",
    "string": "String",
    "object": "Object",
    "new_id": "NewId",
    "array": "Array",
    "fd": "FileDescriptor",
}


class CustomBuildHook(BuildHookInterface[Any]):
    """Called by hatchling for a wheel, an sdist and an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folders = [OURS, *xml_folders()]
        TARGET.mkdir(exist_ok=True)
        made = {"__init__": '"""Made by hatch_build.py: do not edit."""\n'}
        for module, paths in PROTOCOLS.items():
            found = [folder / path for path in paths for folder in folders if (folder / path).exists()]
            if found:
                made[module] = generate(ET.parse(found[0]).getroot())
            elif not (TARGET / f"{module}.py").exists():  # an sdist contains the generated modules
                raise FileNotFoundError(
                    f"{paths[0]} is missing: install wayland-protocols (Debian's package, or your system's)"
                )
        for module, text in made.items():
            path = TARGET / f"{module}.py"
            if not path.exists() or path.read_text() != text:  # others may be reading it
                path.write_text(text)
        for header in DECLARATIONS:
            declare(Path(header))
        compile_pump.declare()
        if self.target_name == "wheel":
            self._compile(version == "editable", build_data)

    def _compile(self, editable: bool, build_data: dict[str, Any]) -> None:
        """Compile the pump: for an editable installation into the tree, else into the wheel, whose tag then names the platform."""
        self._made = tempfile.TemporaryDirectory(prefix="displbe-pump-")
        library = compile_pump.LIBRARY if editable else Path(self._made.name) / compile_pump.LIBRARY.name
        missing = compile_pump.build_if_wanted(library)
        if missing:
            self.app.display_warning(f"displbe is built without the pump: {missing}")
        elif not editable:
            build_data["force_include"][str(library)] = str(compile_pump.LIBRARY.relative_to(HERE))
            build_data.update(pure_python=False, tag=f"py3-none-{compile_pump.platform_of(library)}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel has a copy of."""
        if self.target_name == "wheel":
            self._made.cleanup()


def declare(header: Path) -> None:
    """Generate a module such as _libc.py from a header such as libc.h. The module's `ffi` has the declarations."""
    module = header.with_name(f"_{header.stem}")
    ffi = FFI()
    ffi.cdef((HERE / header).read_text())
    ffi.set_source(str(module).replace("/", "."), None)
    ffi.emit_python_code(str(HERE / f"{module}.py"))


def xml_folders() -> Iterator[Path]:
    """Yield the folders where wayland-protocols may be installed."""
    if shutil.which("pkg-config"):
        command = ["pkg-config", "--variable=pkgdatadir", "wayland-protocols"]
        folder = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
        if folder:
            yield Path(folder)
    yield from (Path("/usr/share/wayland-protocols"), Path("/usr/local/share/wayland-protocols"))


def generate(protocol: ET.Element) -> str:
    """Return the text of a protocol's module."""
    interfaces = protocol.findall("interface")
    own = {entry.attrib["name"] for entry in interfaces}
    used = {arg.attrib["interface"] for arg in protocol.iter("arg") if "interface" in arg.attrib}
    lines = [f'"""{protocol.attrib["name"]}: made by hatch_build.py from its XML, do not edit."""', ""]
    lines += ["from pywayland.protocol_core import Argument, ArgumentType, Interface, Proxy"]
    core = used - own - ELSEWHERE.keys()
    if core:
        lines.append(f"from pywayland.protocol.wayland import {', '.join(map(class_name, sorted(core)))}")
    for interface in sorted(used & ELSEWHERE.keys() - own):
        lines += ["", f"from .{ELSEWHERE[interface]} import {class_name(interface)}"]
    for entry in interfaces:  # all interfaces first, because their messages refer to each other
        lines += ["", "", f"class {class_name(entry.attrib['name'])}(Interface):"]
        lines += [f"    name = {entry.attrib['name']!r}", f"    version = {entry.attrib['version']}"]
        for enum in entry.findall("enum"):
            lines += ["", f"    class {enum.attrib['name']}:"]
            for value in enum.findall("entry"):
                lines.append(f"        {python_name(value.attrib['name'])} = {value.attrib['value']}")
    for entry in interfaces:
        lines += messages(entry)
    for entry in interfaces:
        name = class_name(entry.attrib["name"])
        lines += ["", "", f"{name}._gen_c()", f"{name}.proxy_class = {name}Proxy"]
    return "\n".join(lines) + "\n"


def messages(entry: ET.Element) -> Iterator[str]:
    """Yield the lines of an interface's requests, which are methods of its proxy, and of its events."""
    name = class_name(entry.attrib["name"])
    yield from ("", "", f"class {name}Proxy(Proxy):", f"    interface = {name}")
    for opcode, request in enumerate(entry.findall("request")):
        args = request.findall("arg")
        given = [python_name(arg.attrib["name"]) for arg in args if arg.attrib["type"] != "new_id"]
        made = [class_name(arg.attrib["interface"]) for arg in args if arg.attrib["type"] == "new_id"]
        yield from ("", f"    @{name}.request({signature(request)})")
        yield f"    def {python_name(request.attrib['name'])}(self{''.join(f', {arg}' for arg in given)}):"
        call = ", ".join([str(opcode), *made, *given])
        yield f"        return self._marshal_constructor({call})" if made else f"        self._marshal({call})"
        if request.get("type") == "destructor":
            yield "        self._destroy()"
    yield from ("", "", f"class {name}Events:", '    """Events from the compositor."""')
    for event in entry.findall("event"):
        yield from ("", f"    @{name}.event({signature(event)})", f"    def {python_name(event.attrib['name'])}(self):")
        yield "        raise NotImplementedError"


def signature(message: ET.Element) -> str:
    """Return the arguments of a message as pywayland's decorators take them."""
    parts = []
    for arg in message.findall("arg"):
        text = f"ArgumentType.{KINDS[arg.attrib['type']]}"
        if arg.get("allow-null") == "true":
            text += ", nullable=True"
        if "interface" in arg.attrib:
            text += f", interface={class_name(arg.attrib['interface'])}"
        parts.append(f"Argument({text})")
    if "since" in message.attrib:
        parts.append(f"version={message.attrib['since']}")
    return ", ".join(parts)


def class_name(interface: str) -> str:
    return "".join(part.capitalize() for part in interface.split("_"))


def python_name(name: str) -> str:
    return f"_{name}" if keyword.iskeyword(name) or not name.isidentifier() else name
