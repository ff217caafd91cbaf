"""The search of ACP: the fitness of a structure, and the swarm that looks for the best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clusterprune import data, evaluate
from clusterprune.arguments import check_instance
from clusterprune.budget.allocation import CostModel
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.images import Images, Progress
from clusterprune.merge import FreeMergingName
from clusterprune.methods.acp_structures import Factory, WidthPlanner, from_random, macs_of, scaled_to
from clusterprune.methods.cuts import Aim, Cut, Keep
from clusterprune.methods.layers import with_followers
from clusterprune.methods.targets import check_plan
from clusterprune.plan import Plan
from clusterprune.search import Evaluation, Fitness, search
from clusterprune.surgery.apply import apply
from clusterprune.tables import first_widths, plural
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig, fit, here
from clusterprune.train.config import resolve_precision

if TYPE_CHECKING:
    from clusterprune.methods.acp import ACP

FITNESS_TRAINING = TrainConfig(
    epochs=3, schedule="constant", lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4, batch_size=64
)
"""How the paper trains a candidate on CIFAR: three epochs."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the search has chosen.

    Attributes
    ----------
    plan
        The best structure, with what `merging` hands over.
    start, best
        C' and C*: width of each group.
    value
        Fitness of C*: percent correct on the validation images; None where there were no cycles.
    history
        Every structure that was looked at.
    study, storage
        Name and URL of the Optuna study; storage is empty if it was kept in memory, or there is none.
    """

    plan: Plan
    start: Mapping[str, int]
    best: Mapping[str, int]
    value: float | None
    history: tuple[Evaluation, ...]
    study: str
    storage: str

    def __repr__(self) -> str:
        """Say how good the best structure is, among how many, and how wide its first groups are."""
        if self.value is None:
            return f"<Found without a search: {first_widths(self.best)}>"
        return (
            f"<Found: fitness {self.value:.6g} in study {self.study!r}, best of "
            f"{plural(len(self.history), 'structure')}: {first_widths(self.best)}>"
        )


def find(
    fitness: "StructureFitness",
    evaluate: Fitness | None = None,
    *,
    storage: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Found:
    """Search for the best widths around C'.

    A search that was stopped goes on when it is called again with the same arguments. Others may join it, with
    :func:`clusterprune.search.work` and the fitness and repair of a :class:`StructureFitness` of the same arguments.

    Parameters
    ----------
    evaluate
        Called in place of the fitness for every structure of the search.
    storage, about
        Of the study, as in :func:`clusterprune.search.search`; a storage in the settings comes before this one.
    progress
        Called with (phase, done, total); the phase is "structures".

    Raises
    ------
    ArgumentError
        If the study was begun with other arguments.
    BudgetError
        If `keep_macs` cannot be reached.
    ClusterpruneError
        If no structure can be evaluated.
    """
    config, graph, start = fitness.config, fitness.graph, fitness.start
    if not config.cycles:
        plan, start = _noted(fitness, start, config.study), with_followers(graph, start)
        return Found(plan, start, start, None, (), config.study, "")
    groups = {name: graph.by_name[name] for name in start}
    sampler, evaluations = config.sampling(start, fitness.seed)
    found = search(
        {name: (group.n_blocks, group.width, group.n_blocks) for name, group in groups.items()},
        evaluate or fitness,
        start=start,
        storage=config.storage or storage,
        name=config.study,
        sampler=sampler,
        evaluations=evaluations,
        seed=fitness.seed,
        repair=fitness.repair,
        about=about,
        progress=None if progress is None else lambda _, done, total: progress("structures", done, total),
    )
    best, value = dict(found.best), found.value
    if config.fitness == "merge" and (untouched := fitness(start)) > value:
        best, value = start, untouched
    plan = _noted(fitness, best, found.name)
    start, best = with_followers(graph, start), with_followers(graph, best)
    return Found(plan, start, best, value, found.history, found.name, found.storage)


def _noted(fitness: "StructureFitness", widths: Mapping[str, int], study: str) -> Plan:
    """Return the plan of the structure that was chosen, having checked that it meets the target."""
    config = fitness.config
    notes = {"method": config.name, "config": repr(config), "widths": with_followers(fitness.graph, widths)}
    plan = replace(fitness.plan(widths, merge=config.merging), notes={**notes, "study": study})
    if config.keep_macs is not None:
        check_plan(CostModel(fitness.graph), "macs", config.keep_macs, plan)
    return plan


def widths_of(
    graph: ChannelGraph, images: Images, cut: Cut, keep: Keep, *, task: Aim | None = None, seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, int]:  # fmt: skip
    """Return C': by group, as many channels as a cut keeps (Algorithm 1, line 2)."""
    plan = cut.narrow().plan(graph, images, keep, task=task, seed=seed, progress=progress)
    kept = {merge.group: len(merge.kept) for merge in plan.merges}
    return {group.name: kept.get(group.name, group.width) for group in graph.prunable}


