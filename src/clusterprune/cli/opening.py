"""From what the user named to objects: data, models, and the folders of earlier runs."""

import functools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune import data, load, models, runs
from clusterprune.cli.command import LARGEST
from clusterprune.cli.trusting import trust_option_of
from clusterprune.data import Dataset, Split
from clusterprune.errors import ArgumentError, DataError, ModelError, WeightsError
from clusterprune.files.reading import exists, is_folder
from clusterprune.graph.throwaway import evaluating
from clusterprune.methods import Network
from clusterprune.models import ModelSpec
from clusterprune.models.reinitialise import reinitialise_
from clusterprune.models.weights import classes_in
from clusterprune.tasks import Classification, Plain, Task

STRUCTURE_NAME = "structure.json"


@dataclass(frozen=True)
class Located:
    """What a path holds.

    Attributes
    ----------
    path
        A weights file, or the folder of a compact model.
    compact
        Which of the two.
    config
        The options of the run that made it; empty where that is not known.
    config_file
        Where they stand; None where that is not known.
    """

    path: Path
    compact: bool
    config: dict[str, Any] = field(default_factory=dict)
    config_file: Path | None = None


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
    size
        Image size for the data; None where the input is not square, so that images must come as they are.
    """

    spec: ModelSpec
    model: nn.Module
    example: Tensor
    size: int | None

    @property
    def input_text(self) -> str:
        """The input in words: 3 x 32 x 32."""
        return " x ".join(str(length) for length in self.example.shape[1:])


def locate(path: Path) -> Located:
    """Find the model in a path: a weights file, a compact folder, or a run folder.

    Raises
    ------
    WeightsError
        If there is nothing at the path, or a folder that holds none of them.
    """
    path = path.expanduser()
    if not exists(path):
        raise WeightsError(f"weights={str(path)!r} does not exist (looked in {Path.cwd()}): check the path.")
    if not is_folder(path):
        return Located(path, compact=False)
    if (path / STRUCTURE_NAME).is_file():
        return Located(path, compact=True, **_config(path.parent))
    if (path / runs.COMPACT_NAME / STRUCTURE_NAME).is_file():
        return Located(path / runs.COMPACT_NAME, compact=True, **_config(path))
    if (path / runs.WEIGHTS_NAME).is_file():
        return Located(path / runs.WEIGHTS_NAME, compact=False, **_config(path))
    if (path / "checkpoint.safetensors").is_file():
        more = trust_option_of(path)
        raise WeightsError(
            f"weights={str(path)!r} is a training that is not finished; finish it with "
            f"'clusterprune train --out {shlex.quote(str(path))} --resume{more}'"
        )
    raise WeightsError(
        f"weights={str(path)!r} is a folder without a model: expected {runs.COMPACT_NAME}/ with a {STRUCTURE_NAME}, "
        f"or {runs.WEIGHTS_NAME}; name a run folder or a weights file"
    )


def input_size(spec: ModelSpec, image_size: int | None) -> tuple[tuple[int, int, int], int | None]:
    """Return the model's input shape, and the size that square images are brought to."""
    channels, height, width = spec.input_shape
    if image_size is not None:
        return (channels, image_size, image_size), image_size
    return spec.input_shape, height if height == width else None


def open_data(name: str, spec: ModelSpec, image_size: int | None) -> Dataset:
    """Open a data set at the size that the model reads."""
    return data.load(name, image_size=input_size(spec, image_size)[1])


def open_model(
    spec: ModelSpec,
    located: Located | None,
    *,
    image_size: int | None,
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
    shape, size = input_size(spec, image_size)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, *shape, generator=generator)
    return Subject(spec, model.to(device), example.to(device), size)


def known_classes(spec: ModelSpec, located: Located | None, asked: int | None) -> int | None:
    """Return how many outputs a trained model is to be built with; None for as many as it has by itself.

    What is trained says it: the run that made it, or the weights. The data never do: those that a model is measured
    on, or learns from, may be of other classes.
    """
    if asked is not None or located is None:
        return asked
    if (stated := stated_number(located, "num_classes")) is not None:
        return stated
    return classes_in(spec, located.path / runs.WEIGHTS_NAME if located.compact else located.path)


def stated_number(located: Located, name: str) -> int | None:
    """Return a number among the options of the run that made a model; None where they do not say it.

    Raises
    ------
    DataError
        If it is none that the option takes.
    """
    value = located.config.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST[name]:
        raise DataError(
            f"{located.config_file} says {name}={value!r}, which is no whole number from 1 to {LARGEST[name]}; correct "
            f"the file, or give --{name.replace('_', '-')}"
        )
    return value


