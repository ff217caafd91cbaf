"""From what the user named to objects: data, models, and the folders of earlier runs."""

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune import data, load, models
from clusterprune.cli.inputs import at_size, first_of, settle_input, square_size
from clusterprune.cli.locating import Located, built_on, known_classes, locate
from clusterprune.cli.trusting import check_named
from clusterprune.data import Dataset, Split
from clusterprune.data.outputs import for_outputs
from clusterprune.errors import ArgumentError, DataError, ModelError, WeightsError
from clusterprune.files.reading import exists
from clusterprune.graph.throwaway import evaluating
from clusterprune.methods import Network
from clusterprune.methods._work import untold
from clusterprune.models import ModelSpec
from clusterprune.models.artifact import Origin
from clusterprune.models.purpose import task_on
from clusterprune.models.reinitialise import reinitialise_
from clusterprune.tasks import Plain, Task


@dataclass(frozen=True)
class Subject:
    """A model, ready to be worked on.

    Attributes
    ----------
    spec
        Where it comes from; states the normalisation.
    model
        In evaluation mode, on the device.
    example
        One input, shape (1, c, h, w), on the device.
    """

    spec: ModelSpec
    model: nn.Module
    example: Tensor

    @property
    def input_text(self) -> str:
        """The input in words: 3 x 32 x 32."""
        return " x ".join(str(length) for length in self.example.shape[1:])


def open_data(name: str, spec: ModelSpec) -> Dataset:
    """Open a data set at the size that the model reads."""
    return data.load(name, image_size=square_size(spec))


def open_model(
    spec: ModelSpec,
    located: Located | None,
    *,
    num_classes: int | None,
    device: torch.device,
    seed: int | None = None,
) -> Subject:
    """Build a model and fill it.

    Raises
    ------
    ModelError, WeightsError
        As :func:`clusterprune.models.build` and :func:`clusterprune.load`.
    """
    if located is not None and located.compact:
        model = load(located.path, functools.partial(spec.build, num_classes))
    else:
        model = models.build(spec, num_classes=num_classes, weights=located.path if located else None, seed=seed)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, *spec.input_shape, generator=generator)
    return Subject(spec, model.to(device), example.to(device))


def fit_classes(
    subject: Subject, dataset: Dataset, classes: str | None, tell: Callable[[str], None], remedy: str = ""
) -> Dataset:
    """Check before any long work that the model has an output for every class of the data; return them so.

    Parameters
    ----------
    classes
        The option of that name; see :func:`clusterprune.data.outputs.for_outputs`.
    tell
        Is told how many classes the data show, where they are fewer than the outputs.
    remedy
        What else can be done about it than to name other data.

    Raises
    ------
    DataError
        If it has not.
    ModelError
        If the model does not run on its input.
    """
    try:
        with evaluating(subject.model), torch.no_grad():
            outputs = subject.model(subject.example)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"model={subject.spec.name!r} does not run on an input of {subject.input_text}: {error}; "
            "give the size that it expects as --image-size"
        ) from error
    if first_of(dataset).boxes is not None or not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return dataset
    try:
        fitted = for_outputs(dataset, outputs.shape[1], classes)
    except DataError as error:
        raise DataError(f"model={subject.spec.name!r}: {error}{remedy}") from error
    if fitted is not dataset:
        tell(f"{len(dataset.classes):,} of {len(fitted.classes):,} classes seen.")
    return fitted


@dataclass(frozen=True)
class Opened:
    """What a method works on.

    Attributes
    ----------
    subject, network
        The model, as measuring takes it and as methods do.
    task
        None where there are neither data nor images to calibrate with.
    images
        Those that a cut looks at, where they are not those of the training.
    test
        The test images, where there are any.
    origin
        What a compact folder is to say of itself.
    """

    subject: Subject
    network: Network
    task: Task | None
    images: Split | None
    test: Split | None
    origin: Origin


