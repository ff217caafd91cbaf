"""Checks of the options that the algorithms share; each raises ArgumentError."""

import math
from numbers import Integral, Real

from clusterprune.errors import ArgumentError

_LARGEST_SEED = 2**32 - 1


def check_integer(name: str, value: object, minimum: int) -> None:
    """``value`` must be an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}, but got {name}={value!r}.")


def check_seed(seed: int) -> None:
    """``seed`` must be what NumPy takes for one: 0 to 2³² − 1."""
    check_integer("seed", seed, 0)
    if seed > _LARGEST_SEED:
        raise ArgumentError(f"seed must be at most {_LARGEST_SEED}, but got seed={seed!r}.")


def check_positive(name: str, value: object, *, zero: bool = False, infinite: bool = False) -> None:
    """``value`` must be a positive number; ``zero`` and ``infinite`` allow those too."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or math.isnan(value)
        or (math.isinf(value) and not infinite)
        or value < 0
        or (value == 0 and not zero)
    ):
        rule = "a number of at least 0" if zero else "a number above 0"
        raise ArgumentError(f"{name} must be {rule}, but got {name}={value!r}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """``value`` must be one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, but got {name}={value!r}.")


def check_bool(name: str, value: object) -> None:
    """``value`` must be True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} must be True or False, but got {name}={value!r}.")


def check_n_clusters(n_clusters: int, n_points: int) -> None:
    """There must be no more clusters than points."""
    if n_clusters > n_points:
        raise ArgumentError(
            f"n_clusters must be at most the number of channels, {n_points}, but got "
            f"n_clusters={n_clusters}; ask for fewer clusters."
        )
