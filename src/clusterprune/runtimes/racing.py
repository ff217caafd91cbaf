"""Which of several networks is the faster, on a machine that is itself faster and slower from moment to moment."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clusterprune.errors import ArgumentError


@dataclass(frozen=True)
class Speedup:
    """How many times as fast a network is as another, timed in turns.

    Attributes
    ----------
    times
        Median over the rounds of the one's time over the other's.
    low, high
        Quartiles of the same.
    """

    times: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the gain (or the loss) is larger than its spread; if not, it is none to speak of."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        """Say the figure with its quartiles, or that there is none."""
        told = f"{self.times:.2f}x ({self.low:.2f} to {self.high:.2f})"
        return told if self.certain else f"as fast within the spread, {told}"


@dataclass(frozen=True)
class Race:
    """Times of several networks, taken in turns.

    Attributes
    ----------
    rounds_ms
        For every network the median time of a pass in each round, in milliseconds.
    """

    rounds_ms: tuple[tuple[float, ...], ...]

    def median_ms(self, number: int) -> float:
        """Return the time of a pass of one network, median over the rounds."""
        return statistics.median(self.rounds_ms[number])

    def speedup(self, number: int, over: int = 0) -> Speedup:
        """Return how many times as fast one network is as another."""
        pairs = zip(self.rounds_ms[over], self.rounds_ms[number], strict=True)
        low, middle, high = statistics.quantiles([slow / fast for slow, fast in pairs], n=4, method="inclusive")
        return Speedup(middle, low, high)


def race(
    runs: Sequence[Callable[[], object]],
    *,
    rounds: int = 11,
    seconds: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time what :meth:`Runtime.prepare` returned, one after the other in every round.

    Parameters
    ----------
    runs
        One for each network.
    rounds
        At least 2. The order is turned about from round to round, so that no network always follows the same one.
    seconds
        For how long each network is run in a round; a round has three passes at least.
    clock
        Tells seconds. `time.thread_time` leaves out what other programs take, where one thread does all the work.

    Raises
    ------
    ArgumentError
        If there are no networks, or fewer than two rounds.
    """
    if not runs:
        raise ArgumentError("runs=[] holds nothing to time; give what Runtime.prepare returned, one for each network")
    if not isinstance(rounds, int) or rounds < 2:
        raise ArgumentError(f"rounds must be a whole number of at least 2, but got rounds={rounds!r}")
    passes = [max(3, round(seconds / max(1e-6, statistics.median(_time(run, 3, clock))))) for run in runs]
    found: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        turn = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for at in turn:
            found[at].append(1000 * statistics.median(_time(runs[at], passes[at], clock)))
    return Race(tuple(tuple(times) for times in found))


def _time(run: Callable[[], object], passes: int, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of several passes, the first of which does not count."""
    run()
    times = []
    for _ in range(passes):
        began = clock()
        run()
        times.append(clock() - began)
    return times
