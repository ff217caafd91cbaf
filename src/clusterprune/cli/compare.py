"""``clusterprune compare``: all methods on one network, at one budget and with one training."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from clusterprune import evaluate, runs
from clusterprune.budget.allocation import check_fraction
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.command import command
from clusterprune.cli.console import show, table
from clusterprune.cli.opening import Opened, open_task, read_seeds, require
from clusterprune.cli.presets import chosen
from clusterprune.cli.progress import Display
from clusterprune.cli.reporting import leave_report
from clusterprune.cli.resuming import check_same, own_folder, will_go_on
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.cli.watching import Watch
from clusterprune.data import Split
from clusterprune.files.tables import write_csv
from clusterprune.methods._registry import COMPARED
from clusterprune.report import REPORT_NAME
from clusterprune.studies.comparison import TRAINING as BASE
from clusterprune.studies.comparison import Contender, Entry, finished, label, method_of
from clusterprune.studies.comparison import compare as compete
from clusterprune.tasks import TITLES
from clusterprune.train import TrainConfig
from clusterprune.train.processes import join

EXAMPLES = """[bold]Examples[/bold]

clusterprune compare --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --out runs/compare

clusterprune compare --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --out runs/icp --seeds 0,1,2 \\
    --methods icp,icp:cut=clusters:merging=refit,icp:alpha=0:beta=0 --epochs 40

clusterprune compare --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --out runs/papers --published \\
    --methods icp,acp,cp --epochs 200 --lr 0.1

clusterprune compare --out runs/compare --resume
"""
TRAINING = "Training"
CSV_NAME = "entries.csv"


@command(EXAMPLES)
def compare(
    context: typer.Context,
    *,
    model: options.Model,
    trust: options.Trust = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    num_classes: options.Classes = None,
    approximate: options.Approximate = False,
    data: options.Data,
    classes: options.ClassNames = None,
    task: options.TaskName = None,
    validation: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            metavar="SHARE",
            help="Share of the training images held out for what a method has to choose.",
            rich_help_panel="Data",
        ),
    ] = 0.1,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHOD,METHOD",
            help="Who competes. METHOD:NAME=VALUE changes a setting, such as l1:merging=refit. Also file.py:MyMethod.",
            rich_help_panel="Comparison",
        ),
    ] = COMPARED,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Methods with their papers' settings, not ours; one alone: METHOD:preset=published.",
            rich_help_panel="Comparison",
        ),
    ] = False,
    keep_macs: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of the multiply-adds to keep.", rich_help_panel="Comparison"),
    ] = 0.5,
    seeds: Annotated[
        str, typer.Option(metavar="N,N", help="Repeat with each of these seeds.", rich_help_panel="Comparison")
    ] = "0",
    epochs: Annotated[int, typer.Option(min=1, help="That each may train.", rich_help_panel=TRAINING)] = 10,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.", rich_help_panel=TRAINING)] = 128,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.", rich_help_panel=TRAINING)] = 0.01,
    weight_decay: Annotated[
        float, typer.Option(metavar="FACTOR", help="Decay of all weights.", rich_help_panel=TRAINING)
    ] = 5e-4,
    augment: Annotated[str, options.augment()] = "crop_flip",
    precision: Annotated[str, options.precision()] = "auto",
    out: options.Out,
    device: options.Device = None,
    resume: options.Resume = False,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Run every method with every seed, and print who keeps the most."""
    wanted = chosen(context)
    folder = out.expanduser()
    if resume:
        check_same(context, folder, wanted)
    else:
        runs.check_out(out)
    check_code(context, wanted, trust, resume=resume)
    contenders, numbers, training = _read(wanted)
    processes, place = join(training)
    with own_folder(out, resume=resume), Display() as display:
        planned = [(contender, seed) for seed in numbers for contender in contenders]
        will_go_on("compare", folder, lambda: f"{finished(folder, planned)} of {len(planned)} runs are done.")
        timeline = runs.Timeline(display)
        with timeline.phase("open data and model"):
            opened = open_task(wanted, place, tell=display.line)
            test = require(opened.test, "test", f"{wanted['data']} has no test images to compare on")
        if not resume:
            processes.once(lambda: runs.write_config(folder, "compare", absolute(wanted) | note_code(wanted)))
        entries: list[Entry] = []
        _compete(folder, wanted, contenders, numbers, training, opened, test, display, entries)
        whole = processes.once(lambda: _whole(opened, test))
        result = {
            "command": "compare",
            "whole": whole,
            "entries": [vars(entry) for entry in entries],
            **runs.environment(opened.network.example.device),
        }
        processes.once(lambda: _finish(folder, result, display))
    show(
        result,
        ranking(wanted["model"], wanted["keep_macs"], whole, entries, published=wanted["published"]),
        f"Written to {folder}: a run for each method and seed, all numbers in {runs.RESULT_NAME} and {CSV_NAME}, "
        f"and {REPORT_NAME} to look at.",
    )


