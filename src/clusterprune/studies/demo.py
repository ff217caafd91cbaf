"""A small network, trained and compressed three ways on embedded data: the whole library in a minute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune import data, models, runs, tasks, train
from clusterprune.budget.allocation import CostModel, solve
from clusterprune.data import Dataset
from clusterprune.files.writing import atomic_folder
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph import trace as trace_model
from clusterprune.graph.images import silent
from clusterprune.methods import oneshot
from clusterprune.models import ModelSpec
from clusterprune.models.artifact import save
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.apply import apply

MODEL = "resnet20"
DATA = "digits"
IMAGE_SIZE = 8
IMAGES = 512
LATENCY_BATCH = 64
"""A pass over a single image of 8 by 8 pixels takes longer to start than to compute."""

# Enough for 98 to 99 % on the test images; more epochs do not help.
EPOCHS = 10
BATCH_SIZE = 64


@dataclass(frozen=True)
class Row:
    """One way to come to a model.

    Attributes
    ----------
    name
        What was done.
    measured
        The model's cost and worth.
    seconds
        Time to train or to compress.
    """

    name: str
    measured: runs.Measurement
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration showed: the trained network first, then each way to compress it."""

    folder: Path
    rows: tuple[Row, ...]


def demonstrate(
    out: str | Path,
    *,
    keep_macs: float = 0.45,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: runs.Progress | None = None,
) -> DemoResult:
    """Train ResNet-20 on scikit-learn's digits, then compress it three ways at the same multiply-adds.

    The three: one shot with unlabelled training images, one shot from the weights alone, and dropping the
    filters of smallest ℓ1 norm, layer by layer (Li et al. 2017, arXiv 1608.08710), without retraining. None
    is followed by training.

    Parameters
    ----------
    out
        Run folder. The next free numbered one is taken where it exists.
    keep_macs
        Share of the multiply-adds to keep.
    epochs
        Passes over the 1,438 training images.

    Raises
    ------
    ArgumentError, BudgetError
        If `keep_macs` is no share, or cannot be reached.
    OutputError
        If the folder cannot be written.
    """
    folder = runs.numbered(Path(out).expanduser())
    runs.check_out(folder)
    with _one_thread():
        return _demonstrate(folder, keep_macs, epochs, seed, progress)


def _demonstrate(folder: Path, keep_macs: float, epochs: int, seed: int, progress: runs.Progress | None) -> DemoResult:
    timeline = runs.Timeline(progress)
    report = progress or silent
    spec = models.resolve(MODEL)
    dataset = data.load(DATA, image_size=IMAGE_SIZE)
    model = spec.build(len(dataset.classes), seed=seed)
    example = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with timeline.phase("trace"):
        _even_widths(trace_model(model, example), keep_macs)  # a budget out of reach is found before the training
    history = _train(model, spec, dataset, epochs, seed, timeline, report)
    graph = trace_model(model, example)
    images = _draw(dataset, spec, seed)
    ways: dict[str, Callable[[], Plan]] = {
        f"one-shot, {len(images)} images without labels": lambda: oneshot(
            graph, images, keep_macs=keep_macs, seed=seed, progress=_named("one-shot", report)
        ),
        "one-shot, weights alone": lambda: oneshot(
            graph, None, keep_macs=keep_macs, seed=seed, progress=_named("one-shot, weights alone", report)
        ),
        "dropping the smallest l1 norms": lambda: drop_by_norm(graph, keep_macs),
    }
    compact: dict[str, tuple[Plan, nn.Module]] = {}
    for name, make in ways.items():
        with timeline.phase(name, announce=False):
            plan = make()
            compact[name] = plan, apply(model, plan, graph=graph)
    # The test images are read here alone, after every choice.
    rows = []
    built = {"trained network": model} | {name: small for name, (_, small) in compact.items()}
    task = tasks.Classification(dataset.test, mean=spec.mean, std=spec.std)
    with timeline.phase("measure") as tell:
        latencies = runs.time_in_turns(list(built.values()), example, batch=LATENCY_BATCH)
        for (name, network), latency in zip(built.items(), latencies, strict=True):
            measured = runs.measure(network, example, dataset.test, task, latency=latency)
            rows.append(Row(name, measured, timeline.seconds["train" if network is model else name]))
            tell(len(rows), len(built))
    best = next(iter(compact.values()))
    with atomic_folder(folder) as temporary:
        runs.write_config(
            temporary,
            "demo",
            {"model": MODEL, "data": DATA, "image_size": IMAGE_SIZE, "num_classes": 10}
            | {"keep_macs": keep_macs, "epochs": epochs, "seed": seed},
        )
        runs.write_weights(temporary, model)
        best[0].save(temporary / runs.PLAN_NAME)
        save(best[1], temporary / runs.COMPACT_NAME)
        runs.write_log(temporary, [*history, *timeline.events])
        runs.write_result(temporary, _result(rows, timeline, seed, keep_macs))
    return DemoResult(folder, tuple(rows))


