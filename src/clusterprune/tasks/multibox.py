# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""What the outputs of a detector with default boxes mean (SSD, Liu et al. 2016, arXiv 1512.02325).

For every default box such a network returns an offset to the object that the box has found, and the scores of the
classes, background first. The two are taken for independent predictions of each box: a class by its softmax, and, as
far as there is an object at all, an offset with Gaussian noise of a deviation of 1, which is where the loss bends. From
that follow the loss, and how far two detectors are apart.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.tasks.torchvision_ops import ops

Target = dict[str, Tensor]
"""Of one image: `boxes` (k, 4), left, top, right and bottom in pixels; `labels` (k,), from 1 on; `difficult` (k,)."""

Detections = dict[str, Tensor]
"""In one image: `boxes` as in a :data:`Target`, `scores` and `labels`, all (k, …), the best first."""


class Head(Protocol):
    """What a detector's outputs mean; `outputs` is what the network returned, in whatever form."""

    @property
    def has_metric(self) -> bool:
        """Whether there is a figure beside average precision."""
        ...

    def metric(self, outputs: Any, targets: Sequence[Target]) -> Tensor:
        """Return it of each image, (n,): more is better; asked only where there is one."""
        ...

    def check(self, outputs: Any, images: Tensor, classes: int) -> None:
        """Raise an ArgumentError or a ModelError where the outputs are none of `classes` classes and a background."""
        ...

    def loss(self, outputs: Any, images: Tensor, targets: Sequence[Target], smoothing: float) -> Tensor:
        """Return what training minimises: a scalar, float32, the mean over the images."""
        ...

    def detections(self, outputs: Any, images: Tensor) -> list[Detections]:
        """Return what was found, image by image."""
        ...

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return how far a student's outputs are from its teacher's: a scalar, float32, the mean over the images."""
        ...

    def divergence(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
        """Return how far outputs are from the original's, image by image, (n,) float64."""
        ...

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        """Return a random function of the outputs that goes with it; see :mod:`clusterprune.merge.divergence`."""
        ...