def _finish(folder: Path, result: dict[str, Any], display: Display) -> None:
    """Write what came out as numbers, as a table for other programs, and as a page."""
    runs.write_result(folder, result)
    write_csv(result["entries"], folder / CSV_NAME)
    leave_report(folder, display.line)


def _read(wanted: dict[str, Any]) -> tuple[list[Contender], list[int], TrainConfig]:
    """Read and check what can be checked before any data is opened."""
    check_fraction("keep_macs", wanted["keep_macs"])
    seeds = read_seeds(wanted["seeds"])
    fields = {name: wanted[name] for name in TrainConfig.model_fields if name in wanted}
    training = BASE.changed(**fields)
    contenders = [Contender.read(text) for text in wanted["methods"].split(",")]
    for contender in contenders:
        method, own = method_of(contender, wanted["keep_macs"], training, published=wanted["published"])
        method.check(approximate=wanted["approximate"], training=own)
    return contenders, seeds, training


def _compete(
    folder: Path,
    wanted: dict[str, Any],
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    training: TrainConfig,
    opened: Opened,
    test: Split,
    display: Any,
    entries: list[Entry],
) -> None:

    def done(entry: Entry) -> None:
        entries.append(entry)
        cut = "" if entry.accuracy_cut is None else f"  after the cut {entry.accuracy_cut:5.2f} %"
        name = label(Contender.read(entry.contender), published=wanted["published"])
        display.line(f"{name}, seed {entry.seed}: {entry.accuracy:5.2f} %{cut}")

    compete(
        opened.network, require(opened.task, "data", "give --data"), test, contenders, keep_macs=wanted["keep_macs"],
        training=training, published=wanted["published"],
        seeds=seeds, out=folder, report=display, watch=Watch(display, lines=False), done=done,
    )  # fmt: skip


def _whole(opened: Opened, test: Split) -> dict[str, Any]:
    subject = opened.subject
    task = require(opened.task, "data", "give --data")
    return {
        "params": evaluate.params(subject.model),
        "macs": evaluate.macs(subject.model, subject.example),
        "accuracy": evaluate.metrics(subject.model, task, test).deciding,
        "metric": task.metrics[0],
    }


def ranking(
    model: str, keep_macs: float, whole: dict[str, Any], entries: Sequence[Entry], *, published: bool = False
) -> Table:
    """Return the closing table: mean and standard deviation over the seeds, the best first."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.contender, []).append(entry)

    def over_seeds(values: Sequence[float]) -> str:
        spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    what = f"{TITLES[whole['metric']]} in percent"
    title = f"{model} ({whole['accuracy']:.2f} %) at {100 * keep_macs:g} % of its MACs: {what}, on test"
    found = table(title, ["method", "MACs", "parameters", "after the cut", "after training", "change"])
    order = sorted(by_name, key=lambda name: -statistics.mean(e.accuracy for e in by_name[name]))
    for name in order:
        runs = by_name[name]
        kept = statistics.mean(e.macs for e in runs) / whole["macs"]
        star = "*" if abs(kept / keep_macs - 1) > 0.01 else ""
        cuts = [e.accuracy_cut for e in runs if e.accuracy_cut is not None]
        final = [e.accuracy for e in runs]
        found.add_row(
            label(Contender.read(name), published=published),
            f"{100 * kept:.1f} %{star}",
            f"{100 * statistics.mean(e.params for e in runs) / whole['params']:.1f} %",
            over_seeds(cuts) if cuts else "-",
            over_seeds(final),
            f"{statistics.mean(final) - whole['accuracy']:+.2f}",
        )
    if any(abs(e.macs / whole["macs"] / keep_macs - 1) > 0.01 for e in entries):
        found.caption = "* more than 1 % off the budget"
    return found
