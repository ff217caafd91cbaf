"""The training loop: epochs of steps, with a checkpoint after each epoch."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterprune.data.at_once import images_at_once
from clusterprune.errors import TrainingError
from clusterprune.files.locking import alone
from clusterprune.tasks import Task
from clusterprune.train.captured import captured
from clusterprune.train.checkpoint import Tally
from clusterprune.train.config import TrainConfig
from clusterprune.train.hooks import EpochHook
from clusterprune.train.images import Source
from clusterprune.train.losses import Loss
from clusterprune.train.momentum import momentum_of
from clusterprune.train.prepare import Run, begin, compiled, machine, prepare
from clusterprune.train.record import check_folder
from clusterprune.train.result import Progress, TrainResult
from clusterprune.train.state import TrainState
from clusterprune.train.steps import Plain, Steps, Taken, rate
from clusterprune.train.stuck import warn_if_stuck


def fit(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    loss: Loss | None = None,
    hook: EpochHook | None = None,
    momentum: Mapping[str, Tensor] | None = None,
) -> TrainResult:
    """Train `model` in place. It ends with the last epoch's weights, on the training device.

    The same arguments on the same machine give the same weights, also when the run was killed and
    resumed. What a model draws from other generators than PyTorch's is outside this promise.
    PyTorch's own generators are left as they were before the call.

    Under ``accelerate launch`` every process calls this alike and takes its share of each batch;
    all end with the same weights, and the main process alone writes to `out` and reports.

    Parameters
    ----------
    task
        What the network is for, with the images to train on and those held out, such as
        ``tasks.Classification(train, validation, mean=mean, std=std)``.
    out
        Folder for the checkpoint and ``log.jsonl``, one line per epoch. Nothing is written when
        None.
    resume
        Continue from the checkpoint in `out`; start from the beginning when there is none.
    progress
        Called with a `Progress`.
    loss
        What to minimise; the task's own when None. The run is known by its text (`repr`).
    hook
        Called after every epoch; may change weights in place.
    momentum
        Momentum buffers to begin with, by parameter name: `TrainResult.momentum` of a run before,
        passed through `carry_momentum` when the model was cut in between. A resume takes the
        checkpoint's instead.

    Raises
    ------
    ArgumentError
        An argument does not fit, or differs from that of the run being resumed.
    ModelError
        The model does not return what the task needs.
    OutputError
        `out` cannot be written, is in use by another process, or holds a checkpoint and `resume` is False.
    WeightsError
        The checkpoint to resume from is damaged.
    TrainingError
        The loss or a weight stopped being finite, or a checkpoint could not be written. The last
        checkpoint stays; in the first case the model is put back to it.
    KeyboardInterrupt
        Training was interrupted. With a folder, the state after the last whole step is saved first; a second Ctrl-C, a
        second later, does not wait for that. The last checkpoint stays.
    """
    folder = check_folder(out, resume)
    run = prepare(model, task, config, folder=folder, progress=progress, loss=loss, hook=hook)
    with alone(folder if run.processes.is_main else None), run.interrupts, machine(run, model):
        state = begin(run, model, momentum, resume=resume)
        steps = captured(run, state) if config.capture else Plain()
        with compiled(run, model):
            while state.epoch < config.epochs:
                _run_epoch(run, state, steps)
        if state.average is not None:
            state.average.write_to(model)
    run.processes.wait()  # whoever reads the folder next finds the last checkpoint
    seconds = sum(record["seconds"] for record in state.history)
    last = state.history[-1][f"validation_{task.metrics[0]}"]
    return TrainResult(state.history, len(state.history), seconds, last, momentum_of(state.optimizer, model))


def _run_epoch(run: Run, state: TrainState, steps: Steps) -> None:
    """Take the steps of one epoch that are left, then validate and save."""
    config = run.config
    state.model.train()
    began = time.perf_counter() - state.tally.seconds
    every = _steps_between_reads(run.device)
    unread: list[Taken] = []
    order = torch.randperm(run.train.count, generator=run.generator(state.epoch))[: run.steps * config.batch_size]
    for taken in steps.of_epoch(run, state, order):
        unread.append(taken)
        if len(unread) == every:
            _read(run, state, unread)
        steps.update(run, state)
        due = run.recorder.age() > 60 * config.checkpoint_minutes and state.step < run.steps
        if due or run.interrupts.asked:
            _read(run, state, unread)
            _save_inside(run, state, began)
    _read(run, state, unread)
    _check_finite(run, state)
    _finish_epoch(run, state, began)


def _save_inside(run: Run, state: TrainState, began: float) -> None:
    """Save the state after a step, and stop there if that was asked for."""
    _check_finite(run, state)
    state.tally.seconds = time.perf_counter() - began
    run.recorder.save(state)
    if run.interrupts.asked:
        run.interrupts.deliver()


def _steps_between_reads(device: torch.device) -> int:
    # Reading a loss waits for the device, which would leave an accelerator idle after every step.
    return 1 if device.type == "cpu" else 20


def _finish_epoch(run: Run, state: TrainState, began: float) -> None:
    if run.hook is not None:
        with torch.no_grad():
            run.hook.after_epoch(state.model, state.epoch + 1, run.config.epochs)
        run.processes.copy_from_main_([*state.model.parameters(), *state.model.buffers()])
        if not state.is_finite():
            raise _diverged(run, state, f"{type(run.hook).__name__} left a weight that is not finite")
    tally = state.tally
    last = rate(run, state, state.step - 1)
    worth = None
    if run.validation is not None:
        try:
            worth = _validate(run, state, run.validation)
        except _Asked:
            _save_inside(run, state, began)
            worth = _validate(run, state, run.validation)  # whoever was told did not want to stop after all
    right = None if run.guess is None else 100 * tally.correct / tally.images
    metric = run.task.metrics[0]
    state.epoch += 1
    state.step = 0
    state.tally = Tally()
    record = {
        "epoch": state.epoch,
        "loss": tally.loss / tally.images,
        f"train_{metric}": right,
        f"validation_{metric}": worth,
        "learning_rate": last,
        "seconds": round(time.perf_counter() - began, 3),
    }
    state.history.append(record)
    run.recorder.save(state)
    if run.processes.is_main and run.guess is not None and right is not None:
        warn_if_stuck(run.config, run.guess, state.epoch, right)
    run.report(
        Progress(
            "epoch",
            state.epoch,
            run.config.epochs,
            run.steps,
            run.steps,
            record["loss"],
            record["learning_rate"],
            record,
        )
    )
    if run.interrupts.asked:
        run.interrupts.deliver()


def _validate(run: Run, state: TrainState, images: Source) -> float | None:
    """Return the first metric of the model, or of its average, on `images`."""
    if state.average is None:
        return _worth(run, state.model, images)
    with state.average.in_place_of(state.model):
        return _worth(run, state.model, images)


@torch.no_grad()
def _worth(run: Run, model: nn.Module, images: Source) -> float | None:
    model.eval()
    rows = [torch.zeros(0, 0, device=run.device)]
    mine = torch.arange(images.count)[run.processes.share(images.count)]
    for pixels, targets in images.batches(mine, _images_at_once(run, images)):
        # A hook has changed the weights by now, and would again if the epoch's end were gone on with.
        if run.interrupts.asked and run.hook is None:
            raise _Asked
        with run.autocast():
            inputs = run.inputs(pixels)
            rows.append(run.task.observe(model(inputs), inputs, targets).to(run.device))
    found = run.processes.gather(torch.cat(rows[1:] or rows))
    return run.task.summarise(found)[run.task.metrics[0]]


def _images_at_once(run: Run, images: Source) -> int:
    height, width = images.shape[1:]
    if run.device.type == "cpu":
        return min(run.config.batch_size, images_at_once(height, width, run.device))
    # A card takes a thousand small images as fast as a batch for training; the memory is that of a few large ones.
    return max(run.config.batch_size, 2**20 // (height * width))


class _Asked(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C while validating, which may take long."""


