"""What a path holds: weights, a compact model or a run; and what it says of the model."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusterprune import runs
from clusterprune.cli.command import LARGEST
from clusterprune.cli.trusting import CODE, trust_option_of
from clusterprune.errors import DataError, WeightsError
from clusterprune.files.reading import exists, is_folder
from clusterprune.models import ModelSpec, artifact
from clusterprune.models.artifact import Origin, read_origin
from clusterprune.models.registry import DETECTORS, ON
from clusterprune.models.weights import classes_in

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
        The options of the run that made it, and what a compact folder says of itself, as options; empty where nothing
        is known.
    config_file
        Where they stand; None where nothing is known.
    origin
        What a compact folder says of itself; None where it says nothing.
    """

    path: Path
    compact: bool
    config: dict[str, Any] = field(default_factory=dict)
    config_file: Path | None = None
    origin: Origin | None = None

    @property
    def run(self) -> Path | None:
        """The folder of the run that made it; None where it has none, or has left it."""
        file = self.config_file
        return file.parent if file is not None and file.name == runs.CONFIG_NAME else None


def locate(path: Path) -> Located:
    """Find the model in a path: a weights file, a compact folder, or a run folder.

    Raises
    ------
    WeightsError
        If there is nothing at the path, or a folder that holds none of them, or a compact one that is damaged.
    """
    path = path.expanduser()
    if not exists(path):
        raise WeightsError(f"weights={str(path)!r} does not exist (looked in {Path.cwd()}): check the path.")
    if not is_folder(path):
        return Located(path, compact=False)
    if (path / STRUCTURE_NAME).is_file():
        return _compact(path, path.parent)
    if (path / runs.COMPACT_NAME / STRUCTURE_NAME).is_file():
        return _compact(path / runs.COMPACT_NAME, path)
    if (path / runs.WEIGHTS_NAME).is_file():
        return Located(path / runs.WEIGHTS_NAME, False, *_config(path))
    if (path / "checkpoint.safetensors").is_file():
        more = trust_option_of(path)
        raise WeightsError(
            f"weights={str(path)!r} is a training that is not finished; finish it with "
            f"'clusterprune train --out {shlex.quote(str(path))} --resume{more}'"
        )
    several = sorted(place.parent.parent.name for place in path.glob(f"*/{runs.COMPACT_NAME}/{STRUCTURE_NAME}"))
    if several:
        raise WeightsError(
            f"weights={str(path)!r} holds several models; name one: "
            f"{', '.join(shlex.quote(str(path / name)) for name in several)}"
        )
    raise WeightsError(
        f"weights={str(path)!r} is a folder without a model: expected {runs.COMPACT_NAME}/ with a {STRUCTURE_NAME}, "
        f"or {runs.WEIGHTS_NAME}; name a run folder or a weights file"
    )


def _compact(folder: Path, run: Path) -> Located:
    """Return what is known of a compact model: by its run, and by its own folder, which may have left the run's."""
    config, file = _config(run)
    origin = read_origin(folder)
    if origin is None:
        return Located(folder, True, config, file)
    return Located(folder, True, {**config, **as_options(origin)}, file or folder / artifact.NAME, origin)


def _config(folder: Path) -> tuple[dict[str, Any], Path | None]:
    file = folder / runs.CONFIG_NAME
    return (runs.read_config(file), file) if file.is_file() else ({}, None)


def as_options(origin: Origin) -> dict[str, Any]:
    """Return what a compact folder says of itself as a run's options say it; a shape that is no square is not one."""
    _, height, width = origin.input_shape
    found = {"model": origin.model, "mean": as_text(origin.mean), "std": as_text(origin.std)}
    found |= {"num_classes": origin.num_classes} if origin.num_classes is not None else {}
    found |= {"image_size": height} if height == width else {}
    return found | ({CODE: origin.code.to_dict()} if origin.code is not None else {})


def as_text(numbers: tuple[float, ...]) -> str:
    """Return numbers as an option has them."""
    return ",".join(map(repr, numbers))


def is_backbone(model: str, located: Located) -> bool:
    """Tell whether weights are a compact network that a built-in detector is to be built on, as the papers do."""
    if model not in DETECTORS or not located.compact or located.origin is None:
        return False
    return located.origin.model.partition(ON)[0] not in DETECTORS


def built_on(model: str, located: Located | None) -> str:
    """Return a model's name: of a built-in detector with the backbone that it was trained on, as its run says."""
    stated = "" if located is None else str(located.config.get("model", ""))
    return stated if model in DETECTORS and stated.startswith(f"{model}{ON}") else model


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
