"""What training minimises.

A loss is called with the network, the normalised images and their targets, and returns the value to minimise and what
the network returned. It runs the network itself, so that a loss may look at more than the outputs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clusterprune.tasks import Task

Loss = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class TaskLoss:
    """The loss of a task."""

    task: Task
    smoothing: float = 0.0

    reads_outputs_alone: ClassVar[bool] = True
    """Whether a compiled network will do, whose modules are not called one by one."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Return the loss (scalar, float32) and the outputs."""
        outputs = model(images)
        return self.task.loss(outputs, images, targets, smoothing=self.smoothing), outputs


def name_of(loss: Loss) -> str:
    """Return the text that a run's checkpoint knows its loss by: the `repr` without places in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(loss))
