"""Run a recipe: train the original network, run the method on it, measure both on the test images."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clusterprune import data, models, runs, train
from clusterprune.data import Dataset, Split
from clusterprune.errors import ArgumentError, DataError, OutputError
from clusterprune.files.locking import alone
from clusterprune.files.reading import ReadError, sha256_of
from clusterprune.files.writing import begun_with, read_record, write_json
from clusterprune.graph.images import silent
from clusterprune.methods._registry import find
from clusterprune.methods._work import Network, Report, Watch, Work, unwatched
from clusterprune.models import ModelSpec, code
from clusterprune.models.purpose import classes_of, task_on
from clusterprune.runs import Measurement
from clusterprune.studies.recipe import CLASSES, Recipe
from clusterprune.surgery import compact
from clusterprune.tables import few
from clusterprune.train import TrainConfig, here
from clusterprune.train.config import Precision
from clusterprune.train.processes import join

ASKED_NAME = "asked.json"
MEASURED_NAME = "measured.json"
VALIDATION = 0.1
"""Share of the training images on which ACP compares structures."""


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What came out.

    Attributes
    ----------
    recipe
        As it was run.
    trial
        In what this is less than the recipe; empty for a reproduction.
    baseline
        The original network.
    compressed
        The compact one, by seed.
    seconds
        Of each phase, as far as this call has spent them.
    """

    recipe: Recipe
    trial: str
    baseline: Measurement
    compressed: Mapping[int, Measurement]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say which recipe, whether it was run whole, and what it left of the MACs."""
        trial = f" as a trial ({self.trial})" if self.trial else ""
        left = [f"{one.macs / self.baseline.macs:.1%} (seed {seed})" for seed, one in self.compressed.items()]
        return f"<Reproduction of {self.recipe.name}{trial}: MACs left {few(left)}>"

    def over_seeds(self, figure: Callable[[Measurement], float]) -> tuple[float, float | None]:
        """Return mean and standard deviation of a figure of the compact networks; of one, there is no deviation."""
        values = [figure(one) for one in self.compressed.values()]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def reproduce(
    recipe: Recipe,
    dataset: Dataset,
    *,
    out: str | Path,
    weights: str | Path | None = None,
    epochs_scale: float = 1.0,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    report: Report | None = None,
    watch: Watch | None = None,
    trust: str | Path | None = None,
) -> Reproduction:
    """Run a recipe, in several processes as in one. What is finished in `out` is not done again.

    Parameters
    ----------
    dataset
        Images of the size that the model reads. The test images are read when a network is finished, and never for
        a choice: ACP compares structures on a tenth of the training images.
    out
        Folder: ``baseline/`` has the original network, ``method/seed-N/`` the run with a seed.
    weights
        Of the original network; None trains it.
    epochs_scale, seeds, precision
        As :meth:`Recipe.changed`.
    limit
        Use that many training images, spread over the classes, and as many test images; the method then compares
        the feature maps of no more than it may train on.
    device
        As in :class:`clusterprune.train.TrainConfig`.
    report, watch
        As :class:`clusterprune.methods.Work` and :meth:`clusterprune.methods.Method.run`.
    trust
        The Python file that the recipe's model is in, where it is not one of ours, torchvision's or timm's: a recipe
        is a file, and what a file names is not run unasked. A path, or ``PATH@SHA256``.

    Raises
    ------
    ArgumentError
        If an argument or a setting of the recipe is not accepted.
    DataError
        If the data are not of the recipe's kind.
    OutputError
        If `out` was begun with other arguments.
    BudgetError, ModelError, TrainingError, WeightsError
        As :class:`clusterprune.methods.Work` and :meth:`clusterprune.methods.Method.run`.
    UntrustedCodeError
        If the model is in a file that `trust` does not name.
    """
    check_data(recipe, dataset, limit)
    code.allow(recipe.model, named_by=f"the recipe {recipe.name}", trust=None if trust is None else str(trust))
    wanted = recipe.changed(epochs_scale=epochs_scale, seeds=seeds, precision=precision)
    processes, place = join(TrainConfig(device=device))
    spec = models.resolve(wanted.model)
    folder, timeline = Path(out), runs.Timeline(report)
    # Weights that do not fit are refused before anything is written.
    model = models.build(spec, num_classes=classes_of(dataset.train), weights=weights, seed=wanted.seeds[0])
    asked = {"recipe": wanted.model_dump(mode="json"), "limit": limit, "weights": _digest(weights)}
    with processes.held(alone(folder)):
        processes.once(lambda: _same(folder, asked))
        images, test = _limited(dataset, limit)
        run = _Run(wanted, spec, images, test, limit is not None, folder, place, timeline, report, watch)
        original, baseline = run.original(model.to(place), trained=weights is not None)
        compressed = {seed: run.compressed(original, seed) for seed in wanted.seeds}
    return Reproduction(wanted, _trial(epochs_scale, limit), baseline, compressed, timeline.seconds)


def check_data(recipe: Recipe, dataset: Dataset, limit: int | None = None) -> None:
    """Refuse data of another kind than the recipe's; a folder may hold any.

    Raises
    ------
    DataError
        If kind or number of classes differ.
    ArgumentError
        If a limit leaves too few images to a class.
    """
    kind, found = dataset.name.partition(":")[0], len(dataset.classes)
    expected = CLASSES.get(recipe.data, found)
    if found != expected or kind not in (recipe.data, "folder"):
        raise DataError(
            f"recipe={recipe.name!r} is for {recipe.data} with its {expected} classes, but data={dataset.name!r} has "
            f"{found}; give {recipe.data}:DIR, or the same images as folder:DIR"
        )
    # An image with boxes may show several classes, and which ones is no reason to draw it.
    if limit is not None and dataset.train.boxes is None and limit < 2 * found:
        raise ArgumentError(f"limit={limit} is less than two images for each of {found} classes; give {2 * found}")


@dataclass(frozen=True, eq=False)
class _Run:
    """A recipe, its images, and where it is done."""

    recipe: Recipe
    spec: ModelSpec
    images: Split
    test: Split
    limited: bool
    folder: Path
    device: torch.device
    timeline: runs.Timeline
    report: Report | None
    watch: Watch | None

    def original(self, model: nn.Module, *, trained: bool) -> tuple[nn.Module, Measurement]:
        """Return the original network, trained, and its figures."""
        folder = self.folder / "baseline"
        if not trained and here().once((folder / runs.WEIGHTS_NAME).exists):
            models.load_weights(model, folder / runs.WEIGHTS_NAME)
        elif not trained:
            config = self._training(self.recipe.baseline, self.recipe.seeds[0])
            with self.timeline.phase("baseline", announce=False):
                task = task_on(self.spec, model, classes_of(self.images), self.images)
                train.fit(model, task, config, out=folder, resume=True, progress=self._watch_baseline)
            here().once(lambda: runs.write_weights(folder, model))
        return model.eval(), self._measured(folder, model, "test of the baseline")

    def compressed(self, original: nn.Module, seed: int) -> Measurement:
        """Return the figures of the compact network, having made it if there is none."""
        folder = self.folder / "method" / f"seed-{seed}"
        if here().once((folder / MEASURED_NAME).exists):
            return _read(folder)
        recipe, spec, classes = self.recipe, self.spec, classes_of(self.images)
        # Whoever chooses nothing may train on all images, as the papers do.
        kind = find(recipe.method)
        parts = data.holdout(self.images, VALIDATION) if kind.chooses else (self.images, None)
        network = Network(original, self._example, functools.partial(spec.build, classes))
        task = task_on(spec, original, classes, *parts, whole=self.images)
        method = kind.read(recipe.settings)
        if self.limited:
            method = method.looking_at(len(parts[0]))
        training = None if recipe.training is None else self._training(recipe.training, seed)
        work = Work(folder, training, seed, resume=True, report=self.report or silent, watch=self.watch or unwatched)
        with self.timeline.phase(f"{recipe.method}, seed {seed}", announce=False):
            made = method.run(network, task, work)
        here().once(lambda: self._save(folder, made.model))
        return self._measured(folder, made.model, f"test, seed {seed}")

    def _save(self, folder: Path, model: nn.Module) -> None:
        runs.remove_folder(folder / runs.COMPACT_NAME)
        compact.save(model, folder / runs.COMPACT_NAME)

    def _measured(self, folder: Path, model: nn.Module, phase: str) -> Measurement:
        """Return what was measured before a run was stopped; measure if nothing was."""
        here().once(lambda: self._measure(folder, model, phase))
        return _read(folder)

    def _measure(self, folder: Path, model: nn.Module, phase: str) -> None:
        if (folder / MEASURED_NAME).exists():
            return
        task = task_on(self.spec, model, classes_of(self.images), self.test)
        with self.timeline.phase(phase) as tell:
            found = runs.measure(model, self._example, self.test, task, progress=tell)
        write_json(folder / MEASURED_NAME, found.to_dict())

    def _training(self, training: TrainConfig, seed: int) -> TrainConfig:
        # Each of several processes has a device of its own.
        device = str(self.device) if here().alone else self.device.type
        return training.changed(seed=seed, device=device)

    def _watch_baseline(self, event: train.Progress) -> None:
        if self.watch is not None:
            self.watch("baseline", event)

    @property
    def _example(self) -> torch.Tensor:
        return self.spec.example().to(self.device)


def _limited(dataset: Dataset, limit: int | None) -> tuple[Split, Split]:
    def some(split: Split) -> Split:
        return split if limit is None else data.sample(split, min(limit, len(split)), 0)

    return some(dataset.train), some(dataset.test)


def _trial(epochs_scale: float, limit: int | None) -> str:
    """Say in what a run is less than its recipe."""
    less = [] if epochs_scale == 1 else [f"{epochs_scale:g} times the epochs"]
    return ", ".join(less + ([] if limit is None else [f"{limit:,} training images"]))


def _digest(weights: str | Path | None) -> str | None:
    """Return the SHA-256 of a file."""
    if weights is None:
        return None
    try:
        return sha256_of(weights)
    except ReadError as error:
        raise ArgumentError(f"weights={str(weights)!r} {error}; check the path") from error


def _same(folder: Path, asked: dict[str, Any]) -> None:
    """Note what is asked for in a run's folder; if that was done before, compare.

    Raises
    ------
    OutputError
        If it was asked for something else, or the folder cannot be written.
    """
    found = begun_with(folder / ASKED_NAME, asked)
    if found is None:
        return
    before, now = found
    was = before.get("recipe")
    if not isinstance(was, dict):
        raise OutputError(f"{folder / ASKED_NAME} is damaged; choose another folder, or remove this one")
    differ = [f"{name} of the recipe" for name, value in now["recipe"].items() if was.get(name) != value]
    differ += [name for name in ("limit", "weights") if before.get(name) != now[name]]
    if differ:
        raise OutputError(
            f"out={str(folder)!r} was begun with another {', another '.join(differ)}; choose another folder"
        )


def _read(folder: Path) -> Measurement:
    return read_record(folder / MEASURED_NAME, Measurement)
