"""``clusterprune train``: train a model, or fine-tune a compressed one."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterprune.cli import options
from clusterprune.cli.command import Stopped, command
from clusterprune.cli.presets import chosen, given, remember_out, remember_resume

if TYPE_CHECKING:
    from clusterprune.cli.opening import Subject
    from clusterprune.cli.progress import Display
    from clusterprune.data import Dataset, Split
    from clusterprune.train import Progress, TrainConfig, TrainResult

EXAMPLES = """[bold]Examples[/bold]

clusterprune train --model resnet56 --data cifar10:DIR --out runs/base

clusterprune train --out runs/base --resume

clusterprune train --model resnet56 --weights runs/small --data cifar10:DIR --epochs 40 --lr 0.01 --out runs/tuned
"""
TRAINING = "Training"
# Beside what fit() lets go: a moved folder of images is the same data, or its fingerprint will tell.
_MAY_CHANGE = frozenset({"data", "device", "checkpoint_minutes", "latency_batch"})


def _training(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=TRAINING, **more)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", help="Train a model. A stopped run goes on where it was.", epilog=EXAMPLES)(train)


@command
def train(
    context: typer.Context,
    *,
    model: options.Model,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    num_classes: options.Classes = None,
    data: options.Data,
    validation: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            metavar="SHARE",
            help="Share of the training images held out to watch the accuracy on; 0 for none.",
            rich_help_panel="Data",
        ),
    ] = 0.1,
    augment: Annotated[
        str,
        typer.Option(metavar="crop_flip|crop|none", help="Random shifts and mirror images.", rich_help_panel="Data"),
    ] = "crop_flip",
    epochs: Annotated[int, _training("--epochs", "Passes over the training images.", metavar="N")] = 200,
    batch_size: Annotated[int, _training("--batch-size", "Images per step.", metavar="N")] = 128,
    lr: Annotated[float, _training("--lr", "Peak learning rate.", metavar="RATE")] = 0.1,
    momentum: Annotated[float, _training("--momentum", "Nesterov momentum.", metavar="FACTOR")] = 0.9,
    weight_decay: Annotated[float, _training("--weight-decay", "Decay of all weights.", metavar="FACTOR")] = 5e-4,
    schedule: Annotated[str, _training("--schedule", "How the rate falls.", metavar="cosine|step")] = "cosine",
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
    precision: Annotated[
        str,
        _training(
            "--precision",
            "auto takes bfloat16 where the processor computes in it.",
            metavar="auto|float32|bfloat16",
        ),
    ] = "auto",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the checkpoint, the log, the weights and the result. It must be new or empty.",
            rich_help_panel="Run",
            is_eager=True,
            callback=remember_out,
            show_default=False,
        ),
    ],
    seed: options.Seed = 0,
    device: options.Device = None,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", help="Also save inside an epoch, this often.", rich_help_panel="Run", show_default=True
        ),
    ] = 10.0,
    latency_batch: options.LatencyBatch = 1,
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
    """Train with stochastic gradient descent on cross entropy, and test the last epoch's weights once."""
    from clusterprune import run
    from clusterprune.cli.console import console, duration, single
    from clusterprune.cli.progress import Display

    wanted = chosen(context)
    folder = out.expanduser()
    if resume:
        _check_same(context, folder, wanted)
        finished = run.read_result(folder)
        if finished is not None:
            console().print(single(f"{folder} was finished before", finished["trained"]))
            return
    else:
        run.check_out(out)
    settings = _train_config(wanted)
    with Display() as display:
        result = _run(folder, wanted, settings, display, resume=resume)
    console().print(single(f"trained in {duration(result['seconds']['train'])}", result["trained"]))
    console().print(f"Written to {folder}: {run.WEIGHTS_NAME}, {run.RESULT_NAME}, {run.CONFIG_NAME}, {run.LOG_NAME}")


def _run(
    folder: Path, wanted: dict[str, Any], settings: "TrainConfig", display: "Display", *, resume: bool
) -> dict[str, Any]:
    """Train, test and write; return the content of ``result.json``."""
    from clusterprune import run
    from clusterprune.cli.opening import absolute

    timeline = run.Timeline(display)
    with timeline.phase("open data and model"):
        subject, dataset = _open(wanted, settings)
        parts = _parts(dataset, wanted)
    if not resume:
        run.write_config(folder, "train", absolute(wanted))
    trained = _fit(folder, settings, subject, parts, display, resume=resume)
    timeline.seconds["train"] = round(trained.seconds, 3)
    subject.model.eval()
    try:
        _save(folder, subject)
        with timeline.phase("test") as tell:
            measured = run.measure(
                subject.model,
                subject.example,
                dataset.splits.get("test"),
                mean=subject.spec.mean,
                std=subject.spec.std,
                latency_batch=wanted["latency_batch"],
                progress=tell,
            )
    except KeyboardInterrupt:
        raise _stopped(folder, "The training is done, but not its test.") from None
    if measured.accuracy is None:
        display.line(f"{wanted['data']} has no test images, so no accuracy was measured.", "yellow")
    result = {
        "command": "train",
        "trained": measured.to_dict(),
        "epochs": trained.epochs,
        "validation_accuracy": trained.history[-1]["validation_accuracy"] if trained.history else None,
        "seconds": timeline.seconds,
        "seed": wanted["seed"],
        **run.environment(subject.example.device),
    }
    run.write_result(folder, result)
    return result


