"""What a recipe states, and where its file is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clusterprune.errors import ArgumentError
from clusterprune.files.reading import ReadError, read_yaml
from clusterprune.methods._registry import METHODS, find
from clusterprune.models.sources import suggestion
from clusterprune.train import TrainConfig
from clusterprune.train.config import Precision

Data = Literal["cifar10", "cifar100", "imagenet", "digits", "folder", "voc"]
CLASSES: dict[str, int] = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10, "voc": 20}
"""By kind of data; a folder may have any number."""

_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

Percent = Annotated[float, Field(ge=0, le=100)]


class Figures(BaseModel):
    """Published figures of one network: accuracy in percent (of a detector mAP50), sizes in millions."""

    model_config = _STRICT

    accuracy: Percent
    accuracy_top5: Percent | None = None
    params: Annotated[float | None, Field(gt=0)] = None
    macs: Annotated[float | None, Field(gt=0)] = None

    @property
    def worth(self) -> tuple[float, float | None]:
        """The percentages, in the order of the task's metrics."""
        return self.accuracy, self.accuracy_top5


class Published(BaseModel):
    """A row of a table.

    Attributes
    ----------
    paper, table
        Where it stands.
    baseline, compressed
        The two networks.
    drop
        Points of accuracy; negative is a gain.
    params_removed, macs_removed
        Percent.
    """

    model_config = _STRICT

    paper: str
    table: str
    baseline: Figures
    compressed: Figures
    drop: float
    params_removed: Percent | None = None
    macs_removed: Percent | None = None


class Recipe(BaseModel):
    """A network, data, a method with its settings, both trainings, and what a paper says comes out.

    Attributes
    ----------
    name
        That of the file, unless the file says otherwise.
    model
        As :func:`clusterprune.models.resolve` takes it; a path in a file counts from the file's folder.
    data
        The kind; where it lies is for the caller to say.
    method, settings
        One of :data:`clusterprune.methods.METHODS`, and its settings by name, as plain values.
    knob
        The one setting that tells the rows of a table apart, as the paper writes it.
    training, baseline
        Of the method, and of the original network.
    seeds
        Of the method. The original network is trained once, with the first.
    published
        None in a recipe of one's own, and where a paper has pictures and no figures.
    """

    model_config = _STRICT

    name: str
    model: str
    data: Data
    method: str
    knob: str = ""
    settings: dict[str, Any] = {}
    training: TrainConfig | None = None
    baseline: TrainConfig
    seeds: tuple[int, ...] = (0,)
    published: Published | None = None

    @field_validator("training", "baseline")
    @classmethod
    def _check_training(cls, training: TrainConfig | None) -> TrainConfig | None:
        stated = set() if training is None else training.model_fields_set & {"seed", "device"}
        if stated:
            raise ValueError(f"{sorted(stated)[0]} belongs to a run, not to its recipe; leave it out")
        return training

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _different(seeds)

    @model_validator(mode="after")
    def _check_trains(self) -> Self:
        if self.method not in METHODS:  # a class in a file would be code that the user has not named
            raise ValueError(f"method={self.method!r} is not known; choose from {', '.join(METHODS)}")
        if self.training is None and find(self.method).training is not None:
            raise ValueError(f"training is missing, but method={self.method!r} trains; state how")
        return self

    def changed(
        self,
        *,
        epochs_scale: float = 1.0,
        seeds: Sequence[int] | None = None,
        precision: Precision | None = None,
    ) -> Self:
        """Return the recipe of a shorter run.

        Parameters
        ----------
        epochs_scale
            Factor of every number of epochs, of which at least one stays; above 0, at most 1.
        seeds, precision
            Others than the recipe's.

        Raises
        ------
        ArgumentError
            If a value is not accepted.
        """
        if not 0 < epochs_scale <= 1:
            raise ArgumentError(f"epochs_scale must be above 0 and at most 1, but got epochs_scale={epochs_scale!r}")

        def shorter(training: TrainConfig | None) -> TrainConfig | None:
            if training is None:
                return None
            fields = {} if precision is None else {"precision": precision}
            epochs = _scaled(training.epochs, epochs_scale)
            # Stated in epochs, but a share of the run like the milestones.
            warmup = training.warmup_epochs * epochs / training.epochs
            return training.changed(**fields, epochs=epochs, warmup_epochs=warmup)

        settings = dict(self.settings)
        if epochs_scale != 1:
            method = find(self.method).read(settings)
            settings |= {name: _scaled(getattr(method, name), epochs_scale) for name in method.in_epochs}
        changes = {"settings": settings, "training": shorter(self.training), "baseline": shorter(self.baseline)}
        return self.model_copy(update=changes | ({} if seeds is None else {"seeds": _different(seeds)}))