@dataclass(frozen=True)
class Found:
    """What a path holds, opened.

    Attributes
    ----------
    subject
        The model.
    located
        Where it was, and what was said of it there.
    data
        Its classes are the model's outputs; None where there are none.
    task
        What the model is for, on the test images; None where there are none.
    """

    subject: Subject
    located: Located
    data: Dataset | None
    task: Task | None


def open_path(
    path: Path, given: dict[str, Any], trust: list[str] | None, device: torch.device, tell: Callable[[str], None], *,
    needs_data: bool = True,
) -> Found:  # fmt: skip
    """Open a weights file, a compact folder or a run, and the data that it is to be measured on.

    Parameters
    ----------
    given
        The options `model`, `image_size`, `mean`, `std`, `num_classes` and, where the command has them, `data` and
        `classes`; in the place of those that are None stands what the path says.
    trust
        The option: a file that the path names, and no option, is run only if it is among these.
    tell
        Is told what the model reads, and which classes the data show.
    needs_data
        False goes on without the run's data where they are not to be found here.

    Raises
    ------
    ArgumentError
        If nobody says what network it is of.
    ClusterpruneError
        If model, weights and data do not go together, or a file of the user's may not be run.
    """
    if not exists(path.expanduser()):
        raise WeightsError(
            f"RUN_OR_WEIGHTS={str(path)!r} does not exist (looked in {Path.cwd()}); name a weights file, or the folder "
            "of a run"
        )
    located = locate(path)
    known = located.config
    name = require(given["model"] or known.get("model"), "--model", "the path does not say what network it is of")
    if given["model"] is None:
        remedy = f"Put back the file as it was; or, to take it as it is now, name it: --model {shlex.quote(name)}"
        check_named(name, known, str(located.config_file), trust, named=False, remedy=remedy)
    named = {one: given.get(one) or known.get(one) for one in ("data", "classes", "task") if one in given}
    source = named.get("data")
    dataset = None
    if source is not None:
        try:
            dataset = data.load(source)
        except DataError as error:
            if needs_data or given["data"] is not None:
                raise
            tell(f"The run's data cannot be opened: {error}")
    spec = settle_input(models.resolve(name), given, located, None if dataset is None else first_of(dataset), tell)
    classes = known_classes(spec, located, given["num_classes"])
    subject = open_model(spec, located, num_classes=classes, device=device)
    if dataset is None:
        return Found(subject, located, None, None)
    fitted = fit_classes(subject, at_size(dataset, spec), named.get("classes"), tell)
    test = fitted.splits.get("test")
    aim = None if test is None else task_on(spec, subject.model, classes, test, name=named.get("task"))
    return Found(subject, located, fitted, aim)


def original_of(found: Found, device: torch.device) -> nn.Module | None:
    """Return the network that a compact one was cut from, where its weights still are where its run says."""
    weights = found.located.config.get("weights")
    if not found.located.compact or weights is None or not exists(Path(weights)):
        return None
    located, spec = locate(Path(weights)), found.subject.spec
    return open_model(spec, located, num_classes=known_classes(spec, found.located, None), device=device).model


