"""Write the generated part of states.md from displbe.wire.xenbus.TRANSITIONS: `python3 -m protocol.states`.

With --check, write nothing, and fail when the page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from displbe.wire.xenbus import ANY, TRANSITIONS, Rule, State

PAGE: Final = Path(__file__).with_name("states.md")
BEGIN: Final = "<!-- begin: written by `python3 -m protocol.states`, do not edit -->"
END: Final = "<!-- end -->"


def name(state: State) -> str:
    """Return the name of a state as in xenbus.h, such as InitWait."""
    return state.name.title().replace("_", "")


def seen(states: frozenset[State | None]) -> str:
    """Return a set of frontend states in words: as a list, or as the states that are not in it, whichever is shorter."""
    if states == ANY:
        return "any"
    if len(states) > len(ANY) // 2:
        return "any but " + seen(ANY - states)
    numbers = [str(int(state)) for state in sorted(state for state in states if state is not None)]
    return ", ".join([*numbers, "gone"] if None in states else numbers)


def groups() -> list[tuple[list[State], tuple[Rule, ...]]]:
    """Return the table, with states that have the same rules in one group."""
    found: list[tuple[list[State], tuple[Rule, ...]]] = []
    for state, rules in TRANSITIONS.items():
        for states, others in found:
            if others == rules:
                states.append(state)
                break
        else:
            found.append(([state], rules))
    return found


def diagram() -> list[str]:
    """Return a Mermaid diagram of the rules for `online` 1. All states that displbe never writes are one point in it."""
    lines = ["```mermaid", "stateDiagram-v2"]
    written = {rule.then for rules in TRANSITIONS.values() for rule in rules}
    lines += [f"    {name(state)}: {state.value} {name(state)}" for state in sorted(written)]
    for states, rules in groups():
        source = name(states[0]) if states[0] in written else "[*]"
        for rule in rules:
            if rule.online:
                pause = f", after {rule.after:g} s" if rule.after else ""
                lines.append(f"    {source} --> {name(rule.then)}: frontend {seen(rule.frontend)}{pause}")
    return [*lines, "```"]


def table() -> list[str]:
    """Return a table of all rules."""
    lines = [
        "| displbe's state | `online` | frontend's state | new state | after | reason |",
        "|---|---|---|---|---|---|",
    ]
    for states, rules in groups():
        ours = ", ".join(f"{state.value} {name(state)}" for state in states)
        for rule in sorted(rules, key=lambda rule: not rule.online):
            cells = (
                ours,
                "1" if rule.online else "0",
                seen(rule.frontend),
                f"{rule.then.value} {name(rule.then)}",
                f"{rule.after:g} s" if rule.after else "at once",
                rule.why,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def current(text: str) -> str:
    """Return the page with its generated part replaced. Raises ValueError when a mark of that part is missing."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{PAGE.name} has no marks around its generated part")
    return "\n".join([before + BEGIN, "", *diagram(), "", *table(), "", END]) + after


def main() -> int:
    """Write the page, or check it: the exit code."""
    old = PAGE.read_text("utf-8")
    new = current(old)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        print(f"{PAGE.name} is out of date: run python3 -m protocol.states", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
