"""What is known of rows, and what somebody is just working out: the part of the prediction cache that threads share."""

import threading
from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import NamedTuple

from iris_wsgi.errors import DeadlineExceeded
from iris_wsgi.observability.shared_memory import Board
from iris_wsgi.patterns.prediction_cache.keys import Values
from iris_wsgi.patterns.prediction_cache.metrics import CacheMetrics
from iris_wsgi.resilience.deadline import PARSED
from iris_wsgi.resilience.single_flight import Flight
from iris_wsgi.storage.lru import Entry, Shelf

Flights = dict[bytes, Flight]


class Found(NamedTuple):
    """What a look found: values of rows that are there; flights of those that are not, which are for this caller to work out,
    and of those that others do; the generation of the cache; seconds for which the first value counts; how many values were there
    and would not count for long enough."""

    values: list[bytes | None]
    mine: Flights
    others: Flights
    generation: float
    left: float
    refused: int


class Known:
    """A shelf, on which a value counts for `seconds`, and the flights under way, both under one lock.

    The generation of the `board` is what a clear changes, for all processes.
    """

    def __init__(self, shelf: Shelf, seconds: float, metrics: CacheMetrics, board: Board) -> None:
        self.shelf, self.seconds, self.metrics, self.board = shelf, seconds, metrics, board
        self.cells = metrics.cells
        self.lock = threading.Lock()
        self.flights: Flights = {}
        self.seen = board.generation()

    def find(self, key: bytes, until: float, least: float = 0.0) -> tuple[bytes, float] | None:
        """The value of one row and for how many seconds it counts, `least` or more: most requests, so with little work."""
        with self.lock:
            self.heed()
            now = in_time(until)
            entry: Entry | None = self.shelf.get(key, now)
            if entry is None or entry[1] - now < least:
                return None
            self.cells[self.metrics.hit] += 1
        return entry[0], entry[1] - now

    def look(self, keys: Sequence[bytes], until: float, least: float = 0.0) -> Found:
        """Whoever looks has to work out what is then `mine`, and to say how that ended by keep() or give_up()."""
        values: list[bytes | None] = []
        mine: Flights = {}
        others: Flights = {}
        first, hits, refused = inf, 0, 0
        with self.lock:
            self.heed()
            now = in_time(until)
            for key in keys:
                entry = self.shelf.get(key, now)
                if entry is not None and entry[1] - now < least:
                    refused += 1
                elif entry is not None:
                    values.append(entry[0])
                    first = min(first, entry[1])
                    hits += 1
                    continue
                values.append(None)
                if key not in mine:
                    flight = self.flights.get(key)
                    if flight is None:
                        mine[key] = self.flights[key] = Flight()
                    else:
                        others[key] = flight
            self.cells[self.metrics.hit] += hits
            self.cells[self.metrics.coalesced] += len(keys) - hits - len(mine)
            return Found(values, mine, others, self.seen, first - now, refused)

    def keep(self, found: Found, fetched: Values, new: Values, sound: Values) -> bool:
        """What was `found.mine` is worked out: fetched or new, of which only what is sound is kept; whether all of it was."""
        with self.lock:
            self.cells[self.metrics.shared] += len(fetched)
            self.cells[self.metrics.run] += len(new)
            kept = self.put(fetched | sound if fetched else sound, found.generation)
            self.end(found.mine)
        for key, flight in found.mine.items():
            flight.land(new[key] if key in new else fetched[key])
        return kept and len(sound) == len(new)

    def give_up(self, flights: Flights, error: BaseException | None) -> None:
        """It was not worked out; whoever waits for it gets the error, or without one tries itself."""
        with self.lock:
            self.end(flights)
        for flight in flights.values():
            flight.land(None, error)

    def keep_anew(self, rows: int, sound: Values, generation: float) -> bool:
        """So many rows were run past the cache, as somebody wanted it, after a look at its generation."""
        with self.lock:
            self.cells[self.metrics.bypassed] += rows
            return self.put(sound, generation)

    def keep_up(self) -> None:
        """Does at once what the next request would do after a clear."""
        with self.lock:
            self.heed()

    # For who holds the lock.

    def heed(self) -> None:
        """Empties the shelf if it was cleared, by whichever process."""
        if (now := self.board.generation()) != self.seen:
            self.seen = now
            self.shelf.clear()
            self.metrics.keep(self.shelf)

    def put(self, values: Values, generation: float) -> bool:
        """Whether all of it was kept: nothing is that was looked up before a clear."""
        self.heed()
        if generation != self.seen:
            return False
        until = monotonic() + self.seconds
        kept = True
        for key, value in values.items():
            kept &= self.shelf.put(key, value, until)
        self.metrics.keep(self.shelf)
        return kept

    def end(self, flights: Iterable[bytes]) -> None:
        for key in flights:
            del self.flights[key]


def in_time(until: float) -> float:
    """The time (monotonic). Raises DeadlineExceeded as the predictor would: what comes too late is no answer, wherever from."""
    if (now := monotonic()) >= until:
        raise DeadlineExceeded(PARSED)
    return now
