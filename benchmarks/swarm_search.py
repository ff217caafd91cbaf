"""The particle swarm beside random search at equal evaluations, and two workers beside one.

Claims under test
-----------------
1. On rugged synthetic landscapes the swarm finds a better structure in 36 evaluations than random search does, when it
   starts near the optimum, as clustering lets it. (From anywhere, 36 evaluations are too few for it to get there.)
2. Two workers finish a search of 36 evaluations in less than 60 % of one worker's time, and evaluate nothing twice.

How to run
----------
    python benchmarks/swarm_search.py

The swarm's speed limit is a tenth of each range (`velocity_max=None`).
A landscape has twelve widths of up to 16, 32 or 64, as a ResNet's layers; its optimum, the length and the depth of its
ripples differ by seed. Every method gets the same 20 landscapes, 36 evaluations, and, if it can use one, the same
start: "near" is 15 % (one standard deviation) of each range from the optimum, "anywhere" is uniform. Random search near
the start is uniform within 20 % of each range. A p-value is that of Wilcoxon's signed-rank test, one-sided, over the
landscapes: how often chance alone would put the swarm so far ahead.

The workers are processes with a SQLite file; an evaluation is a sleep of 0.8 to 1.2 s, so that no core is needed.
The clock runs from the first evaluation to the last, as the start of a Python process is not the search's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import wilcoxon

from clusterprune.search import ParticleSwarmSampler, search

RESULTS = Path(__file__).parent / "results" / "swarm_search.json"
RANGES = {f"layer{i}": (1, width) for i, width in enumerate([16] * 4 + [32] * 4 + [64] * 4)}
EVALUATIONS = 36
Widths = Mapping[str, int]


def landscape(seed: int) -> tuple[Callable[[Widths], float], dict[str, dict[str, int]]]:
    """Return a fitness with many local optima, and where a search may start."""
    draw = np.random.default_rng(seed)
    widths = np.array([high for _, high in RANGES.values()])
    optimum = draw.uniform(0.2, 0.8, len(widths)) * widths
    period = draw.uniform(3, 8, len(widths))
    depth = draw.uniform(0.005, 0.015, len(widths))

    def fitness(structure: Widths) -> float:
        away = np.array([structure[name] for name in RANGES]) - optimum
        ripples = depth * (1 - np.cos(2 * np.pi * away / period))
        return -float(np.sum((away / widths) ** 2) + np.sum(ripples))

    near = np.clip(np.round(optimum + draw.normal(0, 0.15, len(widths)) * widths), 1, widths)
    anywhere = draw.integers(1, widths + 1)
    starts = {"near": near, "anywhere": anywhere}
    return fitness, {name: dict(zip(RANGES, map(int, start), strict=True)) for name, start in starts.items()}


def near_only(start: Widths) -> dict[str, tuple[int, int]]:
    """Return the ranges within a fifth of each around a start."""
    return {
        name: (max(low, round(start[name] - 0.2 * high)), min(high, round(start[name] + 0.2 * high)))
        for name, (low, high) in RANGES.items()
    }


def compare(seeds: int) -> dict[str, object]:
    """Search every landscape by every method."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        fitness, starts = landscape(seed)
        for where, start in starts.items():
            methods = {
                "swarm": lambda f=fitness, s=start, k=seed: (
                    search(RANGES, f, start=s, seed=k, sampler=ParticleSwarmSampler(s, velocity_max=None, seed=k)).value
                ),
                "random": lambda f=fitness, s=start, k=seed: search(RANGES, f, start=s, seed=k, sampler="random").value,
                "random near the start": lambda f=fitness, s=start, k=seed: (
                    search(near_only(s), f, start=s, seed=k, sampler="random").value
                ),
                "TPE": lambda f=fitness, s=start, k=seed: search(RANGES, f, start=s, seed=k, sampler="tpe").value,
                "the start itself": lambda f=fitness, s=start: f(s),
            }
            for name, run in methods.items():
                found.setdefault(where, {}).setdefault(name, []).append(run())
    rows = {}
    for where, values in found.items():
        swarm = np.array(values["swarm"])
        for name, others in values.items():
            row: dict[str, object] = {"mean": round(float(np.mean(others)), 4), "values": [round(v, 4) for v in others]}
            if name != "swarm":
                row["swarm_better_in"] = int((swarm > others).sum())
                row["p"] = float(f"{wilcoxon(swarm, others, alternative='greater').pvalue:.3g}")
            rows[f"{where}/{name}"] = row
    return rows


def slow(log: Path) -> Callable[[Widths], float]:
    """Return a fitness that takes 0.8 to 1.2 s and writes down when it began and ended."""
    fitness, _ = landscape(0)

    def evaluate(structure: Widths) -> float:
        began = time.time()
        value = fitness(structure)
        time.sleep(0.8 + 0.4 * (value * 1000 % 1))
        with log.open("a") as lines:
            lines.write(json.dumps([began, time.time(), sorted(structure.items())]) + "\n")
        return value

    return evaluate


def workers(count: int) -> dict[str, object]:
    """Let some processes share a search; return the seconds from the first evaluation to the last."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "search.db", Path(folder) / "log"
        command = [sys.executable, __file__, "--work", str(file), str(log)]
        processes = [subprocess.Popen(command) for _ in range(count)]
        for process in processes:
            process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = max(end for _, end, _ in lines) - min(begin for begin, _, _ in lines)
    structures = {json.dumps(structure) for _, _, structure in lines}
    return {"seconds": round(seconds, 2), "evaluations": len(lines), "structures": len(structures)}


def main() -> None:
    """Run both parts and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=["landscapes", "workers"], help="only this part; the other is kept as it was")
    parser.add_argument("--work", nargs=2, metavar=("FILE", "LOG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        file, log = given.work
        search(RANGES, slow(Path(log)), start=landscape(0)[1]["near"], storage=file)
        return
    known = json.loads(given.results.read_text()) if given.part else {}
    load = os.getloadavg()[0]
    rows = known["landscapes"] if given.part == "workers" else compare(given.seeds)
    times = known["workers"] if given.part == "landscapes" else {str(count): workers(count) for count in (1, 2)}
    table = Table(title=f"Mean best fitness over {given.seeds} landscapes, {EVALUATIONS} evaluations (0 is perfect)")
    for title in ("start / method", "mean", "swarm better in", "p"):
        table.add_column(title)
    for name, row in rows.items():
        table.add_row(name, f"{row['mean']:.3f}", str(row.get("swarm_better_in", "")), str(row.get("p", "")))
    console = Console()
    console.print(table)
    for count, row in times.items():
        console.print(
            f"{count} worker(s): {row['seconds']} s, {row['evaluations']} evaluations of {row['structures']} structures"
        )
    console.print(f"two workers take {times['2']['seconds'] / times['1']['seconds']:.0%} of one worker's time")
    document = {
        "benchmark": "swarm_search",
        "command": "python benchmarks/swarm_search.py" + (f" --seeds {given.seeds}" if given.seeds != 20 else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "environment": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": round(load, 1),
            "python": platform.python_version(),
            **{name: version(name) for name in ("clusterprune", "optuna", "numpy", "scipy")},
        },
        "landscapes": rows,
        "workers": times,
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
