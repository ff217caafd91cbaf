"""How many examples there are of one thought: a few in every run of the suite, all in that of the slow tests."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

MANY = "CLUSTERPRUNE_MANY_EXAMPLES"


def examples(most: int) -> int:
    """Return how many of so many examples hypothesis draws in this run: all, or a quarter."""
    return most if os.environ.get(MANY) else max(3, most // 4)


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test: the first ones are for every run, the others for that of the slow tests."""
    return [value if number < count else _slow(value) for number, value in enumerate(values)]


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test: one in so many is for every run, the others for that of the slow tests."""
    return [_slow(value) if number % step else value for number, value in enumerate(values)]


def _slow(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.slow])
