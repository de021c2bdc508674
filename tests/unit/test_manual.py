"""The manual is made from the settings and the programs: what lies in docs/ is current, and the pages are pages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from displbe import __version__
from displbe.config import RELOADABLE, Settings, load

TREE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manual() -> ModuleType:
    """packaging/manual.py"""
    spec = importlib.util.spec_from_file_location("manual", TREE / "packaging" / "manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["manual"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_current(manual: ModuleType) -> None:
    """Otherwise: python packaging/manual.py configuration >docs/configuration.md"""
    assert (TREE / "docs" / "configuration.md").read_text("utf-8") == manual.configuration()


def test_the_example_says_the_defaults() -> None:
    assert load(str(TREE / "configs" / "displbe.toml")) == Settings()


def test_every_key_is_there_with_its_words(manual: ModuleType) -> None:
    sections = {section.name: section for section in manual.settings()}
    for entry in msgspec.structs.fields(Settings):
        if isinstance(entry.default, msgspec.Struct):
            names = [key.encode_name for key in msgspec.structs.fields(entry.default)]
            assert [key.name for key in sections[entry.encode_name].keys] == names
    for section in sections.values():
        for key in section.keys:
            assert key.text, f"[{section.name}] {key.name}"
            assert key.kind, f"[{section.name}] {key.name}"


def test_what_can_be_reloaded_is_told(manual: ModuleType) -> None:
    """In the reference and in both pages, in the words of the code."""
    pages = manual.man_pages()
    for text in (
        manual.configuration(),
        *(pages[name].replace("\\-", "-") for name in ("displbe.8", "displbe.toml.5")),
    ):
        text = text.replace("`", "")
        assert "SIGHUP" in text
        for key, when in RELOADABLE.items():
            table, _, name = key.partition(".")
            assert re.search(rf"\[{table}(\.NAME)?\]{f' {name}' if name else ''} {re.escape(when)}", text), key


def test_pages_are_troff(manual: ModuleType) -> None:
    """No warning, and the programs' options in them."""
    for name, text in manual.man_pages().items():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True, check=True
        )
        assert done.stderr == "", name
        if not name.startswith("displbe.toml"):
            shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
            assert "--version" in shown
            assert "EXIT STATUS" in shown


def test_the_package_has_the_version() -> None:
    """packaging/debian/changelog begins with displbe.__version__."""
    changelog = (TREE / "packaging" / "debian" / "changelog").read_text("utf-8")
    assert re.findall(r"^displbe \((.*)\) ", changelog)[0] == __version__


def test_links_lead_somewhere() -> None:
    """Those of the README and of docs/ to other files."""
    for document in (TREE / "README.md", *(TREE / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text("utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
