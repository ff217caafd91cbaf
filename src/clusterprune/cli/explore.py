"""``clusterprune explore``: what every budget leads to, as a page with a slider."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from clusterprune import evaluate, runs
from clusterprune.budget.limits import AUTO, Limits, RoundTo
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.command import command
from clusterprune.cli.console import duration, milliseconds, show, table
from clusterprune.cli.opening import Opened, check_weights, open_task
from clusterprune.cli.presets import chosen
from clusterprune.cli.progress import Display
from clusterprune.cli.resuming import own_folder
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.data import sampling
from clusterprune.errors import ArgumentError
from clusterprune.files.writing import write_file
from clusterprune.methods.budget import read_fraction
from clusterprune.methods.planner import measure
from clusterprune.methods.sweep import Candidate
from clusterprune.report.explore import explore_page
from clusterprune.tables import count, plural

EXAMPLES = """[bold]Examples[/bold]

clusterprune explore --model resnet56 --weights runs/base --data cifar10:DIR --out runs/explore

clusterprune explore --model torchvision:resnet50 --weights W --calibration photos/ --budgets 0.9,0.75,0.5 --out page
"""
PAGE_NAME = "explore.html"
BUDGETS = "0.95,0.9,0.85,0.8,0.75,0.7,0.6,0.5,0.4,0.3"
NOTE = (
    "Kernels were fitted for a short while and on few images for this page: what the command makes is most often "
    "better. The metric is of {images} training images {seen}, {unseen} of which are such as train holds out; a "
    "network knows those that it was trained on. Times are of this machine."
)


@command(EXAMPLES)
def explore(
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
    budgets: Annotated[
        str,
        typer.Option(metavar="SHARE,SHARE", help="Shares of the multiply-adds to look at.", rich_help_panel="Budget"),
    ] = BUDGETS,
    round_to: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Kept widths are multiples of it; auto takes such as run fast.",
            rich_help_panel="Budget",
        ),
    ] = AUTO,
    data: options.OptionalData = None,
    classes: options.ClassNames = None,
    calibration: options.Calibration = None,
    images: Annotated[
        int, typer.Option(min=2, metavar="N", help="How many images to look at.", rich_help_panel="Data")
    ] = 1024,
    held_out: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many others to measure on, such as `train` holds out first.",
            rich_help_panel="Data",
        ),
    ] = 500,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Leave layers or groups of this name alone; may be repeated.", rich_help_panel="Model"
        ),
    ] = None,
    out: options.Out,
    seed: options.Seed = 0,
    device: options.Device = None,
    latency_batch: options.LatencyBatch = 1,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Measure a network once, plan for many budgets, and write a page."""
    wanted = chosen(context)
    shares = [read_fraction("budgets", part) for part in budgets.split(",")]
    widths = _multiples(round_to)
    if data is None and calibration is None:
        raise ArgumentError("there are no images to look at; give --data, or --calibration DIR (any folder of images)")
    check_weights(wanted)
    runs.check_out(out)
    check_code(context, wanted, trust, resume=False)
    with own_folder(out, resume=False) as folder, Display() as display:
        timeline = runs.Timeline(display)
        with timeline.phase("open data and model"):
            more = {**wanted, "evaluate": False, "validation": 0.0}
            opened = open_task(more, runs.pick_device(device), tell=display.line)
            wanted |= {name: more[name] for name in wanted}
        found = _explore(wanted, opened, sorted(set(shares), reverse=True), widths, timeline, display)
        runs.write_config(folder, "explore", absolute(wanted) | note_code(wanted))
        page = explore_page(found)
        write_file(folder / PAGE_NAME, page.encode())
        runs.write_result(folder, found)
    took = duration(sum(timeline.seconds.values()))
    show(
        found,
        _table(f"{wanted['model']}: {len(shares)} budgets in {took}", found),
        f"Written to {folder}: open {PAGE_NAME} in a browser, which needs no network; all numbers in "
        f"{runs.RESULT_NAME}.",
    )


