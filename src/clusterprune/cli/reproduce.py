"""``clusterprune reproduce``: a row of a paper's table, published beside measured."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from clusterprune import models, runs, studies
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.command import command
from clusterprune.cli.console import show, table
from clusterprune.cli.locating import locate
from clusterprune.cli.opening import open_data, read_seeds, require
from clusterprune.cli.presets import chosen, given, preset_file, remember_resume
from clusterprune.cli.progress import Display
from clusterprune.cli.reporting import leave_report
from clusterprune.cli.resuming import check_same, epochs_on_disk, own_folder, will_go_on
from clusterprune.cli.trusting import AS_BEFORE, allow, compare_code, note_code, trusted
from clusterprune.cli.watching import Watch
from clusterprune.data import Dataset
from clusterprune.errors import ArgumentError
from clusterprune.studies import Recipe, Reproduction
from clusterprune.studies.recipe import Published
from clusterprune.studies.reproduction import check_data
from clusterprune.tasks import percentages
from clusterprune.train import TrainConfig
from clusterprune.train.config import resolve_device
from clusterprune.train.processes import join

EXAMPLES = """[bold]Examples[/bold]

clusterprune reproduce --list

clusterprune reproduce acp-resnet56-cifar10-0.035 --data cifar10:DIR --out runs/row

clusterprune reproduce icp-vgg16-cifar10-0.010 --data cifar10:DIR --weights runs/vgg16 --epochs-scale 0.1 --out runs/try

clusterprune reproduce --out runs/row --resume
"""
SCALE = "Size (anything but the defaults makes a trial of it)"


@command(EXAMPLES)
def reproduce(
    context: typer.Context,
    *,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Name of a recipe, or a YAML file of your own.", show_default=False),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes, and do nothing else.")] = False,
    trust: options.Trust = None,
    data: options.OptionalData = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Weights of the original network, or the folder of an earlier run, baseline/ of a reproduction too.",
            rich_help_panel="Model",
            show_default="trained as the recipe says",
        ),
    ] = None,
    epochs_scale: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="Times every number of epochs; one stays at least.", rich_help_panel=SCALE),
    ] = 1.0,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Use N training and N test images.", rich_help_panel=SCALE, show_default="all"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Repeat the method with each.", rich_help_panel="Run", show_default="the recipe's"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of all trainings: auto, float32, bfloat16 or float16.",
            rich_help_panel="Run",
            show_default="the recipe's, else auto",
        ),
    ] = None,
    out: options.OptionalOut = None,
    device: options.Device = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out; its other options are read from there.",
            rich_help_panel="Run",
            is_eager=True,
            callback=remember_resume,
        ),
    ] = False,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Train the original network, run the method, measure both, and compare with the paper."""
    if listing:
        rows = [studies.read(name) for name in studies.names()]
        more = [(name, studies.read(name)) for name in studies.ablations()]
        facts = {"recipes": [row.name for row in rows], "ablations": [name for name, _ in more]}
        show(facts, table_of(rows), ablations_of(more))
        return
    wanted = chosen(context)
    del wanted["listing"]
    name = require(recipe, "RECIPE", "name one; 'clusterprune reproduce --list' shows them")
    require(data, "data", "give --data KIND:DIR with the images of the recipe")
    place: Path = require(out, "out", "give --out DIR, a new folder for the run")
    folder = place.expanduser()
    if name.endswith((".yaml", ".yml")):
        wanted["recipe"] = str(Path(name).expanduser().resolve())
    if resume:
        check_same(context, folder, wanted)
    else:
        runs.check_out(folder)
    found = studies.read(name)
    _check_code(context, found, trust, resume=resume)
    more = _arguments(wanted, found)
    processes, _ = join(TrainConfig(device=wanted["device"]))
    with own_folder(place, resume=resume), Display() as display:
        will_go_on("reproduce", folder, functools.partial(epochs_on_disk, folder), found.model)
        timeline = runs.Timeline(display)
        with timeline.phase("open data"):
            dataset = _open(wanted, found)
        if not resume:
            noted = absolute(wanted) | note_code({"model": found.model})
            processes.once(lambda: runs.write_config(folder, "reproduce", noted))
        made = _run(folder, found, dataset, display, {**more, "trust": trusted(found.model, trust)})
        result = _result(made, {**timeline.seconds, **made.seconds}, more)
        processes.once(lambda: _finish(folder, result, display))
    told: list[Table | str | Text] = [comparison(made)]
    if found.published is not None:
        told.append(f"Published in {found.published.paper}, table {found.published.table}.")
    if made.trial:
        told.append(Text(f"This is a trial and no reproduction: {made.trial}.", style="yellow"))
    show(result, *told, f"Written to {folder}: baseline/, method/, {runs.RESULT_NAME}, {runs.CONFIG_NAME}")


def _finish(folder: Path, result: dict[str, Any], display: Display) -> None:
    runs.write_result(folder, result)
    leave_report(folder, display.line)


def _check_code(context: typer.Context, recipe: Recipe, trust: list[str] | None, *, resume: bool) -> None:
    """Refuse to run a model's file that a recipe names and this command does not, or that was changed."""
    file, before = preset_file(context) or (None, {})
    goes_on = resume or not given(context, "recipe")
    allow(recipe.model, named_by=f"the recipe {recipe.name}", trust=trust)
    if file is not None and goes_on:
        compare_code(recipe.model, before, str(file), AS_BEFORE)


