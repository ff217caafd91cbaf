"""A head of the user's own: two functions that stand beside the network's factory."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clusterprune.errors import ModelError
from clusterprune.merge.divergence import ByKind
from clusterprune.tasks.multibox import Detections, Target
from clusterprune.tasks.plain import compared


class OwnHead(ByKind):
    """What a network's outputs mean, by functions of the user's own; how far two networks are apart, by kind of output.

    Parameters
    ----------
    decode
        From the outputs of a batch to a list with a dictionary for each image: `boxes` (k, 4), left, top, right and
        bottom in pixels of the network's input; `scores` (k,); and `labels` (k,), from 1 on.
    loss
        From the outputs of a batch and the targets of its images, dictionaries of `boxes` and `labels` likewise, to the
        value to minimise, a scalar. None cannot be trained but by imitating another network.
    metric
        From the same to a figure for each image, (n,), of which more is better; its mean decides, in place of average
        precision.
    """

    def __init__(
        self,
        decode: Callable[[Any], Sequence[Detections]],
        loss: Callable[[Any, Sequence[Target]], Tensor] | None = None,
        metric: Callable[[Any, Sequence[Target]], Tensor] | None = None,
    ) -> None:
        self._decode, self._loss, self._metric = decode, loss, metric

    def __repr__(self) -> str:
        """Name the functions."""
        names = [
            getattr(one, "__qualname__", type(one).__name__)
            for one in (self._decode, self._loss, self._metric)
            if one is not None
        ]
        return f"OwnHead({', '.join(names)})"

    @property
    def has_metric(self) -> bool:
        """Whether the user has one."""
        return self._metric is not None

    def metric(self, outputs: Any, targets: Sequence[Target]) -> Tensor:
        """Return what the user's `metric` does, checked."""
        if self._metric is None:
            raise NotImplementedError
        found = self._metric(outputs, targets)
        if tuple(found.shape) != (len(targets),):
            raise ModelError(
                f"metric must return a figure for each of the {len(targets)} images, but returned {tuple(found.shape)}"
            )
        return found.detach().float()

    def check(self, outputs: Any, images: Tensor, classes: int) -> None:
        """Check what `decode` returns."""
        for found in self.detections(outputs, images):
            labels = found["labels"]
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
                raise ModelError(
                    f"decode returns labels from {int(labels.min())} to {int(labels.max())}, but the data have "
                    f"{classes} classes, from 1 on"
                )

    def loss(self, outputs: Any, images: Tensor, targets: Sequence[Target], smoothing: float) -> Tensor:
        """Return what the user's `loss` does."""
        del images, smoothing
        if self._loss is None:
            raise ModelError("the detector has no loss; write one, loss(outputs, targets), beside its factory")
        return self._loss(outputs, targets).float()

    def detections(self, outputs: Any, images: Tensor) -> list[Detections]:
        """Return what the user's `decode` does, checked."""
        found = self._decode(outputs)
        if len(found) != len(images) or any(not {"boxes", "scores", "labels"} <= set(one) for one in found):
            raise ModelError(
                f"decode must return a dictionary of boxes, scores and labels for each of the {len(images)} images, "
                f"but returned {len(found)} with {sorted({name for one in found for name in one})}"
            )
        for one in found:
            shapes = [tuple(one[name].shape) for name in ("boxes", "scores", "labels")]
            if shapes != [(len(one["scores"]), 4), (len(one["scores"]),), (len(one["scores"]),)]:
                raise ModelError(f"decode must return boxes (k, 4), scores (k,) and labels (k,), but returned {shapes}")
        return list(found)

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return the divergence of each output by its kind, as a plain task does."""
        return compared(outputs, guide, temperature)
