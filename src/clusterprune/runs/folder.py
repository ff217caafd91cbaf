"""Run folders: what was asked, what it took and what came of it, as files.

A run folder holds ``config.yaml`` (all that is needed to repeat the run: a flat mapping whose keys are the
long options of the command), ``log.jsonl`` (one line per event), ``details.json`` (what a report draws) and
``result.json`` (written last: a folder with it is a finished run).
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn

from clusterprune.errors import DataError, OutputError
from clusterprune.files.credentials import hidden
from clusterprune.files.reading import ReadError, exists, read_json, read_json_lines, read_yaml
from clusterprune.files.tensors import tensor_bytes
from clusterprune.files.writing import output_errors, reason_of, replace_file, shown
from clusterprune.runs.environment import version_of
from clusterprune.runs.measurement import Measurement

CONFIG_NAME = "config.yaml"
RESULT_NAME = "result.json"
LOG_NAME = "log.jsonl"
DETAILS_NAME = "details.json"
PLAN_NAME = "plan"
COMPACT_NAME = "compact"
WEIGHTS_NAME = "model.safetensors"


def check_out(out: str | Path) -> Path:
    """Return the output folder as a path, having checked that nothing there would be lost.

    Raises
    ------
    OutputError
        If it is a file, is not empty, or lies where no folder can be made.
    """
    try:
        return _free_folder(out)
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be looked into, a NUL
        raise OutputError(
            f"out={shown(repr(str(out)))} cannot be used ({reason_of(error)}); choose another folder"
        ) from error


def _free_folder(out: str | Path) -> Path:
    folder = Path(out).expanduser()
    if not str(folder).isascii() and str(folder).encode("utf-8", "replace").decode() != str(folder):
        # The library that reads tensors knows no such paths.
        raise OutputError(f"out={str(out)!a} is not UTF-8, so that nothing could be read from there; choose another")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={str(out)!r} is a file, not a folder; choose another")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"out={str(out)!r} exists and is not empty; choose another folder, or remove it first")
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"out={str(out)!r} lies below {str(nearest)!r}, which is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"out={str(out)!r} may not be written, for {str(nearest)!r} is closed; choose another folder")
    return folder


def numbered(folder: Path) -> Path:
    """Return `folder`, or the first of folder-2, folder-3, … that is free."""
    candidate, number = folder, 1
    while exists(candidate) and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def write_config(folder: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write ``config.yaml``: the command, and its options by their long names; None is left out.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    content = {"command": command, "clusterprune": version_of("clusterprune")}
    content |= {name: _plain(value) for name, value in options.items() if value is not None}
    text = yaml.safe_dump(hidden(content), sort_keys=False, allow_unicode=True)
    _write(folder / CONFIG_NAME, text)


def read_config(path: Path) -> dict[str, Any]:
    """Read what :func:`write_config` wrote, or what someone wrote by hand.

    Raises
    ------
    DataError
        If the file is missing or is no mapping.
    """
    try:
        content = read_yaml(path)
    except ReadError as error:
        raise DataError(f"config={str(path)!r} {error}; check the path, or correct the file") from error
    if not isinstance(content, dict):
        raise DataError(f"config={str(path)!r} must hold one option per line, such as 'model: resnet56'")
    return content


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``result.json``.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    _write(folder / RESULT_NAME, json.dumps(hidden(result), indent=2, ensure_ascii=False) + "\n")


def read_result(folder: Path, *models: str) -> dict[str, Any] | None:
    """Read ``result.json``; None when the folder has none, or one that was damaged.

    Parameters
    ----------
    models
        Whose measurements it must hold, such as "baseline" and "compressed".
    """
    try:
        content = read_json(folder / RESULT_NAME)
        measured = [TypeAdapter(Measurement).validate_python(content[name]) for name in models]
    except (ReadError, ValidationError, LookupError, TypeError):
        return None
    figures = [(one.params, one.macs, one.latency_ms, one.latency_batch) for one in measured]
    sound = all(figure > 0 for several in figures for figure in several)  # neither 0 nor NaN
    # Figures as what they were read as: a number may stand in quotation marks in a file.
    numbers = {name: {**content[name], **one.figures} for name, one in zip(models, measured, strict=True)}
    return {**content, **numbers} if isinstance(content, dict) and sound else None


def write_details(folder: Path, details: Mapping[str, Any]) -> None:
    """Write ``details.json``: what a report draws, and nobody reads as numbers; see :func:`clusterprune.runs.details`.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    _write(folder / DETAILS_NAME, json.dumps(hidden(details), ensure_ascii=False) + "\n")


def write_log(folder: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Write ``log.jsonl``.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    _write(folder / LOG_NAME, "".join(json.dumps(hidden(event)) + "\n" for event in events))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read what earlier sessions of a run have noted in ``log.jsonl``; nothing where there is none.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    try:
        return read_json_lines(folder / LOG_NAME)
    except ReadError as error:
        if error.missing:
            return []
        raise DataError(
            f"{folder / LOG_NAME} {error}; it only tells how long the run took: remove the file, and go on"
        ) from error


def write_weights(folder: Path, model: nn.Module) -> None:
    """Write ``model.safetensors``: every parameter and buffer by its path.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    _write(folder / WEIGHTS_NAME, tensor_bytes(model.state_dict()))


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours that a stopped run may have left."""
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: str | bytes) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode() if isinstance(content, str) else content)


def _plain(value: Any) -> Any:
    """Return a value that YAML can hold without a tag."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