def _arguments(wanted: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of the run, having checked what can be checked before the data are opened."""
    more = {name: wanted[name] for name in ("epochs_scale", "limit", "precision", "device")}
    more |= {"seeds": None, "weights": None}
    if wanted["seeds"] is not None:
        more["seeds"] = read_seeds(wanted["seeds"])
    if wanted["weights"] is not None:
        located = locate(Path(wanted["weights"]))
        if located.compact:
            raise ArgumentError(f"weights={wanted['weights']} is a compact network; a recipe begins with a whole one")
        more["weights"] = located.path
    resolve_device(TrainConfig(device=wanted["device"]))
    recipe.changed(**{name: more[name] for name in ("epochs_scale", "seeds", "precision")})
    return more


def _open(wanted: dict[str, Any], recipe: Recipe) -> Dataset:

    dataset = open_data(wanted["data"], models.resolve(recipe.model))
    check_data(recipe, dataset, wanted["limit"])
    return dataset


def _run(folder: Path, recipe: Recipe, dataset: Dataset, display: Any, more: dict[str, Any]) -> Reproduction:

    watch = Watch(display, lines=False)
    will_go_on("reproduce", folder, lambda: epochs_on_disk(folder, watch.phase), recipe.model)
    return studies.reproduce(recipe, dataset, out=folder, report=display, watch=watch, **more)


def _result(made: Reproduction, seconds: dict[str, float], more: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``result.json``."""
    figures = [name for name, value in made.baseline.figures.items() if value is not None]
    over = {name: made.over_seeds(lambda one, name=name: one.figures[name]) for name in figures}
    return {
        "command": "reproduce",
        "recipe": made.recipe.model_dump(mode="json", exclude={"published"}),
        "trial": made.trial or None,
        "published": None if made.recipe.published is None else made.recipe.published.model_dump(exclude_none=True),
        "baseline": made.baseline.to_dict(),
        "compressed": {name: round(mean, 4) for name, (mean, _) in over.items()},
        "deviation": {name: round(spread, 4) for name, (_, spread) in over.items() if spread is not None},
        "seeds": {str(seed): one.to_dict() for seed, one in made.compressed.items()},
        "seconds": seconds,
        **runs.environment(resolve_device(TrainConfig(device=more["device"]))),
    }


def table_of(recipes: list[Recipe]) -> Table:
    """Return what ``--list`` shows."""
    columns = ("recipe", "network", "data", "method", "knob", "worth", "drop", "MACs")
    found = table(f"{len(recipes)} recipes, with what was published", columns, left=5)
    found.collapse_padding = True
    found.columns[0].no_wrap = True
    found.caption = (
        "worth: what decides in the network's task, percent on test, before and after; points lost; percent of the "
        "MACs removed"
    )
    for one in recipes:
        row = [one.name, one.model.rpartition(":")[2], one.data, one.method, one.knob]
        if (paper := one.published) is not None:
            row += [_worth(paper), f"{paper.drop:.2f}"]
            row += ["-" if paper.macs_removed is None else f"{paper.macs_removed:.1f}"]
        found.add_row(*row)
    return found


def _worth(paper: Published) -> str:
    return f"{paper.baseline.worth[0]:.2f} → {paper.compressed.worth[0]:.2f}"


def ablations_of(recipes: Sequence[tuple[str, Recipe]]) -> Table:
    """Return what ``--list`` shows of ablations: which row of a table each is."""
    found = table(f"{len(recipes)} ablations", ("recipe", "table", "worth, %", "drop"))
    found.columns[0].no_wrap = True
    for name, one in recipes:
        if (paper := one.published) is not None:
            found.add_row(name, f"{one.method.upper()}, {paper.table}", _worth(paper), f"{paper.drop:.2f}")
    return found


def comparison(made: Reproduction) -> Table:
    """Return the closing table: published beside measured, over the seeds."""
    recipe, paper, base = made.recipe, made.recipe.published, made.baseline
    network = recipe.model.rpartition(":")[2]
    seeds = f"seed{'s' if len(recipe.seeds) > 1 else ''} {', '.join(map(str, recipe.seeds))}"
    title = ", ".join(filter(None, [f"{recipe.method} on {network}", recipe.data, recipe.knob, seeds]))
    found = table(title, ("", "published", "measured"))

    def add(name: str, unit: str, published: float | None, figure: Any) -> None:
        mean, spread = made.over_seeds(figure)
        measured = f"{mean:.2f}{'' if spread is None else f' ±{spread:.2f}'}{unit}"
        found.add_row(name, "-" if published is None else f"{published:.2f}{unit}", measured)

    def add_original(name: str, unit: str, published: float | None, measured: float) -> None:
        found.add_row(name, "-" if published is None else f"{published:.2f}{unit}", f"{measured:.2f}{unit}")

    pairs = zip(paper.baseline.worth, paper.compressed.worth, strict=True) if paper else [(None, None)]
    for (key, name), (before, after) in zip(percentages(base.metrics).items(), pairs, strict=False):
        if before is None and found.row_count:
            continue
        whole = base.figures[key]
        lost = None if before is None or after is None else before - after
        add_original(f"{name}, original", " %", before, whole)
        add(f"{name}, compact", " %", after, lambda one, key=key: one.figures[key])
        add(f"{name}, points lost", "", lost, lambda one, key=key, whole=whole: whole - one.figures[key])
    for key, name in (("params", "parameters"), ("macs", "MACs")):
        before, gone = (getattr(paper.baseline, key), getattr(paper, f"{key}_removed")) if paper else (None, None)
        whole = base.figures[key]
        add_original(f"{name}, original", " M", before, whole / 1e6)
        add(f"{name} removed", " %", gone, lambda one, key=key, whole=whole: 100 * (1 - one.figures[key] / whole))
    return found
