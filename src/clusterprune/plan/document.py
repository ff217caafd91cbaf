"""The two files of a plan: `plan.json`, and the tensors that it names in `plan.safetensors`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from clusterprune.errors import PlanError
from clusterprune.files.documents import (
    Channels,
    ExampleDocument,
    Hexadecimal,
    Shape,
    check_plain,
    check_seal,
    check_version,
    unique,
)
from clusterprune.files.reading import ReadError, explain, read_json, seal
from clusterprune.files.tensors import is_finite, read_tensors, write_tensors
from clusterprune.files.writing import atomic_folder

VERSION = 2


class MergeDocument(BaseModel):
    """A merge in `plan.json`; its tensors are in the other file, under its number, kind and path."""

    model_config = ConfigDict(extra="forbid", strict=True)
    group: str
    kept: Channels
    mixing: Annotated[list[str], AfterValidator(unique)]
    offset: Annotated[list[str], AfterValidator(unique)]


class PlanDocument(BaseModel):
    """What `plan.json` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["clusterprune-plan"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    merges: list[MergeDocument]
    replaced: Annotated[list[str], AfterValidator(unique)]
    model: dict[str, Shape]
    weights: Hexadecimal | Literal[""]
    example: list[ExampleDocument]
    tensors_sha256: Hexadecimal
    notes: dict[str, Any]
    approximate: bool = False
    sha256: Hexadecimal | None = None

    @field_validator("merges")
    @classmethod
    def _check_groups(cls, merges: list[MergeDocument]) -> list[MergeDocument]:
        unique([merge.group for merge in merges])
        return merges


def write_plan(folder: str | Path, content: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `plan.json`, with format, version and digests around its content, and `plan.safetensors`.

    Raises
    ------
    OutputError
        If the folder exists or cannot be written.
    ArgumentError
        If something is nothing that JSON can hold.
    """
    document = {"format": "clusterprune-plan", "version": VERSION, **content}
    check_plain(document, "the plan's notes or example")
    with atomic_folder(folder) as temporary:
        document["tensors_sha256"] = write_tensors(temporary / "plan.safetensors", tensors)
        (temporary / "plan.json").write_text(json.dumps(seal(document), indent=1) + "\n")


def read_plan(folder: Path) -> tuple[PlanDocument, dict[str, Tensor]]:
    """Read and check both files of a plan.

    Raises
    ------
    PlanError
        If a file is missing, truncated, altered, makes no sense, or is of another version.
    """
    path = folder / "plan.json"
    try:
        content = check_version(read_json(path), VERSION)
        document = PlanDocument.model_validate(content)
        check_seal(content)
    except ReadError as error:
        if error.missing:
            raise PlanError(f"{folder} holds no plan.json; give the folder that Plan.save wrote") from error
        raise PlanError(f"{path} is not a valid plan: it {error}; make the plan again") from error
    except ValidationError as error:
        raise PlanError(f"{path} is not a valid plan: {explain(error)}; make the plan again") from error
    path = folder / "plan.safetensors"
    try:
        tensors, _ = read_tensors(path, document.tensors_sha256)
    except ReadError as error:
        raise PlanError(f"{path} {error}; make the plan again") from error
    _check_tensors(document, tensors, path)
    return document, tensors


def _check_tensors(document: PlanDocument, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that the file holds the tensors that the document names, no others, and only numbers in them."""
    named = {f"replaced.{p}" for p in document.replaced}
    for index, merge in enumerate(document.merges):
        named |= {f"merges.{index}.mixing.{p}" for p in merge.mixing}
        named |= {f"merges.{index}.offset.{p}" for p in merge.offset}
    if lacking := sorted(named - tensors.keys()):
        raise PlanError(f"{path} lacks the tensor {lacking[0]!r}; make the plan again")
    if foreign := sorted(tensors.keys() - named):
        raise PlanError(f"{path} holds the tensor {foreign[0][:200]!r}, of which plan.json says nothing")
    for name, tensor in tensors.items():
        if not name.startswith("replaced.") and not tensor.is_floating_point():
            raise PlanError(f"{path}: {name} must hold floating-point numbers, but holds {tensor.dtype}")
        if not is_finite(tensor):
            raise PlanError(f"{path}: {name} holds NaN or infinity; make the plan again")
