"""Training: the loop, learning rate schedules, augmentation and checkpoints."""

from clusterprune.train.augment import augment
from clusterprune.train.config import TrainConfig
from clusterprune.train.loop import fit
from clusterprune.train.losses import CrossEntropy
from clusterprune.train.result import Progress, TrainResult
from clusterprune.train.schedules import learning_rate

__all__ = [
    "CrossEntropy",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "augment",
    "fit",
    "learning_rate",
]
