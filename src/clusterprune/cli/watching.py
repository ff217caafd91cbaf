"""What a training reports, as bars and lines."""

from typing import Any

from clusterprune.cli.console import duration
from clusterprune.cli.progress import Display
from clusterprune.train import Progress


class Watch:
    """Turn what trainings report into a bar for each phase and one line per epoch.

    Parameters
    ----------
    display
        Where to show it.
    lines
        False leaves out the lines.

    Attributes
    ----------
    phase
        The training in progress, or the last one; empty before the first.
    """

    def __init__(self, display: Display, *, lines: bool = True) -> None:
        self.phase = ""
        self._display, self._lines = display, lines

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
        done = (event.epoch - 1) * event.steps + event.step
        note = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.3f}"
        if event.record is not None:
            self._line(_epoch_line(event.record, event.epochs))
        self._display(phase, done, event.epochs * event.steps, note)

    def _line(self, text: str, style: str = "") -> None:
        if self._lines:
            self._display.line(text, style)


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
