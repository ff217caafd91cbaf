"""``clusterprune inspect``: which channels of a model belong together."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text

import clusterprune
from clusterprune import evaluate, models
from clusterprune.budget.allocation import CostModel, reachable
from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.console import show, table
from clusterprune.cli.inputs import settle_input
from clusterprune.cli.opening import Subject, open_model, open_path, require
from clusterprune.cli.progress import Display
from clusterprune.errors import ArgumentError
from clusterprune.files.writing import write_file
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.channels import frozen_layers
from clusterprune.report import draw_graph
from clusterprune.runs import Timeline
from clusterprune.tables import count, few

EXAMPLES = """[bold]Examples[/bold]

clusterprune inspect --model torchvision:resnet50

clusterprune inspect runs/half

clusterprune inspect --model my_net.py:build --image-size 96 --num-classes 5 --json

clusterprune inspect --model resnet20 --plot resnet20.svg
"""
_SHOWN = 2


@command(EXAMPLES)
def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="A weights file, a compact folder, or a run folder, which then say what the model is.",
            show_default="random weights",
        ),
    ] = None,
    *,
    model: options.RunsModel = None,
    trust: options.Trust = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    num_classes: options.Classes = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="GLOB",
            help="Leave layers or groups of this name alone; may be repeated.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    approximate: options.Approximate = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw the groups: a line for each, through the layers that make it and read it.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Trace a model and describe its graph."""
    if plot is not None and plot.suffix.lower() != ".svg":
        raise ArgumentError(f"--plot {plot} is to be an SVG file; name it {plot.with_suffix('.svg')}")
    given = {"model": model, "image_size": image_size, "mean": None, "std": None, "num_classes": num_classes}
    with Display() as display:
        timeline = Timeline(display)
        with timeline.phase("build"):
            subject = _open(path or weights, given, trust, display)
        with timeline.phase("trace"):
            graph = clusterprune.trace(subject.model, subject.example, ignore=ignore or (), approximate=approximate)
        with timeline.phase("measure"):
            facts = _facts(graph)
    closing = _closing(facts)
    if plot is not None:
        write_file(plot.expanduser(), draw_graph(graph).encode())
        closing.append(f"The groups are drawn in {plot}.")
    show(facts, _table(f"{subject.spec.name}, input {subject.input_text}", graph), *map(Text, closing))


def _open(path: Path | None, given: dict[str, Any], trust: list[str] | None, display: Display) -> Subject:
    """Return what is to be traced: what a path holds, or a model with random weights."""
    device = torch.device("cpu")
    if path is not None:
        return open_path(path, given, trust, device, display.line).subject
    spec = models.resolve(require(given["model"], "--model", "give it, or the folder of a run"))
    spec = settle_input(spec, given, None, None, display.line)
    return open_model(spec, None, num_classes=given["num_classes"], device=device, seed=0)


def _facts(graph: ChannelGraph) -> dict[str, Any]:
    """Return all that is known about a graph as plain values."""
    cost = {"macs": evaluate.macs(graph.model, graph.args), "params": evaluate.params(graph.model)}
    model = CostModel(graph)
    whole, frozen = frozen_layers(graph)
    return {
        "model": type(graph.model).__name__,
        **cost,
        "smallest": {
            "macs": round(cost["macs"] * reachable(model, "macs")),
            "params": round(cost["params"] * reachable(model, "params")),
        },
        "channels": whole,
        "groups": [_describe(group) for group in graph.groups],
        "frozen": [{"layers": list(f.layers), "channels": f.channels, "of": f.of, "reason": f.reason} for f in frozen],
        "unknown": dict(graph.unknown),
        "unused": list(graph.unused),
    }


def _describe(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "channels": group.channels,
        "units": group.width,
        "blocks": group.n_blocks,
        "producers": [use.path for use in group.producers],
        "carriers": [use.path for use in group.carriers],
        "consumers": [use.path for use in group.consumers],
        "frozen": group.frozen,
        "approximate": group.approximate,
    }


def _table(title: str, graph: ChannelGraph) -> Table:

    made = table(title, ("group", "channels", "also made by", "read by"))
    made.columns[0].no_wrap = made.columns[1].no_wrap = True
    for column in made.columns[2:]:
        column.justify = "left"
    for group in graph.prunable:
        each = group.channels // group.width
        sets = f"{group.width}" if each == 1 else f"{group.width} sets of {each}"
        width = sets if group.n_blocks == 1 else f"{group.n_blocks} x {group.width // group.n_blocks}"
        # The first producer gives the group its name.
        makers = _few([use.path for use in group.producers[1:]])
        made.add_row(group.name, width, makers, _few([use.path for use in group.consumers]))
    for layer in frozen_layers(graph)[1]:
        width = f"{layer.of}" if layer.channels == layer.of else f"{layer.channels} of {layer.of}"
        made.add_row(layer.layers[0], width, _few(list(layer.layers[1:])), f"frozen: {layer.reason}", style="dim")
    return made


def _few(paths: list[str]) -> str:
    return few([path.removesuffix(".weight") for path in paths], _SHOWN)


def _closing(facts: dict[str, Any]) -> list[str]:
    groups = facts["groups"]
    free = [group for group in groups if group["frozen"] is None]
    lines = [
        f"{len(free)} of {len(groups)} groups may be cut: {sum(g['channels'] for g in free):,} of "
        f"{facts['channels']:,} channels.",
        f"MACs {count(facts['macs'])}, parameters {count(facts['params'])}.",
    ]
    smallest = facts["smallest"]
    macs, params = (100 * smallest[key] / max(facts[key], 1) for key in ("macs", "params"))
    lines.append(
        f"Smallest reachable: {count(smallest['macs'])} MACs ({macs:.1f} %), "
        f"{count(smallest['params'])} parameters ({params:.1f} %)."
    )
    if facts["unknown"]:
        lines.append("Operations without a rule (what they read is frozen):")
        lines += [f"  {name}: at {_few(nodes)}" for name, nodes in facts["unknown"].items()]
    if facts["unused"]:
        lines.append(f"Parameters that evaluation never touches: {_few(facts['unused'])}.")
    return lines
