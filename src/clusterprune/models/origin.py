"""What a compact folder says of itself: ``origin.json``, which network was cut, and what it reads and says."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clusterprune.errors import WeightsError
from clusterprune.files.documents import check_version
from clusterprune.files.reading import ReadError, exists, explain, is_sealed, read_json
from clusterprune.models.code import CodeDigest, digest_of_code, file_of
from clusterprune.models.spec import ModelSpec

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
