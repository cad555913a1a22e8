"""Progress of a long stage: a bar on a terminal, a line every so often elsewhere, one line when it is done."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_BAR_WIDTH = 24  # characters
_DESCRIPTION_WIDTH = 16  # characters, so that the bars of all stages stand below one another
_BAR_SECONDS = 0.2  # between two drawings on a terminal
_LINE_SECONDS = 20.0  # between two lines in a log file
_PACE_SECONDS = 1.0  # since the first item, below which a pace is not measured
_FIRST_LINE_ITEMS = 10  # items after which a log file gets its first line


class Progress:
    """Counts items and says how long the rest will take, from the mean pace since the first one was done: a start is no pace.

    On a terminal a bar is redrawn in place. Where the output is no terminal, the first line comes after ten items and the next ones
    every 20 seconds. Use it as a context manager; leaving it writes the stage's one lasting line.
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        unit: str = "images",
        initial: int = 0,
        transient: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
            total: items in all.
            description: the stage's name, at most 16 characters.
            unit: what the items are, in the plural.
            initial: items that an earlier run finished; they do not count for the pace.
            transient: leave no line behind, for a step that is part of a stage.
            stream: where to write; None: standard error.
            clock: returns seconds.
        """
        self.total, self.description, self.unit = total, description, unit
        self.done = self._initial = initial
        self._transient = transient
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._started = clock()
        self._first: float | None = None  # when the first item was done
        self._written = self._started
        self._has_line = False

    def __enter__(self) -> "Progress":
        if self._is_terminal:
            self._draw()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
        if error_type is None and not self._transient:
            elapsed = format_seconds(self._clock() - self._started)
            self._stream.write(f"{self._name()}{self._count()} in {elapsed}\n")
        elif error_type is not None:
            self._stream.write(f"{self._name()}stopped after {self._count()}\n")
        self._stream.flush()

    def update(self, count: int = 1) -> None:
        """Adds finished items."""
        self.done += count
        now = self._clock()
        if self._first is None:
            self._first = now
        if self._is_terminal:
            if now - self._written >= _BAR_SECONDS:
                self._draw()
        elif self.done < self.total and self._line_is_due(now):
            self._stream.write(f"{self._name()}{self._count()}, {self._left()}\n")
            self._stream.flush()
            self._written, self._has_line = now, True

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items and counts each when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def seconds_left(self) -> float | None:
        """Returns how long the rest will take at the mean pace so far; None before the first item."""
        finished, now = self.done - self._initial, self._clock()
        if self._first is None:
            return None
        started, counted = self._first, finished - 1
        # Items that came all at once show no pace yet; with the start counted in, the estimate is at least not too short.
        if counted < 1 or now - started < _PACE_SECONDS:
            started, counted = self._started, finished
        return (now - started) / counted * max(self.total - self.done, 0)

    def _line_is_due(self, now: float) -> bool:
        if self._has_line or self._transient:
            return now - self._written >= _LINE_SECONDS
        return self.done - self._initial >= _FIRST_LINE_ITEMS or now - self._written >= _LINE_SECONDS

    def _draw(self) -> None:
        filled = round(_BAR_WIDTH * self.done / max(self.total, 1))
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        self._stream.write(f"\r{self._name()}[{bar}] {self._count()}, {self._left()}\x1b[K")
        self._stream.flush()
        self._written = self._clock()

    def _name(self) -> str:
        return f"{self.description:{_DESCRIPTION_WIDTH}s} "

    def _count(self) -> str:
        return f"{self.done} of {self.total} {self.unit}"

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "time left not known yet" if seconds is None else f"{format_seconds(seconds)} left"


def track(items: Sequence[Item], description: str, *, unit: str = "images") -> Iterator[Item]:
    """Yields the items with a progress display of their own; see :class:`Progress` for the arguments."""
    with Progress(len(items), description, unit=unit) as progress:
        yield from progress.track(items)


def print_above_progress(line: str) -> None:
    """Writes a line to standard error in place of the bar that may stand there; the next update draws the bar anew below it."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """Returns a duration as people write it: ``"8 s"``, ``"4 min 05 s"``, ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
