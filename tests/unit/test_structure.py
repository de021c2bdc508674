"""The structure of the code: no circles of imports, no class that holds everything, a daemon that runs without pyxs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import Final

import grimp

import displbe
from displbe.sinks.registry import SINKS


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of modules that import each other in circles; circles that share a module are one set."""
    groups = {module: frozenset({module}) for module in imports}
    while True:
        graph = {group: {groups[to] for of in group for to in imports[of]} - {group} for group in groups.values()}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle: frozenset[str] = frozenset().union(*error.args[1])
            groups.update(dict.fromkeys(circle, circle))
        else:
            return {group for group in graph if len(group) > 1 or group & imports[next(iter(group))]}


def test_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == {frozenset("ab")}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}) == {frozenset("abc"), frozenset("de")}
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": {"b"}, "d": {"d"}}) == {frozenset("abc"), frozenset("d")}


def test_no_module_imports_itself_over_others() -> None:
    """Imports under TYPE_CHECKING are counted: a module that needs another one's types cannot be read without it."""
    graph = grimp.build_graph("displbe", cache_dir=None)
    found = circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    assert not found, "\n".join(" <-> ".join(sorted(circle)) for circle in found)


DAEMON: Final = """
import importlib, pkgutil, sys
sys.modules["pyxs"] = None  # makes `import pyxs` fail
import displbe
for module in pkgutil.walk_packages(displbe.__path__, "displbe."):
    # _pump.so is no module: displbe.pump.library opens it with dlopen.
    if module.name not in ("displbe.__main__", "displbe.pump._pump") and not module.name.startswith("displbe.ctl"):
        importlib.import_module(module.name)
from displbe.wire.xs import Op, encode
assert encode(Op.READ, 1, 0, b"domid\\0").endswith(b"domid\\0")
print(*sys.modules)
"""


def test_the_daemon_loads_without_pyxs() -> None:
    """All its modules, those of every sink and of the demonstration, load where pyxs is not installed."""
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {
        f"displbe.{name}" for name in ("startup", "process", "daemon", "demo", "xen.host", "xen.stale_devices")
    } <= loaded
    assert {entry[0] for entry in SINKS.values()} <= loaded
    assert not [module for module in loaded if module.startswith("pyxs.")]


def test_the_daemon_runs_without_pyxs(tmp_path: Path) -> None:
    """It serves a guest of the simulated Xen, over the same XenStore messages as in a real one."""
    code = "import sys; sys.modules['pyxs'] = None; from displbe.startup import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "demo",
        "--no-window",
        "--frames",
        "2",
        "--output",
        str(tmp_path / "demo.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "2 frames of 800x600 flipped" in done.stdout


def test_only_the_check_imports_pyxs() -> None:
    graph = grimp.build_graph("displbe", include_external_packages=True, cache_dir=None)
    assert graph.find_modules_that_directly_import("pyxs") == {"displbe.ctl.xenstore"}


def test_the_check_runs_without_pyxs() -> None:
    """It says which look-ups it has left out, and goes on."""
    code = "import sys; sys.modules['pyxs'] = None; from displbe.ctl.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert "because Python has no pyxs" in done.stdout


MANY: Final = 15
"""Attributes; a class with more must say why."""


def attributes(tree: ast.ClassDef) -> set[str]:
    """Return the names of a class's own attributes: those that its methods assign, and those that its body declares."""
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    declared = {
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "Final" not in ast.dump(node)
    }
    return assigned | declared


def test_attributes() -> None:
    (tree,) = ast.parse("class A:\n x: int\n Y: Final = 1\n def f(self): self.a = self.b = self.x; other.c = 1").body
    assert isinstance(tree, ast.ClassDef)
    assert attributes(tree) == {"x", "a", "b"}


def test_no_class_holds_everything() -> None:
    """A class with more than fifteen attributes has a docstring that says why."""
    found = []
    for path in sorted(Path(displbe.__file__).parent.rglob("*.py")):
        if "wayland/protocol" in str(path):  # generated
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or "attributes" in (ast.get_docstring(node) or ""):
                continue
            if len(attributes(node)) > MANY:
                found.append(f"{path.name}: {node.name} has {len(attributes(node))} attributes and does not say why")
    assert not found, "\n".join(found)


def test_threads_are_started_in_one_module() -> None:
    """Each start can fail, and displbe.threads makes an OSError of that. The simulated Xen and displbectl are not the daemon."""
    package = Path(displbe.__file__).parent
    found = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if any(call in path.read_text() for call in ("to_thread.run_sync(", "threading.Thread(", "import Thread"))
        and path.relative_to(package).parts[0] not in ("sim", "ctl")
    ]
    assert found == ["threads.py"], "use run_in_thread or start_thread of displbe.threads"
