"""``clusterprune compress``: a trained model and a budget in, a smaller model out."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from clusterprune import runs, save
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.closing import budgets, comparison
from clusterprune.cli.command import command
from clusterprune.cli.console import duration, show
from clusterprune.cli.job import Job, describe
from clusterprune.cli.measuring import measure_both, runtime_of
from clusterprune.cli.opening import Opened, check_weights, open_task
from clusterprune.cli.presets import chosen
from clusterprune.cli.progress import Display
from clusterprune.cli.reporting import leave_report, leave_sheet
from clusterprune.cli.resuming import NOTHING_YET, check_same, epochs_on_disk, own_folder, will_go_on
from clusterprune.cli.settings import SHARES, read_options, settle_budget, several_budgets, with_settings
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.cli.watching import Watch, tensorboard_asked
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.methods import Method, Work, find
from clusterprune.methods._registry import METHODS, USUAL
from clusterprune.methods.foresight import GIB, Foresight
from clusterprune.methods.latency import Clock
from clusterprune.report import REPORT_NAME
from clusterprune.search import study_header
from clusterprune.train import TrainConfig, here
from clusterprune.train.processes import join

EXAMPLES = """[bold]Examples[/bold]

clusterprune compress --model resnet56 --weights resnet56.safetensors --data cifar10:DIR --keep-macs 0.5 --out runs/half

clusterprune compress --model torchvision:resnet50 --weights W --calibration photos/ --keep-latency 0.7 \\
    --runtime onnxruntime:threads=1 --out runs/fast

clusterprune compress --model my_net.py:build --weights W --data-free --keep-params 0.3 --out runs/small

clusterprune compress --model resnet20 --weights W --calibration photos/ --keep-macs 0.5 --distil 120 --out runs/taught

clusterprune compress --model resnet56 --weights W --data cifar10:DIR --method icp --eps 0.025 --out runs/icp

clusterprune compress --model resnet20 --weights W --data cifar10:DIR --keep-macs 0.5 --epochs 40 --out runs/tuned

clusterprune compress --model resnet56 --weights W --data cifar10:DIR --keep-macs 0.9,0.75,0.5 --out runs/many

clusterprune compress --out runs/icp --resume
"""
TRAINING = ("epochs", "lr", "batch_size", "weight_decay", "schedule", "precision", "augment")


@command(EXAMPLES)
@with_settings
def compress(
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
    data: options.OptionalData = None,
    classes: options.ClassNames = None,
    task: options.TaskName = None,
    calibration: options.Calibration = None,
    evaluate: Annotated[
        bool,
        typer.Option(help="Measure the network before and after on the test split.", rich_help_panel="Data"),
    ] = True,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(METHODS)}; or path/to/file.py:MyMethod, a class of your own.",
            rich_help_panel="Method",
        ),
    ] = USUAL,
    set: options.Set = None,  # noqa: A002 (the option's name)
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
    out: options.Out,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    memory_limit: options.MemoryLimit = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    latency_batch: options.LatencyBatch = 1,
    tensorboard: options.TensorBoard = False,
    runtime: options.Runtime = None,
    config: options.Config = None,
    debug: options.Debug = False,
    **settings: Any,
) -> None:
    """Compress by any method, in a folder that the run can go on from."""
    wanted = chosen(context)
    settle_budget(context, wanted)
    folder = out.expanduser()
    several = several_budgets(wanted)
    if resume:
        check_same(context, folder, wanted)
        finished = runs.read_result(folder, "baseline", "compressed")
        if finished is not None:
            show(finished, _comparison(f"{folder} was finished before", finished))
            return
    else:
        runs.check_out(out)
    check_code(context, wanted, trust, resume=resume)
    tensorboard_asked(folder, wanted)
    asked = [Request.read(wanted | budget) for budget in several or [{}]]
    join(asked[0].training or TrainConfig(device=wanted["device"]))
    if dry_run:
        show(*_foresee(wanted, asked))
        return
    with own_folder(out, resume=resume), Display() as display:
        will_go_on("compress", folder, functools.partial(epochs_on_disk, folder))
        if several:
            named = dict(zip(map(folder_of, several), asked, strict=True))
            together = _run_several(folder, wanted, named, display, resume)
            show(together, budgets(f"{wanted['model']}: compressed by {wanted['method']}", together))
            return
        result = _run(folder, wanted, asked[0], display, resume=resume)
    # What earlier sessions took is not known; the record has the time of every training.
    took = "" if resume else f" in {duration(result['seconds']['compress'])}"
    show(
        result,
        _comparison(f"{wanted['model']}: compressed by {wanted['method']}{took}", result),
        f"Written to {folder}: the model in {runs.COMPACT_NAME}/, all numbers in {runs.RESULT_NAME}, "
        f"and {REPORT_NAME} to look at.",
    )


@dataclass(frozen=True)
class Request:
    """What the options ask for, read and checked before any data is opened."""

    method: Method
    settings: dict[str, Any]
    training: TrainConfig | None

    @classmethod
    def read(cls, wanted: dict[str, Any]) -> "Request":
        """Read the options of a run.

        Raises
        ------
        ArgumentError
            If one is not accepted, or they make no sense together.
        """
        name, kind = wanted["method"], find(wanted["method"])
        settings = read_options(absolute(wanted)) | clock_of(wanted)
        method = kind.read(settings)
        training = kind.training_with(**{one: wanted[one] for one in TRAINING})
        if training is not None:
            training = training.model_copy(update={"device": wanted["device"]})
        method.check(approximate=wanted["approximate"], training=training, validation=bool(wanted["validation"]))
        if wanted["calibration"] is not None and not method.looks:
            raise ArgumentError(
                f"--calibration is for cuts that look at images before any training, which method={name!r} with these "
                "settings does not; leave it out"
            )
        if wanted["data"] is None and training is not None:
            raise ArgumentError(f"data is missing: method={name!r} trains on images; give --data")
        if wanted["data"] is None and wanted["calibration"] is None and method.looks:
            raise ArgumentError(
                "there are no images to learn from; give --data, --calibration DIR (any folder of images), or "
                "--data-free"
            )
        check_weights(wanted)
        return cls(method, settings, training)


def clock_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setting that says what a target in time is measured by: the runtime, at the batch of all times.

    Raises
    ------
    ArgumentError
        If there is no such runtime.
    """
    if wanted["runtime"] is None:
        return {}
    clock = Clock.read(f"{wanted['runtime']}:batch={wanted['latency_batch']}")
    timed = any(wanted.get(name) is not None for name in ("keep_latency", "max_latency_ms"))
    return {"latency": f"{clock.runtime}:batch={clock.batch}"} if timed else {}


