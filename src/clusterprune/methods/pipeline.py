"""Every method behind one call: a task in, a compact and trained network out, resumable wherever it was stopped.

    oneshot, l1, l2, fpgm, bn_scale, hrank, taylor, random     cut once, then train for a while or not at all
    sfp                                                        zero the weakest filters while training, then cut
    icp                                                        cut and train by turns
    acp                                                        search for the widths, cut, train
    cp                                                         make filters identical while training, then cut

What this is for: a command line, a recipe, and a comparison in which all methods get the same network, budget and
schedule. Whoever writes Python calls the methods themselves.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune import data, evaluate, train
from clusterprune.data import Split
from clusterprune.errors import ArgumentError
from clusterprune.files.locking import alone
from clusterprune.files.writing import read_record, run_folder, write_json
from clusterprune.graph import ChannelGraph, trace
from clusterprune.merge.statistics import Progress as Report
from clusterprune.methods.cp import cluster_prune, for_macs, without_batch_norm
from clusterprune.methods.criteria import prune_by
from clusterprune.methods.icp import icp
from clusterprune.methods.layers import inner_groups
from clusterprune.methods.oneshot import oneshot
from clusterprune.methods.settings import METHODS, TRAINED, read_method
from clusterprune.methods.soft_pruning import SoftPruning
from clusterprune.methods.targets import check_met
from clusterprune.plan import Plan
from clusterprune.surgery import compact
from clusterprune.surgery.apply import apply
from clusterprune.tables import facts_of, html_part, html_records, html_table, network_of
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

RECORD_NAME = "method.json"


@dataclass(frozen=True, eq=False)
class Task:
    """What a method works on.

    Attributes
    ----------
    model
        The network, trained, on its device; never changed.
    example
        One input, shape (1, c, h, w), on the device.
    train, validation
        Labelled images to train on, and others held out of them; None where nothing is to be watched or chosen.
    mean, std
        Per channel, of images in [0, 1].
    factory
        Makes the network anew, with random weights drawn from PyTorch's generator.
    whole
        `train` and `validation` together, for what trains after all is chosen (ACP's last training); None is `train`.
    approximate
        Whether norms over the channels may be cut, as :func:`clusterprune.trace` says.
    """

    model: nn.Module
    example: Tensor
    train: Split
    validation: Split | None
    mean: Sequence[float]
    std: Sequence[float]
    factory: Callable[[], nn.Module]
    whole: Split | None = None
    approximate: bool = False

    @cached_property
    def purpose(self) -> Classification:
        """What the network is for, with its data."""
        return Classification(self.train, self.validation, mean=self.mean, std=self.std, whole=self.whole)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method made.

    Attributes
    ----------
    model
        The compact network, in evaluation mode.
    cut
        The network right after its last cut, before the training that followed; None where training came first (CP,
        soft pruning).
    plan
        From the task's network to it; None where several plans followed one another (ICP), or the cut network was
        another than the task's (CP, soft pruning).
    record
        Facts for a report, as JSON has them.
    """

    model: nn.Module
    cut: nn.Module | None
    plan: Plan | None
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say how large the network is, what is known of it in one word each, and by which plan it was cut."""
        facts = [f"{name}={value}" for name, value in facts_of(self.record).items()]
        plan = [] if self.plan is None else [f"plan={self.plan!r}"]
        return f"<Outcome: {', '.join([network_of(self.model), *facts, *plan])}>"

    def _repr_html_(self) -> str:
        """Describe the outcome as tables for a notebook: the facts, what was recorded step by step, and the plan."""
        facts = html_table(("fact", "value"), facts_of(self.record).items())
        steps = [html_records(value) for value in self.record.values() if isinstance(value, list)]
        plan = [] if self.plan is None else [self.plan._repr_html_()]
        return html_part(f"Outcome: {network_of(self.model)}", facts, *steps, *plan)


Watch = Callable[[str, train.Progress], None]


@dataclass(frozen=True, eq=False)
class _Call:
    """A task, what to do with it, and where; the rest is told to the caller as it goes."""

    task: Task
    settings: Mapping[str, Any]
    training: TrainConfig | None
    seed: int
    folder: Path
    report: Report
    watch: Watch
    about: Mapping[str, Any] | None = None

    def read(self, method: str) -> tuple[Any, Any]:
        epochs = None if self.training is None else self.training.epochs
        return read_method(method, self.settings, seed=self.seed, epochs=epochs)

    def graph(self) -> ChannelGraph:
        return trace(self.task.model, self.task.example, approximate=self.task.approximate)

    def watching(self, phase: str) -> Callable[[train.Progress], None]:
        return lambda event: self.watch(phase, event)

    def images(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Draw training images: normalised, on the device; and their labels."""
        task = self.task
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(self.seed))
        drawn = task.train.subset(order[: min(count, len(order))])
        pixels, labels = drawn.load()
        return data.normalize(pixels, task.mean, task.std).to(task.example.device), labels

    def train(self, model: nn.Module, phase: str, **more: Any) -> list[dict[str, Any]]:
        """Train in place, from where it was stopped; return the record of every epoch."""
        if self.training is None:
            return []
        task = self.task
        return train.fit(
            model, task.purpose, self.training, out=self.folder / "training", resume=True,
            progress=self.watching(phase), **more,
        ).history  # fmt: skip


