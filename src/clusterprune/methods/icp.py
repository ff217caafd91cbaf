"""ICP: cut and learn by turns, under the guidance of the original network.

    S ← the original network T
    repeat n times:
        cluster the channels of S's inner convolutions by their mean feature maps; keep as many as
            there are clusters and noise points
        train S for a few epochs, guided by T                        (the last time: to the end)

What T has to say is in :class:`clusterprune.train.Guidance`. Every step leaves its cut and its training in a folder
of its own, and nothing is carried from one to the next but through these files: that is what makes a run that was
killed go on as if nothing had happened.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from clusterprune import data, evaluate
from clusterprune.arguments import check_instance, check_model, check_statistics
from clusterprune.clustering import DBSCAN
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, BudgetWarning, OutputError, WeightsError
from clusterprune.files.locking import alone
from clusterprune.files.reading import ReadError
from clusterprune.files.tensors import read_tensors, write_tensors
from clusterprune.files.writing import atomic_folder, begun_with, run_folder, write_json
from clusterprune.graph import ChannelGraph, trace
from clusterprune.merge import MergingName
from clusterprune.merge.statistics import Progress as Report
from clusterprune.methods.clustered import cluster
from clusterprune.methods.layers import inner_groups, published_layers
from clusterprune.methods.oneshot import oneshot
from clusterprune.methods.targets import check_knob, check_met
from clusterprune.plan import Plan
from clusterprune.similarity import FeatureMaps
from clusterprune.surgery import compact
from clusterprune.surgery.apply import apply
from clusterprune.tables import network_of, plural
from clusterprune.tasks import Classification
from clusterprune.train import Guidance, Progress, TrainConfig, carry_momentum, fit
from clusterprune.train.config import resolve_device

SETTINGS_NAME = "icp.json"
RECORD_NAME = "step.json"
TRAINING = TrainConfig(lr=0.1, momentum=0.9, nesterov=False, weight_decay=2e-4, batch_size=128, schedule="cosine")
"""How the released code trains on CIFAR, between the cuts as after the last; its number of epochs is not used."""

_FREE = {"epochs", "seed", "device", "checkpoint_minutes", "memory_limit_gib"}
"""Training settings that a run may be resumed with other values of, or that do not count here."""


@dataclass(frozen=True)
class ICP:
    """Settings; the defaults are the published ones for CIFAR, but for `samples`.

    Attributes
    ----------
    eps
        ε of DBSCAN, the same in every step.
    keep_macs
        Instead of ε: the fraction of multiply-adds to keep in the end. Every step takes an equal share of what is
        left to cut, with the smallest ε that does it.
    steps
        How often the network is cut.
    epochs_between, final_epochs
        Epochs after each cut but the last, and after the last.
    temperature, alpha, beta, stages
        Of the guidance.
    samples
        Training images whose mean feature maps are compared, and on which work is handed over; a refit wants 1,024. The
        released code takes a batch of 128.
    min_samples
        MinPts of DBSCAN.
    by
        What a cut goes by: "clusters" of mean feature maps, as published, or all that :func:`clusterprune.oneshot`
        knows; that takes `keep_macs`, and 1,024 samples do it good.
    layers
        "inner", the papers' choice (:func:`clusterprune.inner_groups`, one width for a bottleneck), or "all" that may
        be cut.
    merge, survivors
        Of cuts by clusters: who stays and what it takes over, as in :func:`clusterprune.cluster`. The released code
        drops all but the filters of largest ℓ1 norm.
    carry_momentum
        Whether the optimizer's momentum follows the channels from step to step, which is ours; as released, the
        optimizer starts anew at each cut.
    ignore
        Globs of layers to leave alone.
    approximate
        Whether norms over the channels may be cut, as :func:`clusterprune.trace` says.
    seed
        Draws the samples, and seeds the training of each step.
    """

    eps: float | None = None
    keep_macs: float | None = None
    steps: int = 3
    epochs_between: int = 10
    final_epochs: int = 200
    temperature: float = 20.0
    alpha: float = 0.3
    beta: float = 1.0
    stages: tuple[str, ...] | Literal["auto"] = "auto"
    samples: int = 256
    min_samples: int = 5
    by: Literal["clusters", "oneshot"] = "clusters"
    layers: Literal["inner", "all"] = "inner"
    merge: MergingName = "drop"
    survivors: Literal["medoid", "l1"] = "l1"
    carry_momentum: bool = False
    ignore: tuple[str, ...] = ()
    approximate: bool = False
    seed: int = 0

    @classmethod
    def imagenet(cls, **changes: Any) -> "ICP":
        """Return the published settings for ImageNet: five cuts, four epochs apart, and 90 at the end."""
        return cls(**{"steps": 5, "epochs_between": 4, "final_epochs": 90, "alpha": 0.5, "beta": 50.0, **changes})

    def __post_init__(self) -> None:
        """Check the knob and the numbers; what clustering, merging and guidance are given is checked by them."""
        check_knob(self.eps, self.keep_macs, self.by, self.layers, "between 0.005 and 0.12")
        DBSCAN(eps=0.5 if self.eps is None else self.eps, min_samples=self.min_samples)
        for name in ("steps", "epochs_between", "final_epochs", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, but got {name}={value!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ArgumentError(f"seed must be a whole number of at least 0, but got seed={self.seed!r}")

    def epochs(self, step: int) -> int:
        """Return how many epochs follow the cut of a step, counted from 1."""
        return self.final_epochs if step == self.steps else self.epochs_between


@dataclass(frozen=True)
class ICPStep:
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
class ICPResult:
    """The compact network, trained, and the record of every step, the original network first."""

    model: nn.Module
    steps: tuple[ICPStep, ...] = field(default_factory=tuple)

    def __repr__(self) -> str:
        """Say how large the network is, and what the last step did."""
        last = f", the last {self.steps[-1]}" if self.steps else ""
        return f"<ICPResult: {network_of(self.model)}, {plural(len(self.steps), 'record')}{last}>"


def icp(
    model: nn.Module,
    train: Split,
    validation: Split | None = None,
    *,
    config: ICP,
    training: TrainConfig = TRAINING,
    mean: Sequence[float],
    std: Sequence[float],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str, Progress], None] | None = None,
    report: Report | None = None,
) -> ICPResult:
    """Compress a trained classifier by iterative clustering pruning.

    Parameters
    ----------
    model
        The original network, trained; never changed.
    train
        Labelled images to train on; the compared feature maps are of some of them.
    validation
        Images held out of them, for the record alone. Nothing is chosen by it.
    training
        How to train; `epochs` and `seed` come from `config`.
    mean, std
        Per channel, of images in [0, 1].
    out
        Folder that a run can be resumed from: ``icp.json``, and for every step ``cut/`` (plan, compact network,
        momentum), ``training/`` and, when it is done, ``step.json``. None keeps nothing.
    resume
        Go on where a run in `out` was left; begin where there is none.
    progress
        Called with the name of a phase, and what :func:`clusterprune.train.fit` reports in it.
    report
        Called with (phase, done, total) while channels are compared for a cut.

    Raises
    ------
    ArgumentError
        An argument does not fit, or differs from that of the run being resumed.
    BudgetError
        If `keep_macs` cannot be reached.
    OutputError, TrainingError, WeightsError, ModelError
        As :func:`clusterprune.train.fit`.
    """
    check_model(model)
    check_instance("config", config, ICP, "write ICP(eps=0.02)")
    check_instance("training", training, TrainConfig, "write TrainConfig(epochs=10)")
    mean, std = check_statistics(mean, std)
    _check_split("train", train)
    _check_split("validation", validation, optional=True)
    if config.samples > len(train):
        raise ArgumentError(
            f"samples={config.samples} images are to be compared, but train has {len(train)}; lower samples"
        )
    device = resolve_device(training)
    pixels = data.sample(train, config.samples, config.seed).load()[0]
    images = data.normalize(pixels, mean, std).to(device)
    example = images[:1]
    original = copy.deepcopy(model).eval().to(device)
    task = Classification(train, validation, mean=mean, std=std)
    guidance = Guidance(
        original, task, temperature=config.temperature, alpha=config.alpha, beta=config.beta, stages=config.stages
    )
    with alone(out), run_folder(out) as folder:
        run = _Run(config, training, task, original, guidance, folder, progress, report)
        run.begin(resume=resume)
        network, momentum, steps = original, {}, [run.measure_original(example)]
        for number in range(1, config.steps + 1):
            network, momentum = run.cut(number, network, momentum, example, images)
            before = run.accuracy(network)
            network, momentum, seconds = run.train_on(number, network, momentum)
            size = evaluate.params(network), evaluate.macs(network, example)
            steps.append(ICPStep(number, *size, before, run.accuracy(network), config.epochs(number), seconds))
            run.note(steps[-1])
    if config.keep_macs is not None:
        check_met("macs", config.keep_macs, steps[-1].macs / steps[0].macs, "the cuts could not be made finer")
    return ICPResult(network.eval(), tuple(steps))


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays as it is through a run."""

    config: ICP
    training: TrainConfig
    task: Classification
    original: nn.Module
    guidance: Guidance
    folder: Path
    progress: Callable[[str, Progress], None] | None
    report: Report | None

    def begin(self, *, resume: bool) -> None:
        """Write down what is asked for, or compare it with what was."""
        path = self.folder / SETTINGS_NAME
        asked = {
            **asdict(self.config),
            "training": self.training.model_dump(mode="json", exclude=_FREE),
            "mean": self.task.mean,
            "std": self.task.std,
            "guidance": repr(self.guidance),  # with a digest of the original's weights
        }
        found = begun_with(path, asked)
        if found is None:
            return
        if not resume:
            raise OutputError(f"out={str(self.folder)!r} already holds a run; pass resume=True, or another folder")
        before, now = found
        differ = [name for name in now if now[name] != before.get(name)]
        if differ:
            name = differ[0]
            raise ArgumentError(
                f"resume=True with another {name} than {path} was begun with ({now[name]!r}, there "
                f"{before.get(name)!r}); pass the same arguments, or another folder"
            )

    def cut(
        self, number: int, network: nn.Module, momentum: dict[str, Tensor], example: Tensor, images: Tensor
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """Cluster the network's channels and cut it, unless that is done; return what the files say."""
        folder = self.folder / f"step-{number}" / "cut"
        if not folder.exists():
            config = self.config
            graph = trace(network, example, ignore=config.ignore, approximate=config.approximate)
            chosen = self._choose(number, graph, images, self._share(number, network, example))
            carried = carry_momentum(momentum, graph, chosen) if config.carry_momentum else {}
            with atomic_folder(folder) as temporary:
                chosen.save(temporary / "plan")
                compact.save(apply(network, chosen, graph=graph), temporary / "compact")
                write_tensors(temporary / "momentum.safetensors", carried)
        small = compact.load(folder / "compact", lambda: copy.deepcopy(self.original).cpu())
        try:
            carried, _ = read_tensors(folder / "momentum.safetensors")
        except ReadError as error:
            raise WeightsError(
                f"{folder / 'momentum.safetensors'} {error}; remove the folder {folder} to have this cut made again"
            ) from error
        return small.to(example.device), carried

    def _choose(self, number: int, graph: ChannelGraph, images: Tensor, keep_macs: float | None) -> Plan:
        """Return the plan of one cut."""
        config = self.config

        def tell(phase: str, done: int, total: int) -> None:
            if self.report is not None:
                self.report(f"cut {number} of {config.steps}: {phase}", done, total)

        part = graph
        if config.layers == "inner":
            if not inner_groups(graph):
                raise ArgumentError(
                    f"{type(graph.model).__name__} has no convolution inside a block that may be cut; print "
                    "clusterprune.trace(model, example) to see why, ignore less, or set layers='all'"
                )
            part = published_layers(graph)
        with warnings.catch_warnings():
            # What one cut leaves unused the next one gets; what counts is the end.
            warnings.simplefilter("ignore", BudgetWarning)
            if config.by == "oneshot":
                return oneshot(part, images, keep_macs=keep_macs, seed=config.seed, progress=tell)
            return cluster(
                part,
                images,
                similarity=FeatureMaps(),
                clustering=DBSCAN(eps=0.5 if config.eps is None else config.eps, min_samples=config.min_samples),
                merging=config.merge,
                survivors=config.survivors,
                keep_macs=keep_macs,
                seed=config.seed,
                progress=tell,
            )

    def _share(self, number: int, network: nn.Module, example: Tensor) -> float | None:
        """Return the fraction that this cut keeps, so that the product over all cuts is the target."""
        if self.config.keep_macs is None:
            return None
        left = evaluate.macs(network, example) / evaluate.macs(self.original, example)
        return min(1.0, (self.config.keep_macs / left) ** (1 / (self.config.steps - number + 1)))

    def train_on(
        self, number: int, network: nn.Module, momentum: dict[str, Tensor]
    ) -> tuple[nn.Module, dict[str, Tensor], float]:
        """Train the network under the original's guidance; return it, its momentum and the seconds."""
        config = self.config
        fields = {**self.training.model_dump(), "epochs": config.epochs(number), "seed": config.seed + number}
        phase = f"training after cut {number} of {config.steps}"

        def report(event: Progress) -> None:
            if self.progress is not None:
                self.progress(phase, event)

        result = fit(
            network,
            self.task,
            TrainConfig(**fields),
            out=self.folder / f"step-{number}" / "training",
            resume=True,
            progress=report,
            loss=self.guidance,
            momentum=momentum,
        )
        return network.eval(), dict(result.momentum), result.seconds

    def note(self, step: ICPStep) -> None:
        """Write down what a step did."""
        path = self.folder / f"step-{step.step}" / RECORD_NAME
        write_json(path, asdict(step))

    def measure_original(self, example: Tensor) -> ICPStep:
        """Return the record of the network that all begins with."""
        accuracy = self.accuracy(self.original)
        return ICPStep(0, evaluate.params(self.original), evaluate.macs(self.original, example), accuracy, accuracy)

    def accuracy(self, network: nn.Module) -> float | None:
        """Return the validation accuracy in percent."""
        task = self.task
        if task.validation is None:
            return None
        return evaluate.metrics(network, task, task.validation).deciding


def _check_split(name: str, split: Any, *, optional: bool = False) -> None:
    if isinstance(split, Split) or (optional and split is None):
        return
    raise ArgumentError(
        f"{name} must be a Split of labelled images, but got {type(split).__name__}; Split.from_tensors makes one"
    )