def _foresee(wanted: dict[str, Any], asked: Sequence[Request]) -> tuple[dict[str, Any], str]:
    """Check all that can be checked before any work, and say what is expected."""
    with Display() as display:
        timeline, memory = runs.Timeline(display), dict[str, Any]()
        opened = _open(wanted, asked[0], timeline, display)
        found: list[Foresight] = []
        with timeline.phase("look ahead"):
            for one in asked:
                work = Work(None, one.training, wanted["seed"], images=opened.images, memory=memory)
                seen = one.method.foresee(opened.network, work, wanted["memory_limit"])
                found += [] if seen is None else [seen]
    told = "Options, model, data and budget go together. Nothing was written."
    if not found:
        return {"command": "compress", "dry_run": True, "seconds": None, "bytes": None}, told
    seconds, most = sum(one.seconds for one in found), max(one.bytes for one in found)
    training = "" if asked[0].training is None else f", and then {asked[0].training.epochs} epochs of training"
    told += f" The cut is expected to take about {duration(seconds)} and {most / GIB:.1f} GiB{training}."
    return {"command": "compress", "dry_run": True, "seconds": round(seconds, 1), "bytes": most}, told


def _run(folder: Path, wanted: dict[str, Any], asked: Request, display: Display, *, resume: bool) -> dict[str, Any]:
    """Compress at one budget, measure and write; return the content of ``result.json``."""
    timeline = runs.Timeline(display)
    opened = _open(wanted, asked, timeline, display)
    return _compress(folder, wanted, asked, opened, timeline, display, resume=resume)


