"""``clusterprune evaluate``: what a model is worth and what it costs."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from clusterprune import models, runs
from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.console import console, single
from clusterprune.cli.opening import (
    check_classes,
    known_classes,
    locate,
    open_data,
    open_model,
    require,
    stated_number,
)
from clusterprune.cli.progress import Display
from clusterprune.cli.trusting import check_named
from clusterprune.errors import WeightsError
from clusterprune.files.reading import exists

EXAMPLES = """[bold]Examples[/bold]

clusterprune evaluate runs/half

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
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help=options.MODEL_HELP,
            rich_help_panel="Model",
            show_default="that of the run",
        ),
    ] = None,
    trust: options.Trust = None,
    image_size: options.ImageSize = None,
    num_classes: options.Classes = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help=options.DATA_HELP, rich_help_panel="Data", show_default="that of the run"
        ),
    ] = None,
    device: options.Device = None,
    latency_batch: options.LatencyBatch = 1,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure on the test split of the data; without data, the cost alone."""
    if not exists(path.expanduser()):
        raise WeightsError(
            f"RUN_OR_WEIGHTS={str(path)!r} does not exist (looked in {Path.cwd()}); name a weights file, or the folder "
            "of a run"
        )
    located = locate(path)
    known = located.config
    name = require(model or known.get("model"), "--model", "the path does not say what network it is of")
    image_size = image_size or stated_number(located, "image_size")
    data = data or known.get("data")
    if model is None:
        remedy = f"Put back the file as it was; or, to take it as it is now, name it: --model {shlex.quote(name)}"
        check_named(name, known, str(located.config_file), trust, named=False, remedy=remedy)
    spec = models.resolve(name)
    target = runs.pick_device(device)
    with Display() as display:
        timeline = runs.Timeline(display)
        with timeline.phase("open data and model"):
            dataset = open_data(data, spec, image_size) if data is not None else None
            subject = open_model(
                spec,
                located,
                image_size=image_size,
                num_classes=known_classes(spec, located, num_classes),
                device=target,
            )
            test = dataset.splits.get("test") if dataset else None
            if dataset is not None and test is not None:
                check_classes(subject, dataset)
        if test is None:
            display.line("There are no test images, so the accuracy is not measured; name them by --data.", "yellow")
        with timeline.phase("measure") as tell:
            measured = runs.measure(
                subject.model,
                subject.example,
                test,
                mean=subject.spec.mean,
                std=subject.spec.std,
                latency_batch=latency_batch,
                progress=tell,
            )
    if as_json:
        typer.echo(json.dumps(measured.to_dict(), indent=2))
        return
    console().print(single(f"{path}, input {subject.input_text}", measured.to_dict()))
