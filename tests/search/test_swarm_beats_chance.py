"""The swarm against random search: 20 rugged landscapes, 36 evaluations each, the same start."""

from collections.abc import Callable

import numpy as np
from scipy.stats import wilcoxon

from clusterprune.search import search

RANGES = {f"layer{i}": (1, width) for i, width in enumerate([16] * 4 + [32] * 4 + [64] * 4)}
WIDTHS = np.array([high for _, high in RANGES.values()])


def landscape(seed: int) -> tuple[Callable[[dict], float], dict[str, int]]:
    """Return a bowl full of ripples, and a start some 15 % of each range from its bottom: as clustering gives."""
    draw = np.random.default_rng(1000 + seed)
    optimum = draw.uniform(0.2, 0.8, 12) * WIDTHS
    period, depth = draw.uniform(3, 8, 12), draw.uniform(0.005, 0.015, 12)

    def fitness(structure: dict[str, int]) -> float:
        away = np.array([structure[name] for name in RANGES]) - optimum
        return -float(np.sum((away / WIDTHS) ** 2 + depth * (1 - np.cos(2 * np.pi * away / period))))

    start = np.clip(np.round(optimum + draw.normal(0, 0.15, 12) * WIDTHS), 1, WIDTHS).astype(int)
    return fitness, dict(zip(RANGES, start.tolist(), strict=True))


def test_the_swarm_is_better_than_random_search() -> None:
    found: dict[str, list[float]] = {"swarm": [], "random": [], "random near the start": [], "start": []}
    for seed in range(20):
        fitness, start = landscape(seed)
        near = {
            name: (max(1, round(start[name] - 0.2 * high)), min(high, round(start[name] + 0.2 * high)))
            for name, (_, high) in RANGES.items()
        }
        found["swarm"].append(search(RANGES, fitness, start=start, seed=seed).value)
        for name, space in (("random", RANGES), ("random near the start", near)):
            found[name].append(search(space, fitness, start=start, seed=seed, sampler="random").value)
        found["start"].append(fitness(start))
    p = {name: wilcoxon(found["swarm"], found[name], alternative="greater").pvalue for name in found if name != "swarm"}
    assert p["start"] < 1e-4
    assert p["random"] < 1e-4
    assert p["random near the start"] < 0.05
