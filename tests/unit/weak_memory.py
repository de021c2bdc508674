"""A page in a weakly ordered memory, and all results that programs on it can have.

A machine like Arm reorders accesses, which neither x86 nor an emulator shows. This model shows it: each location has the history of the
values stored there; each thread has a view, the oldest value that it may still read of each location. Loads may read any value from there
on. Barriers move views along: a release store carries its thread's view, an acquire load takes it over, and full fences hand one view
on from fence to fence. It is the model of Kang et al., "A promising semantics for relaxed-memory concurrency" (POPL 2017), without its
promises: no store happens before an earlier load of the same thread.

A thread is a function of a page (wire.ring.SharedPage). For each of its accesses it is run again from its beginning, with the results of
the earlier accesses, so it must depend on nothing else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

__all__ = ["Access", "Thread", "Weakness", "Words", "outcomes"]

Value = int | bytes
View = dict[int, int]
"""The number of a value in the history of each location: the oldest that may be read."""


class Weakness(enum.Enum):
    """A barrier that a thread's page leaves out."""

    NONE = "none"
    ACQUIRE = "loads do not acquire"
    RELEASE = "stores do not release"
    FENCE = "there are no fences"


class Access(msgspec.Struct, frozen=True):
    """An access of a page. A slot of several words is one location: it can be old, but not torn."""

    kind: str
    """load, store, fence, copy or write"""
    offset: int = 0
    value: Value = 0


class _Next(BaseException):
    """The thread's next access, whose result is not known yet."""

    def __init__(self, access: Access) -> None:
        self.access = access


class Words:
    """SharedPage.words: plain accesses of a machine where each load acquires and each store releases."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def __getitem__(self, index: int) -> int:
        return int(self._page.load(4 * index))

    def __setitem__(self, index: int, value: int) -> None:
        self._page.store(4 * index, value)


class _Page:
    """wire.ring.SharedPage: gives each access its known result, then raises _Next."""

    def __init__(self, results: Sequence[Value], *, plain: bool) -> None:
        self._results = iter(results)
        self.words = Words(self) if plain else None

    def _access(self, access: Access) -> Any:
        for result in self._results:
            return result
        raise _Next(access)

    def load(self, offset: int) -> int:
        return int(self._access(Access("load", offset)))

    def store(self, offset: int, value: int) -> None:
        self._access(Access("store", offset, value))

    def fence(self) -> None:
        self._access(Access("fence"))

    def copy(self, offset: int, size: int) -> bytes:
        return bytes(self._access(Access("copy", offset, size)))

    def write(self, offset: int, data: bytes) -> None:
        self._access(Access("write", offset, bytes(data)))


class Thread(msgspec.Struct, frozen=True):
    """A program, and the barrier that its page leaves out."""

    program: Callable[[Any], Any]
    weakness: Weakness = Weakness.NONE
    plain: bool = False
    """Whether its page has `words`."""


class _Seen(msgspec.Struct, frozen=True):
    """What a thread has seen: the results of its accesses, and its views as sorted pairs."""

    results: tuple[Value, ...] = ()
    view: tuple[tuple[int, int], ...] = ()
    acquirable: tuple[tuple[int, int], ...] = ()
    """The views of values that were read without acquiring; a fence takes them over."""
    released: tuple[tuple[int, int], ...] = ()
    """The view at the last fence, which a store carries that does not release."""


class _State(msgspec.Struct, frozen=True):
    history: tuple[tuple[int, tuple[tuple[Value, tuple[tuple[int, int], ...]], ...]], ...]
    """The stored values of each location, with the view that each carries. The initial value has no entry."""
    fences: tuple[tuple[int, int], ...]
    threads: tuple[_Seen, ...]


START: Final = _Seen()


def _merged(*views: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    merged: View = {}
    for view in views:
        for location, number in view:
            merged[location] = max(merged.get(location, 0), number)
    return tuple(sorted(merged.items()))


def outcomes(memory: bytes, *threads: Thread) -> set[tuple[Any, ...]]:
    """Return all tuples of results that the threads can have. `memory` is the page's content, which all of them see at the beginning."""
    found: set[tuple[Any, ...]] = set()
    seen: set[_State] = set()
    waiting = [_State((), (), (START,) * len(threads))]
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        ended = []
        for number, thread in enumerate(threads):
            try:
                ended.append(thread.program(_Page(state.threads[number].results, plain=thread.plain)))
            except _Next as next_one:
                waiting.extend(_steps(state, number, thread.weakness, next_one.access, memory))
        if len(ended) == len(threads):
            found.add(tuple(ended))
    return found


def _steps(state: _State, number: int, weakness: Weakness, access: Access, memory: bytes) -> Iterator[_State]:
    """Yield the states after a thread's next access: one for each value that it can read."""
    seen, history, fences = state.threads[number], dict(state.history), state.fences
    if access.kind == "fence":
        after = _Seen((*seen.results, 0), seen.view, seen.acquirable, seen.released)
        if weakness is not Weakness.FENCE:
            fences = _merged(fences, seen.view, seen.acquirable)
            after = _Seen(after.results, fences, (), fences)
        yield _with(state, number, after, history, fences)
    elif access.kind in ("store", "write"):
        stored = history.get(access.offset, ())
        view = _merged(seen.view, ((access.offset, len(stored) + 1),))
        releases = access.kind == "store" and weakness is not Weakness.RELEASE
        history[access.offset] = (*stored, (access.value, view if releases else seen.released))
        yield _with(state, number, _Seen((*seen.results, 0), view, seen.acquirable, seen.released), history, fences)
    else:
        yield from _reads(state, number, weakness, access, memory)


def _reads(state: _State, number: int, weakness: Weakness, access: Access, memory: bytes) -> Iterator[_State]:
    seen, history = state.threads[number], dict(state.history)
    if access.kind == "load":
        first: Value = int(struct.unpack_from("<I", memory, access.offset)[0])
    else:
        first = memory[access.offset : access.offset + int(access.value)]
    values = ((first, ()), *history.get(access.offset, ()))
    for index in range(dict(seen.view).get(access.offset, 0), len(values)):
        value, carried = values[index]
        view = _merged(seen.view, ((access.offset, index),))
        if access.kind == "load" and weakness is not Weakness.ACQUIRE:
            after = _Seen((*seen.results, value), _merged(view, carried), seen.acquirable, seen.released)
        else:
            after = _Seen((*seen.results, value), view, _merged(seen.acquirable, carried), seen.released)
        yield _with(state, number, after, history, state.fences)


def _with(state: _State, number: int, after: _Seen, history: dict[int, Any], fences: Any) -> _State:
    threads = (*state.threads[:number], after, *state.threads[number + 1 :])
    return _State(tuple(sorted(history.items())), fences, threads)
