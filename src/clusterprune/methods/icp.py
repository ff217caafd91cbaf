"""ICP: cut and learn by turns, under the guidance of the original network.

    S ← the original network T
    repeat n times:
        cluster the channels of S's inner convolutions by their mean feature maps; keep as many as
            there are clusters and noise points
        train S for a few epochs, guided by T                        (the last time: to the end)

What T has to say is in :class:`clusterprune.train.Guidance`; how a step is kept on disk, and found there by a run that
goes on, in :mod:`clusterprune.methods.icp_steps`.
"""

import copy
import functools
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clusterprune import data, evaluate
from clusterprune.errors import ArgumentError, BudgetWarning
from clusterprune.graph import ChannelGraph
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import Network, Outcome, Work
from clusterprune.methods.cuts import CUTS, ClusterCut, Cut, Keep
from clusterprune.methods.icp_steps import Steps
from clusterprune.methods.targets import check_met
from clusterprune.plan import Plan
from clusterprune.tasks import Task
from clusterprune.train import Guidance, TrainConfig
from clusterprune.train.config import resolve_device


@dataclass(frozen=True)
class ICP(Method):
    """Iterative clustering pruning; the defaults are the published ones for CIFAR, but for `samples`.

    Attributes
    ----------
    keep_macs
        The fraction of multiply-adds to keep in the end. Every step takes an equal share of what is left to cut.
    cut
        What a cut goes by: "clusters" of mean feature maps, as published, or all that the one-shot compressor knows
        ("oneshot"); that wants 1,024 samples.
    steps
        How often the network is cut.
    epochs_between
        Epochs after each cut but the last; after that, those of the training.
    temperature, alpha, beta, stages
        Of the guidance.
    samples
        Training images whose mean feature maps are compared, and on which work is handed over; a refit wants 1,024. The
        released code takes a batch of 128.
    carry_momentum
        Whether the optimizer's momentum follows the channels from step to step, which is ours; as released, the
        optimizer starts anew at each cut.
    ignore
        Layers or groups of these names, or globs, are left alone.
    """

    name: ClassVar[str] = "icp"
    training: ClassVar[TrainConfig | None] = TrainConfig(
        epochs=200, lr=0.1, momentum=0.9, nesterov=False, weight_decay=2e-4, batch_size=128, schedule="cosine"
    )
    """How the released code trains on CIFAR, between the cuts as after the last."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {"samples": 128},
        "imagenet": {"steps": 5, "epochs_between": 4, "alpha": 0.5, "beta": 50.0},
        "ours": {"cut": "oneshot", "samples": 1024, "carry_momentum": True},
    }
    parts: ClassVar[dict[str, dict[str, type[Any]]]] = {"cut": CUTS}
    renamed: ClassVar[dict[str, str]] = {"merge": "it is called merging", "by": "it is called cut"}
    in_epochs: ClassVar[tuple[str, ...]] = ("epochs_between",)
    in_images: ClassVar[tuple[str, ...]] = ("samples",)

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    cut: Cut = ClusterCut()  # noqa: RUF009 (frozen)
    steps: int = option(3, "N")
    epochs_between: int = 10
    temperature: float = 20.0
    alpha: float = 0.3
    beta: float = 1.0
    stages: tuple[str, ...] | Literal["auto"] = "auto"
    samples: int = 256
    carry_momentum: bool = False
    ignore: tuple[str, ...] = option((), "GLOB")

    def __post_init__(self) -> None:
        """Check the numbers; what the cut and the guidance are given is checked by them."""
        self.cut.check(Keep(self.keep_macs))
        for name in ("steps", "epochs_between", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, but got {name}={value!r}")

    @classmethod
    def within(cls, epochs: int) -> dict[str, Any]:
        """Return the settings of a comparison: a fifth of the epochs after each cut but the last."""
        return {"steps": 3, "epochs_between": max(1, epochs // 5)}

    def last_epochs(self, epochs: int) -> int:
        """Return how many epochs are left for the last training."""
        last = epochs - (self.steps - 1) * self.epochs_between
        if last < 1:
            raise ArgumentError(
                f"epochs={epochs} are too few for {self.name} with steps={self.steps} and "
                f"epochs_between={self.epochs_between}; give more epochs, or fewer steps"
            )
        return last

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Cut and train by turns."""
        if self.samples > len(task.train):
            raise ArgumentError(
                f"samples={self.samples} images are to be compared, but train has {len(task.train)}; lower samples"
            )
        device = resolve_device(work.needed())
        images = task.normalize(data.sample(task.train, self.samples, work.seed).load()[0]).to(device)
        teacher = replace(network, model=copy.deepcopy(network.model).eval().to(device), example=images[:1])
        guidance = Guidance(
            teacher.model, task, temperature=self.temperature, alpha=self.alpha, beta=self.beta, stages=self.stages
        )
        steps = Steps(work, teacher, task, guidance, self.steps, self.ignore, self.carry_momentum)
        student, momentum, records = teacher.model, {}, [steps.measured(teacher.model)]
        for number in range(1, self.steps + 1):
            choose = functools.partial(self._choose, number, self._share(number, student, teacher), images, task, work)
            student, momentum = steps.cut(number, student, momentum, choose)
            momentum, done = steps.train(number, student, momentum, self._training(number, work))
            records.append(done)
        if self.keep_macs is not None:
            check_met("macs", self.keep_macs, records[-1].macs / records[0].macs, "the cuts could not be made finer")
        record = {"steps": [asdict(one) for one in records]}
        return Outcome(student.eval(), steps.cut_of(self.steps), None, record)

    def _share(self, number: int, student: nn.Module, teacher: Network) -> Keep:
        """Return what this cut keeps, so that the product over all cuts is the target."""
        if self.keep_macs is None:
            return Keep()
        left = evaluate.macs(student, teacher.example) / evaluate.macs(teacher.model, teacher.example)
        return Keep(min(1.0, (self.keep_macs / left) ** (1 / (self.steps - number + 1))))

    def _choose(self, number: int, keep: Keep, images: Tensor, task: Task, work: Work, graph: ChannelGraph) -> Plan:
        """Return the plan of one cut."""

        def tell(phase: str, done: int, total: int) -> None:
            work.report(f"cut {number} of {self.steps}: {phase}", done, total)

        with warnings.catch_warnings():
            # What one cut leaves unused the next one gets; what counts is the end.
            warnings.simplefilter("ignore", BudgetWarning)
            plan = self.cut.plan(graph, images, keep, task=task, seed=work.seed, progress=tell)
        if number == 1:
            work.record_cut(graph, plan, lambda: images)
        return plan

    def _training(self, number: int, work: Work) -> TrainConfig:
        """Return the training after a cut."""
        own = work.needed()
        epochs = own.epochs if number == self.steps else self.epochs_between
        return own.changed(epochs=epochs, seed=work.seed + number)
