"""The Yocto recipe against the tree: names, versions and checksums, since bitbake is not at hand."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

from displbe import __version__

TREE = Path(__file__).resolve().parents[2]
YOCTO = TREE / "packaging" / "yocto"


def recipe() -> tuple[Path, str]:
    (found,) = (YOCTO / "recipes-graphics" / "displbe").glob("*.bb")
    return found, found.read_text()


def test_version() -> None:
    assert recipe()[0].name == f"displbe_{__version__}.bb"


def test_licence() -> None:
    (told,) = re.findall(r"file://LICENSE;md5=(\w+)", recipe()[1])
    assert told == hashlib.md5((TREE / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()


def test_files() -> None:
    """All of systemd/ is installed, from where it is."""
    installed = set(re.findall(r"install .*\$\{S\}/(\S+) ", recipe()[1]))
    assert all((TREE / name).exists() for name in installed)
    assert {f"systemd/{path.name}" for path in (TREE / "systemd").iterdir() if path.is_file()} <= installed
    assert (recipe()[0].parent / "../../../..").resolve() == TREE


def test_man_pages() -> None:
    """Where `make man` puts them, with the sections that they have."""
    folder, sections = re.findall(r"\$\{S\}/(\S+)/\*\.\[(\d+)\]", recipe()[1])[0]
    assert f"manual.py man {folder}\n" in (TREE / "Makefile").read_text()
    text = (TREE / "packaging" / "manual.py").read_text()
    assert set(re.findall(r'"(displbe[\w.]*|displbectl)\.(\d)":', text)) == {
        ("displbe", "8"),
        ("displbe.toml", "5"),
        ("displbectl", "1"),
    }
    assert set(sections) == {"1", "5", "8"}


def test_dependencies() -> None:
    """Those of pyproject.toml."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", entry)[0] for entry in project["dependencies"]}
    (listed,) = re.findall(r'RDEPENDS:\$\{PN\} = "(.*?)"', recipe()[1], re.S)
    assert {f"python3-{name}" for name in needed} <= set(listed.split())


def test_pyxs_may_be_left_out() -> None:
    """It is LGPL-3: an extra of the wheel, recommended in Yocto, a dependency in Debian."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["check"] == ["pyxs>=0.4.1,<0.5"]
    assert "pyxs" not in " ".join(project["dependencies"])
    (needed,) = re.findall(r'RDEPENDS:\$\{PN\} = "(.*?)"', recipe()[1], re.S)
    (recommended,) = re.findall(r'RRECOMMENDS:\$\{PN\} = "(.*?)"', recipe()[1])
    assert "python3-pyxs" not in needed.split()
    assert "python3-pyxs" in recommended.split()
    (depends,) = re.findall(r"^Depends:\n((?: .*\n)+)", (TREE / "packaging/debian/control").read_text(), re.M)
    assert " python3-pyxs,\n" in depends


def test_the_pump_is_compiled() -> None:
    """With bitbake's compiler, which must be there: the recipe does not turn it off, and is not for all architectures."""
    text = recipe()[1]
    assert 'export DISPLBE_PUMP = "require"\n' in text
    assert "allarch" not in text
    assert "INHIBIT_DEFAULT_DEPS" not in text


def test_groups() -> None:
    """Those of the unit, and the user's own."""
    (unit,) = re.findall(r"^SupplementaryGroups=(.*)$", (TREE / "systemd/displbe.service").read_text(), re.M)
    (made,) = re.findall(r'^GROUPADD_PARAM:\$\{PN\} = "(.*)"$', recipe()[1], re.M)
    assert {part.split()[-1] for part in made.split(";")} == {"displbe", *unit.split()}
