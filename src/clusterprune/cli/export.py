"""``clusterprune export``: from a run or a compact folder to a file that something else runs."""

# ruff: noqa: ARG001  (`debug` is read by the wrapper)

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from clusterprune import data as datasets
from clusterprune import evaluate as evaluation
from clusterprune import exporters, runs
from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.console import milliseconds, percent, show, size, table
from clusterprune.cli.inputs import at_size
from clusterprune.cli.opening import Found, Subject, open_path, require
from clusterprune.cli.progress import Display
from clusterprune.cli.settings import read_set
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.exporters import Exporter, FromFile
from clusterprune.methods._settings import checked_values
from clusterprune.runtimes.racing import Race, race
from clusterprune.runtimes.running import Torch, clock_of
from clusterprune.tasks import percentages

EXAMPLES = """[bold]Examples[/bold]

clusterprune export runs/half

clusterprune export runs/half --format int8 --out phone.onnx

clusterprune export small/ --format torch --out net.py --trust my_net.py

clusterprune export net.safetensors --model resnet56 --data cifar10:DIR --format onnx --opset 20 --set size=true
"""
CHECKED = 8
"""Images that a file is checked on."""
FORMAT = "Format"


@command(EXAMPLES)
def export(
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="A run folder, a compact folder, or a weights file, which needs --model.",
            show_default=False,
        ),
    ],
    model: options.RunsModel = None,
    trust: options.Trust = None,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    num_classes: options.Classes = None,
    format: Annotated[  # noqa: A002 (the option's name)
        str, typer.Option(metavar="|".join(exporters.names()), help="What to write.", rich_help_panel=FORMAT)
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to; the file must not exist.",
            rich_help_panel=FORMAT,
            show_default="beside the model, by its name",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Version of ONNX's operators.",
            rich_help_panel=FORMAT,
            show_default="18, for onnx and int8",
        ),
    ] = None,
    set: Annotated[  # noqa: A002 (the option's name)
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of the format, such as size=true; may be repeated. A wrong name lists them all.",
            rich_help_panel=FORMAT,
            show_default=False,
        ),
    ] = None,
    data: options.RunsData = None,
    classes: options.ClassNames = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images that int8 measures its ranges on, from any folder.",
            rich_help_panel="Data",
            show_default="those to train on",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them.", rich_help_panel="Data")] = 256,
    evaluate: Annotated[
        bool,
        typer.Option(help="Measure the file too on the test split.", rich_help_panel="Data"),
    ] = True,
    latency_batch: options.LatencyBatch = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Threads that compute.", rich_help_panel="Run", show_default="the runtime's own"
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write, check on real images where there are any, time in turns with PyTorch, and classify the test images."""
    plain = {} if opset is None else {"opset": opset}
    kind = exporters.find(format)
    exporter = kind(**checked_values(kind, read_set(set, plain)))
    given = {
        "model": model, "image_size": image_size, "mean": mean, "std": std, "num_classes": num_classes, "data": data,
        "classes": classes,
    }  # fmt: skip
    with Display() as display:
        timeline = runs.Timeline(display)
        with timeline.phase("open data and model"):
            found = open_path(path, given, trust, torch.device("cpu"), display.line, needs_data=False)
            target = _target(out, found, exporter)
            inputs = _inputs(found, calibration, images if exporter.calibrates else CHECKED, display)
        if exporter.calibrates and not inputs.real:
            raise ArgumentError(
                f"there are no images to measure format={format!r} on; give --calibration DIR (any folder of images), "
                "or --data"
            )
        with timeline.phase(f"write {target.name}"):
            made = exporters.export(
                found.subject.model, inputs.images[:CHECKED], target, format=exporter,
                calibration=inputs.images if exporter.calibrates else None,
            )  # fmt: skip
        with timeline.phase("time in turns"):
            raced = _race(exporter, target, found.subject, inputs.images, latency_batch, threads)
        test = found.data.splits.get("test") if found.data is not None and evaluate else None
        known = None if any(value is not None for value in given.values()) else _known(found)
        measured = {} if test is None else _metrics(exporter, target, found, test, threads, timeline, known)
    result = {**made.to_dict(), "real_images": inputs.real, **_times(raced, latency_batch, threads), **measured}
    result["pytorch"] |= {"bytes": _bytes(found.subject)}
    facts = ", ".join(f"{name.replace('_', ' ')} {str(value).strip('[]')}" for name, value in made.facts.items())
    show(result, _table(f"{path}, input {found.subject.input_text}", result), f"Written to {target} ({facts}).")


def _target(out: Path | None, found: Found, exporter: Exporter) -> Path:
    """Return the file to write, having checked that it is none that there is.

    Raises
    ------
    OutputError
        If it exists.
    """
    place = found.located.path.expanduser()
    own = place if found.located.compact else place.with_suffix("")
    target = out.expanduser() if out is not None else own.with_name(own.name + exporter.suffix)
    if target.exists():
        raise OutputError(f"out={str(target)!r} exists; choose another name with --out, or remove it first")
    return target


@dataclass(frozen=True)
class _Inputs:
    """Normalised images (n, c, h, w), and whether they are real ones."""

    images: Tensor
    real: bool


def _inputs(found: Found, calibration: Path | None, count: int, display: Display) -> _Inputs:
    """Return images to check and to calibrate with: a folder's, or those to train on; else noise.

    Ranges are a choice, so that no test image is among them.
    """
    spec = found.subject.spec
    split: Split | None = None
    if calibration is not None:
        split = at_size(datasets.unlabelled(calibration), spec)
    elif found.data is not None:
        split = found.data.splits.get("train")
    if split is None:
        display.line("There are no images to check the file on, so noise is taken; --data or --calibration name some.")
        return _Inputs(torch.randn(count, *spec.input_shape, generator=torch.Generator().manual_seed(0)), real=False)
    pixels, _ = datasets.sample(split, min(count, len(split)), seed=0).load()
    return _Inputs(datasets.normalize(pixels, spec.mean, spec.std), real=True)


def _race(exporter: Exporter, target: Path, subject: Subject, images: Tensor, batch: int, threads: int | None) -> Race:
    """Time PyTorch and the file in turns, on the same images."""
    given = images.repeat(-(-batch // len(images)), *[1] * (images.ndim - 1))[:batch].contiguous()
    run = exporter.open(target, threads=threads)
    torch_alone = Torch(threads)
    clock = clock_of(torch_alone, given)
    return race([torch_alone.prepare(subject.model, given), lambda: run(given)], clock=clock)


def _times(raced: Race, batch: int, threads: int | None) -> dict[str, Any]:
    speedup = raced.speedup(1)
    return {
        "latency_ms": round(raced.median_ms(1), 4),
        "latency_batch": batch,
        "threads": threads,
        "speedup": [round(value, 4) for value in (speedup.low, speedup.times, speedup.high)],
        "certain": speedup.certain,
        "pytorch": {"latency_ms": round(raced.median_ms(0), 4)},
    }


def _metrics(
    exporter: Exporter, target: Path, found: Found, test: Split, threads: int | None, timeline: runs.Timeline,
    known: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what the task measures of the file, and of PyTorch beside it where the file does not compute the same.

    Parameters
    ----------
    known
        What the run has measured of the model, on the same images.
    """
    task = require(found.task, "data", "there is nothing to measure on")
    with timeline.phase("measure the file") as tell:
        network = FromFile(exporter.open(target, threads=threads))
        own = evaluation.metrics(network, task, test, progress=tell)
    values = {**own.values, "test_images": own.images}
    if not exporter.exact and known is not None and known["images"] == own.images:
        values |= {f"pytorch_{name}": known.get(name) for name in own.values}
    elif not exporter.exact:
        with timeline.phase("measure PyTorch") as tell:
            theirs = evaluation.metrics(found.subject.model, task, test, progress=tell)
        values |= {f"pytorch_{name}": value for name, value in theirs.values.items()}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _known(found: Found) -> dict[str, Any] | None:
    """Return what the model's run has measured of it; None where it has not."""
    name = "compressed" if found.located.compact else "trained"
    result = runs.read_result(found.located.path.parent, name)
    return None if result is None else result[name]


def _bytes(subject: Subject) -> int:
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _table(title: str, result: dict[str, Any]) -> Table:
    """Return the closing table: the file beside PyTorch."""
    made = table(title, ("", "PyTorch", result["format"]))
    own = result["pytorch"]
    made.add_row("size", size(own["bytes"]), size(result["bytes"]))
    batch, threads = result["latency_batch"], result["threads"]
    where = f"latency, {batch} image{'s' if batch > 1 else ''}"
    if threads is not None:
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    made.add_row(where, milliseconds(own["latency_ms"]), milliseconds(result["latency_ms"]))
    low, times, high = result["speedup"]
    told = f"{times:.2f} x ({low:.2f} to {high:.2f})"
    made.add_row("as fast", "", told if result["certain"] else f"the same within the spread, {told}")
    batches = ", ".join(map(str, result["batches"]))
    made.add_row(f"largest difference, batches {batches}", "", f"{result['difference']:.1e}")
    for key, name in percentages(result).items():
        beside = result.get(f"pytorch_{key}")
        made.add_row(name, "" if beside is None else percent(beside), percent(result[key]))
    return made
