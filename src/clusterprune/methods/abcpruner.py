"""ABCPruner (Lin et al. 2020, arXiv 2001.08565): a bee colony looks for the widths of a network, which is then trained.

n structures ← each layer as wide as chance has it
repeat for a few cycles
    employed bees and onlookers look near them, scouts elsewhere            (clusterprune.search.BeeColonySampler)
        fitness: how good it is on held-out images, after a few epochs with weights of the original
train the best structure, from weights of the original

It is ACP with other insects: all but where structures come from is ACP's (:mod:`clusterprune.methods.acp`). The paper
bounds what a layer may keep; here, as for all methods, structures are scaled to the multiply-adds asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clusterprune.methods._settings import fixed, option
from clusterprune.methods.acp import ACP
from clusterprune.methods.cuts import CriterionCut, Cut
from clusterprune.search import BeeColonySampler
from clusterprune.train import TrainConfig


@dataclass(frozen=True)
class ABCPruner(ACP):
    """ACP with a colony of bees in place of clusters and swarm.

    Attributes
    ----------
    keep_macs
        Share of the multiply-adds that every structure of the search is scaled to.
    samples
        Training images by which channels are merged; none are compared.
    foods
        How many structures the colony knows.
    limit
        How often nothing better is found near one until it is given up.
    cycles
        Of the colony, each of which looks at twice as many structures as there are foods.
    fitness
        "train": how good a structure is after a few epochs, as published. "merge": right after merging.
    merging
        What the kept channels of the best structure take over: nothing, as published, or what "least_squares" or
        "refit" finds.
    candidates_inherit, retraining_inherits
        Whether candidates, and the best structure, begin with weights of the original, as published.
    equal_macs
        Whether the last training is longer by the factor by which the network is faster, as ACP's.
    """

    name: ClassVar[str] = "abcpruner"
    training: ClassVar[TrainConfig | None] = TrainConfig(
        epochs=150, lr=0.01, schedule="step", milestones=(1 / 3, 2 / 3), weight_decay=5e-4, batch_size=128
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {"fitness": "train"},
        "ours": {"samples": 1024, "fitness": "merge", "merging": "refit"},
    }
    parts: ClassVar[dict[str, dict[str, type[Any]]]] = {}
    renamed: ClassVar[dict[str, str]] = {}

    cut: Cut = fixed(CriterionCut("l1", layers="inner"))  # noqa: RUF009 (a field)
    foods: int = 3
    limit: int = 2
    cycles: int = 2
    particles: int = fixed(1)
    velocity_max: float | None = fixed(None)
    sampler: Literal["swarm", "tpe", "random"] = fixed("swarm")
    fitness_epochs: int = 2
    candidates_inherit: bool = True
    retraining_inherits: bool = True
    equal_macs: bool = False
    study: str = option("abcpruner", "NAME", panel="Search")

    def sampling(self, start: Mapping[str, int], seed: int) -> tuple[BeeColonySampler, int]:
        """Return the colony, and how many structures it looks at."""
        del start  # the first of the sources; the others are anywhere
        return BeeColonySampler(self.foods, self.limit, seed=seed), self.foods * (1 + 2 * self.cycles)
