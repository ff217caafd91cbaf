"""What a training reports, as bars and lines, and for TensorBoard."""

import importlib
from pathlib import Path
from typing import Any

from clusterprune.cli.console import duration
from clusterprune.cli.progress import Display
from clusterprune.errors import ArgumentError
from clusterprune.train import Progress, here

TENSORBOARD_NAME = "tensorboard"


class Watch:
    """Turn what trainings report into a bar for each phase and one line per epoch.

    Parameters
    ----------
    display
        Where to show it.
    lines
        False leaves out the lines.
    log
        The folder of a run, in which TensorBoard's files are to be written too; None writes none.

    Attributes
    ----------
    phase
        The training in progress, or the last one; empty before the first.
    """

    def __init__(self, display: Display, *, lines: bool = True, log: Path | None = None) -> None:
        self.phase = ""
        self._display, self._lines = display, lines
        self._writer = None if log is None else tensorboard().SummaryWriter(str(log / TENSORBOARD_NAME))

    def __call__(self, phase: str, event: Progress) -> None:
        """Show an event of a phase."""
        self.phase = phase
        if event.kind == "note":
            # "… 3 epochs and 0 steps are done"; the epoch in the event is the one in progress.
            if event.epoch > 1 or event.step:
                self._line(event.message, "dim")
            return
        if event.record is None and event.step == event.steps:
            return  # the event of the epoch follows
        if self._writer is not None:
            self._write(phase, event)
        done = (event.epoch - 1) * event.steps + event.step
        note = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.3f}"
        if event.record is not None:
            self._line(_epoch_line(event.record, event.epochs))
        self._display(phase, done, event.epochs * event.steps, note)

    def _write(self, phase: str, event: Progress) -> None:
        """Write the loss of a step, or the numbers of an epoch, under the phase's name."""
        if self._writer is None:
            return
        if event.record is None:
            step = (event.epoch - 1) * event.steps + event.step
            self._writer.add_scalar(f"{phase}/loss by step", event.loss, step)
            return
        for name, value in event.record.items():
            if isinstance(value, (int, float)) and name not in ("epoch", "seconds"):
                self._writer.add_scalar(f"{phase}/{name}", value, event.epoch)
        self._writer.flush()

    def _line(self, text: str, style: str = "") -> None:
        if self._lines:
            self._display.line(text, style)


def tensorboard_asked(folder: Path, wanted: dict[str, Any]) -> Path | None:
    """Return the folder of a run if the command shall write for TensorBoard, having checked that it can.

    Raises
    ------
    ArgumentError
        If TensorBoard is not installed.
    """
    if not (wanted["tensorboard"] and here().is_main):
        return None
    tensorboard()
    return folder


def tensorboard() -> Any:
    """Return PyTorch's module that writes TensorBoard's files.

    Raises
    ------
    ArgumentError
        If TensorBoard is not installed.
    """
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ArgumentError(
            f"--tensorboard needs TensorBoard, which is not here ({error}); pip install 'clusterprune[tensorboard]', "
            "or leave it out"
        ) from error


def _epoch_line(record: dict[str, Any], epochs: int) -> str:

    watched = "".join(
        f"  {name.partition('_')[0]} {value:6.2f} %"
        for name, value in record.items()
        if name.startswith(("train_", "validation_")) and value is not None
    )
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  loss {record['loss']:.4f}"
        f"{watched}  rate {record['learning_rate']:.2g}  "
        f"{duration(record['seconds'])}"
    )
