"""What training reports while it runs and when it is done."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """What training reports as it goes.

    Attributes
    ----------
    kind
        ``"step"`` after steps, ``"epoch"`` after an epoch's checkpoint, ``"note"`` for a sentence.
    epoch, epochs
        The epoch, counted from 1, and how many there are.
    step, steps
        Steps taken in it, and how many it has.
    loss, learning_rate
        Of the last step; None in a note.
    record
        The epoch's record in the history; None but for ``"epoch"``.
    message
        The sentence; empty but for ``"note"``.
    """

    kind: Literal["step", "epoch", "note"]
    epoch: int
    epochs: int
    step: int = 0
    steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    record: dict[str, Any] | None = None
    message: str = ""


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Attributes
    ----------
    history
        One record per epoch: ``epoch`` (from 1), ``loss`` (mean over the images), ``learning_rate`` (of the
        last step), ``seconds``, and two by the name of the task's first metric, such as ``train_accuracy`` (percent
        right of the augmented images while training on them; None where no image is right or wrong by itself) and
        ``validation_accuracy`` (None without validation images).
    epochs
        Number of epochs.
    seconds
        Time of all epochs, those before a resume included.
    validation
        The task's first metric on the validation images after the last epoch; None without them.
    momentum
        The optimizer's momentum buffers at the end, by parameter name, on the CPU. To train on
        from where this run ended, pass them to the next.
    """

    history: list[dict[str, Any]]
    epochs: int
    seconds: float
    validation: float | None = None
    momentum: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        """Say how long the training was, and the last epoch's record."""
        last = f", the last {self.history[-1]}" if self.history else ""
        return f"<TrainResult: {self.epochs} epochs in {self.seconds:.1f} s{last}>"
