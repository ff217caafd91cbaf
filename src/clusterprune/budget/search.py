"""The one search for a budget: turn a single knob until the target is just met, then spend what that left."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Found = TypeVar("Found")
Key = TypeVar("Key")


def search(
    at: Callable[[float], Found | None],
    fits: Callable[[Found], bool],
    *,
    tight: float,
    loose: float,
    steps: int = 30,
) -> Found | None:
    """Return what the loosest value of a knob makes that fits, by bisection; None if nothing that was made fits.

    Parameters
    ----------
    at
        Makes something of a value of the knob, or None where it cannot be made so tight.
    fits
        Whether that is within the budget. It should be monotone: what is tighter than something that fits, fits.
    tight, loose
        Between which values to look, neither of which is tried; `tight` may be above `loose`.
    steps
        How often the interval is halved.
    """
    best: Found | None = None
    for _ in range(steps):
        middle = (tight + loose) / 2
        made = at(middle)
        if made is not None and fits(made):
            best, tight = made, middle
        elif made is None:
            tight = middle
        else:
            loose = middle
    return best


def spend(
    found: Found,
    keys: Iterable[Key],
    widen: Callable[[Found, list[Key]], tuple[Key, Found | None]],
    fits: Callable[[Found], bool],
) -> Found:
    """Widen what a search has found, step by step, as long as it fits.

    A knob that moves everything at once can leave much of a budget unused: one more ε may join two large clusters, and
    layers of one width grow all together.

    Parameters
    ----------
    keys
        What can be widened.
    widen
        Says of what is still open which is widened next, and what comes of it; None if it is as wide as it can be.
    fits
        Whether that is within the budget. What does not fit once is not tried again.
    """
    waiting = list(keys)
    while waiting:
        key, wider = widen(found, waiting)
        if wider is None or not fits(wider):
            waiting.remove(key)
        else:
            found = wider
    return found
