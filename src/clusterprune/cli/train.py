"""``clusterprune train``: train a model, or fine-tune a compressed one."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clusterprune import data, models, runs, save
from clusterprune.cli import options
from clusterprune.cli.absolute import absolute
from clusterprune.cli.closing import single
from clusterprune.cli.command import command
from clusterprune.cli.console import duration, show
from clusterprune.cli.inputs import at_size, first_of, settle_input
from clusterprune.cli.locating import built_on, is_backbone, known_classes, locate
from clusterprune.cli.opening import Subject, fit_classes, open_model, origin_of
from clusterprune.cli.presets import chosen
from clusterprune.cli.progress import Display
from clusterprune.cli.reporting import leave_report
from clusterprune.cli.resuming import MAY_CHANGE, check_same, epochs_on_disk, own_folder, will_go_on
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.cli.watching import Watch, tensorboard_asked
from clusterprune.data import Dataset, Split
from clusterprune.errors import ArgumentError
from clusterprune.models.artifact import Origin
from clusterprune.models.purpose import classes_of, task_on
from clusterprune.models.registry import ON
from clusterprune.surgery.history import stages
from clusterprune.tasks import Task
from clusterprune.train import Processes, TrainConfig, TrainResult, fit
from clusterprune.train.processes import join

EXAMPLES = """[bold]Examples[/bold]

clusterprune train --model resnet56 --data cifar10:DIR --out runs/base

clusterprune train --out runs/base --resume

clusterprune train --model resnet56 --weights runs/small --data cifar10:DIR --epochs 40 --lr 0.01 --out runs/tuned
"""
TRAINING = "Training"


def _training(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=TRAINING, **more)


@command(EXAMPLES)
def train(
    context: typer.Context,
    *,
    model: options.Model,
    trust: options.Trust = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    num_classes: options.Classes = None,
    data: options.Data,
    classes: options.ClassNames = None,
    task: options.TaskName = None,
    validation: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            metavar="SHARE",
            help="Share of the training images held out to watch the training on; 0 for none.",
            rich_help_panel="Data",
        ),
    ] = 0.1,
    augment: Annotated[str, options.augment("Data")] = "crop_flip",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Use so many images of each split, for a trial.",
            rich_help_panel="Data",
            show_default="all",
        ),
    ] = None,
    epochs: Annotated[int, _training("--epochs", "Passes over the training images.", metavar="N")] = 200,
    batch_size: Annotated[int, _training("--batch-size", "Images per step.", metavar="N")] = 128,
    lr: Annotated[float, _training("--lr", "Peak learning rate.", metavar="RATE")] = 0.1,
    momentum: Annotated[float, _training("--momentum", "Nesterov momentum.", metavar="FACTOR")] = 0.9,
    weight_decay: Annotated[float, _training("--weight-decay", "Decay of all weights.", metavar="FACTOR")] = 5e-4,
    schedule: Annotated[
        str, _training("--schedule", "How the rate falls.", metavar="cosine|step|onecycle|constant")
    ] = "cosine",
    milestones: Annotated[
        str,
        _training(
            "--milestones", "Shares of the run at which the step schedule lowers the rate.", metavar="SHARE,SHARE"
        ),
    ] = "0.5,0.75",
    gamma: Annotated[float, _training("--gamma", "Factor of each such step.", metavar="FACTOR")] = 0.1,
    warmup_epochs: Annotated[float, _training("--warmup-epochs", "Epochs of rising rate.", metavar="N")] = 0.0,
    label_smoothing: Annotated[
        float, _training("--label-smoothing", "Share of the target spread over all classes.", metavar="SHARE")
    ] = 0.0,
    clip_norm: Annotated[
        float | None, _training("--clip-norm", "Largest norm of the gradient.", metavar="NORM", show_default="none")
    ] = None,
    precision: Annotated[str, options.precision()] = "auto",
    ema_decay: Annotated[
        float | None,
        _training(
            "--ema-decay",
            "Average the weights with this factor per step, such as 0.999; the average is what remains.",
            metavar="FACTOR",
            show_default="none",
        ),
    ] = None,
    compile: Annotated[  # noqa: A002 (the option's name)
        bool, _training("--compile", "Compile the network; the first step then takes long.")
    ] = False,
    capture: Annotated[
        bool, _training("--capture/--no-capture", "On CUDA, record a whole step as one graph where that can be done.")
    ] = True,
    out: options.Out,
    seed: options.Seed = 0,
    device: options.Device = None,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", help="Also save inside an epoch, this often.", rich_help_panel="Run", show_default=True
        ),
    ] = 10.0,
    latency_batch: options.LatencyBatch = 1,
    tensorboard: options.TensorBoard = False,
    resume: options.Resume = False,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Train with stochastic gradient descent, and test the last epoch's weights once."""
    wanted = chosen(context)
    folder = out.expanduser()
    settings = _train_config(wanted)
    processes, _ = join(settings)
    if resume:
        check_same(context, folder, wanted, MAY_CHANGE | {"checkpoint_minutes"})
        finished = runs.read_result(folder, "trained")
        if finished is not None:
            show(finished, single(f"{folder} was finished before", finished["trained"]))
            return
    else:
        runs.check_out(out)
    check_code(context, wanted, trust, resume=resume)
    tensorboard_asked(folder, wanted)
    with own_folder(out, resume=resume), Display() as display:
        will_go_on("train", folder, functools.partial(epochs_on_disk, folder))
        result = _run(folder, wanted, settings, processes, display, resume=resume)
    if result is None:
        return
    show(
        result,
        single(f"trained in {duration(result['seconds']['train'])}", result["trained"]),
        f"Written to {folder}: {runs.WEIGHTS_NAME}, {runs.RESULT_NAME}, {runs.CONFIG_NAME}, {runs.LOG_NAME}",
    )


