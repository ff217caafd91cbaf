"""``clusterprune compress`` as a run of its own folder: the methods that train, and all that can be stopped."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from clusterprune import runs, save
from clusterprune.cli.console import comparison, console, duration
from clusterprune.cli.job import Job, describe
from clusterprune.cli.measuring import measure_both
from clusterprune.cli.opening import absolute, absolute_storage, alone, check_weights, open_task, require
from clusterprune.cli.progress import Display
from clusterprune.cli.resuming import check_same, epochs_on_disk, own_folder, will_go_on
from clusterprune.cli.trusting import check_code, note_code
from clusterprune.cli.watching import Watch
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.files.reading import ReadError, parse_yaml
from clusterprune.methods import pipeline
from clusterprune.methods.settings import read_method
from clusterprune.methods.trainings import training_for
from clusterprune.train import TrainConfig
from clusterprune.train.config import resolve_device

# Options that are settings of some method, with the value that says nothing.
_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("keep_macs", "keep_params", "keep_latency", "eps", "steps", "storage", "study")),
    "images": 1024,
    "round_to": 1,
    "min_width": 1,
    "ignore": None,
}
_TRAINING = ("epochs", "lr", "batch_size", "weight_decay", "schedule", "precision", "augment")


@dataclass(frozen=True)
class Asked:
    """What the options ask for, read and checked before any data is opened."""

    method: str
    settings: dict[str, Any]
    training: TrainConfig | None
    device: str | None

    @classmethod
    def read(cls, wanted: dict[str, Any]) -> "Asked":
        """Read the options of a run.

        Raises
        ------
        ArgumentError
            If one is not accepted, or they make no sense together.
        """
        method = wanted["method"]
        for name in ("calibration", "data_free", "distil", "save_images"):
            if wanted[name]:
                raise ArgumentError(
                    f"--{name.replace('_', '-')} is for --method oneshot without training; with method={method!r} "
                    "give --data, whose training images are used"
                )
        require(wanted["data"], "data", f"method={method!r} looks at training images; give --data")
        check_weights(wanted)
        pipeline.check_approximate(method, approximate=wanted["approximate"])
        settings = settings_of(wanted)
        training = training_for(method, **{name: wanted[name] for name in _TRAINING})
        if training is not None:
            training = training.model_copy(update={"device": wanted["device"]})
        read_method(method, settings, seed=wanted["seed"], epochs=training and training.epochs)
        if method == "acp" and not wanted["validation"]:
            raise ArgumentError("validation=0, but method='acp' compares structures on held-out images; give a share")
        return cls(method, settings, training, wanted["device"])


def settings_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the method among the options, those of ``--set`` included.

    Raises
    ------
    ArgumentError
        If a ``--set`` is not of the form NAME=VALUE, or names what has an option or was set before.
    """
    wanted = absolute(wanted)
    found = {name: wanted[name] for name, nothing in _SETTINGS.items() if wanted[name] not in (nothing, [], ())}
    for text in wanted["set"] or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ArgumentError(f"set={text!r} is not of the form NAME=VALUE, such as --set merge=refit")
        if name in found:
            raise ArgumentError(f"{name} is given twice, as {found[name]!r} and in --set {text}; leave one out")
        try:
            found[name] = parse_yaml(value)
        except ReadError as error:
            raise ArgumentError(f"set={text!r} has a value that {error}") from None
    return found


def compress_training(
    context: typer.Context, out: Path, wanted: dict[str, Any], trust: str | None, *, resume: bool
) -> None:
    """Compress by any method, in a folder that the run can go on from."""
    folder = out.expanduser()
    alone("compress", "'clusterprune worker' helps acp to search.")
    if resume:
        check_same(context, folder, wanted)
        finished = runs.read_result(folder, "baseline", "compressed")
        if finished is not None:
            _show(f"{folder} was finished before", finished)
            return
    else:
        runs.check_out(out)
    asked = Asked.read(wanted)
    check_code(context, wanted["model"], trust, resume=resume)
    with own_folder(out, resume=resume), Display() as display:
        will_go_on("compress", folder, functools.partial(epochs_on_disk, folder))
        result = _run(folder, wanted, asked, display, resume=resume)
    # What earlier sessions took is not known; the record has the time of every training.
    took = "" if resume else f" in {duration(result['seconds']['compress'])}"
    _show(f"{wanted['model']}: compressed by {asked.method}{took}", result)
    console().print(
        f"Written to {folder}: the model in {runs.COMPACT_NAME}/, all numbers in {runs.RESULT_NAME}.", soft_wrap=True
    )


def _run(folder: Path, wanted: dict[str, Any], asked: Asked, display: Display, *, resume: bool) -> dict[str, Any]:
    """Compress, measure and write; return the content of ``result.json``."""
    timeline = runs.Timeline(display)
    with timeline.phase("open data and model"):
        device = resolve_device(asked.training or TrainConfig(device=asked.device))
        subject, task, test = open_task(wanted, device)
    about = _about(wanted, asked, task)
    if not resume:
        runs.write_config(folder, "compress", absolute(wanted) | note_code(wanted))
    before = runs.read_log(folder)
    watch = Watch(display)
    will_go_on("compress", folder, lambda: epochs_on_disk(folder, watch.phase))
    try:
        with timeline.phase("compress", announce=False):
            made = pipeline.compress(
                task, asked.method, asked.settings, training=asked.training, seed=wanted["seed"], out=folder,
                report=display, watch=watch, about=about,
            )  # fmt: skip
        # Anew, whatever an earlier session has left there.
        runs.remove_folder(folder / runs.COMPACT_NAME)
        save(made.model, folder / runs.COMPACT_NAME)
        result = measure_both(subject, made.model, test if wanted["evaluate"] else None, wanted, timeline, display)
    except KeyboardInterrupt:
        timeline.note("stopped")
        with contextlib.suppress(OutputError):
            runs.write_log(folder, [*before, *timeline.events])
        raise
    result |= {"settings": asked.settings, "record": made.record, "resumed": bool(resume)}
    runs.write_log(folder, [*before, *timeline.events])
    runs.write_result(folder, result)
    return result


def _about(wanted: dict[str, Any], asked: Asked, task: pipeline.Task) -> dict[str, Any] | None:
    """Return what a search tells its workers, having checked that it is not another's."""
    if asked.method != "acp" or asked.training is None:
        return None
    from clusterprune.search import begun  # Optuna takes a while to import

    job, storage = describe(wanted, asked.settings, asked.training, task), wanted["storage"]
    study = wanted["study"] or "acp"
    if storage is not None and (found := begun(absolute_storage(storage), study)) is not None:
        job.check_same(Job.read(found.about, f"study={study!r}"))
    return job.model_dump(mode="json")


def _show(title: str, result: dict[str, Any]) -> None:
    console().print(comparison(title, result["baseline"], result["compressed"]))