def compress(
    task: Task,
    method: str,
    settings: Mapping[str, Any],
    *,
    training: TrainConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    report: Report | None = None,
    watch: Watch | None = None,
    about: Mapping[str, Any] | None = None,
) -> Outcome:
    """Compress a network by any method.

    Parameters
    ----------
    method
        One of `METHODS`.
    settings
        By name, as plain values: what :func:`clusterprune.methods.settings.read_method` accepts.
    training
        The training of the method's own, or after the cut: of ICP the last one, whose settings but the epochs hold
        for those between as well. None is allowed where a method can do without.
    seed
        Of everything.
    out
        Folder of the run. What is finished there is not done again. None keeps nothing.
    report
        Called with (phase, done, total) where there is no training to watch.
    watch
        Called with the name of a phase, and what :func:`clusterprune.train.fit` reports in it.
    about
        What ACP tells those who want to join its search (:func:`clusterprune.search.begun`), as JSON has it.

    Raises
    ------
    ArgumentError
        If a method or a setting does not exist, or does not accept its value; or a method needs `training` or labels.
    BudgetError
        If a target cannot be reached.
    TrainingError, OutputError, ModelError
        As :func:`clusterprune.train.fit`.
    """
    if method not in METHODS:
        raise ArgumentError(f"method={method!r} is not known; choose from {', '.join(METHODS)}")
    check_approximate(method, approximate=task.approximate)
    if training is None and method in TRAINED:
        raise ArgumentError(f"method={method!r} trains, but training=None; give a TrainConfig")
    if training is not None:
        training = TrainConfig(**{**training.model_dump(), "seed": seed})
    ways: dict[str, Callable[[_Call], Outcome]] = {"icp": _icp, "acp": _acp, "cp": _cp, "sfp": _sfp}
    way = ways.get(method, lambda call: _cut(call, method))
    with alone(out), run_folder(out) as folder:
        call = _Call(task, settings, training, seed, folder, report or _silent, watch or _unwatched, about)
        return way(call)


def check_approximate(method: str, *, approximate: bool) -> None:
    """Check that a method can cut norms over the channels, if it is asked to.

    Raises
    ------
    ArgumentError
        If it is CP.
    """
    if approximate and method == "cp":
        raise ArgumentError(
            "approximate is not for method='cp', which cuts convolutions that a batch norm follows; leave it out"
        )


def _cut(call: _Call, method: str) -> Outcome:
    """Cut once by a criterion or in one shot, then train if asked to."""
    settings, _ = call.read(method)
    graph = call.graph()

    def choose() -> Plan:
        images, labels = call.images(settings.images)
        common: dict[str, Any] = {
            name: getattr(settings, name)
            for name in ("keep_macs", "keep_params", "keep_latency", "round_to", "min_width", "ignore")
        }
        part = graph.only(inner_groups(graph)) if settings.layers == "inner" else graph
        common |= {"seed": call.seed, "progress": call.report}
        if method == "oneshot":
            return oneshot(part, images, **common)
        more = {"scope": settings.scope, "merging": settings.merge}
        return prune_by(part, method, images=images, labels=labels, **more, **common)  # type: ignore[arg-type]

    plan = _kept(call, choose)
    cut = apply(call.task.model, plan, graph=graph).eval()
    record = _once(call.folder / RECORD_NAME, lambda: {"accuracy_cut": _accuracy(call.task, cut)})
    small = copy.deepcopy(cut)
    history = call.train(small, "train")
    return Outcome(small.eval(), cut, plan, {**record, **_training_record(history)})


def _sfp(call: _Call) -> Outcome:
    """Train with soft pruning, then drop what is zero."""
    settings, _ = call.read("sfp")
    network = _network(call, scratch=settings.scratch)
    graph = trace(network, call.task.example, approximate=call.task.approximate)
    part = graph.only(inner_groups(graph)) if settings.layers == "inner" else graph
    hook = SoftPruning(
        part, keep_macs=settings.keep_macs, keep_params=settings.keep_params, round_to=settings.round_to,
        min_width=settings.min_width, ignore=settings.ignore,
    )  # fmt: skip
    history = call.train(network, "train and prune", hook=hook)
    graph = trace(network, call.task.example, approximate=call.task.approximate)
    small = apply(network.eval(), hook.finish(), graph=graph)
    return Outcome(small.eval(), None, None, _training_record(history))


