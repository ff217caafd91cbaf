"""ACP: cluster the channels, let a swarm look around for a better structure, train that one (arXiv 2101.06407).

    C' ← clusters and noise points of the mean feature maps of every layer         (lines 1-2, Eq. 1)
    particles start around C' and move for a few cycles                            (lines 3-24, Eqs. 3, 5-7)
        fitness: its worth on held-out training images, after a few epochs         (Eq. 4)
    C* ← the best structure that any particle met
    train C* from random weights for as many multiply-adds as the original took    (:func:`retrain_epochs`)

Ours: a fitness without training. What a structure's kept channels can take over by least squares tells how good
it is, in the time of one pass over the validation images. The search is in :mod:`clusterprune.methods.acp_search`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from optuna.samplers import BaseSampler

from clusterprune import evaluate
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.merge import FreeMergingName
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import PLAN_NAME, Network, Outcome, Work, trained_record
from clusterprune.methods.acp_search import FITNESS_TRAINING, StructureFitness, find
from clusterprune.methods.acp_structures import from_random
from clusterprune.methods.cuts import CUTS, ClusterCut, Cut, Keep
from clusterprune.plan import Plan
from clusterprune.search import Fitness, OnEvaluation, ParticleSwarmSampler, SamplerName, SearchResult
from clusterprune.search import work as join
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig, here

FACTS = ("start", "best", "fitness", "evaluations", "history")
"""What the plan's notes say of the search."""


