"""The result of one check of `displbectl check`: the finding, and how to fix it."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["CheckResult", "failed", "passed", "warning"]


class CheckResult(msgspec.Struct, frozen=True):
    """One line of the report, and the line below it that tells how to fix it."""

    grade: Literal["ok", "warning", "error"]
    """`error`: displbe or a guest will not work. `warning`: it works, but something is lost or unusual."""
    text: str
    fix: str = ""
    """Empty for `ok` only."""


def passed(text: str) -> CheckResult:
    """Return an `ok`."""
    return CheckResult("ok", text)


def warning(text: str, fix: str) -> CheckResult:
    """Return a `warning`."""
    return CheckResult("warning", text, fix)


def failed(text: str, fix: str) -> CheckResult:
    """Return an `error`."""
    return CheckResult("error", text, fix)
