# pyright: reportUnknownArgumentType=false
"""What a method works on, where and how, and what it makes."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clusterprune import evaluate, train
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.files.writing import begun_with, read_record, write_json
from clusterprune.graph import ChannelGraph, trace
from clusterprune.graph.images import Images, silent
from clusterprune.graph.images import Progress as Report
from clusterprune.graph.put_back import seeded
from clusterprune.methods._cut_record import record_cut
from clusterprune.models.reinitialise import reinitialise_
from clusterprune.plan import Plan
from clusterprune.tables import facts_of, html_part, html_records, html_table, network_of
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig, here

Watch = Callable[[str, train.Progress], None]
ASKED_NAME = "asked.json"
PLAN_NAME = "plan"


@dataclass(frozen=True, eq=False)
class Network:
    """What is made smaller.

    Attributes
    ----------
    model
        The network, trained, on its device; never changed.
    example
        One input, shape (1, c, h, w), on the device.
    factory
        Makes the network anew, with random weights drawn from PyTorch's generator. None: its layers draw theirs anew.
    approximate
        Whether norms over the channels may be cut, as :func:`clusterprune.trace` says.
    """

    model: nn.Module
    example: Tensor
    factory: Callable[[], nn.Module] | None = None
    approximate: bool = False

    def graph(self, ignore: Sequence[str] = ()) -> ChannelGraph:
        """Return the trace."""
        return trace(self.model, self.example, ignore=ignore, approximate=self.approximate)

    def copy(self, seed: int | None = None) -> nn.Module:
        """Return a copy of the model; with a seed, one with random weights.

        Raises
        ------
        ModelError
            If random weights are asked for, there is no factory, and a layer does not know how to draw its own.
        """
        if seed is None:
            return copy.deepcopy(self.model)
        if self.factory is None:
            return reinitialise_(copy.deepcopy(self.model), seed)
        with seeded(seed):
            return self.factory().to(self.example.device)


def score(task: Task, model: nn.Module) -> float | None:
    """Return how good a network is on held-out images, by what decides in its task; None where nothing is held out."""
    held_out = task.validation
    if held_out is None:
        return None
    return here().once(lambda: evaluate.metrics(model, task, held_out).deciding)


def unwatched(phase: str, event: train.Progress) -> None:
    """Watch no training."""


def untold(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class Work:
    """Where and how a method runs.

    Of several processes all have one, and come together in what it does: they train by shares, and the main process
    alone chooses plans, measures, writes and reports.

    Attributes
    ----------
    folder
        What is finished there is not done again. None keeps nothing. Processes on several machines need one that all
        of them see.
    training
        The training of the method's own, or after its last cut; of methods that train between cuts, those are like it
        but for their epochs. None is allowed where a method can do without.
    seed
        Of everything.
    resume
        Whether to go on where a run in the folder was left; begin where there is none.
    images
        Unlabelled images that a cut before any training looks at; None takes training images.
    report
        Called with (phase, done, total) where there is no training to watch.
    watch
        Called with the name of a phase, and what :func:`clusterprune.train.fit` reports in it.
    tell
        Called with a sentence that whoever waits should read.
    memory
        What runs of one network at several budgets have in common, by name: the same mapping for each of them. None
        shares nothing.
    about
        What a search tells those who want to join it (:func:`clusterprune.search.study_header`), as JSON has it.
    """

    folder: str | Path | None = None
    training: TrainConfig | None = None
    seed: int = 0
    resume: bool = False
    images: Split | None = None
    report: Report = silent
    watch: Watch = unwatched
    tell: Callable[[str], None] = untold
    memory: dict[str, Any] | None = None
    about: Mapping[str, Any] | None = None

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what an earlier run of several has made, or make it."""
        if self.memory is None:
            return make()
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    @property
    def place(self) -> Path:
        """The folder, of a run that has begun."""
        return Path(self.folder or ".")

    def needed(self) -> TrainConfig:
        """Return the training, of a method that cannot do without."""
        if self.training is None:
            raise ArgumentError("training=None, but the method trains; give a TrainConfig")
        return self.training

    def fit(
        self, model: nn.Module, task: Task, phase: str, *, folder: str = "training", whole: bool = False, **more: Any
    ) -> train.TrainResult:
        """Train a network in place by the run's training, from where it was stopped.

        Parameters
        ----------
        folder
            Of the training, within the run's.
        whole
            Train on held-out images too, if the task has them together.
        more
            As :func:`clusterprune.train.fit` takes it.
        """
        if whole and task.whole is not None:
            task = task.on(task.whole)
        return train.fit(
            model, task, self.needed(), out=self.place / folder, resume=True,
            progress=lambda event: self.watch(phase, event), **more,
        )  # fmt: skip

    def has_plan(self, name: str = PLAN_NAME) -> bool:
        """Tell whether :meth:`plan` has one already."""
        return here().once((self.place / name).exists)

    def plan(self, choose: Callable[[], Plan], name: str = PLAN_NAME) -> Plan:
        """Return the plan in the run's folder; choose it, and put it there, if there is none."""
        folder = self.place / name
        here().once(lambda: None if folder.exists() else choose().save(folder))
        return Plan.load(folder)

    def record_cut(self, graph: ChannelGraph, plan: Plan, images: Callable[[], Images | None]) -> None:
        """Leave in the run's folder what a report shows of the first cut: what is frozen, and which channels are alike.

        Parameters
        ----------
        images
            Returns normalised inputs, or None where there are none; called only if there is something to draw.
        """
        here().once(lambda: record_cut(self.place, graph, plan, images))

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured before a run was stopped; measure if nothing was."""
        path = self.place / name
        here().once(lambda: None if path.exists() else write_json(path, measure()))
        return read_record(path, dict[str, Any])

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Note in the run's folder what is asked for, or compare it with what was.

        Raises
        ------
        OutputError
            If the folder holds a run, and it is not to be resumed.
        ArgumentError
            If that was begun with something else, or this process does not see the folder.
        """
        path, processes = self.place / ASKED_NAME, here()
        found = processes.once(lambda: begun_with(path, asked))
        if not path.exists():
            raise ArgumentError(
                f"folder={str(self.folder)!r} is not seen by process {processes.rank}; give one that all machines share"
            )
        if found is None:
            return
        if not self.resume:
            raise OutputError(f"folder={str(self.folder)!r} already holds a run; pass resume=True, or another folder")
        before, now = found
        for name in now:
            if now[name] != before.get(name):
                raise ArgumentError(
                    f"{self.folder} was begun with other {name}, {before.get(name)!r}, than asked for now, "
                    f"{now[name]!r}; give the same, or another folder"
                )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method made.

    Attributes
    ----------
    model
        The compact network, in evaluation mode.
    cut
        The network right after its last cut, before the training that followed; None where training came first.
    plan
        From the network that was given to it; None where several plans followed one another, or the cut network was
        another than the given one.
    record
        Facts for a report, as JSON has them.
    """

    model: nn.Module
    cut: nn.Module | None
    plan: Plan | None
    record: dict[str, Any] = field(default_factory=dict[str, Any])

    def __repr__(self) -> str:
        """Say how large the network is, what is known of it in one word each, and by which plan it was cut."""
        facts = [f"{name}={value}" for name, value in facts_of(self.record).items()]
        plan = [] if self.plan is None else [f"plan={self.plan!r}"]
        return f"<Outcome: {', '.join([network_of(self.model), *facts, *plan])}>"

    def _repr_html_(self) -> str:
        """Describe the outcome as tables for a notebook: the facts, what was recorded step by step, and the plan."""
        facts = html_table(("fact", "value"), facts_of(self.record).items())
        steps = [html_records(value) for value in self.record.values() if isinstance(value, list)]
        plan = [] if self.plan is None else [self.plan._repr_html_()]  # pyright: ignore[reportPrivateUsage]
        return html_part(f"Outcome: {network_of(self.model)}", facts, *steps, *plan)


def trained_record(result: train.TrainResult) -> dict[str, Any]:
    """Return what a record says of a training: how long it was, and how good the network was at its end."""
    if not result.history:
        return {}
    seconds = sum(epoch["seconds"] for epoch in result.history)
    return {"epochs": len(result.history), "seconds": round(seconds, 3), "accuracy": result.validation}