def _run_several(
    folder: Path, wanted: dict[str, Any], asked: dict[str, "Request"], display: Display, resume: bool
) -> dict[str, Any]:
    """Compress at several budgets, each in a folder of its own, and all with one measurement of the network."""
    timeline = runs.Timeline(display)
    opened = _open(wanted, next(iter(asked.values())), timeline, display)
    if not resume:
        here().once(lambda: runs.write_config(folder, "compress", absolute(wanted) | note_code(wanted)))
    results: dict[str, Any] = {}
    will_go_on("compress", folder, lambda: f"{len(results)} of {len(asked)} budgets are done and on disk.")
    memory: dict[str, Any] = {}
    for name, one in asked.items():
        place = folder / name
        finished = here().once(lambda place=place: runs.read_result(place, "baseline", "compressed"))
        if finished is None:
            begun_before = here().once((place / runs.CONFIG_NAME).exists)
            display.line(f"{one.method.name}, {name}")
            own = wanted | {option: value for option, value in one.settings.items() if option in SHARES}
            finished = _compress(
                place, own, one, opened, runs.Timeline(display), display, resume=begun_before, memory=memory
            )
        results[name] = finished
    together = {"command": "compress", "method": wanted["method"], "seed": wanted["seed"], "budgets": results}

    def finish() -> None:
        runs.write_result(folder, together)
        leave_report(folder, display.line)

    here().once(finish)
    return together


def _open(wanted: dict[str, Any], asked: Request, timeline: runs.Timeline, display: Display) -> Opened:
    with timeline.phase("open data and model"):
        _, device = join(asked.training or TrainConfig(device=wanted["device"]))
        return open_task(wanted, device, trains=asked.training is not None, tell=display.line)


def _compress(
    folder: Path, wanted: dict[str, Any], asked: Request, opened: Opened, timeline: runs.Timeline, display: Display, *,
    resume: bool, memory: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compress, measure and write; return the content of ``result.json``.

    Parameters
    ----------
    memory
        What runs at several budgets have in common, where this is one of them.
    """
    processes, watch = here(), Watch(display, log=tensorboard_asked(folder, wanted))
    work = Work(
        folder, asked.training, wanted["seed"], resume=True, images=opened.images, report=display, watch=watch,
        tell=lambda text: display.line(text, "yellow"), about=_about(wanted, asked, opened), memory=memory,
    )  # fmt: skip
    if not resume:
        processes.once(lambda: runs.write_config(folder, "compress", absolute(wanted) | note_code(wanted)))
    if wanted["memory_limit"] is not None and not work.has_plan():
        processes.once(lambda: asked.method.foresee(opened.network, work, wanted["memory_limit"]))
    before = runs.read_log(folder)
    if memory is None:
        will_go_on("compress", folder, lambda: epochs_on_disk(folder, watch.phase))
    try:
        with timeline.phase("compress", announce=False):
            made = asked.method.run(opened.network, opened.task, work)

        def finish() -> dict[str, Any]:
            # Anew, whatever an earlier session has left there.
            runs.remove_folder(folder / runs.COMPACT_NAME)
            save(made.model, folder / runs.COMPACT_NAME, opened.origin)
            test = opened.test if wanted["evaluate"] else None
            result, details = measure_both(
                opened.subject, made.model, opened.task, test, wanted, timeline, display, memory
            )
            result |= {"settings": asked.settings, "record": made.record, "resumed": bool(resume)}
            runs.write_log(folder, [*before, *timeline.events])
            runs.write_details(folder, details)
            runs.write_result(folder, result)
            both = {"original": lambda: opened.subject.model, "compact": lambda: made.model}
            leave_sheet(folder, both, opened.task, test, display.line)
            leave_report(folder, display.line)
            return result

        return processes.once(finish)
    except KeyboardInterrupt:
        timeline.note("stopped")
        # What a search has evaluated is kept elsewhere.
        something = asked.method.joined_at is not None or {path.name for path in folder.iterdir()} - NOTHING_YET
        if processes.is_main and something:
            with contextlib.suppress(OutputError):
                runs.write_log(folder, [*before, *timeline.events])
        raise


def _about(wanted: dict[str, Any], asked: Request, opened: Opened) -> dict[str, Any] | None:
    """Return what a search tells its workers, having checked that it is not another's."""
    place = asked.method.joined_at
    if place is None or asked.training is None or opened.task is None:
        return None
    job, (storage, study) = describe(wanted, asked.settings, asked.training, opened.network, opened.task), place
    if storage is not None and (found := study_header(storage, study)) is not None:
        job.check_same(Job.read(found.about, f"study={study!r}"))
    return job.model_dump(mode="json")


def folder_of(budget: Mapping[str, float]) -> str:
    """Return the name of a budget's folder among those of several: keep-macs-0.75."""
    ((name, share),) = budget.items()
    return f"{name.replace('_', '-')}-{share:g}"


def _comparison(title: str, result: Mapping[str, Any]) -> Table:
    return comparison(title, {**result["baseline"], **runtime_of(result.get("runtime"))}, result["compressed"])
