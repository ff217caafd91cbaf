"""What a network is for: its data, targets, augmentation, loss, metrics, and how far two networks' outputs are apart.

A :class:`Task` is what training, methods, searches and studies ask about a network instead of assuming a classifier.
"""

from clusterprune.tasks._base import Task
from clusterprune.tasks._registry import TASKS, TITLES, percentages
from clusterprune.tasks.classification import Classification
from clusterprune.tasks.detection import Detection
from clusterprune.tasks.multibox import Head, MultiBox
from clusterprune.tasks.own_head import OwnHead
from clusterprune.tasks.plain import Plain

__all__ = [
    "TASKS", "TITLES", "Classification", "Detection", "Head", "MultiBox", "OwnHead", "Plain", "Task", "percentages",
]  # fmt: skip
