"""The faults that can be planted: cosmic-ray's operators, and one more, which takes a statement out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import parso  # before cosmic_ray, which imports it in a circle
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names

__all__ = ["Fault", "faults"]

Position = tuple[int, int]


class RemoveStatement(Operator):  # type: ignore[misc]
    """Replaces a statement of a function by `pass`: a call, an assignment to an attribute or an item, `return`, `raise`.

    cosmic-ray has none like it. An assignment to a name stays: what uses the name would fail at once.
    """

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Operator.mutation_positions"""
        if node.type == "simple_stmt" and parso.tree.search_ancestor(node, "funcdef") and _can_go(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Operator.mutate"""
        gone = node.children[0]
        prefix = gone.get_first_leaf().prefix
        node.children[0] = parso.python.tree.Keyword("pass", gone.start_pos, prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Operator.examples"""
        return (Example("def f():\n    g()\n", "def f():\n    pass\n"),)


def _can_go(statement: Any) -> bool:
    match statement.type:
        case "atom_expr" | "power" | "return_stmt" | "raise_stmt" | "await_expr":
            return True
        case "expr_stmt":
            target, sign = statement.children[:2]
            is_changed = sign.type == "operator" and sign.value != "="  # `+=` and the like
            return bool(sign.type != "annassign" and (is_changed or target.type != "name"))
    return False


REMOVE: Final = "displbe/RemoveStatement"
_OPERATORS: Final = {
    REMOVE: RemoveStatement(),
    **{name: get_operator(name)() for name in operator_names() if not get_operator(name).arguments()},
}


class Fault(msgspec.Struct, frozen=True):
    """One fault in one module."""

    module: str
    """The module's path in the tree."""
    operator: str
    occurrence: int
    start: Position
    """The line, from 1, and the column."""
    end: Position

    @property
    def kind(self) -> str:
        """The kind of fault: cosmic-ray has an operator for each pair of signs that can be exchanged."""
        return self.operator.partition("_")[0]

    def planted(self, source: str) -> str | None:
        """Return the module's text with the fault; None when it is no Python then, or the same program."""
        planted: str | None = mutate_code(source, _OPERATORS[self.operator], self.occurrence)
        if planted is None:
            return None
        try:
            return None if ast.dump(ast.parse(planted)) == ast.dump(ast.parse(source)) else planted
        except SyntaxError:
            return None


def faults(tree: Path, module: str) -> Iterator[Fault]:
    """Yield all faults of a module, but for type annotations, protocols and `frozen=True`, on which nothing depends when displbe runs,
    and the frontends' halves of pages, which only tests and the demonstration use.
    """
    source = (tree / module).read_text()
    ignored = _ignored(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in _OPERATORS.items():
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= start < last for first, last in ignored):
                yield Fault(module, name, occurrence, start, end)


def _ignored(source: str) -> list[tuple[Position, Position]]:
    """Return the positions that have no faults, from and to."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.ClassDef):
            is_protocol = any("Protocol" in ast.unparse(base) for base in node.bases)
            is_ignored = is_protocol or node.name.startswith("Front")
            parts += [node] if is_ignored else [key for key in node.keywords if key.arg == "frozen"]
        for part in parts:
            if part is not None:
                found.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return found
