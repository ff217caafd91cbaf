"""Checkpoints on disk: one safetensors file each, replaced whole or not at all.

Everything that is no tensor stands as JSON in the file's own metadata. One file cannot disagree
with itself: a process killed at any moment leaves either the previous checkpoint or the new one.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from clusterprune.errors import WeightsError
from clusterprune.files.reading import ReadError, parse_json
from clusterprune.files.tensors import read_tensors
from clusterprune.files.writing import replace_file

FILE_NAME = "checkpoint.safetensors"
FORMAT = 1


class Tally(BaseModel):
    """Running sums of the epoch in progress; `seconds` is the time it has taken so far."""

    model_config = ConfigDict(extra="forbid")

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0


class Header(BaseModel):
    """The part of a checkpoint that is no tensor.

    Attributes
    ----------
    epoch
        Number of epochs completed.
    step
        Number of steps taken in the epoch after those.
    history
        One record per completed epoch.
    tally
        Sums over those `step` steps.
    config, data
        What training was asked to do; resuming must ask the same.
    environment
        What it ran on. Another one may round differently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    epoch: int
    step: int
    history: list[dict[str, Any]]
    tally: Tally
    config: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]


def write(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Replace the checkpoint at `path`. The old one stays until the new one is safely on disk.

    Parameters
    ----------
    tensors
        Contiguous, on the CPU, sharing no memory.

    Raises
    ------
    OSError
        The file cannot be written. What was at `path` is untouched.
    """
    text = header.model_dump_json()
    metadata = {"clusterprune": text, "sha256": _digest(text, tensors)}
    replace_file(path, save(dict(tensors), metadata))


def progress_of(path: Path) -> tuple[int, int, int] | None:
    """Return how far a checkpoint is: its epochs, the steps after them, and the epochs that were asked for.

    None where there is no checkpoint, or one whose header makes no sense; its tensors are not read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.model_validate_json((file.metadata() or {})["clusterprune"])
        return header.epoch, header.step, int(header.config["epochs"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def read(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Read the checkpoint at `path`.

    Raises
    ------
    WeightsError
        The file cannot be read, is no checkpoint, is damaged, or is of a newer version.
    """
    remedy = "delete it to start over, or put back a copy"
    try:
        tensors, metadata = read_tensors(path)
    except ReadError as error:
        raise WeightsError(f"checkpoint {path} cannot be read (it {error}); {remedy}") from error
    if not {"clusterprune", "sha256"} <= metadata.keys():
        raise WeightsError(f"{path} is a safetensors file but no training checkpoint; {remedy}")
    text = metadata["clusterprune"]
    if metadata["sha256"] != _digest(text, tensors):
        raise WeightsError(f"checkpoint {path} is damaged (its SHA-256 does not match); {remedy}")
    try:
        fields = parse_json(text)
        if fields["format"] > FORMAT:
            raise WeightsError(
                f"checkpoint {path} has format {fields['format']}, this clusterprune reads up to "
                f"{FORMAT}; update clusterprune"
            )
        return tensors, Header(**fields)
    except (ReadError, ValidationError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"checkpoint {path} has a header that makes no sense; {remedy}") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the header and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()
