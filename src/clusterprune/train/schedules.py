"""Learning rate schedules: a factor of the peak rate as a function of ``where`` in [0, 1).

``where`` is the share of the run's steps already taken.
"""

import math
from collections.abc import Sequence

from clusterprune.train.config import TrainConfig

# He et al. 2016, §4.2, warm ResNet-110 up at a tenth of its rate.
WARMUP_START = 0.1


def cosine(where: float) -> float:
    """Return (1 + cos(π·where)) / 2 (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * where))


def step(where: float, milestones: Sequence[float], gamma: float) -> float:
    """Return `gamma` to the power of the number of `milestones` reached."""
    return gamma ** sum(where >= milestone for milestone in milestones)


def warmup(where: float, length: float) -> float:
    """Return a factor that grows linearly from `WARMUP_START` at 0 to 1 at `length` and after."""
    if where >= length:
        return 1.0
    return WARMUP_START + (1 - WARMUP_START) * where / length


def learning_rate(config: TrainConfig, where: float) -> float:
    """Return the learning rate at `where`: peak rate × schedule × warm-up."""
    if config.schedule == "cosine":
        factor = cosine(where)
    else:
        factor = step(where, config.milestones, config.gamma)
    return config.lr * factor * warmup(where, config.warmup_epochs / config.epochs)
