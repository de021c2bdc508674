"""Who hears what a compositor's seats say."""

from __future__ import annotations

from displbe.sinks.seat import KeyboardKey, SeatEvent, Seats


def test_only_who_listens_for_that_guest_and_connector_hears() -> None:
    seats = Seats()
    heard: list[tuple[str, SeatEvent]] = []
    key = KeyboardKey(30, True)
    with seats.listening(1, "A", lambda event: heard.append(("1A", event))):
        with seats.listening(1, "B", lambda event: heard.append(("1B", event))):
            for domid in (1, 2):
                for name in ("A", "B"):
                    seats.tell(domid, name, key)
        seats.tell(1, "B", key)
    seats.tell(1, "A", key)
    assert heard == [("1A", key), ("1B", key)]


def test_one_listeners_mistake_is_nobody_elses() -> None:
    seats = Seats()
    heard: list[SeatEvent] = []

    def fail(event: SeatEvent) -> None:
        raise ZeroDivisionError

    with seats.listening(1, "A", fail), seats.listening(1, "A", heard.append):
        seats.tell(1, "A", KeyboardKey(30, False))
    assert heard == [KeyboardKey(30, False)]