class MultiBox:
    """Locations (n, boxes, 4) and scores (n, boxes, classes) of default boxes, in this order.

    Parameters
    ----------
    default_boxes
        Centre and size of each as fractions of the image, (boxes, 4).
    variances
        Units of the offsets of the centre, and of the logarithms of the size.
    matched
        A box whose intersection over union with an object is at least this is to find it; so is the best of each.
    negatives
        Boxes of background that the loss counts, for each that is to find an object: those with the highest loss.
    least_score, overlap, most
        A box of a class is reported from this score on, unless it overlaps a better one of the class by more than this;
        at most so many an image.

    Raises
    ------
    ArgumentError
        The default boxes have another shape.
    """

    def __init__(
        self,
        default_boxes: Tensor,
        *,
        variances: tuple[float, float] = (0.1, 0.2),
        matched: float = 0.5,
        negatives: float = 3.0,
        least_score: float = 0.01,
        overlap: float = 0.45,
        most: int = 200,
    ) -> None:
        if default_boxes.ndim != 2 or default_boxes.shape[1] != 4:
            raise ArgumentError(f"default_boxes must be of shape (boxes, 4), but got {tuple(default_boxes.shape)}")
        self._boxes = default_boxes.detach().float().cpu()
        self._units = torch.tensor(variances).repeat_interleave(2)
        self._matched, self._negatives = matched, negatives
        self._least_score, self._overlap, self._most = least_score, overlap, most

    def __repr__(self) -> str:
        """Say how many boxes there are."""
        return f"MultiBox({len(self._boxes)} default boxes)"

    has_metric = False

    def metric(self, outputs: Any, targets: Sequence[Target]) -> Tensor:
        """Fail: there is none."""
        raise NotImplementedError

    def check(self, outputs: Any, images: Tensor, classes: int) -> None:
        """Check the number of default boxes and of classes."""
        scores = _pair(outputs)[1]
        if scores.shape[1] != len(self._boxes):
            raise ModelError(
                f"the model returns {scores.shape[1]} boxes for images of {images.shape[2]} x {images.shape[3]} pixels "
                f"but has {len(self._boxes)} default boxes; give images of the size that it was built for"
            )
        if scores.shape[2] != classes + 1:
            raise ArgumentError(
                f"the data have {classes} classes, but the model scores {scores.shape[2] - 1} and the background; "
                f"build it with num_classes={classes + 1}"
            )

    def loss(self, outputs: Any, images: Tensor, targets: Sequence[Target], smoothing: float) -> Tensor:
        """Return the multibox loss: cross entropy and smooth ℓ1 over the number of matched boxes (the paper's Eq. 1).

        An image is divided by its own matched boxes, so that the loss of a batch is the mean over its images; one
        without objects teaches by as many negatives as one with a single match.
        """
        locations, scores = _pair(outputs)
        height, width = images.shape[2:]
        total: list[Tensor] = []
        for offsets, logits, target in zip(locations.float(), scores.float(), targets, strict=True):
            corners = target["boxes"] / torch.tensor([width, height, width, height], device=logits.device)
            goals, labels = self._match(corners, target["labels"])
            found = labels > 0
            count = max(1, int(found.sum()))
            entropies = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            backgrounds = entropies.masked_fill(found, -1.0)
            hardest = backgrounds.topk(min(int(self._negatives * count), len(labels) - int(found.sum()))).indices
            off = functional.smooth_l1_loss(offsets[found], goals[found], reduction="sum")
            total.append((entropies[found].sum() + entropies[hardest].sum() + off) / count)
        return torch.stack(total).mean()

    def detections(self, outputs: Any, images: Tensor) -> list[Detections]:
        """Return what each image shows: boxes of every class but the background, suppressed by better ones."""
        height, width = images.shape[2:]
        found: list[Detections] = []
        for offsets, logits in zip(*(part.detach().float() for part in _pair(outputs)), strict=True):
            likely = logits.softmax(1)[:, 1:]
            rows, columns = (likely >= self._least_score).nonzero(as_tuple=True)
            scores = likely[rows, columns]
            best = scores.topk(min(len(scores), 20 * self._most)).indices
            rows, columns, scores = rows[best], columns[best], scores[best]
            corners = self._corners(offsets)[rows] * torch.tensor([width, height, width, height], device=logits.device)
            kept = ops().batched_nms(corners, scores, columns, self._overlap)[: self._most]
            found.append({"boxes": corners[kept], "scores": scores[kept], "labels": columns[kept] + 1})
        return found

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return τ²·KL of the classes and smooth ℓ1 of the locations, both averaged over boxes by how much they matter.

        A box's classes matter as far as teacher or student take it for an object: nearly all boxes are background, and
        say little. Its location matters as far as the teacher does.
        """
        (locations, scores), (guides, guide_scores) = _pair(outputs), _pair(guide)
        if scores.shape != guide_scores.shape:
            raise ModelError(
                f"the teacher returns scores of shape {tuple(guide_scores.shape)}, the model {tuple(scores.shape)}; "
                "take a teacher of the same classes and input size"
            )
        own, wanted = ((part.float() / temperature).log_softmax(2) for part in (scores, guide_scores))
        apart = temperature**2 * (wanted.exp() * (wanted - own)).sum(2)
        object_, found = (1 - part.detach().float().softmax(2)[..., 0] for part in (guide_scores, scores))
        matters = torch.maximum(object_, found)
        off = functional.smooth_l1_loss(locations.float(), guides.float(), reduction="none").sum(2)
        classes = (matters * apart).sum(1) / matters.sum(1).clamp_min(1.0)
        return (classes + (object_ * off).sum(1) / object_.sum(1).clamp_min(1.0)).mean()

    def divergence(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
        """Return Kullback and Leibler's of all boxes' predictions, in nats, per object that the original finds."""
        (guides, guide_scores), (locations, scores) = (
            [part.double() for part in _pair(tuple(outputs))] for outputs in (expected, actual)
        )
        before, after = (part.log_softmax(2) for part in (guide_scores, scores))
        object_ = 1 - before[..., 0].exp()
        apart = (before.exp() * (before - after)).sum(2) + 0.5 * object_ * (locations - guides).square().sum(2)
        found = apart.sum(1) / object_.sum(1).clamp_min(1.0)
        return found.cpu().nan_to_num(nan=torch.inf, posinf=torch.inf)

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        """Return a random function whose gradients have the predictions' Fisher information as their covariance."""
        locations, scores = _pair(tuple(outputs))
        probabilities = (scores.detach().float() / temperature).softmax(2)
        object_ = (1 - scores.detach().float().softmax(2)[..., 0])[..., None]
        share = object_.sum(1, keepdim=True).clamp_min(1.0).sqrt()
        signs = torch.randint(0, 2, scores.shape, generator=generator).to(probabilities) * 2 - 1
        root = probabilities.sqrt() * signs
        towards = (root - probabilities * root.sum(2, keepdim=True)) / share
        noise = torch.randn(locations.shape, generator=generator).to(locations.device) * object_.sqrt() / share
        return (scores * towards.to(scores.dtype)).sum() + (locations * noise.to(locations.dtype)).sum()

    def _match(self, corners: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each default box is to say of an image's objects: offset (boxes, 4) and class, 0 for none."""
        boxes = self._boxes.to(corners.device)
        if not len(corners):
            return torch.zeros_like(boxes), torch.zeros(len(boxes), dtype=torch.int64, device=corners.device)
        overlaps = ops().box_iou(ops().box_convert(boxes, "cxcywh", "xyxy"), corners)
        best, which = overlaps.max(1)
        # Every object has its best box to itself; of two with the same one, the later.
        nearest = overlaps.argmax(0)
        which[nearest] = torch.arange(len(corners), device=corners.device)
        best[nearest] = 1.0
        goals = ops().box_convert(corners, "xyxy", "cxcywh")[which]
        offsets = torch.cat(
            [(goals[:, :2] - boxes[:, :2]) / boxes[:, 2:], (goals[:, 2:] / boxes[:, 2:]).clamp_min(1e-6).log()], 1
        )
        found = torch.where(best >= self._matched, labels[which], torch.zeros_like(which))
        return offsets / self._units.to(offsets.device), found

    def _corners(self, offsets: Tensor) -> Tensor:
        """Return the boxes that offsets (boxes, 4) stand for, as fractions of the image, inside it."""
        boxes, offsets = self._boxes.to(offsets.device), offsets * self._units.to(offsets.device)
        centres = boxes[:, :2] + offsets[:, :2] * boxes[:, 2:]
        sizes = boxes[:, 2:] * offsets[:, 2:].clamp_max(10.0).exp()
        return torch.cat([centres - sizes / 2, centres + sizes / 2], 1).clamp(0, 1)


def _pair(outputs: Any) -> tuple[Tensor, Tensor]:
    """Return locations and scores.

    Raises
    ------
    ModelError
        The outputs are others.
    """
    parts = cast("list[Any]", list(outputs)) if isinstance(outputs, tuple | list) else [outputs]
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    fits = len(parts) == 2 and all(isinstance(part, Tensor) and part.ndim == 3 for part in parts)
    if not fits or parts[0].shape[2] != 4 or parts[0].shape[:2] != parts[1].shape[:2]:
        raise ModelError(
            "the model must return locations (images, boxes, 4) and scores (images, boxes, classes), but it returned "
            f"{', '.join(map(str, shapes)) or 'nothing'}; name what its outputs mean by a loss and a decode of your own"
        )
    return parts[0], parts[1]