def open_task(
    wanted: dict[str, Any], device: torch.device, *, trains: bool = True, tell: Callable[[str], None] = untold
) -> Opened:
    """Open what a method works on, and the test images where there are any.

    Parameters
    ----------
    wanted
        The options `model`, `weights`, `data`, `image_size`, `num_classes` and `validation`, and where the command has
        them `mean`, `std`, `classes`, `calibration`, `evaluate` and `approximate`; the number of classes and what the
        model does not state of its input are noted there, so that the run's folder is enough to build the model again.
    trains
        Whether anything is trained. Else no image is held out, and outputs need not be the data's classes if no
        test image is run through it.
    tell
        Is told what the model reads, and which classes the data show.

    Raises
    ------
    ArgumentError
        If a named network has no weights.
    ClusterpruneError
        If model, weights and data do not go together.
    """
    check_weights(wanted)
    located = locate(Path(wanted["weights"])) if wanted["weights"] is not None else None
    wanted["model"] = built_on(wanted["model"], located)
    spec = models.resolve(wanted["model"])
    dataset = None if wanted["data"] is None else data.load(wanted["data"])
    calibration = None if wanted.get("calibration") is None else data.unlabelled(wanted["calibration"])
    spec = settle_input(spec, wanted, located, calibration if dataset is None else first_of(dataset), tell)
    classes = wanted["num_classes"] = known_classes(spec, located, wanted["num_classes"])
    subject = open_model(spec, located, num_classes=classes, device=device, seed=0)
    dataset = None if dataset is None else at_size(dataset, spec)
    calibration = None if calibration is None else at_size(calibration, spec)
    test = dataset.splits.get("test") if dataset is not None and wanted.get("evaluate", True) else None
    if dataset is not None and (trains or test is not None):
        remedy = "" if trains else "; or leave the test images out with --no-evaluate"
        dataset = fit_classes(subject, dataset, wanted.get("classes"), tell, remedy)
        test = dataset.splits.get("test") if test is not None else None
    task, images = None, calibration
    if dataset is not None:
        # By one seed, whatever the run's: the images that `train` held out by default stay unseen.
        holds = trains and wanted["validation"]
        parts = data.holdout(dataset.train, wanted["validation"]) if holds else (dataset.train, None)
        task = task_on(spec, subject.model, classes, *parts, name=wanted.get("task"))
        images = calibration or dataset.train
    elif calibration is not None:
        task = Plain(calibration, reference=subject.model, mean=spec.mean, std=spec.std)
    network = Network(
        subject.model, subject.example, functools.partial(_new_network, spec, classes, located),
        bool(wanted.get("approximate")),
    )  # fmt: skip
    origin = origin_of(spec, classes, located, dataset if trains or test is not None else None)
    return Opened(subject, network, task, images, test, origin)


def origin_of(spec: ModelSpec, classes: int | None, located: Located | None, dataset: Dataset | None) -> Origin:
    """Return what a compact folder of a model is to say of itself.

    Parameters
    ----------
    dataset
        Its classes are the model's outputs; None where there is none, and the names of the outputs are those that the
        weights' folder has.
    """
    names = () if located is None or located.origin is None else located.origin.classes
    if dataset is not None:
        names = dataset.classes
    return Origin.of(spec, num_classes=classes, classes=names)


def _new_network(spec: ModelSpec, classes: int | None, located: Located | None) -> nn.Module:
    """Return the network with random weights drawn from PyTorch's generator, compact if its weights are."""
    if located is None or not located.compact:
        return spec.build(classes)
    return reinitialise_(load(located.path, functools.partial(spec.build, classes)), torch.initial_seed())


def check_weights(wanted: dict[str, Any]) -> None:
    """Check that a network that is not the user's own comes with weights.

    Raises
    ------
    ArgumentError
        If it does not.
    """
    if wanted["weights"] is None and ".py:" not in wanted["model"]:
        raise ArgumentError(
            f"weights is missing: model={wanted['model']!r} would have random weights; give --weights FILE"
        )


def require(value: Any, name: str, why: str) -> Any:
    """Return a value that may not be None.

    Raises
    ------
    ArgumentError
        If it is.
    """
    if value is None:
        raise ArgumentError(f"{name} is missing: {why}")
    return value


def read_seeds(text: str) -> list[int]:
    """Read seeds with commas between them.

    Raises
    ------
    ArgumentError
        If one is no whole number of at least 0.
    """
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentError(
            f"seeds must be whole numbers with commas between them, such as 0,1,2, but got seeds={text!r}"
        )
    # As of any option: torch's generators take no more, and Python's own limit of digits would be another error.
    if any(len(part) > 19 or int(part) >= 2**63 for part in parts):
        raise ArgumentError(f"seeds must be below 2**63, but got seeds={text[:80]!r}; give smaller ones")
    return [int(part) for part in parts]
