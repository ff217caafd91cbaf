"""The phases of a run, timed and told."""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clusterprune.graph.images import Progress, silent


class Timeline:
    """The phases of a run with their seconds, told to whoever watches as they pass.

    Parameters
    ----------
    progress
        Told about every phase as it goes.

    Attributes
    ----------
    seconds
        Time of each finished phase, in the order in which they began.
    events
        The same as records for the log.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []
        self._progress = progress or silent

    @contextmanager
    def phase(self, name: str, *, announce: bool = True) -> Iterator[Callable[[int, int], None]]:
        """Time a block; yield what it may call as ``tell(done, total)``.

        Parameters
        ----------
        announce
            False for a block that reports phases of its own.
        """
        began = time.perf_counter()
        if announce:
            self._progress(name, 0, 0)
        yield lambda done, total: self._progress(name, done, total)
        if announce:
            self._progress(name, 1, 1)
        self.seconds[name] = round(time.perf_counter() - began, 3)
        self.note("phase", phase=name, seconds=self.seconds[name])

    def note(self, event: str, **facts: Any) -> None:
        """Add a record to the log."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        self.events.append({"time": now, "event": event, **facts})
