"""The steps of ICP on disk: what makes a run that was killed go on as if nothing had happened.

Every step leaves its cut and its training in a folder of its own, and nothing is carried from one to the next but
through these files: ``step-N/cut/`` (plan, compact network, momentum), ``step-N/training/`` and, when it is done,
``step-N/step.json``.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from clusterprune import evaluate
from clusterprune.errors import WeightsError
from clusterprune.files.reading import ReadError
from clusterprune.files.tensors import read_tensors, write_tensors
from clusterprune.files.writing import atomic_folder, write_json
from clusterprune.graph import ChannelGraph
from clusterprune.methods._work import Network, Work, score
from clusterprune.plan import Plan
from clusterprune.surgery import compact
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Task
from clusterprune.train import Guidance, TrainConfig, carry_momentum, here

Momentum = dict[str, Tensor]
"""Of the optimizer, by parameter."""
RECORD_NAME, MOMENTUM_NAME = "step.json", "momentum.safetensors"


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    Attributes
    ----------
    step
        Counted from 1; 0 is the original network.
    params, macs
        Of the network after the cut; multiply-adds for one image.
    accuracy_cut
        Validation accuracy right after the cut, in percent; None without validation images.
    accuracy
        The same after the training that follows.
    epochs
        Length of that training.
    seconds
        Time of that training.
    """

    step: int
    params: int
    macs: int
    accuracy_cut: float | None
    accuracy: float | None
    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Steps:
    """Cuts and trainings of a run, each done once.

    Attributes
    ----------
    work, teacher, task, guidance
        The run, the original network, and what that has to say.
    count
        How many steps there are.
    ignore, carry_momentum
        As of the method.
    """

    work: Work
    teacher: Network
    task: Task
    guidance: Guidance
    count: int
    ignore: tuple[str, ...] = ()
    carry_momentum: bool = False

    def cut(
        self, number: int, student: nn.Module, momentum: Momentum, choose: Callable[[ChannelGraph], Plan]
    ) -> tuple[nn.Module, Momentum]:
        """Cut the student by the plan that is chosen for its graph, unless that is done; return what the files say.

        Raises
        ------
        WeightsError
            If a file is damaged.
        """
        folder = self._folder(number) / "cut"

        def make() -> None:
            if folder.exists():
                return
            graph = replace(self.teacher, model=student).graph(self.ignore)
            plan = choose(graph)
            carried = carry_momentum(momentum, graph, plan) if self.carry_momentum else {}
            with atomic_folder(folder) as temporary:
                plan.save(temporary / "plan")
                compact.save(apply(student, plan, graph=graph), temporary / "compact")
                write_tensors(temporary / MOMENTUM_NAME, carried)

        here().once(make)
        small = self.cut_of(number)
        try:
            carried, _ = read_tensors(folder / MOMENTUM_NAME)
        except ReadError as error:
            raise WeightsError(
                f"{folder / MOMENTUM_NAME} {error}; remove the folder {folder} to have this cut made again"
            ) from error
        return small, carried

    def cut_of(self, number: int) -> nn.Module:
        """Return the network as a step has cut it."""
        whole = self.teacher.model
        small = compact.load(self._folder(number) / "cut" / "compact", lambda: copy.deepcopy(whole).cpu())
        return small.to(self.teacher.example.device)

    def train(
        self, number: int, student: nn.Module, momentum: Momentum, training: TrainConfig
    ) -> tuple[Momentum, StepRecord]:
        """Train the student in place under the teacher's guidance; return its momentum, and what the step did."""
        before = score(self.task, student)
        result = replace(self.work, training=training).fit(
            student, self.task, f"training after cut {number} of {self.count}",
            folder=f"step-{number}/training", loss=self.guidance, momentum=momentum,
        )  # fmt: skip
        student.eval()
        record = replace(
            self.measured(student), step=number, accuracy_cut=before, epochs=training.epochs, seconds=result.seconds
        )
        here().once(lambda: write_json(self._folder(number) / RECORD_NAME, asdict(record)))
        return dict(result.momentum), record

    def measured(self, network: nn.Module) -> StepRecord:
        """Return the record of a network as it is, such as the one that all begins with."""
        found = score(self.task, network)
        return StepRecord(0, evaluate.params(network), evaluate.macs(network, self.teacher.example), found, found)

    def _folder(self, number: int) -> Path:
        return self.work.place / f"step-{number}"
