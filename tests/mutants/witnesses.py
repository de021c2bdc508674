"""The tests that execute a line: what one run of the quick tests has recorded."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from coverage import CoverageData

from .faults import Fault

__all__ = ["Witnesses"]

NO_TEST: Final = ""
"""Coverage's context of what is executed outside of a test."""


class Witnesses:
    """The tests, named FILE::FUNCTION, with the lines that each executes and the seconds that it takes."""

    def __init__(self, tree: Path, recorded: Path, report: Path, known: set[str]) -> None:
        """`recorded` is coverage's data file of the tests in `tree`, with a context for each test, `report` their JUnit file.
        `known` are the tests that exist.
        """
        self._tree = tree
        self._known = known
        self._imported: dict[str, set[str]] = {}
        self._data = CoverageData(str(recorded))
        self._data.read()
        self.seconds, self.failed = _times(tree, report)

    def of(self, fault: Fault) -> list[str]:
        """Return the tests that execute the fault's lines. Those of files that import the module come first: they are about it.

        If none does, the lines may have been executed when the module was imported: then all tests that import the module or execute
        anything of it.
        """
        lines = self._data.contexts_by_lineno(str(self._tree / fault.module))
        parsed = ast.parse((self._tree / fault.module).read_text())
        close = {test for test in self._known if fault.module in self._imports(test.partition("::")[0])}
        tests = _tests({context for line in _lines(parsed, fault) for context in lines.get(line, ())})
        if not tests:
            tests = close | _tests({context for contexts in lines.values() for context in contexts})
        return self._in_order(tests & close) + self._in_order(tests - close)

    def usual(self, tests: list[str]) -> float:
        """Return the seconds that tests take without a fault."""
        return sum(self.seconds.get(test, 0.0) for test in tests)

    def within(self, tests: list[str], seconds: float) -> int:
        """Return how many of the first tests take no more than so many seconds together; one in any case."""
        count = 1
        while count < len(tests) and self.usual(tests[: count + 1]) <= seconds:
            count += 1
        return count

    def _imports(self, file: str) -> set[str]:
        """Return the paths of the modules that a file of tests imports by name."""
        if file not in self._imported:
            nodes = list(ast.walk(ast.parse((self._tree / file).read_text())))
            names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and node.module:
                    names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            self._imported[file] = {name.replace(".", "/") + ".py" for name in names}
        return self._imported[file]

    def _in_order(self, tests: set[str]) -> list[str]:
        """Return the tests that exist and pass without a fault, file by file, the quickest file first."""
        files: defaultdict[str, list[str]] = defaultdict(list)
        for test in sorted(tests & self._known - self.failed):
            files[test.partition("::")[0]].append(test)
        quick = sorted(files.values(), key=self.usual)
        return [test for those in quick for test in those]


def _lines(parsed: ast.Module, fault: Fault) -> set[int]:
    """Return the lines of a fault and of its statement; of a statement with a body, those above the body."""
    found = set(range(fault.start[0], fault.end[0] + 1))
    best: tuple[int, int] | None = None
    for node in ast.walk(parsed):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            if node.lineno <= fault.start[0] <= last and (best is None or node.lineno >= best[0]):
                best = node.lineno, last
    return found | (set(range(best[0], best[1] + 1)) if best else set())


def _tests(contexts: set[str]) -> set[str]:
    """Return the tests of these contexts of coverage."""
    return {context.partition("|")[0].partition("[")[0] for context in contexts - {NO_TEST}}


def _times(tree: Path, report: Path) -> tuple[dict[str, float], set[str]]:
    """Return the seconds of each test, and those that failed without any fault."""
    seconds: defaultdict[str, float] = defaultdict(float)
    failed = set()
    for case in ElementTree.parse(report).iter("testcase"):
        path = case.get("classname", "").replace(".", "/") + ".py"
        if (tree / path).exists():
            test = f"{path}::{case.get('name', '').partition('[')[0]}"
            seconds[test] += float(case.get("time", 0))
            if case.find("failure") is not None or case.find("error") is not None:
                failed.add(test)
    return dict(seconds), failed