def _icp(call: _Call) -> Outcome:
    """Iterative clustering pruning."""
    task, training = call.task, _needed(call.training)
    config, _ = call.read("icp")
    config = replace(config, approximate=config.approximate or task.approximate)
    made = icp(
        task.model, task.train, task.validation, config=config, training=training, mean=task.mean, std=task.std,
        out=call.folder / "icp", resume=True, progress=call.watch, report=call.report,
    )  # fmt: skip
    last = call.folder / "icp" / f"step-{config.steps}" / "cut" / "compact"
    cut = compact.load(last, lambda: copy.deepcopy(task.model).cpu()).to(task.example.device)
    return Outcome(made.model, cut, None, {"steps": [vars(step) for step in made.steps]})


def _acp(call: _Call) -> Outcome:
    """Automatic channel pruning: search, cut, retrain."""
    from clusterprune.methods.acp import acp, candidate_training, retrain  # Optuna takes a while to import

    task, training = call.task, _needed(call.training)
    if task.validation is None:
        raise ArgumentError("method='acp' compares structures on validation images; hold some out of the training set")
    config, more = call.read("acp")
    validation, graph, candidates = task.validation, call.graph(), candidate_training(training, more.fitness_epochs)
    common: dict[str, Any] = {"mean": task.mean, "std": task.std, "factory": task.factory}

    def choose() -> Plan:
        found = acp(
            task.model, graph, task.train, validation, config=config, training=candidates, **common,
            storage=more.storage, name=more.study, about=call.about, out=call.folder, progress=call.report,
        )  # fmt: skip
        facts = {"start": dict(found.start), "best": dict(found.best), "fitness": found.value}
        return replace(found.plan, notes={**found.plan.notes, **facts, "evaluations": len(found.history)})

    plan = _kept(call, choose)
    images, watched = (task.train, validation) if task.whole is None else (task.whole, None)
    small, result = retrain(
        graph, plan, images, watched, training=training, equal_macs=more.equal_macs, inherit=more.retraining_inherits,
        **common, out=call.folder / "training", resume=True, progress=call.watching("retrain"),
    )  # fmt: skip
    record = {name: plan.notes[name] for name in ("start", "best", "fitness", "evaluations")}
    cut = apply(task.model, plan, graph=graph).eval()
    return Outcome(small, cut, plan, {**record, **_training_record(result.history)})


def _cp(call: _Call) -> Outcome:
    """Cluster pruning: train, then channel addition."""
    task, training = call.task, _needed(call.training)
    config, more = call.read("cp")
    network = _network(call, scratch=more.scratch)
    if more.keep_macs is not None:
        graph = trace(network, task.example)
        if config.batch_norm == "removed":
            graph = trace(without_batch_norm(network, graph, config.layers), task.example)
        config = for_macs(graph, more.keep_macs, config)
    made = cluster_prune(
        network, task.train, task.validation, config=config, train_config=training, mean=task.mean, std=task.std,
        out=call.folder / "training", resume=True, progress=call.watching("train and cluster"),
    )  # fmt: skip
    if more.keep_macs is not None:
        left = evaluate.macs(made.compact, task.example) / evaluate.macs(network, task.example)
        check_met("macs", more.keep_macs, left, "clusters of identical filters could not be made finer")
    return Outcome(made.compact.eval(), None, None, {"config": repr(config), **_training_record(made.history)})


def _network(call: _Call, *, scratch: bool) -> nn.Module:
    """Return a copy of the task's network, or one with random weights."""
    if not scratch:
        return copy.deepcopy(call.task.model)
    with torch.random.fork_rng():
        torch.manual_seed(call.seed)
        return call.task.factory().to(call.task.example.device)


def _kept(call: _Call, choose: Callable[[], Plan]) -> Plan:
    """Return the plan in the run's folder; choose it, and put it there, if there is none."""
    folder = call.folder / "plan"
    if not folder.exists():
        choose().save(folder)
    return Plan.load(folder)


def _once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured before a run was stopped; measure if nothing was."""
    if not path.exists():
        write_json(path, measure())
    return read_record(path, dict[str, Any])


def _accuracy(task: Task, model: nn.Module) -> float | None:
    """Return the validation accuracy in percent."""
    if task.validation is None:
        return None
    return evaluate.metrics(model, task.purpose, task.validation).deciding


def _training_record(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not history:
        return {}
    seconds = sum(epoch["seconds"] for epoch in history)
    return {"epochs": len(history), "seconds": round(seconds, 3), "accuracy": history[-1]["validation_accuracy"]}


def _needed(training: TrainConfig | None) -> TrainConfig:
    if training is None:
        raise ArgumentError("training=None, but the method trains; give a TrainConfig")
    return training


def _silent(phase: str, done: int, total: int) -> None:
    """Report no progress."""


def _unwatched(phase: str, event: train.Progress) -> None:
    """Watch no training."""
