"""``clusterprune compress``: a trained model and a budget in, a smaller model out."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.presets import chosen, given

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clusterprune.cli.opening import Subject
    from clusterprune.cli.progress import Display
    from clusterprune.data import Dataset, Split
    from clusterprune.plans import Plan
    from clusterprune.run import Timeline

EXAMPLES = """[bold]Examples[/bold]

clusterprune compress --model resnet56 --weights resnet56.safetensors --data cifar10:DIR --keep-macs 0.5 --out runs/half

clusterprune compress --model torchvision:resnet50 --weights W --calibration photos/ --keep-latency 0.7 --out runs/fast

clusterprune compress --model my_net.py:build --weights W --data-free --keep-params 0.3 --out runs/small

clusterprune compress --model resnet56 --weights W --data cifar10:DIR --method icp --eps 0.025 --out runs/icp

clusterprune compress --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --epochs 40 --out runs/tuned

clusterprune compress --out runs/icp --resume
"""
OF_RUNS = (*"epochs lr batch_size weight_decay schedule precision augment eps steps set storage study".split(),)
"""Options that oneshot has no use for when it does not train; with any of them it is a run of its own folder."""
BUDGETS = ("keep_macs", "keep_params", "keep_latency")


def _budget(name: str, what: str) -> Any:
    text = f"Share of the {what} to keep, such as 0.5."
    return typer.Option(name, metavar="SHARE", help=text, rich_help_panel="Budget (one of them)", show_default=False)


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = (
        "Make a trained model smaller: in one shot with a few unlabelled images or none, or with training. "
        "A stopped training goes on where it was."
    )
    app.command("compress", help=text, epilog=EXAMPLES)(compress)


@command
def compress(
    context: typer.Context,
    *,
    model: options.Model,
    trust: options.Trust = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    num_classes: options.Classes = None,
    approximate: options.Approximate = False,
    keep_macs: Annotated[float | None, _budget("--keep-macs", "multiply-adds")] = None,
    keep_params: Annotated[float | None, _budget("--keep-params", "parameters")] = None,
    keep_latency: Annotated[float | None, _budget("--keep-latency", "time of a forward pass")] = None,
    data: options.OptionalData = None,
    images: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Images to learn from, drawn from the training split. Their labels are used by taylor alone.",
            rich_help_panel="Data",
        ),
    ] = 1024,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw them from any folder of images instead; --data is then for the test alone.",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    data_free: Annotated[
        bool,
        typer.Option(
            "--data-free",
            "--no-data",
            help="Use no images but the weights alone; --data is then for the test alone.",
            rich_help_panel="Data",
        ),
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(help="Measure the accuracy before and after on the test split.", rich_help_panel="Data"),
    ] = True,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="oneshot; icp, acp, cp or sfp, which train; l1, l2, fpgm, bn_scale, hrank, taylor or random.",
            rich_help_panel="Method",
        ),
    ] = "oneshot",
    eps: options.Eps = None,
    steps: options.Steps = None,
    set: options.Set = None,  # noqa: A002 (the option's name)
    round_to: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep multiples of N channels.", rich_help_panel="Method")
    ] = 1,
    min_width: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep at least N channels of a group.", rich_help_panel="Method")
    ] = 1,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave layers or groups of this name alone; may be repeated.",
            rich_help_panel="Method",
            show_default=False,
        ),
    ] = None,
    epochs: options.Epochs = None,
    lr: Annotated[float | None, options.training("--lr", "RATE", "Peak learning rate.")] = None,
    batch_size: Annotated[int | None, options.training("--batch-size", "N", "Images per step.")] = None,
    weight_decay: Annotated[float | None, options.training("--weight-decay", "FACTOR", "Decay of all weights.")] = None,
    schedule: Annotated[
        str | None, options.training("--schedule", "cosine|step|onecycle|constant", "How the rate goes.")
    ] = None,
    precision: Annotated[
        str | None, options.training("--precision", "auto|float32|bfloat16|float16", "Of the forward pass.")
    ] = None,
    augment: Annotated[
        str | None,
        options.training("--augment", "crop_flip|crop|resized_crop_flip|none", "Random shifts and mirror images."),
    ] = None,
    validation: options.Validation = 0.1,
    storage: options.Storage = None,
    study: options.Study = None,
    out: options.Out,
    resume: options.Resume = False,
    seed: options.Seed = 0,
    device: options.Device = None,
    latency_batch: options.LatencyBatch = 1,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Compress in one shot, or by a run of its own folder that trains and can be stopped."""
    wanted = chosen(context)
    if any(given(context, name) for name in (*BUDGETS, "eps")):
        # A budget on the command line takes the place of the one in the file.
        wanted |= {name: None for name in (*BUDGETS, "eps") if not given(context, name)}
    if resume or method != "oneshot" or any(wanted[name] for name in OF_RUNS):
        from clusterprune.cli.compress_training import compress_training

        compress_training(context, out, wanted, trust, resume=resume)
        return
    _at_once(context, out, wanted, trust)


