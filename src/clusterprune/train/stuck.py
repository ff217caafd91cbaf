"""Telling early that a training does not begin to learn."""

import math
import warnings

from clusterprune.train.config import TrainConfig

FEWEST_EPOCHS = 10
"""Shorter trainings end before anyone could act."""
LEARNT = 0.02
"""Least share of what guessing gets wrong that a training which has begun to learn gets right."""


class StuckTrainingWarning(UserWarning):
    """Training has learnt nothing in a tenth of its epochs."""


def warn_if_stuck(config: TrainConfig, guess: float, epoch: int, right: float) -> None:
    """Warn, after a tenth of the epochs and not again, if guessing is about as good.

    A deep network may stay at the loss of guessing for long when its rate is high from the first step on, and any
    network does whose rate is next to nothing. The loss is finite, and nothing else would tell.

    Parameters
    ----------
    guess
        Percent of the training images that guessing gets right.
    epoch
        How many are done.
    right
        Percent of the training images that were right in the last one.
    """
    if config.epochs < FEWEST_EPOCHS or epoch != max(2, math.ceil(config.epochs / 10)):
        return
    if right < guess + LEARNT * (100 - guess):
        warnings.warn(
            f"after {epoch} of {config.epochs} epochs {right:.1f} % of the training images are right, "
            f"and {guess:.1f} % would be by always guessing the same; it may still begin to learn, but a "
            f"longer warm-up (warmup_epochs={config.warmup_epochs:g}) or another rate (lr={config.lr:g}) is surer",
            StuckTrainingWarning,
            stacklevel=4,
        )
