"""Learning rate schedules: a factor of the peak rate as a function of ``where`` in [0, 1).

``where`` is the share of the run's steps already taken.
"""

import math
from collections.abc import Sequence

from clusterprune.train.config import TrainConfig

# The rise, and the peak's ratio to the first and to the last rate, of torch.optim.lr_scheduler.OneCycleLR.
RISE, START, END = 0.3, 1 / 25, 1 / 250_000

# He et al. 2016, §4.2, warm ResNet-110 up at a tenth of its rate.
WARMUP_START = 0.1


def cosine(where: float) -> float:
    """Return (1 + cos(π·where)) / 2 (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * where))


def step(where: float, milestones: Sequence[float], gamma: float) -> float:
    """Return `gamma` to the power of the number of `milestones` reached."""
    return gamma ** sum(where >= milestone for milestone in milestones)


def one_cycle(where: float) -> float:
    """Return a factor that rises from `START` to 1 and falls to `END` (Smith and Topin 2018), along cosines."""
    if where < RISE:
        return START + (1 - START) * (1 - cosine(where / RISE))
    return END + (1 - END) * cosine((where - RISE) / (1 - RISE))


def constant(where: float) -> float:  # noqa: ARG001 (a schedule is a function of it)
    """Return 1."""
    return 1.0


def warmup(where: float, length: float) -> float:
    """Return a factor that grows linearly from `WARMUP_START` at 0 to 1 at `length` and after."""
    if where >= length:
        return 1.0
    return WARMUP_START + (1 - WARMUP_START) * where / length


def learning_rate(config: TrainConfig, where: float) -> float:
    """Return the learning rate at `where`: peak rate × schedule × warm-up."""
    if config.schedule == "step":
        factor = step(where, config.milestones, config.gamma)
    else:
        factor = {"cosine": cosine, "onecycle": one_cycle, "constant": constant}[config.schedule](where)
    return config.lr * factor * warmup(where, config.warmup_epochs / config.epochs)
