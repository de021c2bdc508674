"""README.md's table of what was tried (tests/lab/tried.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import tried
from lab.tried import Row

SEEN = {
    Row("Xen 4.20", "aarch64", "Linux 7.2", "PVH", "virtio_gpu", "DRM", "zero copy", tried.EXACT),
    Row("Xen 4.20", "x86_64", "Linux 6.12", "PV", "virtio_gpu", "DRM", "copy", tried.EXACT),
}


@pytest.fixture(autouse=True)
def _readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A README.md with these rows."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tried.BEGIN}{tried.END}after\n")
    monkeypatch.setattr(tried, "README", readme)
    tried.write(SEEN)
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")


def test_written_and_read() -> None:
    assert tried.read() == SEEN
    assert tried.compare(SEEN, is_whole=True) == ([], [])


def test_what_the_table_lacks() -> None:
    new = Row("Xen 4.20", "x86_64", "Linux 6.12", "PVH", "virtio_gpu", "DRM", "copy", tried.EXACT)
    errors, _ = tried.compare({*SEEN, new}, is_whole=False)
    assert [error.endswith(" | ".join(new)) for error in errors] == [True]


def test_what_nothing_has_tried() -> None:
    """That is an error only after a run of all tests."""
    seen = {row for row in SEEN if row.guest == "PV"}
    assert tried.compare(seen, is_whole=False) == ([], [])
    errors, _ = tried.compare(seen, is_whole=True)
    assert len(errors) == 1
    assert "zero copy" in errors[0]


def test_versions() -> None:
    """Another version is a remark, so that a new package of Debian fails no run."""
    seen = {row._replace(kernel="Linux 7.3") for row in SEEN}
    errors, remarks = tried.compare(seen, is_whole=True)
    assert not errors
    assert len(remarks) == 2


def test_the_table_of_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the form in which it is written."""
    readme = Path(__file__).resolve().parents[2] / "README.md"
    monkeypatch.setattr(tried, "README", readme)
    assert tried.BEGIN + tried.text(tried.read()) + tried.END in readme.read_text()
    assert tried.read()
