"""What training minimises.

A loss is called with the model, the normalised images and their labels, and returns the value to
minimise and the logits. It runs the model itself, so that a loss may look at more than the output.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from clusterprune.errors import ModelError

Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]

# Szegedy et al. 2015, §5: "the losses of the auxiliary classifiers were weighted by 0.3".
AUXILIARY_WEIGHT = 0.3


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross entropy, auxiliary classifiers included at a weight of 0.3.

    The targets are ``1 - label_smoothing`` at the label plus ``label_smoothing`` spread evenly.
    """

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar, float32) and the logits (n, classes)."""
        outputs = logits_of(model(images))
        return self.of(outputs, labels), outputs[0]

    def of(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of a classifier's logits, followed by those of its auxiliary classifiers."""
        logits, *auxiliary = outputs
        loss = self._one(logits, labels)
        for others in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * self._one(others, labels)
        return loss

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Autocast on the CPU would leave the logarithm in bfloat16.
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


def name_of(loss: Loss) -> str:
    """Return the text that a run's checkpoint knows its loss by: the `repr` without places in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(loss))


def logits_of(outputs: Any) -> list[Tensor]:
    """Return a classifier's logits, then those of its auxiliary classifiers if it has any.

    Reads a tensor, or the tuples that torchvision's GoogLeNet and Inception return in training.

    Raises
    ------
    ModelError
        `outputs` is neither, or not of shape (n, classes).
    """
    parts = list(outputs) if isinstance(outputs, tuple) else [outputs]
    found = [part for part in parts if part is not None]  # None: a classifier that is switched off
    shapes = {tuple(part.shape) if isinstance(part, Tensor) else type(part) for part in found}
    shape = shapes.pop() if len(shapes) == 1 else None
    if not isinstance(shape, tuple) or len(shape) != 2:
        got = ", ".join(
            f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in found
        )
        raise ModelError(
            "the model must return logits of shape (images, classes), but it returned "
            f"{got or 'nothing'}; wrap it in a module that returns the logits alone"
        )
    return found
