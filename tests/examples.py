"""How many examples hypothesis draws: a quarter in every run of the suite, all of them in that of the slow tests."""

import os

MANY = "CLUSTERPRUNE_MANY_EXAMPLES"


def examples(most: int) -> int:
    """Return how many of so many examples are drawn in this run."""
    return most if os.environ.get(MANY) else max(3, most // 4)