def drop_by_norm(graph: ChannelGraph, keep_macs: float) -> Plan:
    """Return the plan that people know: the same share of every group, the smallest l1 norms dropped.

    Nothing takes over what the dropped channels did.

    Raises
    ------
    BudgetError
        If one channel per group still costs more.
    """
    merges = [
        Merge(group.name, _largest(_norms(graph, group), group, width))
        for group, width in _even_widths(graph, keep_macs).items()
        if width < group.width
    ]
    return Plan.of(graph, tuple(merges), method="drop", criterion="l1", keep_macs=keep_macs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread, and as before afterwards.

    Work on images of 8 by 8 pixels gains nothing from a second thread, and where others use the cores too,
    the threads would wait for one another most of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _even_widths(graph: ChannelGraph, keep_macs: float) -> dict[Group, int]:
    """Return the widths that meet the budget with about the same share of every group.

    A loss that rises alike with the share removed, whatever the group, makes the budget solver even-handed.
    """
    cost = CostModel(graph)
    one_more = cost.gradient("macs", cost.widths)
    losses = {
        group.name: one_more[index] * np.arange(group.width + 1) ** 2 / group.width
        for index, group in enumerate(graph.groups)
        if group.frozen is None
    }
    widths = solve(cost, losses, "macs", keep_macs)
    return {graph.by_name[name]: width for name, width in widths.items()}


def _norms(graph: ChannelGraph, group: Group) -> np.ndarray:
    """Return the ℓ1 norm of each channel's filters, summed over the layers that make it."""
    weights = dict(graph.model.named_parameters())
    total = np.zeros(group.width)
    for use in group.producers:
        rows = weights[use.path].detach().movedim(use.dim, 0).flatten(1).abs().sum(1).cpu().numpy()
        total += rows[use.positions].sum(1)
    return total


def _largest(norms: np.ndarray, group: Group, width: int) -> np.ndarray:
    """Return the indices of the largest norms, as many in every block, ascending."""
    kept = []
    for block in range(group.n_blocks):
        inside = np.flatnonzero(group.blocks == block)
        kept.append(inside[np.argsort(-norms[inside], kind="stable")[: width // group.n_blocks]])
    return np.sort(np.concatenate(kept))


def _train(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset,
    epochs: int,
    seed: int,
    timeline: runs.Timeline,
    report: runs.Progress,
) -> list[dict[str, Any]]:
    """Train in place, and return the epochs for the log."""
    config = train.TrainConfig(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        warmup_epochs=min(1.0, epochs / 2),
        augment="crop",
        precision="float32",
        seed=seed,
        device="cpu",
    )

    def watch(event: train.Progress) -> None:
        if event.kind != "note":
            report("train", (event.epoch - 1) * event.steps + event.step, event.epochs * event.steps)

    task = tasks.Classification(dataset.train, mean=spec.mean, std=spec.std)
    with timeline.phase("train", announce=False):
        result = train.fit(model, task, config, progress=watch)
    return [{"event": "epoch", **record} for record in result.history]


def _draw(dataset: Dataset, spec: ModelSpec, seed: int) -> Tensor:
    """Return training images at random, without a look at their labels."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
    return data.normalize(dataset.train.images(order[:IMAGES]), spec.mean, spec.std)


def _named(name: str, report: runs.Progress) -> runs.Progress:
    return lambda phase, done, total: report(f"{name}: {phase}", done, total)


def _result(rows: list[Row], timeline: runs.Timeline, seed: int, keep_macs: float) -> dict[str, Any]:
    baseline, best, *others = rows
    return {
        "command": "demo",
        "baseline": baseline.measured.to_dict(),
        "compressed": best.measured.to_dict(),
        "others": {row.name: row.measured.to_dict() for row in others},
        "budget": {"keep_macs": keep_macs},
        "images": IMAGES,
        "seconds": timeline.seconds,
        "seed": seed,
        **runs.environment(torch.device("cpu")),
    }
