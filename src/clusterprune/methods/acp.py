"""ACP: cluster the channels, let a swarm look around for a better structure, train that one (arXiv 2101.06407).

    C' ← clusters and noise points of the mean feature maps of every layer         (lines 1-2, Eq. 1)
    particles start around C' and move for a few cycles                            (lines 3-24, Eqs. 3, 5-7)
        fitness: accuracy on held-out training images, after a few epochs          (Eq. 4)
    C* ← the best structure that any particle met
    train C* from random weights for as many multiply-adds as the original took    (:func:`retrain`)

Ours: a fitness without training. What a structure's kept channels can take over by least squares tells how good
it is, in the time of one pass over the validation images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from clusterprune import data, evaluate
from clusterprune.arguments import check_graph, check_instance, check_model, check_statistics
from clusterprune.budget.allocation import CostModel
from clusterprune.clustering import DBSCAN
from clusterprune.data import Split
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, Progress
from clusterprune.merge import FreeMergingName
from clusterprune.methods.acp_structures import Factory, WidthPlanner, from_random, macs_of, scaled_to
from clusterprune.methods.clustered import cluster
from clusterprune.methods.layers import published_layers, with_followers
from clusterprune.methods.oneshot import OneShot, oneshot
from clusterprune.methods.targets import check_knob, check_plan
from clusterprune.plan import Plan
from clusterprune.search import Evaluation, ParticleSwarmSampler, search
from clusterprune.search.settings import SamplerName
from clusterprune.surgery.apply import apply
from clusterprune.tables import first_widths, plural
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig, TrainResult, fit
from clusterprune.train.config import resolve_precision

_PAPER: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "batch_size": 64}
FITNESS_TRAINING = TrainConfig(epochs=3, schedule="constant", **_PAPER)
"""How the paper trains a candidate on CIFAR: three epochs."""
RETRAINING = TrainConfig(epochs=160, schedule="step", milestones=(0.5, 0.75), **_PAPER)
"""How the paper trains on CIFAR; the epochs are those of the original network."""


@dataclass(frozen=True)
class ACP:
    """Settings; the defaults are the published ones, but for `samples`.

    Attributes
    ----------
    eps
        ε of DBSCAN.
    keep_macs
        Instead of ε: the fraction of multiply-adds that C', and any structure of the search, may have. C' has the
        smallest ε that does it, and every structure of the search is scaled to this size before it is evaluated.
    min_samples
        MinPts of DBSCAN.
    by
        Where C' comes from: "clusters", as published, or the widths that :func:`clusterprune.oneshot` chooses for
        `keep_macs`.
    layers
        "inner", the papers' choice (:func:`clusterprune.inner_groups`, one width for a bottleneck), or "all" that may
        be cut.
    samples
        Training images whose mean feature maps are compared, and on which channels are merged. The paper says
        "numerous", the released code takes 200.
    particles, cycles, velocity_max
        Of the swarm; as :class:`clusterprune.search.ParticleSwarmSampler`. No cycles are no search, the paper's
        "without PSO": C' is taken as it is.
    sampler
        "swarm" as published; "tpe" or "random" search as many structures.
    fitness
        "train": accuracy after a few epochs, as published, with no bound on a structure's size but `keep_macs`.
        "merge": accuracy right after merging. More channels are then never worse, so structures are scaled to the
        multiply-adds of C' or `keep_macs`; and C' itself, which no particle starts at, is looked at too.
    fitness_merge
        How "merge" hands over the work of removed channels.
    merge
        How the resulting plan does. The published retraining starts from random weights, so "drop" is enough.
    candidates_inherit
        Whether candidates that train keep the weights of the original, as in the released code, or start from random
        ones; the paper leaves it open. Whether the last training does is for :func:`retrain` to say.
    ignore
        Globs of layers to leave alone.
    seed
        Of the samples, the swarm, and random weights.
    """

    eps: float | None = None
    keep_macs: float | None = None
    min_samples: int = 5
    by: Literal["clusters", "oneshot"] = "clusters"
    layers: Literal["inner", "all"] = "inner"
    samples: int = 256
    particles: int = 6
    cycles: int = 5
    velocity_max: float | None = 2.0
    sampler: SamplerName = "swarm"
    fitness: Literal["train", "merge"] = "train"
    fitness_merge: FreeMergingName = "least_squares"
    merge: FreeMergingName = "drop"
    candidates_inherit: bool = False
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what nothing else checks."""
        check_knob(self.eps, self.keep_macs, self.by, self.layers, "between 0.005 and 0.3")
        for name, least in (("particles", 1), ("cycles", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ArgumentError(f"{name} must be a whole number of at least {least}, but got {name}={value!r}")
        if self.fitness not in ("train", "merge"):
            raise ArgumentError(f"fitness must be 'train' or 'merge', but got fitness={self.fitness!r}")
        for name in ("merge", "fitness_merge"):
            if getattr(self, name) not in ("drop", "least_squares", "refit"):
                raise ArgumentError(
                    f"{name} must be 'drop', 'least_squares' or 'refit', but got {name}={getattr(self, name)!r}"
                )
        if self.sampler == "nsga2":
            raise ArgumentError("sampler='nsga2' is for two objectives, but accuracy is one; use 'swarm' or 'tpe'")


@dataclass(frozen=True, eq=False)
class ACPResult:
    """What ACP has chosen.

    Attributes
    ----------
    plan
        The best structure, with what `merge` hands over.
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
            return f"<ACPResult without a search: {first_widths(self.best)}>"
        return (
            f"<ACPResult: fitness {self.value:.6g} in study {self.study!r}, best of "
            f"{plural(len(self.history), 'structure')}: {first_widths(self.best)}>"
        )


def acp(
    model: nn.Module,
    graph: ChannelGraph,
    train: Split,
    validation: Split,
    *,
    config: ACP,
    training: TrainConfig = FITNESS_TRAINING,
    mean: Sequence[float],
    std: Sequence[float],
    factory: Factory | None = None,
    storage: str | Path | None = None,
    name: str = "acp",
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ACPResult:
    """Plan a compression by clustering and a search for the best widths.

    A search that was stopped goes on when it is called again with the same arguments. Others may join it, with
    :func:`clusterprune.search.work` and the fitness and repair of a :class:`StructureFitness` of the same arguments.

    Parameters
    ----------
    model, graph
        The trained classifier, never changed, and its trace.
    train, validation
        Labelled images to train on, and others held out of them, on which structures are compared. Never the test
        images.
    training
        How a candidate is trained.
    mean, std
        Per channel, of images in [0, 1].
    factory
        Makes a new network with random weights; None: see :func:`reinitialise_`.
    storage, name, out, about
        Of the study, as in :func:`clusterprune.search.search`.
    progress
        Called with (phase, done, total); the phase of the search is "structures".

    Raises
    ------
    ArgumentError
        If an argument does not fit, or the study was begun with others.
    BudgetError
        If `keep_macs` cannot be reached.
    ClusterpruneError
        If no structure can be evaluated.
    """
    check_model(model)
    check_graph(graph)
    if graph.model is not model:
        raise ArgumentError("graph is the trace of another model; give trace(model, example)")
    fitness = StructureFitness(
        graph, train, validation, config=config, training=training, mean=mean, std=std, factory=factory,
        progress=progress,
    )  # fmt: skip
    start, graph = fitness.start, fitness.graph
    if not config.cycles:
        plan, start = _noted(fitness, start, config, name), with_followers(graph, start)
        return ACPResult(plan, start, start, None, (), name, "")
    groups = {name: graph.by_name[name] for name in start}
    sampler = ParticleSwarmSampler(
        start, config.particles, config.cycles, velocity_max=config.velocity_max, seed=config.seed
    )
    found = search(
        {name: (group.n_blocks, group.width, group.n_blocks) for name, group in groups.items()},
        fitness,
        start=start,
        storage=storage,
        name=name,
        sampler=sampler if config.sampler == "swarm" else config.sampler,
        evaluations=config.particles * (config.cycles + 1),
        seed=config.seed,
        repair=fitness.repair,
        out=out,
        about=about,
        progress=None if progress is None else lambda _, done, total: progress("structures", done, total),
    )
    best, value = dict(found.best), found.value
    if config.fitness == "merge" and (untouched := fitness(start)) > value:
        best, value = start, untouched
    plan = _noted(fitness, best, config, found.name)
    start, best = with_followers(graph, start), with_followers(graph, best)
    return ACPResult(plan, start, best, value, found.history, found.name, found.storage)


def _noted(fitness: "StructureFitness", widths: Mapping[str, int], config: ACP, study: str) -> Plan:
    """Return the plan of the structure that was chosen, having checked that it meets the target."""
    notes = {"method": "acp", "config": repr(config), "widths": with_followers(fitness.graph, widths), "study": study}
    plan = replace(fitness.plan(widths, merge=config.merge), notes=notes)
    if config.keep_macs is not None:
        check_plan(CostModel(fitness.graph), "macs", config.keep_macs, plan)
    return plan


def candidate_training(training: TrainConfig, epochs: int) -> TrainConfig:
    """Return how a candidate of a run is trained: as published, on the run's device and with its augmentation."""
    same = {name: getattr(training, name) for name in ("device", "precision", "augment", "seed")}
    return TrainConfig(**{**FITNESS_TRAINING.model_dump(), "epochs": epochs, **same})


def clustered_widths(
    graph: ChannelGraph, images: Images, config: ACP, progress: Progress | None = None
) -> dict[str, int]:
    """Return C': by group, the number of clusters and noise points of its mean feature maps (Algorithm 1, line 2)."""
    if config.by == "oneshot":
        quick = OneShot(refit=None)
        plan = oneshot(graph, images, keep_macs=config.keep_macs, seed=config.seed, config=quick, progress=progress)
    else:
        clustering = DBSCAN(eps=0.02 if config.eps is None else config.eps, min_samples=config.min_samples)
        plan = cluster(
            graph, images, clustering=clustering, merging="drop", survivors="l1", keep_macs=config.keep_macs,
            progress=progress,
        )  # fmt: skip
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
        train: Split,
        validation: Split,
        *,
        config: ACP,
        training: TrainConfig = FITNESS_TRAINING,
        mean: Sequence[float],
        std: Sequence[float],
        factory: Factory | None = None,
        start: Mapping[str, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_graph(graph)
        check_instance("config", config, ACP, "write ACP(eps=0.02)")
        check_instance("training", training, TrainConfig, "write TrainConfig(epochs=10)")
        mean, std = check_statistics(mean, std)
        for name, split in (("train", train), ("validation", validation)):
            check_instance(name, split, Split, "Split.from_tensors makes one of labelled images")
            if split.labels is None or not len(split):
                raise ArgumentError(f"{name} must hold labelled images; hold some out of the training images")
        if config.samples > len(train):
            raise ArgumentError(f"samples={config.samples} images are to be compared, but train has {len(train)}")
        frozen = graph.freeze(config.ignore)
        self.graph = published_layers(frozen) if config.layers == "inner" else frozen
        self.train, self.validation, self.config, self.training = train, validation, config, training
        self.mean, self.std, self.factory = mean, std, factory
        device = next(iter(graph.model.parameters())).device
        # A fitness that trains may do it on another device than the model's, and looks to its own precision.
        self._precision = resolve_precision(training.precision, device) if config.fitness == "merge" else None
        pixels = data.sample(train, config.samples, config.seed).load()[0]
        self.images: Tensor = data.normalize(pixels, mean, std).to(device)
        if start is None:
            start = clustered_widths(self.graph, self.images, config, progress)
        self.start = {group: width for group, width in start.items() if group not in self.graph.leaders}
        self.limit = math.inf
        if config.keep_macs is not None:
            self.limit = config.keep_macs * macs_of(self.graph, {}) * (1 + 1e-9)
        elif config.fitness == "merge":
            self.limit = macs_of(self.graph, self.start)
        by = config.fitness_merge if config.fitness == "merge" and config.cycles else "drop"
        self._planner = WidthPlanner(self.graph, self.images, merge=by, seed=config.seed, progress=progress)

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
            small = from_random(self.graph, plan, factory=self.factory, seed=self.config.seed)
        task = Classification(self.train, self.validation, mean=self.mean, std=self.std)
        if self.config.fitness == "merge":
            return evaluate.metrics(small, task, self.validation, dtype=self._precision).deciding
        return fit(small, task, self.training).validation or 0.0


def retrain_epochs(original: int, before_macs: float, after_macs: float) -> int:
    """Return the epochs in which a compact network does as many multiply-adds as the original did in its own.

    "The number of training epochs of the original network multiplied by the accelerating rate" (section III-C).
    """
    if original < 1 or not 0 < after_macs <= before_macs:
        raise ArgumentError(
            "original must be at least 1 and after_macs positive and no more than before_macs, but got "
            f"original={original}, before_macs={before_macs:g}, after_macs={after_macs:g}"
        )
    return round(original * before_macs / after_macs)


def retrain(
    graph: ChannelGraph,
    plan: Plan,
    train: Split,
    validation: Split | None = None,
    *,
    training: TrainConfig = RETRAINING,
    equal_macs: bool = True,
    inherit: bool = False,
    factory: Factory | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Any], None] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Train the structure of a plan, and return the compact network with the record of its training.

    Parameters
    ----------
    training
        How the original was trained; with `equal_macs` the epochs are :func:`retrain_epochs` of its epochs.
    inherit
        Begin with what the plan leaves of the original's weights, not with random ones.
    factory
        As in :func:`acp`.
    out, resume, progress
        As in :func:`clusterprune.train.fit`.
    """
    if inherit:
        small = apply(graph.model, plan, graph=graph)
    else:
        small = from_random(graph, plan, factory=factory, seed=training.seed)
    if equal_macs:
        before, after = evaluate.macs(graph.model, graph.example), evaluate.macs(small, graph.example)
        training = TrainConfig(**{**training.model_dump(), "epochs": retrain_epochs(training.epochs, before, after)})
    task = Classification(train, validation, mean=mean, std=std)
    trained = fit(small, task, training, out=out, resume=resume, progress=progress)
    return small.eval(), trained