def _at_once(context: typer.Context, out: Path, wanted: dict[str, Any], trust: str | None) -> None:
    """Plan, apply, measure and write; nothing is written before all of it has succeeded."""
    from clusterprune import run
    from clusterprune.cli.console import comparison, console, duration
    from clusterprune.cli.measuring import measure_both
    from clusterprune.cli.progress import Display
    from clusterprune.cli.resuming import own_folder, will_go_on
    from clusterprune.cli.trusting import check_code

    run.check_out(out)
    _check(wanted)
    check_code(context, wanted["model"], trust)
    with own_folder(out, resume=False) as folder, Display() as display:
        timeline = run.Timeline(display)
        job = _open(wanted, timeline)
        work = _compress(job, wanted, timeline, display)
        result = measure_both(job.subject, work.compact, job.test, wanted, timeline, display)
        result["budget"] = {name: wanted[name] for name in BUDGETS if wanted[name] is not None}
        result["images"] = work.plan.notes["images"]
        _write(folder, work, wanted, result, timeline)
        will_go_on("compress", folder, str)
    planning = sum(timeline.seconds.get(name, 0.0) for name in ("trace", "read images", "plan", "apply"))
    title = f"{wanted['model']}: compressed in {duration(planning)}"
    console().print(comparison(title, result["baseline"], result["compressed"]))
    console().print(
        f"Written to {folder}: the model in {run.COMPACT_NAME}/, its plan in {run.PLAN_NAME}/, all numbers in "
        f"{run.RESULT_NAME}.",
        soft_wrap=True,
    )


@dataclass(frozen=True)
class _Job:
    """What a compression works on."""

    subject: "Subject"
    dataset: "Dataset | None"
    calibration: "Split | None"
    test: "Split | None"


@dataclass(frozen=True)
class _Work:
    """What it made."""

    plan: "Plan"
    compact: "nn.Module"


def _check(wanted: dict[str, Any]) -> None:
    """Check the options against one another before any work.

    Raises
    ------
    ArgumentError
        If they make no sense together.
    """
    from clusterprune.budget import check_fraction
    from clusterprune.cli.opening import check_weights
    from clusterprune.errors import ArgumentError

    budgets = {name: wanted[name] for name in BUDGETS if wanted[name] is not None}
    names = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGETS)
    if len(budgets) != 1:
        got = " and ".join(f"--{name.replace('_', '-')}" for name in budgets) or "none"
        raise ArgumentError(f"one budget is needed, {names}, but got {got}; give one of them, such as --keep-macs 0.5")
    ((name, share),) = budgets.items()
    check_fraction(name, share)
    if wanted["calibration"] is not None and wanted["data_free"]:
        raise ArgumentError("--calibration and --data-free exclude each other; leave one of them out")
    if wanted["data"] is None and wanted["calibration"] is None and not wanted["data_free"]:
        raise ArgumentError(
            "there are no images to learn from; give --data, --calibration DIR (any folder of images), or --data-free"
        )
    check_weights(wanted)


