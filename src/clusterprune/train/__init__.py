"""Training: the loop, losses, learning rate schedules, augmentation and checkpoints."""

from clusterprune.train.augment import augment
from clusterprune.train.config import TrainConfig
from clusterprune.train.guidance import Guidance
from clusterprune.train.hooks import EpochHook
from clusterprune.train.loop import fit
from clusterprune.train.losses import CrossEntropy, Loss
from clusterprune.train.momentum import carry_momentum
from clusterprune.train.processes import Processes
from clusterprune.train.result import Progress, TrainResult
from clusterprune.train.schedules import learning_rate
from clusterprune.train.stuck import StuckTrainingWarning

__all__ = [
    "CrossEntropy",
    "EpochHook",
    "Guidance",
    "Loss",
    "Processes",
    "Progress",
    "StuckTrainingWarning",
    "TrainConfig",
    "TrainResult",
    "augment",
    "carry_momentum",
    "fit",
    "learning_rate",
]