def _explore(
    wanted: dict[str, Any],
    opened: Opened,
    shares: Sequence[float],
    widths: RoundTo,
    timeline: runs.Timeline,
    display: Display,
) -> dict[str, Any]:
    """Return the content of ``result.json``: of every budget, and of the whole network as the last row.

    The metric is of training images, never of test images, for a budget is chosen by it.
    """
    network, task = opened.network, opened.task
    assert task is not None  # noqa: S101 (there are images)
    with timeline.phase("trace"):
        graph = network.graph(wanted["ignore"] or ())
    # Those that `compress` looks at with the same seed, and others.
    split = task.train if opened.images is None else opened.images
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(wanted["seed"]))
    looked_at, others = order[: wanted["images"]], order[wanted["images"] :]
    if wanted["calibration"] is not None and wanted["data"] is not None:
        others = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(wanted["seed"]))
    apart = len(others) > 0
    if not apart:
        display.line("There are no images beside those that are looked at, so the metric is of these.", "yellow")
        others = looked_at
    # Those first that `train` holds out: a network knows those that it was trained on.
    unseen = sampling.held_out(task.train)[others]
    others = torch.cat([others[unseen], others[~unseen]])[: wanted["held_out"]]
    pixels = task.normalize(split.subset(looked_at).load()[0]).to(network.example.device)
    held_out = task.train.subset(others)
    small: list[torch.nn.Module] = []
    worth: list[float] = []

    def score(compact: torch.nn.Module) -> float:
        small.append(compact)
        worth.append(evaluate.metrics(compact, task, held_out).deciding)
        return worth[-1]

    with timeline.phase("measure and plan", announce=False):
        planner = measure(graph, pixels, seed=wanted["seed"], progress=display)
        candidates = planner.sweep(shares, score, progress=display, round_to=widths)
    models = [*small, network.model]
    worth.append(evaluate.metrics(network.model, task, held_out).deciding)
    with timeline.phase("time all"):
        latencies = runs.time_in_turns(models, network.example, batch=wanted["latency_batch"])
    rows: list[dict[str, Any]] = []
    for one, compact, metric, latency in zip([*candidates, None], models, worth, latencies, strict=True):
        rows.append(
            {
                **_budget(one, wanted),
                "widths": {g.name: (one.plan.widths if one else {}).get(g.name, g.width) for g in graph.prunable},
                "macs": evaluate.macs(compact, network.example),
                "params": evaluate.params(compact),
                "bytes": sum(t.numel() * t.element_size() for t in compact.state_dict().values()),
                "metric": round(metric, 4),
                "latency_ms": round(latency.median_ms, 4),
                "latency_iqr_ms": round(latency.iqr_ms, 4),
            }
        )
    shown = " x ".join(map(str, network.example.shape[1:]))
    return {
        "command": "explore",
        "model": wanted["model"],
        "about": (
            f"Input {shown}; {len(looked_at)} images looked at, seed {wanted['seed']}, "
            f"{network.example.device.type.upper()}, {plural(torch.get_num_threads(), 'thread')}."
        ),
        "note": NOTE.format(
            images=len(held_out),
            seen="beside those looked at" if apart else "that were looked at",
            unseen=min(int(unseen.sum()), len(held_out)),
        ),
        "metric": {"name": task.metrics[0], "unit": " %"},
        "latency": {"batch": wanted["latency_batch"]},
        "rows": rows,
        "seconds": timeline.seconds,
        "seed": wanted["seed"],
        **runs.environment(network.example.device),
    }


def _multiples(text: str) -> RoundTo:
    """Read what widths are to be multiples of."""
    with contextlib.suppress(ValueError):
        return Limits(AUTO if text == AUTO else int(text)).round_to
    raise ArgumentError(f'round_to must be a whole number of at least 1 or "auto", but got round_to={text!r}')


def _budget(candidate: Candidate | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a budget is, and the command that compresses to it."""
    if candidate is None:
        return {"keep": 1.0, "predicted_loss": 0.0, "command": ""}
    keep = candidate.budget["keep_macs"]
    given = {name: wanted[name] for name in COMMAND if wanted[name] not in (None, [], False)}
    words = ["clusterprune", "compress"]
    for name, value in absolute(given).items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [f"--{name.replace('_', '-')}"] + ([] if each is True else [str(each)])
    words += ["--keep-macs", f"{keep:g}", "--out", f"runs/keep-{keep:g}"]
    return {"keep": keep, "predicted_loss": candidate.predicted_loss, "command": shlex.join(words)}


COMMAND = (
    "model", "weights", "image_size", "mean", "std", "num_classes", "approximate", "data", "classes", "calibration",
    "images", "ignore", "round_to", "seed",
)  # fmt: skip
"""Options that `compress` has alike."""


def _table(title: str, found: Mapping[str, Any]) -> Table:
    made = table(title, ("kept", "MACs", "parameters", found["metric"]["name"], "latency"))
    for row in [found["rows"][-1], *found["rows"][:-1]]:
        worth = f"{row['metric']:.2f}{found['metric']['unit']}"
        made.add_row(
            f"{row['keep']:.0%}", count(row["macs"]), count(row["params"]), worth, milliseconds(row["latency_ms"])
        )
    return made
