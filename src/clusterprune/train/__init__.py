"""Training: the loop, losses, learning rate schedules and checkpoints."""

from clusterprune.train.config import TrainConfig
from clusterprune.train.guidance import Guidance
from clusterprune.train.hooks import EpochHook
from clusterprune.train.loop import fit
from clusterprune.train.losses import Loss, TaskLoss
from clusterprune.train.momentum import carry_momentum
from clusterprune.train.processes import Processes, here
from clusterprune.train.result import Progress, TrainResult
from clusterprune.train.schedules import learning_rate
from clusterprune.train.stuck import StuckTrainingWarning

__all__ = [
    "EpochHook",
    "Guidance",
    "Loss",
    "Processes",
    "Progress",
    "StuckTrainingWarning",
    "TaskLoss",
    "TrainConfig",
    "TrainResult",
    "carry_momentum",
    "fit",
    "here",
    "learning_rate",
]
