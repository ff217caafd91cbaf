"""What the documents beside tensors have in common: channels, shapes, examples, digests, and errors in words."""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from clusterprune.errors import ArgumentError
from clusterprune.files.reading import ReadError, is_sealed

DTYPES = tuple(
    str(dtype).removeprefix("torch.")
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
)  # fmt: skip
"""Types of example inputs, by the names that PyTorch prints."""

SEALED_SINCE = 2
"""Version of plans and compact models from which on both files carry a digest."""


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def unique(names: list[str]) -> list[str]:
    """Check that no name occurs twice."""
    if (name := repeated(names)) is not None:
        raise ValueError(f"{name[:100]!r} is named twice")
    return names


def _ascending(channels: list[int]) -> list[int]:
    if any(a >= b for a, b in itertools.pairwise(channels)):
        raise ValueError("channels must be distinct and in ascending order")
    return channels


Channel = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Channels = Annotated[list[Channel], Field(min_length=1), AfterValidator(_ascending)]
Length = Annotated[int, Field(strict=True, ge=0, lt=1 << 40)]
Shape = Annotated[list[Length], Field(max_length=64)]
Hexadecimal = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ExampleDocument(BaseModel):
    """One example input: shape and dtype of a tensor, or a plain value."""

    model_config = ConfigDict(extra="forbid", strict=True)
    keyword: str | None
    shape: Shape | None = None
    dtype: str | None = None
    value: Any = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.shape is None:
            if "shape" in self.model_fields_set or self.dtype is not None:
                raise ValueError("an example has shape and dtype, or a value")
        elif self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but is {self.dtype!r}")
        elif "value" in self.model_fields_set:
            raise ValueError("an example has shape and dtype, or a value, not both")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the fields that are there."""
        return self.model_dump(exclude_unset=True)


def check_plain(document: Mapping[str, Any], what: str) -> None:
    """Check, before anything is written, that JSON can hold a document.

    Raises
    ------
    ArgumentError
        If it cannot.
    """
    try:
        json.dumps(document)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{what} hold what JSON cannot ({error}); give text, numbers, lists and mappings of them"
        ) from error


def check_version(document: Any, newest: int) -> Any:
    """Check that this release knows the version of a document.

    Raises
    ------
    ReadError
        If it comes from a newer release.
    """
    version = document.get("version") if isinstance(document, Mapping) else None
    if type(version) is int and version > newest:
        raise ReadError(f"has version {str(version)[:20]}, but this release reads up to {newest}; update clusterprune")
    return document


def check_seal(document: Mapping[str, Any]) -> None:
    """Check the digest of a document whose version has one.

    Raises
    ------
    ReadError
        If the document was altered since it was written.
    """
    if document["version"] >= SEALED_SINCE and not is_sealed(document):
        raise ReadError("was altered since it was written")
