"""``clusterprune study``: a figure of the papers, on any network and data."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from clusterprune import data, runs
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.command import command
from clusterprune.cli.console import show, table
from clusterprune.cli.opening import open_task, require
from clusterprune.cli.presets import chosen
from clusterprune.cli.progress import Display
from clusterprune.cli.resuming import check_same, own_folder, will_go_on
from clusterprune.cli.settings import read_set
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.cli.watching import Watch
from clusterprune.errors import ArgumentError
from clusterprune.files.reading import ReadError, parse_yaml
from clusterprune.methods._base import FINE_TUNING
from clusterprune.studies import figures
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig
from clusterprune.train.processes import join

EXAMPLES = """[bold]Examples[/bold]

clusterprune study --list

clusterprune study eps --model vgg16 --weights W --data cifar10:DIR --out runs/eps

clusterprune study min-samples --model path/to/file.py:net --weights W --data folder:DIR --values 1,2,5 --out runs/pts

clusterprune study schedules --model resnet20 --weights W --data cifar10:DIR --epochs 20 --out runs/schedules

clusterprune study rates --set goal=0.6 --out runs/rates
"""
SWEEP = "Sweep"
TRAINING = "Training (of the studies that train)"


@command(EXAMPLES)
def study(
    context: typer.Context,
    *,
    name: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="Which; --list shows all.", show_default=False),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the studies, and do nothing else.")] = False,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE,VALUE", help="What to sweep over.", rich_help_panel=SWEEP, show_default="the paper's"
        ),
    ] = None,
    set: Annotated[  # noqa: A002 (the option's name)
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another setting of the study; repeatable.", rich_help_panel=SWEEP
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Images that feature maps are averaged over.", rich_help_panel=SWEEP),
    ] = 256,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="Network; studies of rates alone need none.", rich_help_panel="Model"
        ),
    ] = None,
    trust: options.Trust = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    num_classes: options.Classes = None,
    data: options.OptionalData = None,
    classes: options.ClassNames = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Use N training and N test images.", rich_help_panel="Data", show_default="all"),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(min=0.01, max=0.9, metavar="SHARE", help="Held-out training images.", rich_help_panel="Data"),
    ] = 0.1,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="That each network trains.", rich_help_panel=TRAINING, show_default="no training"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.", rich_help_panel=TRAINING)] = 128,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.", rich_help_panel=TRAINING)] = 0.01,
    augment: Annotated[str, options.augment(TRAINING)] = "crop_flip",
    precision: Annotated[str, options.precision(TRAINING)] = "auto",
    out: options.OptionalOut = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    resume: options.Resume = False,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Sweep over what a figure of the papers shows, and draw it: study.csv, study.json, figure.svg, figure.png."""
    if listing:
        show({"studies": list(figures.STUDIES)}, _table())
        return
    wanted = chosen(context)
    del wanted["listing"]
    kind = figures.find(require(name, "STUDY", "name one; 'clusterprune study --list' shows them"))
    place = require(out, "out", "give --out DIR, a new folder for the study")
    folder = place.expanduser()
    made = kind.read(_settings(kind, wanted))
    training = _training(wanted)
    if kind.trains and training is None:
        raise ArgumentError(f"epochs is missing: the study {name} trains a network for every point; give --epochs N")
    if resume:
        check_same(context, folder, wanted)
    else:
        runs.check_out(folder)
    if kind.looks:
        check_code(context, wanted, trust, resume=resume)
    _, where = join(training or TrainConfig(device=device))
    with own_folder(place, resume=resume), Display() as display:
        points = len(made.points())
        will_go_on(
            "study", folder, lambda: f"{len(list(folder.glob('points/*/study.json')))} of {points} points are done."
        )
        subject = _subject(kind, wanted, where, training, display) if kind.looks else None
        if not resume:
            noted = absolute(wanted) | (note_code(wanted) if kind.looks else {})
            runs.write_config(folder, "study", noted)
        found = figures.run(made, subject, folder, about={"limit": wanted["limit"]})
    told = [Text(f"{kind.shows}. The paper: {kind.finding}")]
    told += [Text(f"Here: {found.verdict}")] if found.verdict else []
    written = f"Written to {found.folder}: study.csv, study.json, figure.svg and figure.png."
    show({"study": name, "folder": str(found.folder), "verdict": found.verdict}, *told, written)


def _subject(
    kind: type[figures.Study], wanted: dict[str, Any], where: Any, training: TrainConfig | None, display: Any
) -> figures.Subject:
    require(wanted["model"], "model", f"the study {kind.name} looks at a network; give --model NAME")
    require(wanted["data"], "data", f"the study {kind.name} looks at images; give --data KIND:DIR")
    opened = open_task(wanted, where, tell=display.line)
    task, test = require(opened.task, "data", "give --data"), opened.test
    if wanted["limit"] is not None:
        task = _limited(task, wanted["limit"])
        test = None if test is None else data.sample(test, min(wanted["limit"], len(test)), 0)
    return figures.Subject(
        opened.network, task, test, training, images=wanted["images"], seed=wanted["seed"],
        watch=Watch(display, lines=False),
    )  # fmt: skip


def _limited(task: Task, limit: int) -> Task:
    train = data.sample(task.train, min(limit, len(task.train)), 0)
    held_out = task.validation
    return task.on(train, None if held_out is None else data.sample(held_out, min(limit, len(held_out)), 0))


def _settings(kind: type[figures.Study], wanted: dict[str, Any]) -> dict[str, Any]:
    found = read_set(wanted["set"], {})
    if wanted["values"] is None:
        return found
    swept = next((field.name for field in fields(kind) if str(field.type).startswith("tuple")), None)
    if swept is None:
        raise ArgumentError(f"values={wanted['values']!r}, but the study {kind.name} sweeps over nothing; leave it out")
    try:
        return {**found, swept: parse_yaml(f"[{wanted['values']}]")}
    except ReadError as error:
        raise ArgumentError(f"values={wanted['values']!r} {error}; write numbers with commas between them") from None


def _training(wanted: dict[str, Any]) -> TrainConfig | None:
    if wanted["epochs"] is None:
        return None
    own = {name: wanted[name] for name in ("epochs", "batch_size", "lr", "augment", "precision", "device")}
    return FINE_TUNING.changed(**own)


def _table() -> Table:
    made = table("Studies", ("study", "shows", "the paper finds", "trains"), left=4)
    for kind in figures.STUDIES.values():
        made.add_row(kind.name, kind.shows, kind.finding, "yes" if kind.trains else "")
    return made
