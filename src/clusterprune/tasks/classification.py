"""Classification: one class per image, cross entropy, top-1 and top-5 accuracy."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from clusterprune.arguments import type_name
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.merge.divergence import distillation
from clusterprune.tasks._images import ImageTask

# Szegedy et al. 2015, §5: "the losses of the auxiliary classifiers were weighted by 0.3".
AUXILIARY_WEIGHT = 0.3


class Classification(ImageTask):
    """Images of one class each, for networks that return a score per class: logits (n, classes).

    Networks in training may return the logits of auxiliary classifiers beside them, as torchvision's GoogLeNet does.
    Measured is the accuracy: percent of the images whose class has the highest score, or is among the five highest.
    See :class:`clusterprune.tasks._images.ImageTask` for the parameters.

    Examples
    --------
    >>> import torch
    >>> pixels, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    >>> Classification((pixels, labels), mean=[0.5], std=[0.25])
    Classification(3 classes)
    """

    name = "classification"
    titles: ClassVar[dict[str, str]] = {"accuracy": "top-1 accuracy", "accuracy_top5": "top-5 accuracy"}
    metrics = tuple(titles)

    def __repr__(self) -> str:
        """Say how many classes there are."""
        return f"Classification({len(self.train.classes)} classes)"

    @property
    def guess(self) -> float:
        """Percent of the training images that are right when every one is taken for the largest class."""
        labels = _labels(self.train)
        return 100 * labels.bincount().max().item() / len(labels)

    def targets(self, split: Split) -> Callable[[Tensor], Tensor]:
        """Return a function from positions to the class of each image, int64 (n,)."""
        labels = _labels(split)
        return lambda positions: labels[positions]

    def check(self, outputs: Any, images: Tensor) -> None:
        """Check that there is an output for every class of the data."""
        del images
        classes = logits_of(outputs)[0].shape[1]
        for name, split in (("train", self.train), ("validation", self.validation)):
            if split is not None and (last := int(_labels(split).max())) >= classes:
                raise ArgumentError(
                    f"{name} has labels up to {last}, but the model has {classes} outputs; build it with "
                    f"num_classes={last + 1}"
                )

    def loss(self, outputs: Any, images: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean cross entropy, auxiliary classifiers included at a weight of 0.3.

        The goals are ``1 - smoothing`` at the label plus ``smoothing`` spread evenly over the classes.
        """
        del images
        return cross_entropy(logits_of(outputs), targets, smoothing)

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return τ²·KL( softmax(z_T/τ) ‖ softmax(z_S/τ) ) of the logits; auxiliary classifiers are not compared."""
        return distillation(logits_of(outputs)[0], logits_of(guide)[0], temperature)

    def right(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return how many images have the highest score at their class."""
        return (logits_of(outputs)[0].argmax(1) == targets).sum()

    def observe(self, outputs: Any, images: Tensor, targets: Tensor) -> Tensor:
        """Return (1, 4): hits among the highest and the five highest scores, images, and the number of classes."""
        del images
        logits = logits_of(outputs)[0]
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        known = torch.tensor([len(logits), logits.shape[1]], device=logits.device)
        return torch.stack([top[:, 0].sum(), top.sum(), *known])[None].float()

    def summarise(self, rows: Tensor) -> dict[str, float | None]:
        """Return the accuracies in percent; with fewer than five classes, that of the five highest is None."""
        if not len(rows):
            return dict.fromkeys(self.metrics)
        first, fifth, images, _ = (float(value) for value in rows.double().sum(0))
        return {"accuracy": 100 * first / images, "accuracy_top5": 100 * fifth / images if rows[0, 3] >= 5 else None}


class OfLabels:
    """What labels alone say of a classification: its loss, without data of its own."""

    @staticmethod
    def checked(labels: object, count: int) -> Tensor:
        """Return the labels of so many images, or raise an ArgumentError that says what they should be."""
        if not isinstance(labels, Tensor):
            raise ArgumentError(
                f"labels must be a tensor, but got labels={type_name(labels)}; torch.tensor(labels) makes one, and a "
                "function of positions goes with a task"
            )
        if labels.shape != (count,) or labels.is_floating_point():
            raise ArgumentError(
                f"labels must be whole numbers, one for each of the {count} images, but got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        return labels

    def check(self, outputs: Any, images: Tensor) -> None:
        """Do nothing: the loss checks the labels that it is given."""

    def loss(self, outputs: Any, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the first output, logits (n, classes).

        Raises
        ------
        ArgumentError
            A label is no number of an output.
        """
        del images
        logits = logits_of(tuple(pytree.tree_leaves(outputs)))[0]
        labels = targets.to(logits.device).long()
        if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise ArgumentError(
                f"labels lie in {int(labels.min())}..{int(labels.max())}, but the model has {logits.shape[1]} outputs; "
                "give each image the number of its output"
            )
        return cross_entropy([logits], labels)


def cross_entropy(outputs: Sequence[Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy of a classifier's logits and, at their weight, of its auxiliary classifiers'."""
    # Autocast on the CPU would leave the logarithm in bfloat16.
    losses = [functional.cross_entropy(one.float(), labels, label_smoothing=smoothing) for one in outputs]
    loss = losses[0]
    for other in losses[1:]:
        loss = loss + AUXILIARY_WEIGHT * other
    return loss


def logits_of(outputs: Any) -> list[Tensor]:
    """Return a classifier's logits, then those of its auxiliary classifiers if it has any.

    Reads a tensor, or the tuples that torchvision's GoogLeNet and Inception return in training.

    Raises
    ------
    ModelError
        `outputs` is neither, or not of shape (n, classes).
    """
    parts = cast("tuple[Any, ...]", outputs) if isinstance(outputs, tuple) else (outputs,)
    found = [part for part in parts if part is not None]  # None: a classifier that is switched off
    shapes: set[Any] = {tuple(part.shape) if isinstance(part, Tensor) else type(part) for part in found}
    shape = shapes.pop() if len(shapes) == 1 else None
    if not isinstance(shape, tuple) or len(cast("tuple[int, ...]", shape)) != 2:
        got = ", ".join(
            f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in found
        )
        raise ModelError(
            "the model must return logits of shape (images, classes), but it returned "
            f"{got or 'nothing'}; wrap it in a module that returns the logits alone"
        )
    return found


def _labels(split: Split) -> Tensor:
    labels = split.labels
    if labels is None:
        raise ArgumentError("has no labels; classification needs a class for every image")
    return labels
