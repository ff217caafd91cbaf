"""Run folders: what was asked, what it took and what came of it, as files.

A run folder holds ``config.yaml`` (all that is needed to repeat the run: a flat mapping whose keys are the
long options of the command), ``log.jsonl`` (one line per event) and ``result.json`` (written last: a folder
with it is a finished run).
"""

import datetime as dt
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from clusterprune import evaluate
from clusterprune.credentials import hidden, hide_in_argument
from clusterprune.data import Split
from clusterprune.errors import DataError, OutputError
from clusterprune.evaluate import Latency
from clusterprune.files import output_errors, reason_of, replace_file, shown
from clusterprune.reading import ReadError, exists, read_json, read_json_lines, read_yaml
from clusterprune.train.config import TrainConfig, resolve_device

CONFIG_NAME = "config.yaml"
RESULT_NAME = "result.json"
LOG_NAME = "log.jsonl"
PLAN_NAME = "plan"
COMPACT_NAME = "compact"
WEIGHTS_NAME = "model.safetensors"

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, done, total)``; total 0 says that the length of the phase is not known."""

_PACKAGES = ("clusterprune", "torch", "torchvision", "numpy", "scikit-learn", "safetensors")


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


def pick_device(device: str | None) -> torch.device:
    """Return the device by name; None is CUDA when there is one, else the CPU.

    Raises
    ------
    ArgumentError
        If this machine has no such device.
    """
    return resolve_device(TrainConfig(device=device))


def silent(phase: str, done: int, total: int) -> None:
    """Report no progress."""


class Timeline:
    """The phases of a run with their seconds, told to whoever watches as they pass.

    Parameters
    ----------
    progress
        Told about every phase as it goes.

    Attributes
    ----------
    seconds
        Time of each finished phase, in the order in which they began.
    events
        The same as records for the log.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []
        self._progress = progress or silent

    @contextmanager
    def phase(self, name: str, *, announce: bool = True) -> Iterator[Callable[[int, int], None]]:
        """Time a block; yield what it may call as ``tell(done, total)``.

        Parameters
        ----------
        announce
            False for a block that reports phases of its own.
        """
        began = time.perf_counter()
        if announce:
            self._progress(name, 0, 0)
        yield lambda done, total: self._progress(name, done, total)
        if announce:
            self._progress(name, 1, 1)
        self.seconds[name] = round(time.perf_counter() - began, 3)
        self.note("phase", phase=name, seconds=self.seconds[name])

    def note(self, event: str, **facts: Any) -> None:
        """Add a record to the log."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        self.events.append({"time": now, "event": event, **facts})


@dataclass(frozen=True)
class Measurement:
    """What a model costs and what it is worth, measured on the model itself.

    Attributes
    ----------
    params
        Parameters.
    macs
        Multiply-adds of one image.
    accuracy, accuracy_top5
        Percent of the test images; None where there was nothing to test on.
    images
        Number of test images.
    latency_ms, latency_iqr_ms
        Median time of one forward pass, and its interquartile range.
    latency_batch
        Images in that pass.
    """

    params: int
    macs: int
    accuracy: float | None
    accuracy_top5: float | None
    images: int
    latency_ms: float
    latency_iqr_ms: float
    latency_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, rounded to what a measurement can tell."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure(
    model: nn.Module,
    example: Tensor,
    test: Split | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    latency: Latency | None = None,
    latency_batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Count parameters and multiply-adds, time a pass, and classify the test images.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the model's device.
    test
        Images to classify at their own size; None skips the accuracy.
    mean, std
        Normalisation, as in :func:`clusterprune.data.normalize`.
    latency
        The time of a pass, where it was taken before, as :func:`time_in_turns` does.
    latency_batch
        Images per timed pass.
    """
    if latency is None:
        (latency,) = time_in_turns([model], example, batch=latency_batch)
    accuracy = None
    if test is not None:
        accuracy = evaluate.accuracy(model, test, mean=mean, std=std, progress=progress)
    return Measurement(
        params=evaluate.params(model),
        macs=evaluate.macs(model, example),
        accuracy=accuracy.top1 if accuracy else None,
        accuracy_top5=accuracy.top5 if accuracy else None,
        images=accuracy.images if accuracy else 0,
        latency_ms=latency.median_ms,
        latency_iqr_ms=latency.iqr_ms,
        latency_batch=latency.batch,
    )


def time_in_turns(models: Sequence[nn.Module], example: Tensor, *, batch: int = 1, rounds: int = 5) -> list[Latency]:
    """Time a pass of each model, one after the other in several rounds.

    A machine gets slower and faster while others use it; in turns, that favours none of the models. The
    median over the rounds is returned.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the models' device.
    batch
        Images per pass.
    """
    images = example.expand(batch, *example.shape[1:]).contiguous()
    timed: list[list[Latency]] = [[] for _ in models]
    for _ in range(rounds):
        for model, times in zip(models, timed, strict=True):
            times.append(evaluate.latency(model, images, warmup=3, runs=10))
    return [
        Latency(
            median_ms=statistics.median(one.median_ms for one in times),
            iqr_ms=statistics.median(one.iqr_ms for one in times),
            runs=sum(one.runs for one in times),
            batch=batch,
        )
        for times in timed
    ]


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a run ran on: command line, versions, device and threads."""
    return {
        "command_line": shlex.join([Path(sys.argv[0]).name, *(hide_in_argument(text) for text in sys.argv[1:])]),
        "working_folder": str(Path.cwd()),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
    }


def write_config(folder: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write ``config.yaml``: the command, and its options by their long names; None is left out.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    content = {"command": command, "clusterprune": _version("clusterprune")}
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
    return content if isinstance(content, dict) and sound else None


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
    from clusterprune.tensor_files import tensor_bytes

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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """Return the processor's name, which `platform` knows on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
