"""The machine to check: its files, its kernel, its Xen, and the user that displbe runs as."""

from __future__ import annotations

import gzip
import os
import platform
import pwd
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from displbe.resources import ProcessLimits, process_limits, raise_file_limit

from .check_result import CheckResult, failed, warning
from .service import Identity, acting_as, service_environment, service_identity, service_limits

__all__ = ["Machine", "this_machine"]


class Machine:
    """The file system to check (`root`; tests use another one), and the user to check it for.

    `identity` is displbe's user; root acts with that user's rights. None: the checks run as the caller, and `is_service_user` says whether
    displbe runs as that user. `identity_error` says why displbe's user is not known; it is empty otherwise. `limits` are those of the
    daemon, and `environment` has its variables.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        release: str = platform.release(),
        xl: Sequence[str] = ("xl", "info"),
        identity: Identity | None = None,
        *,
        is_service_user: bool = True,
        identity_error: str = "",
        limits: ProcessLimits = ProcessLimits(),  # noqa: B008
        environment: Mapping[str, str] = os.environ,
        architecture: str = platform.machine(),
    ) -> None:
        self.root = root
        self.release = release
        self.identity = identity
        self.is_service_user = is_service_user
        self.identity_error = identity_error
        self.limits = limits
        self.environment = environment
        self.is_x86 = architecture in ("x86_64", "i686")
        self._xl = xl

    # The user

    @property
    def user(self) -> str:
        """The name of the user that opens the files."""
        if self.identity is not None:
            return self.identity.user
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return str(os.geteuid())

    @property
    def uid(self) -> int:
        """The user that displbe is checked for."""
        return self.identity.uid if self.identity is not None else os.geteuid()

    def as_service(self, results: Iterable[CheckResult]) -> list[CheckResult]:
        """Do the checks as displbe's user, for checks whose results depend on the user."""
        with acting_as(self.identity):
            return list(results)

    def may(self, path: Path, mode: int) -> bool:
        """Return whether the effective user may read or write a file (`mode`: os.R_OK, os.W_OK)."""
        return os.access(path, mode, effective_ids=True)

    def denied(self, what: str, fix: str) -> CheckResult:
        """Return the result for a file without access: an error, or a warning if displbe may run as another user."""
        return (failed if self.is_service_user else warning)(f"{self.user} has no access to {what}", fix)

    # Files, kernel, Xen

    def path(self, path: str) -> Path:
        """Return the path of a file of this machine."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """Return a file's text; empty when it cannot be read."""
        try:
            return self.path(path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    @property
    def is_dom0(self) -> bool | None:
        """Whether this is Dom0; None when that is not known."""
        file = "/proc/xen/capabilities"
        return "control_d" in self.text(file) if self.path(file).exists() else None

    def xl_info(self) -> str:
        """Return the output of `xl info`; empty when it cannot be run, or takes more than 10 s."""
        try:
            return subprocess.run(self._xl, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def kernel_options(self) -> dict[str, str]:
        """Return the kernel's configuration; empty when it cannot be read."""
        text = self.text(f"/boot/config-{self.release}")
        if not text:
            try:
                text = gzip.decompress(self.path("/proc/config.gz").read_bytes()).decode()
            except (OSError, EOFError, UnicodeDecodeError):
                return {}
        return dict(re.findall(r"^(CONFIG_\w+)=(\S+)$", text, re.MULTILINE))


def this_machine() -> Machine:
    """Return the machine that this process runs on; for root, with displbe's user."""
    root = os.geteuid() == 0
    raise_file_limit()  # as displbe does
    unit = service_environment()
    machine = partial(
        Machine, limits=service_limits() or process_limits(), environment=os.environ if unit is None else unit
    )
    try:
        identity = service_identity()
    except LookupError as error:
        return machine(is_service_user=False, identity_error=str(error))
    if identity is None:
        return machine(is_service_user=root)
    if root:
        return machine(identity=identity)
    return machine(is_service_user=os.geteuid() == identity.uid)
