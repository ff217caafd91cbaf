# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""Mean average precision of detections: PASCAL VOC's own rule, and COCO's by torchmetrics."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from clusterprune.tasks.torchvision_ops import ops

COLUMNS = ("image", "label", "score", "difficult", "left", "top", "right", "bottom")
"""Of a row (8,) that says what is in an image, with a score of -1, or what was found there."""


def voc_precision(rows: Tensor, *, eleven_points: bool = False, overlap: float = 0.5) -> float | None:
    """Return VOC's mean average precision in percent; None where there is nothing to be found.

    Class by class, detections are looked at from the best score down. Each belongs to the object of its class and image
    that it overlaps most; it is right if it is the first to overlap it by at least `overlap`, does not count if the
    object is difficult, and is wrong else (Everingham et al. 2010, §4.2, and the development kit's VOCevaldet.m).

    Parameters
    ----------
    rows
        (r, 8), with the values of :data:`COLUMNS`, in any order.
    eleven_points
        Average the precision at recalls of 0, 0.1, …, 1, as in 2007, in place of the whole curve.
    """
    rows = rows.double().cpu()
    # The same figure whatever the order of the batches: of equal scores, the lower number of an image goes first.
    rows = rows[rows[:, 0].argsort(stable=True)]
    rows = rows[rows[:, 2].argsort(stable=True, descending=True)]
    truths = rows[rows[:, 2] < 0]
    found = [
        _of_class(
            rows[(rows[:, 1] == label) & (rows[:, 2] >= 0)], truths[truths[:, 1] == label], overlap, eleven_points
        )
        for label in truths[:, 1].unique().tolist()
    ]
    known = [one for one in found if one is not None]
    return 100 * sum(known) / len(known) if known else None


def _of_class(detections: Tensor, truths: Tensor, overlap: float, eleven_points: bool) -> float | None:
    count = int((truths[:, 3] == 0).sum())
    if not count:
        return None
    right = torch.zeros(len(detections), dtype=torch.bool)
    counts = torch.ones(len(detections), dtype=torch.bool)
    for image in truths[:, 0].unique().tolist():
        here = (detections[:, 0] == image).nonzero().flatten()
        those = truths[truths[:, 0] == image]
        if not len(here):
            continue
        best, which = ops().box_iou(detections[here, 4:], those[:, 4:]).max(1)
        hits = best >= overlap
        difficult = those[which, 3] > 0
        counts[here[hits & difficult]] = False
        taken: set[int] = set()
        for at, hit, one in zip(here.tolist(), (hits & ~difficult).tolist(), which.tolist(), strict=True):
            if hit and one not in taken:
                taken.add(one)
                right[at] = True
    right = right[counts].double()
    positives = right.cumsum(0)
    recall = positives / count
    precision = positives / torch.arange(1, len(right) + 1)
    # At each recall, the best precision that there is from there on.
    envelope = precision.flip(0).cummax(0).values.flip(0)
    if eleven_points:
        points = torch.linspace(0, 1, 11, dtype=torch.float64)
        reached = [envelope[recall >= point - 1e-9] for point in points]
        return sum(float(one[0]) for one in reached if len(one)) / 11
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((steps * envelope).sum())


def coco_precision(rows: Tensor) -> float | None:
    """Return COCO's mean average precision from 0.5 to 0.95 in percent; difficult objects are taken for crowds.

    None where torchmetrics and faster-coco-eval are not installed, or there is nothing to be found.
    """
    metric = _mean_average_precision()
    if metric is None:
        return None
    rows = rows.cpu()
    predicted: list[dict[str, Tensor]] = []
    wanted: list[dict[str, Tensor]] = []
    for image in rows[:, 0].unique():
        here = rows[rows[:, 0] == image]
        found, truth = here[here[:, 2] >= 0], here[here[:, 2] < 0]
        predicted.append({"boxes": found[:, 4:], "scores": found[:, 2], "labels": found[:, 1].long()})
        wanted.append({"boxes": truth[:, 4:], "labels": truth[:, 1].long(), "iscrowd": truth[:, 3].long()})
    metric.reset()
    metric.update(predicted, wanted)
    value = float(metric.compute()["map"])
    metric.reset()
    return 100 * value if value >= 0 else None


@cache
def _mean_average_precision() -> Any:
    try:
        import faster_coco_eval  # noqa: F401  # pyright: ignore
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError:
        return None
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    return metric
