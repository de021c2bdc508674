"""The machine that `displbectl check` looks at."""

from __future__ import annotations

import gzip
import os
import platform
import pwd
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from .finding import Finding, note, wrong
from .service import Identity, acting_as, service_identity

__all__ = ["Machine", "this_machine"]


class Machine:
    """Where to look, and for whom; another root in tests.

    `who`: displbe's user, whom root can be for a while. Without: the caller, of whom `certain` says whether displbe runs as him.
    `trouble`: why displbe's user cannot be known.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        release: str = platform.release(),
        xl: Sequence[str] = ("xl", "info"),
        who: Identity | None = None,
        *,
        certain: bool = True,
        trouble: str = "",
    ) -> None:
        self.root = root
        self.release = release
        self.who = who
        self.certain = certain
        self.trouble = trouble
        self._xl = xl

    # For whom

    @property
    def user(self) -> str:
        """Who opens what is looked at."""
        if self.who is not None:
            return self.who.user
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return str(os.geteuid())

    def as_service(self, found: Iterable[Finding]) -> list[Finding]:
        """Findings that depend on who looks."""
        with acting_as(self.who):
            return list(found)

    def may(self, path: Path, mode: int) -> bool:
        """Whether a file may be read or written (os.R_OK, os.W_OK)."""
        return os.access(path, mode, effective_ids=True)

    def denied(self, what: str, fix: str) -> Finding:
        """Something may not be opened, which says little when it is not displbe's user who may not."""
        return (wrong if self.certain else note)(f"{what} is not for {self.user}", fix)

    # What there is

    def path(self, path: str) -> Path:
        """A file of this machine."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A file's text, empty when it cannot be read."""
        try:
            return self.path(path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    @property
    def is_dom0(self) -> bool | None:
        """None: not known."""
        file = "/proc/xen/capabilities"
        return "control_d" in self.text(file) if self.path(file).exists() else None

    def xl_info(self) -> str:
        """What xl says of Xen; empty where it may not be asked."""
        try:
            return subprocess.run(self._xl, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def kernel_options(self) -> dict[str, str]:
        """The kernel's configuration, empty where it is not to be had."""
        text = self.text(f"/boot/config-{self.release}")
        if not text:
            try:
                text = gzip.decompress(self.path("/proc/config.gz").read_bytes()).decode()
            except (OSError, EOFError, UnicodeDecodeError):
                return {}
        return dict(re.findall(r"^(CONFIG_\w+)=(\S+)$", text, re.MULTILINE))


def this_machine() -> Machine:
    """The machine that we are on, where root looks as the service's user."""
    root = os.geteuid() == 0
    try:
        who = service_identity()
    except LookupError as error:
        return Machine(certain=False, trouble=str(error))
    if who is None:
        return Machine(certain=root)
    return Machine(who=who) if root else Machine(certain=os.geteuid() == who.uid)
