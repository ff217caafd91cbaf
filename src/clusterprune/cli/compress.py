"""``clusterprune compress``: a trained model and a budget in, a smaller model out."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import re
from contextlib import nullcontext
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
    from clusterprune.plan import Plan
    from clusterprune.runs import Timeline

EXAMPLES = """[bold]Examples[/bold]

clusterprune compress --model resnet56 --weights resnet56.safetensors --data cifar10:DIR --keep-macs 0.5 --out runs/half

clusterprune compress --model torchvision:resnet50 --weights W --calibration photos/ --keep-latency 0.7 --out runs/fast

clusterprune compress --model my_net.py:build --weights W --data-free --keep-params 0.3 --out runs/small

clusterprune compress --model resnet20 --weights W --calibration photos/ --keep-macs 0.5 --distil 120 --out runs/taught

clusterprune compress --model resnet56 --weights W --data cifar10:DIR --method icp --eps 0.025 --out runs/icp

clusterprune compress --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --epochs 40 --out runs/tuned

clusterprune compress --out runs/icp --resume
"""
OF_RUNS = (*"epochs lr batch_size weight_decay schedule precision augment eps steps set storage study".split(),)
"""Options that oneshot has no use for when it does not train; with any of them it is a run of its own folder."""
BUDGETS = ("keep_macs", "keep_params", "keep_latency")
PLANNING = ("trace", "read images", "make images", "plan", "distil", "apply")
"""Phases that are the compression; the others measure and write."""


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
            help="Use no images but such as the model's batch norms remember; --data is then for the test alone.",
            rich_help_panel="Data",
        ),
    ] = False,
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images",
            help="With --data-free: write the images that were made to images.png in the run's folder.",
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
    distil: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|STEPS",
            help="After oneshot, learn from the original without labels, for seconds (120) or steps (400steps).",
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
    trains = method != "oneshot" or any(wanted[name] for name in OF_RUNS)
    if trains or (resume and wanted["distil"] is None):
        from clusterprune.cli.compress_training import compress_training

        compress_training(context, out, wanted, trust, resume=resume)
        return
    _at_once(context, out, wanted, trust, resume=resume)


def _at_once(context: typer.Context, out: Path, wanted: dict[str, Any], trust: str | None, *, resume: bool) -> None:
    """Plan, apply, measure and write.

    Nothing is written before all of it has succeeded, unless the plan is distilled: that takes long, and keeps what
    it has reached.
    """
    from clusterprune import runs
    from clusterprune.cli.console import comparison, console, duration
    from clusterprune.cli.measuring import measure_both
    from clusterprune.cli.opening import absolute
    from clusterprune.cli.progress import Display
    from clusterprune.cli.resuming import check_same, own_folder, will_go_on
    from clusterprune.cli.trusting import check_code, note_code

    if resume:
        check_same(context, out.expanduser(), wanted)
        finished = runs.read_result(out.expanduser(), "baseline", "compressed")
        if finished is not None:
            title = f"{out.expanduser()} was finished before"
            console().print(comparison(title, finished["baseline"], finished["compressed"]))
            return
    else:
        runs.check_out(out)
    _check(wanted)
    check_code(context, wanted["model"], trust, resume=resume)
    with own_folder(out, resume=resume) as folder, Display() as display:
        timeline = runs.Timeline(display)
        job = _open(wanted, timeline)
        if wanted["distil"] is not None and not resume:
            runs.write_config(folder, "compress", absolute(wanted) | note_code(wanted))
        if wanted["distil"] is not None:
            will_go_on("compress", folder, lambda: "The plan, and what was learnt so far, are on disk.")
        work = _compress(job, wanted, folder, timeline, display)
        result = measure_both(job.subject, work.compact, job.test, wanted, timeline, display)
        result["budget"] = {name: wanted[name] for name in BUDGETS if wanted[name] is not None}
        result["images"] = 0 if job.calibration is None else work.plan.notes["images"]
        if wanted["distil"] is not None:
            result["distil"] = work.plan.notes["distil"]
        _write(folder, work, wanted, result, timeline)
        will_go_on("compress", folder, str)
    planning = sum(timeline.seconds.get(name, 0.0) for name in PLANNING)
    title = f"{wanted['model']}: compressed in {duration(planning)}"
    console().print(comparison(title, result["baseline"], result["compressed"]))
    console().print(
        f"Written to {folder}: the model in {runs.COMPACT_NAME}/, its plan in {runs.PLAN_NAME}/, all numbers in "
        f"{runs.RESULT_NAME}.",
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
    made: "Tensor | None" = None
    """Images that stand for those that were not to be had, normalised."""


def _check(wanted: dict[str, Any]) -> None:
    """Check the options against one another before any work.

    Raises
    ------
    ArgumentError
        If they make no sense together.
    """
    from clusterprune.budget.allocation import check_fraction
    from clusterprune.cli.opening import check_weights
    from clusterprune.errors import ArgumentError

    budgets = {name: wanted[name] for name in BUDGETS if wanted[name] is not None}
    names = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGETS)
    if len(budgets) != 1:
        got = " and ".join(f"--{name.replace('_', '-')}" for name in budgets) or "none"
        raise ArgumentError(f"one budget is needed, {names}, but got {got}; give one of them, such as --keep-macs 0.5")
    ((name, share),) = budgets.items()
    check_fraction(name, share)
    duration_of(wanted["distil"])
    if wanted["save_images"] and not wanted["data_free"]:
        raise ArgumentError("--save-images shows the images that --data-free makes; give both, or leave it out")
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
    from clusterprune.runs import pick_device

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


def duration_of(text: str | None) -> dict[str, Any]:
    """Return for how long to distil, by the name of the argument of :func:`clusterprune.distil`.

    Raises
    ------
    ArgumentError
        If the text is neither a number of seconds nor of steps.
    """
    from clusterprune.errors import ArgumentError

    if text is None:
        return {}
    found = re.fullmatch(r"\s*(\d{1,7}(?:\.\d+)?)\s*(s|sec|seconds|steps)?\s*", text)
    value = float(found[1]) if found else 0.0
    steps = bool(found) and found[2] == "steps"
    if not value or (steps and not value.is_integer()):
        raise ArgumentError(f"--distil takes seconds, such as 120, or steps, such as 400steps, but got {text!r}")
    return {"steps": int(value)} if steps else {"seconds": value}


def _compress(job: _Job, wanted: dict[str, Any], folder: Path, timeline: "Timeline", display: "Display") -> _Work:
    import clusterprune
    from clusterprune import runs
    from clusterprune.merge.bn_images import can_make_images

    subject, made = job.subject, None
    with timeline.phase("trace"):
        graph = clusterprune.trace(subject.model, subject.example, approximate=wanted["approximate"])
    images = None
    if job.calibration is not None:
        with timeline.phase("read images") as tell:
            images = _draw(job, job.calibration, wanted, display, tell)
    elif can_make_images(graph):
        with timeline.phase("make images", announce=False):
            images = made = clusterprune.images_from_norms(graph, seed=wanted["seed"], progress=display)
    for_how_long = duration_of(wanted["distil"])
    _check_made(wanted, images, made)
    if for_how_long and (folder / runs.PLAN_NAME).exists():
        plan = clusterprune.Plan.load(folder / runs.PLAN_NAME)
    else:
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
        if job.calibration is not None:
            _say_few_rows(plan, display)
        if for_how_long:
            plan.save(folder / runs.PLAN_NAME)
    if for_how_long and images is not None:
        with timeline.phase("distil", announce=False):
            plan = clusterprune.distil(
                graph, plan, images, **for_how_long, seed=wanted["seed"], out=folder / DISTILLED, progress=display
            )
    with timeline.phase("apply"):
        compact = clusterprune.apply(subject.model, plan, graph=graph)
    return _Work(plan, compact, made)


def _say_few_rows(plan: "Plan", display: "Display") -> None:
    """Say which groups had too few images to be judged by."""
    from clusterprune.tables import few

    wanted = dict(plan.notes.get("few_rows", {}))
    if wanted:
        display.line(
            f"These images show fewer rows than there are channels of {few(sorted(wanted))}, cut with care for that; "
            f"--images {max(wanted.values())} would tell more.",
            "yellow",
        )


DISTILLED = "distil.safetensors"
"""What a run has learnt so far, while it does."""


def _check_made(wanted: dict[str, Any], images: "Tensor | None", made: "Tensor | None") -> None:
    """Check that there are images where they are needed.

    Raises
    ------
    ArgumentError
        If images were to be made from batch norms that the model does not have.
    """
    from clusterprune.errors import ArgumentError

    needs = "--distil" if wanted["distil"] is not None and images is None else None
    needs = "--save-images" if wanted["save_images"] and made is None else needs
    if needs is not None:
        raise ArgumentError(
            f"{needs} needs images, but this model has no batch norms to make them from; give --calibration DIR, or "
            f"leave {needs} out"
        )


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
    """Write the run folder, whole or not at all; where the plan was distilled, into what is there already."""
    from clusterprune import runs, save
    from clusterprune.cli.opening import absolute
    from clusterprune.cli.trusting import note_code
    from clusterprune.files.writing import atomic_folder

    distilled = wanted["distil"] is not None
    with timeline.phase("write"), nullcontext(folder) if distilled else atomic_folder(folder) as target:
        if distilled:
            for name in (runs.PLAN_NAME, runs.COMPACT_NAME):
                runs.remove_folder(folder / name)
        else:
            runs.write_config(target, "compress", absolute(wanted) | note_code(wanted))
        work.plan.save(target / runs.PLAN_NAME)
        save(work.compact, target / runs.COMPACT_NAME)
        if wanted["save_images"] and work.made is not None:
            _write_images(target / "images.png", work.made)
        runs.write_log(target, timeline.events)
        runs.write_result(target, result)
        (target / DISTILLED).unlink(missing_ok=True)


def _write_images(path: Path, images: "Tensor") -> None:
    """Write some of the images as one picture, each stretched to its own range: how bright they were is not known."""
    from torchvision.utils import save_image

    from clusterprune.files.writing import output_errors

    with output_errors(path):
        save_image(images[:64].float().cpu(), path, nrow=8, normalize=True, scale_each=True)
