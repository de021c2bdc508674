"""Every structure, ioctl number and constant of sinks/drm/uapi.py agrees with the C headers, as printed by a C program.

Without a compiler or the headers, the tests fail; they are never skipped. tests/setup.sh installs both.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from displbe.sinks.drm import uapi

INCLUDES = ("/usr/include/drm", "/usr/include/libdrm")
NEWER = """
#ifndef DRM_IOCTL_MODE_CLOSEFB /* Linux 6.8; older headers lack it */
struct drm_mode_closefb { __u32 fb_id; __u32 pad; };
#define DRM_IOCTL_MODE_CLOSEFB DRM_IOWR(0xD0, struct drm_mode_closefb)
#endif
"""
STRUCTURES = {
    name: kind
    for name, kind in vars(uapi).items()
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and name.startswith("drm_")
}
NUMBERS = {name: value for name, value in vars(uapi).items() if name.startswith("DRM_") and isinstance(value, int)}


def _fields(kind: type[ctypes.Structure]) -> list[str]:
    return [field[0] for field in kind._fields_]


def _program() -> str:
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <drm.h>", "#include <drm_mode.h>"]
    lines += ["#include <drm_fourcc.h>", NEWER, "int main(void) {"]
    for name, kind in STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field in _fields(kind):
            size = f"sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), {size});')
    # DRM_PLANE_TYPE_* are the kernel's own; userspace sees them as values of a property. DRM_MODE_(DIS)CONNECTED are libdrm's names.
    lines += [
        f'printf("{name} %llu\\n", (unsigned long long){name});'
        for name in NUMBERS
        if name not in ("DRM_PLANE_TYPE_PRIMARY", "DRM_MODE_CONNECTED", "DRM_MODE_DISCONNECTED")
    ]
    event = "struct drm_event_vblank"
    lines.append(
        f'printf("event %zu %zu %zu\\n", sizeof({event}), offsetof({event}, user_data), sizeof(struct drm_event));'
    )
    lines.append(f'printf("crtc_id %zu\\n", offsetof({event}, crtc_id));')
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Name -> the numbers in the headers."""
    include = next((path for path in INCLUDES if (Path(path) / "drm_mode.h").exists()), None)
    assert include, f"no drm_mode.h in {' or '.join(INCLUDES)}: install libdrm-dev"
    work = tmp_path_factory.mktemp("uapi")
    (work / "uapi.c").write_text(_program())
    subprocess.run(["cc", "-I", include, "-o", work / "uapi", work / "uapi.c"], check=True)
    printed = subprocess.run([work / "uapi"], check=True, capture_output=True, text=True).stdout
    return {name: [int(number) for number in numbers] for name, *numbers in map(str.split, printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(said: dict[str, list[int]], name: str) -> None:
    """The structure's size, and each field's offset and size, agree with the header."""
    kind = STRUCTURES[name]
    assert said[name] == [ctypes.sizeof(kind)]
    ours = {f"{name}.{field}": [getattr(kind, field).offset, getattr(kind, field).size] for field in _fields(kind)}
    assert ours == {key: value for key, value in said.items() if key.startswith(f"{name}.")}


def test_numbers(said: dict[str, list[int]]) -> None:
    """Each ioctl number and each constant agrees with the headers."""
    known = {name: value for name, value in NUMBERS.items() if name in said}
    assert {name: [value] for name, value in known.items()} == {name: said[name] for name in known}
    assert len(known) == len(NUMBERS) - 3
    assert len([name for name in known if name.startswith("DRM_IOCTL_")]) >= 20


def test_event(said: dict[str, list[int]]) -> None:
    """struct drm_event_vblank."""
    assert said["event"] == [uapi.drm_event_vblank.size, 8, 8]
    assert said["crtc_id"] == [28]


def test_connector_names() -> None:
    """Each name of a connector type is at the index of its DRM_MODE_CONNECTOR_* number."""
    include = next(path for path in INCLUDES if (Path(path) / "drm_mode.h").exists())
    numbers = {
        words[1].removeprefix("DRM_MODE_CONNECTOR_"): int(words[2])
        for words in map(str.split, (Path(include) / "drm_mode.h").read_text().splitlines())
        if len(words) == 3 and words[1].startswith("DRM_MODE_CONNECTOR_")
    }
    kernel = {"DisplayPort": "DP", "9PinDIN": "DIN", "HDMIA": "HDMI-A", "HDMIB": "HDMI-B"}
    kernel |= {"DVII": "DVI-I", "DVID": "DVI-D", "DVIA": "DVI-A"}
    named = {kernel.get(name, name).lower(): number for name, number in numbers.items()}
    ours = {name.lower(): number for number, name in enumerate(uapi.CONNECTOR_TYPES)}
    assert {name: number for name, number in ours.items() if name in named} == {
        k: v for k, v in named.items() if k in ours
    }
    assert set(ours) <= set(named)
