"""``clusterprune evaluate``: what a model is worth and what it costs."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from pathlib import Path
from typing import Annotated

import typer

from clusterprune import runs
from clusterprune.cli import options
from clusterprune.cli.closing import single
from clusterprune.cli.command import command
from clusterprune.cli.console import show
from clusterprune.cli.measuring import runtime_of
from clusterprune.cli.opening import open_path, original_of
from clusterprune.cli.progress import Display
from clusterprune.cli.reporting import leave_sheet

EXAMPLES = """[bold]Examples[/bold]

clusterprune evaluate runs/half

clusterprune evaluate compact/ --data folder:DIR --runtime onnxruntime:threads=1

clusterprune evaluate resnet56.safetensors --model resnet56 --data cifar10:DIR --latency-batch 64
"""


@command(EXAMPLES)
def evaluate(
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="A weights file, a compact folder, or a run folder, whose config.yaml then names model and data.",
            show_default=False,
        ),
    ],
    model: options.RunsModel = None,
    trust: options.Trust = None,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    num_classes: options.Classes = None,
    data: options.RunsData = None,
    classes: options.ClassNames = None,
    task: options.TaskName = None,
    device: options.Device = None,
    latency_batch: options.LatencyBatch = 1,
    runtime: options.Runtime = None,
    debug: options.Debug = False,
) -> None:
    """Measure on the test split of the data; without data, the cost alone."""
    given = {
        "model": model, "image_size": image_size, "mean": mean, "std": std, "num_classes": num_classes, "data": data,
        "classes": classes, "task": task,
    }  # fmt: skip
    with Display() as display:
        timeline = runs.Timeline(display)
        place = runs.pick_device(device)
        with timeline.phase("open data and model"):
            found = open_path(path, given, trust, place, display.line)
        subject, test = found.subject, found.data.splits.get("test") if found.data is not None else None
        if test is None:
            display.line("There are no test images, so only costs are measured; name them by --data.", "yellow")
        with timeline.phase("measure") as tell:
            measured = runs.measure(
                subject.model,
                subject.example,
                test,
                found.task,
                latency_batch=latency_batch,
                runtime=runtime,
                progress=tell,
            ).to_dict()
        if (folder := found.located.run) is not None:
            seen = {"original": lambda: original_of(found, place), folder.resolve().name: lambda: subject.model}
            leave_sheet(folder, seen, found.task, test, display.line)
    measured |= runtime_of(runtime)
    show(measured, single(f"{path}, input {subject.input_text}", measured))
