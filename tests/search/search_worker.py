"""A search that can be killed: `python search_worker.py FILE LOG [join]`. Each evaluation is a line in LOG."""

import os
import sys
import time
from pathlib import Path

from clusterprune.search import SearchResult, search, work

SPACE = {"a": (1, 24), "b": (1, 48), "c": (1, 48)}
START = {"a": 12, "b": 20, "c": 30}
BEST = {"a": 17, "b": 33, "c": 22}


def fitness(widths: dict[str, int]) -> float:
    return -sum(abs(widths[name] - best) + 3 * ((widths[name] - best) % 4 > 1) for name, best in BEST.items())


def run(file: Path | None = None, *, log: Path | None = None, seconds: float = 0.0, **given: object) -> SearchResult:
    def logged(widths: dict[str, int]) -> float:
        if log is not None:
            with log.open("a") as lines:
                lines.write(f"{os.getpid()} {sorted(widths.items())}\n")
        time.sleep(seconds)
        return fitness(widths)

    if given.pop("join", False):
        return work(file, "search", logged)
    return search(SPACE, logged, start=START, storage=file, seed=3, **given)


if __name__ == "__main__":
    run(Path(sys.argv[1]), log=Path(sys.argv[2]), seconds=float(sys.argv[3]), join="join" in sys.argv)
