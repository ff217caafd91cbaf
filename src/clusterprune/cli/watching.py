"""What a training reports, as bars and lines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    epoch, epochs
        How many of its epochs are done, and how many there are.
    """

    def __init__(self, display: "Display", *, lines: bool = True) -> None:
        self.phase = ""
        self.epoch = self.epochs = 0
        self._display, self._lines = display, lines

    def __call__(self, phase: str, event: "Progress") -> None:
        """Show an event of a phase."""
        if phase != self.phase:
            self.phase, self.epoch = phase, 0
        self.epochs = event.epochs
        if event.kind == "note":
            # "… 3 epochs and 0 steps are done"; the epoch in the event is the one in progress.
            self.epoch = event.epoch - 1
            if self.epoch or event.step:
                self._line(event.message, "dim")
            return
        if event.record is None and event.step == event.steps:
            return  # the event of the epoch follows
        done = (event.epoch - 1) * event.steps + event.step
        note = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.3f}"
        if event.record is not None:
            self.epoch = event.epoch
            self._line(_epoch_line(event.record, event.epochs))
        self._display(phase, done, event.epochs * event.steps, note)

    def _line(self, text: str, style: str = "") -> None:
        if self._lines:
            self._display.line(text, style)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    from clusterprune.cli.console import duration

    accuracy = record["validation_accuracy"]
    watched = "" if accuracy is None else f"  validation {accuracy:6.2f} %"
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  loss {record['loss']:.4f}  "
        f"train {record['train_accuracy']:6.2f} %{watched}  rate {record['learning_rate']:.2g}  "
        f"{duration(record['seconds'])}"
    )