def _open(wanted: dict[str, Any], timeline: "Timeline") -> _Job:
    """Open model and data, and find what does not fit before the long work."""
    from clusterprune import data, models
    from clusterprune.cli.opening import check_classes, input_size, known_classes, locate, open_data, open_model
    from clusterprune.run import pick_device

    target = pick_device(wanted["device"])
    spec = models.resolve(wanted["model"])
    with timeline.phase("open data and model"):
        dataset = None
        if wanted["data"] is not None:
            dataset = open_data(wanted["data"], spec, wanted["image_size"])
        located = locate(Path(wanted["weights"])) if wanted["weights"] is not None else None
        # Noted, so that the run's folder is enough to build the model again.
        wanted["num_classes"] = known_classes(spec, located, wanted["num_classes"])
        subject = open_model(
            spec,
            located,
            image_size=wanted["image_size"],
            num_classes=wanted["num_classes"],
            device=target,
            seed=wanted["seed"],
        )
        calibration = None
        if wanted["calibration"] is not None:
            calibration = data.unlabelled(wanted["calibration"], input_size(spec, wanted["image_size"])[1])
        elif not wanted["data_free"] and dataset is not None:
            calibration = dataset.train
        test = dataset.splits.get("test") if dataset is not None and wanted["evaluate"] else None
        if test is not None and dataset is not None:
            check_classes(subject, dataset, "; or leave the accuracy out with --no-evaluate")
    return _Job(subject, dataset, calibration, test)


def _compress(job: _Job, wanted: dict[str, Any], timeline: "Timeline", display: "Display") -> _Work:
    import clusterprune

    subject = job.subject
    with timeline.phase("trace"):
        graph = clusterprune.trace(subject.model, subject.example, approximate=wanted["approximate"])
    images = None
    if job.calibration is not None:
        with timeline.phase("read images") as tell:
            images = _draw(job, job.calibration, wanted, display, tell)
    with timeline.phase("plan", announce=False):
        plan = clusterprune.oneshot(
            graph,
            images,
            **{name: wanted[name] for name in BUDGETS},
            round_to=wanted["round_to"],
            min_width=wanted["min_width"],
            ignore=tuple(wanted["ignore"] or ()),
            seed=wanted["seed"],
            progress=display,
        )
    with timeline.phase("apply"):
        compact = clusterprune.apply(subject.model, plan, graph=graph)
    return _Work(plan, compact)


def _draw(job: _Job, split: "Split", wanted: dict[str, Any], display: "Display", tell: Any) -> "Tensor":
    """Draw images uniformly, whatever their labels; fewer than asked for where there are not enough."""
    import torch

    from clusterprune.data import normalize

    count = min(wanted["images"], len(split))
    if count < wanted["images"]:
        display.line(f"There are {count} images to learn from, fewer than the {wanted['images']} asked for.", "yellow")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(wanted["seed"]))
    pixels, _ = split.subset(order[:count]).load(progress=tell)
    return normalize(pixels, job.subject.spec.mean, job.subject.spec.std).to(job.subject.example.device)


def _write(folder: Path, work: _Work, wanted: dict[str, Any], result: dict[str, Any], timeline: "Timeline") -> None:
    """Write the run folder, whole or not at all."""
    from clusterprune import run, save
    from clusterprune.cli.opening import absolute
    from clusterprune.cli.trusting import note_code
    from clusterprune.files import atomic_folder

    with timeline.phase("write"), atomic_folder(folder) as temporary:
        run.write_config(temporary, "compress", absolute(wanted) | note_code(wanted))
        work.plan.save(temporary / run.PLAN_NAME)
        save(work.compact, temporary / run.COMPACT_NAME)
        run.write_log(temporary, timeline.events)
        run.write_result(temporary, result)