def _run(
    folder: Path,
    wanted: dict[str, Any],
    settings: TrainConfig,
    processes: Processes,
    display: Display,
    *,
    resume: bool,
) -> dict[str, Any] | None:
    """Train, test and write; return the content of ``result.json``, which is of the main process alone."""
    timeline = runs.Timeline(display)
    with timeline.phase("open data and model"):
        subject, dataset, origin = _open(wanted, settings, display)
        parts = _parts(dataset, wanted)
        task = task_on(subject.spec, subject.model, wanted["num_classes"], *parts, name=wanted["task"])
    if not resume and processes.is_main:
        runs.write_config(folder, "train", absolute(wanted) | note_code(wanted))
    watch = Watch(display, log=tensorboard_asked(folder, wanted))
    trained = _fit(folder, settings, subject, task, watch, resume=resume)
    timeline.seconds["train"] = round(trained.seconds, 3)
    if not processes.is_main:
        return None
    subject.model.eval()
    will_go_on("train", folder, lambda: "The training is done, but not its test.")
    _save(folder, subject, origin)
    test = dataset.splits.get("test")
    counted = runs.HitsByClass()
    with timeline.phase("test") as tell:
        measured = runs.measure(
            subject.model,
            subject.example,
            test,
            task,
            latency_batch=wanted["latency_batch"],
            progress=tell,
            each=counted,
        )
    if test is None:
        display.line(f"{wanted['data']} has no test images, so only costs were measured.", "yellow")
    result = {
        "command": "train",
        "trained": measured.to_dict(),
        "epochs": trained.epochs,
        f"validation_{task.metrics[0]}": trained.validation,
        "seconds": timeline.seconds,
        "seed": wanted["seed"],
        **runs.environment(subject.example.device),
    }
    names = () if test is None else test.classes
    runs.write_details(folder, runs.details({"trained": subject.model}, {"trained": counted}, names))
    runs.write_result(folder, result)
    leave_report(folder, display.line)
    return result


def _open(wanted: dict[str, Any], settings: TrainConfig, display: Display) -> tuple[Subject, Dataset, Origin]:

    _, device = join(settings)
    dataset = data.load(wanted["data"])
    located = locate(Path(wanted["weights"])) if wanted["weights"] is not None else None
    if located is not None and is_backbone(wanted["model"], located):
        # Noted as the model's name, so that the run's folder is enough to build it again.
        wanted["model"], wanted["weights"], located = f"{wanted['model']}{ON}{located.path.resolve()}", None, None
    wanted["model"] = built_on(wanted["model"], located)
    spec = models.resolve(wanted["model"])
    spec = settle_input(spec, wanted, located, first_of(dataset), display.line)
    classes = known_classes(spec, located, wanted["num_classes"])
    if located is None:
        classes = classes or classes_of(dataset.train)
    subject = open_model(spec, located, num_classes=classes, device=device, seed=wanted["seed"])
    dataset = fit_classes(subject, at_size(dataset, spec), wanted["classes"], display.line)
    if (limit := wanted["limit"]) is not None:
        few = {name: data.sample(split, min(limit, len(split)), 0) for name, split in dataset.splits.items()}
        dataset = replace(dataset, splits=few)
    # Noted, so that the run's folder is enough to build the model again.
    wanted["num_classes"] = classes
    return subject, dataset, origin_of(spec, classes, located, dataset)


def _fit(
    folder: Path,
    settings: TrainConfig,
    subject: Subject,
    task: Task,
    watch: Watch,
    *,
    resume: bool,
) -> TrainResult:

    return fit(
        subject.model,
        task,
        settings,
        out=folder,
        resume=resume,
        progress=functools.partial(watch, "train"),
    )


def _parts(dataset: Dataset, wanted: dict[str, Any]) -> tuple[Split, Split | None]:
    """Return the images to train on, and those held out of them."""
    if wanted["validation"] == 0:
        return dataset.train, None
    return data.holdout(dataset.train, wanted["validation"], wanted["seed"])


def _train_config(wanted: dict[str, Any]) -> TrainConfig:

    fields = {name: wanted[name] for name in TrainConfig.model_fields if name in wanted}
    try:
        fields["milestones"] = tuple(float(share) for share in wanted["milestones"].split(",") if share.strip())
    except ValueError:
        raise ArgumentError(
            f"milestones must be shares of the run between 0 and 1 with commas between them, such as 0.5,0.75, "
            f"but got milestones={wanted['milestones']!r}"
        ) from None
    return TrainConfig(**fields, nesterov=wanted["momentum"] > 0)


def _save(folder: Path, subject: Subject, origin: Origin) -> None:
    """Write the trained model: weights, or a compact folder if the model was compressed before."""
    if not stages(subject.model):
        runs.write_weights(folder, subject.model)
        return

    runs.remove_folder(folder / runs.COMPACT_NAME)
    save(subject.model, folder / runs.COMPACT_NAME, origin)