def _read(run: Run, state: TrainState, unread: list[Taken]) -> None:
    """Add the steps in `unread` to the tally, and empty it.

    Raises
    ------
    TrainingError
        One of their losses is not finite.
    """
    if not unread:
        return
    losses = torch.stack([taken.loss for taken in unread]).tolist()
    correct = torch.stack([taken.right for taken in unread]).tolist()
    first = state.step - len(unread) + 1
    for step, (loss, right, taken) in enumerate(zip(losses, correct, unread, strict=True), first):
        if not math.isfinite(loss):
            raise _diverged(run, state, f"the loss was {loss} at step {step}")
        state.tally.loss += loss * taken.images
        state.tally.correct += round(right)
        state.tally.images += taken.images
    unread.clear()
    last = rate(run, state, state.step - 1)
    run.report(Progress("step", state.epoch + 1, run.config.epochs, state.step, run.steps, losses[-1], last))


def _check_finite(run: Run, state: TrainState) -> None:
    """Keep weights that overflowed in the last step out of the checkpoint."""
    if not state.is_finite():
        raise _diverged(run, state, f"a weight was no longer finite after step {state.step}")


def _diverged(run: Run, state: TrainState, what: str) -> TrainingError:
    """Put the model back to the last good state, and return the error that says what happened."""
    epoch, last = state.epoch + 1, rate(run, state, state.step - 1)
    run.recorder.rewind(state)
    return TrainingError(
        f"training diverged in epoch {epoch}: {what}, at a learning rate of {last:.4g}; lower "
        f"lr={run.config.lr:g}, lengthen warmup_epochs or set clip_norm, and train into another "
        f"folder; {run.recorder.last_good()}"
    )