class StructureFitness:
    """The fitness of a structure (Eq. 4), measured on validation images in the precision of `training`.

    Attributes
    ----------
    graph
        Restricted to the layers that may be cut.
    images
        The normalised samples.
    start
        C', of each width that is searched for: a follower has its leader's. One that is given, as a worker takes it
        from the search, is not looked for again.
    limit
        Most multiply-adds that a structure may have; :meth:`repair` sees to it.

    What it looks at before the first structure, it reports to `progress` as (phase, done, total).
    """

    def __init__(
        self,
        graph: ChannelGraph,
        task: Task,
        config: "ACP",
        *,
        training: TrainConfig = FITNESS_TRAINING,
        seed: int = 0,
        factory: Factory | None = None,
        start: Mapping[str, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_graph(graph)
        check_instance("training", training, TrainConfig, "write TrainConfig(epochs=10)")
        for name, split in (("train", task.train), ("validation", task.validation)):
            if split is None or not len(split):
                raise ArgumentError(f"{name} must hold images; hold some out of the training images")
        if config.samples > len(task.train):
            raise ArgumentError(f"samples={config.samples} images are to be compared, but train has {len(task.train)}")
        self.graph = config.cut.layers_of(graph.freeze(config.ignore))
        self.task, self.config, self.training = task, config, training
        self.seed, self.factory = seed, factory
        device = next(iter(graph.model.parameters())).device
        # A fitness that trains may do it on another device than the model's, and looks to its own precision.
        self._precision = resolve_precision(training.precision, device) if config.fitness == "merge" else None
        self.images: Tensor = task.normalize(data.sample(task.train, config.samples, seed).load()[0]).to(device)
        keep = Keep(config.keep_macs)
        found: Mapping[str, int] = start or here().once(
            lambda: widths_of(self.graph, self.images, config.cut, keep, task=task, seed=seed, progress=progress)
        )
        self.start = {group: width for group, width in found.items() if group not in self.graph.leaders}
        self.limit = math.inf
        if config.keep_macs is not None:
            self.limit = config.keep_macs * macs_of(self.graph, {}) * (1 + 1e-9)
        elif config.fitness == "merge":
            self.limit = macs_of(self.graph, self.start)
        by = config.fitness_merging if config.fitness == "merge" and config.cycles else "drop"
        self._planner = WidthPlanner(self.graph, self.images, merge=by, divergence=task, seed=seed, progress=progress)

    def repair(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the structure scaled to the multiply-adds it may have; without a limit, as it is."""
        return dict(widths) if math.isinf(self.limit) else scaled_to(self.graph, widths, self.limit)

    def plan(self, widths: Mapping[str, int], *, merge: FreeMergingName | None = None) -> Plan:
        """Return the plan of a structure by which its fitness is measured, or one that hands over by `merge`."""
        return self._planner(widths, merge=merge)

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Return percent correct."""
        plan = self.plan(widths)
        if self.config.fitness == "merge" or self.config.candidates_inherit:
            small = apply(self.graph.model, plan, graph=self.graph)
        else:
            small = from_random(self.graph, plan, factory=self.factory, seed=self.seed)
        task = self.task
        if self.config.fitness == "merge":
            assert task.validation is not None  # noqa: S101 (checked above; for the type checker)
            return evaluate.metrics(small, task, task.validation, dtype=self._precision).deciding
        return fit(small, task, self.training).validation or 0.0