def check_classes(subject: Subject, dataset: Dataset, remedy: str = "") -> None:
    """Check before any long work that the model has one output per class of the data.

    Parameters
    ----------
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
    width = outputs.shape[-1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else None
    if width is not None and width != len(dataset.classes):
        raise DataError(
            f"model={subject.spec.name!r} has {width} outputs, but data={dataset.name!r} has {len(dataset.classes)} "
            f"classes; name the data that the model was trained for, or the model that fits these data{remedy}"
        )


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
    """

    subject: Subject
    network: Network
    task: Task | None
    images: Split | None
    test: Split | None


def open_task(wanted: dict[str, Any], device: torch.device, *, trains: bool = True) -> Opened:
    """Open what a method works on, and the test images where there are any.

    Parameters
    ----------
    wanted
        The options `model`, `weights`, `data`, `image_size`, `num_classes` and `validation`, and where the command has
        them `calibration`, `evaluate` and `approximate`; the number of classes is noted there, so that the run's folder
        is enough to build the model again.
    trains
        Whether anything is trained. Else no image is held out, and outputs need not be the data's classes if no
        accuracy is measured.

    Raises
    ------
    ArgumentError
        If a named network has no weights.
    ClusterpruneError
        If model, weights and data do not go together.
    """
    check_weights(wanted)
    spec = models.resolve(wanted["model"])
    dataset = None if wanted["data"] is None else open_data(wanted["data"], spec, wanted["image_size"])
    located = locate(Path(wanted["weights"])) if wanted["weights"] is not None else None
    classes = wanted["num_classes"] = known_classes(spec, located, wanted["num_classes"])
    subject = open_model(spec, located, image_size=wanted["image_size"], num_classes=classes, device=device, seed=0)
    calibration = None
    if wanted.get("calibration") is not None:
        calibration = data.unlabelled(wanted["calibration"], input_size(spec, wanted["image_size"])[1])
    test = dataset.splits.get("test") if dataset is not None and wanted.get("evaluate", True) else None
    if dataset is not None and (trains or test is not None):
        check_classes(subject, dataset, "" if trains else "; or leave the accuracy out with --no-evaluate")
    task, images = None, calibration
    if dataset is not None:
        # By one seed, whatever the run's: the images that `train` held out by default stay unseen.
        holds = trains and wanted["validation"]
        parts = data.holdout(dataset.train, wanted["validation"]) if holds else (dataset.train, None)
        task = Classification(*parts, mean=spec.mean, std=spec.std)
        images = calibration or dataset.train
    elif calibration is not None:
        task = Plain(calibration, reference=subject.model, mean=spec.mean, std=spec.std)
    network = Network(
        subject.model, subject.example, functools.partial(_new_network, spec, classes, located),
        bool(wanted.get("approximate")),
    )  # fmt: skip
    return Opened(subject, network, task, images, test)


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


def absolute_model(name: str) -> str:
    """Return a model's name such that it means the same from every folder."""
    path, colon, factory = name.rpartition(":")
    return f"{Path(path).expanduser().resolve()}:{factory}" if colon and path.endswith(".py") else name


def _absolute_method(text: str) -> str:
    """Return a method's name, and what is said of its settings behind it, with the absolute path of its file."""
    file, name, *more = text.split(":")
    return ":".join([absolute_model(f"{file}:{name}"), *more]) if file.endswith(".py") else text


def absolute_data(name: str) -> str:
    """Return a data set's name such that it means the same from every folder."""
    kind, colon, folder = name.partition(":")
    return f"{kind}:{Path(folder).expanduser().resolve()}" if colon and folder else name


def absolute_storage(name: str) -> str:
    """Return a storage's name such that it means the same from every folder; a server's URL is left as it is."""
    file = name.removeprefix("sqlite:///")
    return name if "://" in file else f"sqlite:///{Path(file).expanduser().resolve()}"


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run such that they mean the same from every folder."""
    found = dict(options)
    if found.get("model"):
        found["model"] = absolute_model(found["model"])
    for name in ("method", "methods"):
        if ".py:" in str(found.get(name)):
            found[name] = ",".join(_absolute_method(one) for one in found[name].split(","))
    if found.get("data"):
        found["data"] = absolute_data(found["data"])
    for name in ("weights", "calibration"):
        if found.get(name) is not None:
            found[name] = str(Path(found[name]).expanduser().resolve())
    if found.get("storage"):
        found["storage"] = absolute_storage(found["storage"])
    return found


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


def _config(folder: Path) -> dict[str, Any]:
    file = folder / runs.CONFIG_NAME
    return {"config": runs.read_config(file), "config_file": file} if file.is_file() else {}


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
