"""Compact models that say themselves what they are of: what `cp.save` writes, and `cp.load` needs no more than.

Beside the two files of :mod:`clusterprune.surgery.compact` stands ``origin.json``: which network was cut, by the name
that ``--model`` takes, the digest of a user's own file, and what the network reads and says. It is data; a user's file
is run only by the caller's leave.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from clusterprune.errors import ArgumentError, ModelError, WeightsError
from clusterprune.files.documents import check_version
from clusterprune.files.reading import ReadError, exists, explain, is_sealed, read_json, seal
from clusterprune.files.writing import atomic_folder, write_json
from clusterprune.models.code import CodeDigest, allow, check_unchanged, digest_of_code, file_of
from clusterprune.models.registry import resolve
from clusterprune.models.spec import ModelSpec
from clusterprune.surgery import compact

NAME = "origin.json"
VERSION = 1

Positive = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]


class Origin(BaseModel):
    """Which network a compact model was cut from, and what it reads and says.

    Attributes
    ----------
    model
        As ``--model`` takes it; a user's own file by its absolute path.
    num_classes
        That the factory is asked for; None where it is not asked.
    code
        Digest of a user's own file, and of what it imports beside it.
    input_shape
        (channels, height, width).
    mean, std
        Per channel, of images in [0, 1].
    classes
        Names of the outputs, in their order; empty where they are not known.
    task
        What the network is for, as :data:`clusterprune.tasks.TASKS` knows it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    num_classes: Positive | None = None
    code: CodeDigest | None = None
    input_shape: tuple[Positive, Positive, Positive]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    task: str = "classification"

    @classmethod
    def of(cls, spec: ModelSpec, **facts: Any) -> Self:
        """Describe a network that was built by its name; call it after it was built.

        Parameters
        ----------
        **facts
            Other fields, and those of the spec to have otherwise.
        """
        file = file_of(spec.name)
        name = spec.name if file is None else f"{file}{spec.name.removeprefix(spec.name.rpartition(':')[0])}"
        own = {"input_shape": spec.input_shape, "mean": tuple(spec.mean), "std": tuple(spec.std)}
        return cls(model=name, code=digest_of_code(spec.name), **{**own, **facts})


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal["clusterprune-origin"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    origin: Origin
    sha256: str


def save(model: nn.Module, folder: str | Path, origin: Origin | None = None) -> None:
    """Write a model, compact or not, into a new folder.

    Parameters
    ----------
    origin
        What it was cut from, so that :func:`load` needs no factory; None leaves that to the caller of :func:`load`.

    Raises
    ------
    OutputError
        If the folder exists and is not empty, or cannot be written.
    ModelError
        If a parameter holds NaN or infinity, or has no values.
    ArgumentError
        If `model` is no module, or `folder` no path.
    """
    if origin is None:
        compact.save(model, folder)
        return
    if not isinstance(origin, Origin):
        raise ArgumentError(f"origin must be an Origin, but got origin={type(origin).__name__}; write Origin.of(spec)")
    with atomic_folder(folder) as temporary:
        compact.save(model, temporary)
        document = {"format": "clusterprune-origin", "version": VERSION, "origin": origin.model_dump(mode="json")}
        write_json(temporary / NAME, seal(document))


def load(
    folder: str | Path, factory: Callable[[], nn.Module] | None = None, *, trust: str | Path | None = None
) -> nn.Module:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    factory
        Builds the *original* model; its weights do not matter. None takes what ``origin.json`` names: a built-in
        network, one of torchvision or timm, or a user's own file that `trust` allows.
    trust
        The user's own file that may be run: a path, or ``PATH@SHA256``. Where the folder came from another machine, the
        file may lie elsewhere, as long as it is the same.

    Returns
    -------
    nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    UntrustedCodeError
        If a file would be run that `trust` does not name.
    WeightsError
        If a file is damaged, or does not fit the original.
    ModelError
        If the original cannot be built.
    ArgumentError
        If there is neither a factory nor an ``origin.json``.
    """
    if factory is not None:
        return compact.load(folder, factory)
    origin = read_origin(folder)
    if origin is None:
        raise ArgumentError(
            f"{folder} does not say what network it was cut from, and factory=None; give a function that builds the "
            "original, such as the class of the model"
        )
    original = _build(origin, Path(folder) / NAME, trust)
    return compact.load(folder, lambda: original)


def read_origin(folder: str | Path) -> Origin | None:
    """Return what a folder says of its model; None where it says nothing.

    Raises
    ------
    WeightsError
        If what it says is damaged.
    """
    path = Path(folder).expanduser() / NAME
    if not exists(path):
        return None
    try:
        content = check_version(read_json(path), VERSION)
        document = _Document.model_validate(content)
    except ReadError as error:
        raise WeightsError(f"{path} {error}; save the model again, or load it with a factory") from error
    except ValidationError as error:
        raise WeightsError(f"{path} is damaged ({explain(error)}); save the model again, or give a factory") from error
    if not is_sealed(content):
        raise WeightsError(f"{path} was altered since it was written; save the model again, or give a factory")
    return document.origin


def _build(origin: Origin, path: Path, trust: str | Path | None) -> nn.Module:
    name = origin.model
    file = file_of(name)
    if file is not None:
        name = _found_again(name, file, origin, trust)
        allow(name, named_by=str(path), trust=None if trust is None else str(trust))
        if origin.code is not None:
            check_unchanged(
                name, origin.code, named_by=str(path), remedy="Put back the file as it was, or give a factory"
            )
    try:
        return resolve(name).build(origin.num_classes)
    except ModelError as error:
        raise ModelError(f"{path} names model={name!r}, which cannot be built here: {error}") from error


def _found_again(name: str, file: Path, origin: Origin, trust: str | Path | None) -> str:
    """Return the name of the same file where the caller says that it lies now."""
    if file.exists() or trust is None or origin.code is None:
        return name
    elsewhere = Path(str(trust).partition("@")[0]).expanduser().resolve()
    return f"{elsewhere}:{name.rpartition(':')[2]}" if elsewhere.is_file() else name