@dataclass(frozen=True)
class ACP(Method):
    """Automatic channel pruning; the defaults are the published ones, but for `samples`.

    Attributes
    ----------
    keep_macs
        The fraction of multiply-adds that C', and any structure of the search, may have. Every structure of the search
        is scaled to this size before it is evaluated.
    cut
        Where C' comes from: "clusters" of mean feature maps, as published, or the widths that the one-shot compressor
        chooses ("oneshot").
    samples
        Training images whose mean feature maps are compared, and on which channels are merged. The paper says
        "numerous", the released code takes 200.
    particles, cycles, velocity_max
        Of the swarm; as :class:`clusterprune.search.ParticleSwarmSampler`. No cycles are no search, the paper's
        "without PSO": C' is taken as it is.
    sampler
        "swarm" as published; "tpe" or "random" search as many structures.
    fitness
        "train": its worth after a few epochs, as published, with no bound on a structure's size but `keep_macs`.
        "merge": its worth right after merging. More channels are then never worse, so structures are scaled to the
        multiply-adds of C' or `keep_macs`; and C' itself, which no particle starts at, is looked at too.
    fitness_epochs
        How long a candidate is trained.
    fitness_merging
        How "merge" hands over the work of removed channels.
    merging
        How the resulting plan does. The published last training starts from random weights, so "drop" is enough.
    candidates_inherit
        Whether candidates that train keep the weights of the original, as in the released code, or start from random
        ones; the paper leaves it open.
    retraining_inherits
        Whether the last training begins with what is left of the original's weights, or with random ones, as published.
    equal_macs
        Whether the last training is longer by the factor by which the network is faster; see :func:`retrain_epochs`.
    storage
        Where the search is kept, so that 'clusterprune worker' can join: a file, sqlite:///… or postgresql://…; None is
        a file in the run's folder.
    study
        Name of the search in the storage.
    ignore
        Layers or groups of these names, or globs, are left alone.
    """

    name: ClassVar[str] = "acp"
    training: ClassVar[TrainConfig | None] = FITNESS_TRAINING.changed(
        epochs=160, schedule="step", milestones=(0.5, 0.75)
    )
    """How the paper trains on CIFAR; the epochs are those of the original network."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {"samples": 200},
        "ours": {
            "cut": "oneshot", "samples": 1024, "fitness": "merge", "merging": "refit", "velocity_max": None,
            "candidates_inherit": True, "retraining_inherits": True,
        },
    }  # fmt: skip
    parts: ClassVar[dict[str, dict[str, type[Any]]]] = {"cut": CUTS}
    renamed: ClassVar[dict[str, str]] = {
        "inherit": (
            "candidates that train and the last training inherit weights by settings of their own; give "
            "candidates_inherit, retraining_inherits or both"
        ),
        "merge": "it is called merging",
        "fitness_merge": "it is called fitness_merging",
        "by": "it is called cut",
    }
    in_epochs: ClassVar[tuple[str, ...]] = ("fitness_epochs",)
    in_images: ClassVar[tuple[str, ...]] = ("samples",)
    chooses: ClassVar[bool] = True

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    cut: Cut = ClusterCut()  # noqa: RUF009 (frozen)
    samples: int = 256
    particles: int = 6
    cycles: int = 5
    velocity_max: float | None = 2.0
    sampler: Literal["swarm", "tpe", "random"] = "swarm"
    fitness: Literal["train", "merge"] = "train"
    fitness_epochs: int = 3
    fitness_merging: FreeMergingName = "least_squares"
    merging: FreeMergingName = "drop"
    candidates_inherit: bool = False
    retraining_inherits: bool = False
    equal_macs: bool = True
    storage: str | None = option(None, "URL", panel="Search")
    study: str = option("acp", "NAME", panel="Search")
    ignore: tuple[str, ...] = option((), "GLOB")

    def __post_init__(self) -> None:
        """Check what nothing else checks."""
        self.cut.check(Keep(self.keep_macs))
        for name, least in (("particles", 1), ("cycles", 0), ("fitness_epochs", 1), ("samples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ArgumentError(f"{name} must be a whole number of at least {least}, but got {name}={value!r}")
        choices = {
            "sampler": ("swarm", "tpe", "random"),
            "fitness": ("train", "merge"),
            **dict.fromkeys(("merging", "fitness_merging"), ("drop", "least_squares", "refit")),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(known)}, but got {name}={getattr(self, name)!r}")

    def sampling(self, start: Mapping[str, int], seed: int) -> tuple[SamplerName | BaseSampler, int]:
        """Return what draws structures in a search that starts from C', and how many it draws."""
        count = self.particles * (self.cycles + 1)
        if self.sampler != "swarm":
            return self.sampler, count
        swarm = ParticleSwarmSampler(start, self.particles, self.cycles, velocity_max=self.velocity_max, seed=seed)
        return swarm, count

    @property
    def joined_at(self) -> tuple[str | None, str]:
        """Storage and name of the search."""
        return self.storage, self.study

    @classmethod
    def within(cls, epochs: int) -> dict[str, Any]:
        """Return the settings of a comparison: the last training is as long as all others'."""
        del epochs
        return {"equal_macs": False}

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Search for the widths, cut, train."""
        graph = network.graph()
        plan = self._search(network, graph, task, work)
        if self.retraining_inherits:
            small = apply(network.model, plan, graph=graph)
        else:
            small = from_random(graph, plan, factory=network.factory, seed=work.seed)
        training = work.needed()
        if self.equal_macs:
            sizes = evaluate.macs(network.model, graph.example), evaluate.macs(small, graph.example)
            epochs = retrain_epochs(training.epochs, *sizes)
            training = training.changed(epochs=epochs)
        trained = replace(work, training=training).fit(small, task, "retrain", whole=True)
        cut = apply(network.model, plan, graph=graph).eval()
        record = {name: plan.notes.get(name) for name in FACTS}
        return Outcome(small.eval(), cut, plan, record | trained_record(trained))

    def candidate_training(self, training: TrainConfig) -> TrainConfig:
        """Return how a candidate of a run is trained: as published, on the run's device and with its augmentation."""
        same = {name: getattr(training, name) for name in ("device", "precision", "augment", "seed")}
        return FITNESS_TRAINING.changed(epochs=self.fitness_epochs, **same)

    def _search(self, network: Network, graph: ChannelGraph, task: Task, work: Work) -> Plan:
        """Return the plan of the best structure, with what was found in its notes.

        The main process asks the swarm; all train the structure that is next.
        """
        if not work.has_plan():
            fitness = StructureFitness(
                graph, task, self, training=self.candidate_training(work.needed()), seed=work.seed,
                factory=network.factory, progress=work.report,
            )  # fmt: skip
            here().led(lambda together: self._choose(fitness, together, work).save(work.place / PLAN_NAME), fitness)
        return Plan.load(work.place / PLAN_NAME)

    def _choose(self, fitness: StructureFitness, together: Fitness, work: Work) -> Plan:
        evaluate = together if self.fitness == "train" else fitness
        found = find(fitness, evaluate, storage=work.place / "search.db", about=work.about, progress=work.report)
        work.record_cut(fitness.graph, found.plan, lambda: fitness.images)
        values = [None if one.values is None else one.values[0] for one in found.history]
        facts = (dict(found.start), dict(found.best), found.value, len(found.history), values)
        return replace(found.plan, notes={**found.plan.notes, **dict(zip(FACTS, facts, strict=True))})

    def join(
        self,
        network: Network,
        task: Task,
        work: Work,
        *,
        start: Mapping[str, int] | None = None,
        progress: OnEvaluation | None = None,
    ) -> SearchResult:
        """Take part in the search that a run of these settings has begun; return when it is over."""
        if self.storage is None:
            raise ArgumentError("storage is missing; name the one that the run keeps its search in")
        training = self.candidate_training(work.needed().changed(seed=work.seed))
        fitness = StructureFitness(
            network.graph(), task, self, training=training, seed=work.seed, factory=network.factory, start=start,
            progress=work.report,
        )  # fmt: skip
        return join(self.storage, self.study, fitness, repair=fitness.repair, progress=progress)


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