def _open(wanted: dict[str, Any], settings: "TrainConfig") -> "tuple[Subject, Dataset]":
    from clusterprune import models
    from clusterprune.cli.opening import check_classes, locate, open_data, open_model
    from clusterprune.train.config import resolve_device

    device = resolve_device(settings)
    spec = models.resolve(wanted["model"])
    dataset = open_data(wanted["data"], spec, wanted["image_size"])
    classes = wanted["num_classes"] or len(dataset.classes)
    subject = open_model(
        spec,
        locate(Path(wanted["weights"])) if wanted["weights"] is not None else None,
        image_size=wanted["image_size"],
        num_classes=classes,
        device=device,
        seed=wanted["seed"],
    )
    check_classes(subject, dataset)
    # Noted, so that the run's folder is enough to build the model again.
    wanted["num_classes"] = classes
    return subject, dataset


def _fit(
    folder: Path,
    settings: "TrainConfig",
    subject: "Subject",
    parts: "tuple[Split, Split | None]",
    display: "Display",
    *,
    resume: bool,
) -> "TrainResult":
    from clusterprune import train
    from clusterprune.errors import ClusterpruneError

    watch = _Watch(display)
    try:
        return train.fit(
            subject.model,
            *parts,
            config=settings,
            mean=subject.spec.mean,
            std=subject.spec.std,
            out=folder,
            resume=resume,
            progress=watch,
        )
    except ClusterpruneError:
        _tidy(folder)
        raise
    except KeyboardInterrupt:
        raise _stopped(folder, f"{watch.epoch} of {settings.epochs} epochs are done and on disk.") from None


def _parts(dataset: "Dataset", wanted: dict[str, Any]) -> "tuple[Split, Split | None]":
    """Return the images to train on, and those held out of them."""
    from clusterprune import data

    if wanted["validation"] == 0:
        return dataset.train, None
    return data.holdout(dataset.train, wanted["validation"], wanted["seed"])


def _tidy(folder: Path) -> None:
    """Remove the options of a run that never began, so that the corrected command may use the folder."""
    from clusterprune.run import CONFIG_NAME

    if [path.name for path in folder.iterdir()] == [CONFIG_NAME]:
        (folder / CONFIG_NAME).unlink()
        folder.rmdir()


class _Watch:
    """Turn what training reports into bars and one line per epoch."""

    def __init__(self, display: "Display") -> None:
        self.epoch = 0
        self._display = display

    def __call__(self, event: "Progress") -> None:
        if event.kind == "note":
            # "… 3 epochs and 0 steps are done"; the epoch in the event is the one in progress.
            self.epoch = event.epoch - 1
            self._display.line(event.message, "dim")
            return
        if event.record is None and event.step == event.steps:
            return  # the event of the epoch follows
        done = (event.epoch - 1) * event.steps + event.step
        note = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.3f}"
        if event.record is not None:
            self.epoch = event.epoch
            self._display.line(_epoch_line(event.record, event.epochs))
        self._display("train", done, event.epochs * event.steps, note)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    from clusterprune.cli.console import duration

    accuracy = record["validation_accuracy"]
    watched = "" if accuracy is None else f"  validation {accuracy:6.2f} %"
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  loss {record['loss']:.4f}  "
        f"train {record['train_accuracy']:6.2f} %{watched}  rate {record['learning_rate']:.2g}  "
        f"{duration(record['seconds'])}"
    )


def _train_config(wanted: dict[str, Any]) -> "TrainConfig":
    from clusterprune.errors import ArgumentError
    from clusterprune.train import TrainConfig

    fields = {name: wanted[name] for name in TrainConfig.model_fields if name in wanted}
    try:
        fields["milestones"] = tuple(float(share) for share in wanted["milestones"].split(",") if share.strip())
    except ValueError:
        raise ArgumentError(
            f"milestones must be shares of the run between 0 and 1 with commas between them, such as 0.5,0.75, "
            f"but got milestones={wanted['milestones']!r}"
        ) from None
    return TrainConfig(**fields, nesterov=wanted["momentum"] > 0)


def _save(folder: Path, subject: "Subject") -> None:
    """Write the trained model: weights, or a compact folder if the model was compressed before."""
    from clusterprune import run
    from clusterprune.record import stages

    if not stages(subject.model):
        run.write_weights(folder, subject.model)
        return
    from clusterprune import save

    run.remove_folder(folder / run.COMPACT_NAME)
    save(subject.model, folder / run.COMPACT_NAME)


def _check_same(context: typer.Context, folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse options on the command line that contradict the run being resumed."""
    from clusterprune.cli.opening import absolute
    from clusterprune.errors import ArgumentError
    from clusterprune.run import CONFIG_NAME, read_config

    before, wanted = absolute(read_config(folder / CONFIG_NAME)), absolute(wanted)
    different = [
        f"{name}={wanted[name]!r} (the run has {before.get(name)!r})"
        for name in wanted
        if name not in _MAY_CHANGE and given(context, name) and wanted[name] != before.get(name)
    ]
    if different:
        raise ArgumentError(
            f"--resume with other options than the run in {folder}: {', '.join(different)}; leave them out, or "
            "train into another folder"
        )


def _stopped(folder: Path, done: str) -> Stopped:
    where = shlex.quote(str(folder))
    return Stopped(f"{done} Go on with:\n  clusterprune train --out {where} --resume")