def _scaled(epochs: int, scale: float) -> int:
    return max(1, round(epochs * scale))


def _different(seeds: Sequence[int]) -> tuple[int, ...]:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ArgumentError(f"seeds must be different whole numbers of at least 0, but got seeds={list(seeds)}")
    return tuple(seeds)


def names() -> list[str]:
    """Return the names of the recipes that come with the package: the rows of the papers' main tables."""
    return sorted(path.stem for path in _folder().iterdir() if path.suffix == ".yaml")


def ablations() -> list[str]:
    """Return the names of the other recipes, ``ablations/…``: what a paper shows that a part of it is worth."""
    return sorted(f"ablations/{path.stem}" for path in (_folder() / "ablations").iterdir() if path.suffix == ".yaml")


def read(name: str | Path) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    name
        One of :func:`names` or :func:`ablations`, or the path of a file that ends in .yaml.

    Raises
    ------
    ArgumentError
        If there is no such recipe, or its file does not say what a recipe has to.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        known = [*names(), *ablations()]
        if str(name) not in known:
            raise ArgumentError(
                f"recipe={str(name)!r} is not known. {suggestion(str(name), known)}'clusterprune reproduce --list' "
                f"shows all {len(known)}; a recipe of your own is named by its path, which ends in .yaml"
            )
        path = _folder() / f"{name}.yaml"
    try:
        content = read_yaml(path)
    except ReadError as error:
        raise ArgumentError(f"recipe={str(name)!r} {error}; check the path, or correct the file") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"recipe={str(name)!r} must hold fields such as 'model: resnet56', one a line")
    try:
        recipe = Recipe.model_validate({"name": path.stem, **content})
        find(recipe.method).read(recipe.settings)
    except ValidationError as error:
        raise ArgumentError(f"recipe {path}: {_explain(error)}") from None
    except ArgumentError as error:
        raise ArgumentError(f"recipe {path}: {error}") from None
    file, _, factory = recipe.model.rpartition(":")
    if not file.endswith(".py"):
        return recipe
    file = (path.parent / Path(file).expanduser()).resolve()
    return recipe.model_copy(update={"model": f"{file}:{factory}"})


def _folder() -> Path:
    """Return where the recipes are: inside an installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / "rows"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def _explain(error: ValidationError) -> str:
    """Say which fields are wrong, their values, and what they accept."""
    lines = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            lines.append(f"{field} is missing")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"{field} is no field of a recipe; the fields are {', '.join(_fields(fault['loc']))}")
        elif fault["type"] == "value_error":  # ours, and a TrainConfig's, which names its own fields
            lines.append(f"{field}: {fault.get('ctx', {}).get('error')}".removeprefix(": "))
        else:
            lines.append(f"{field}: {fault['msg'][0].lower()}{fault['msg'][1:]}, but got {fault['input']!r}")
    return "; ".join(lines)


def _fields(place: tuple[int | str, ...]) -> list[str]:
    if place[0] != "published" or len(place) == 1:
        return list(Recipe.model_fields)
    return list(Published.model_fields if len(place) == 2 else Figures.model_fields)
