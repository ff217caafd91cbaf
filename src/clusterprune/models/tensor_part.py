# pyright: reportMissingTypeStubs=false
"""The part of a torchvision detector that is tensors in, tensors out, and what it returns means.

A detector as a whole takes lists of images of any size and ends in loops over what it has found, which no graph can
hold. What is cut lies between: backbone, neck and heads. :class:`TensorPart` runs these alone. Its `detector` is the
whole one, of its own class, so that cutting the part cuts the whole::

    part = TensorPart(torchvision.models.detection.retinanet_resnet50_fpn_v2().eval())
    graph = cp.trace(part, torch.zeros(1, 3, 320, 320))
    small = cp.apply(part, cp.oneshot(graph, images, keep_macs=0.6), graph=graph).detector
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clusterprune.errors import ModelError
from clusterprune.tasks.torchvision_ops import ops

POOLED = 7
"""Side of the regions that a two-stage detector's second stage reads."""


class TensorPart(nn.Module):
    """Backbone, neck and heads of a detector.

    The input is normalised images (n, 3, h, w), the outputs are the heads': of one stage locations (n, boxes, 4) and
    scores (n, boxes, classes), and what else there is. Of two stages, the first's maps, level by level, and the
    second's scores and locations, for the whole of each level as a region: (n, levels, …). Where the regions lie
    changes no channel, and in the whole detector the first stage says it.

    Parameters
    ----------
    detector
        Of torchvision: SSD, RetinaNet, FCOS, or one of two stages such as Faster R-CNN. Taken as it is, not copied.

    Raises
    ------
    ModelError
        It is none of these.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        parts = dict(detector.named_children())
        if "backbone" not in parts or not ("head" in parts or {"rpn", "roi_heads"} <= set(parts)):
            raise ModelError(
                f"detector={type(detector).__name__} has no backbone with a head, nor with rpn and roi_heads, as "
                "torchvision's have; wrap its tensor part in a module of your own"
            )
        if any(
            name.startswith(("mask", "keypoint")) and part
            for name, part in parts.get("roi_heads", self).named_children()
        ):
            raise ModelError(
                f"detector={type(detector).__name__} finds more than boxes, by heads that would read what is cut; wrap "
                "its tensor part in a module of your own"
            )
        self.detector = detector
        self._stages = 1 if "head" in parts else 2
        self.train(detector.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the tensor part; see the class."""
        detector = cast("Any", self.detector)
        features = detector.backbone(images)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        if self._stages == 1:
            found = detector.head(maps)
            names = ["bbox_regression", "cls_logits"]
            return tuple(found[name] for name in [*names, *(name for name in found if name not in names)])
        objectness, offsets = detector.rpn.head(maps)
        pooled = [functional.adaptive_avg_pool2d(one, POOLED) for one in maps[: self._regions]]
        # Level by level, lest a batch hold more regions than images, which prices are counted by.
        found = [detector.roi_heads.box_predictor(detector.roi_heads.box_head(one)) for one in pooled]
        regions = [torch.stack(parts, 1) for parts in zip(*found, strict=True)]
        return (*objectness, *offsets, *regions)

    @property
    def default_boxes(self) -> Tensor | None:
        """Centre and size of an SSD's default boxes as fractions of the image, (boxes, 4); None of other detectors."""
        from torchvision.models.detection.image_list import ImageList

        detector = cast("Any", self.detector)
        size = getattr(detector.transform, "fixed_size", None)
        if size is None:
            return None
        width, height = size
        image = torch.zeros(1, 3, height, width).to(next(self.parameters()))
        with torch.no_grad():
            features = detector.backbone(image)
            corners = detector.anchor_generator(ImageList(image, [(height, width)]), list(features.values()))[0]
        return ops().box_convert(corners, "xyxy", "cxcywh") / corners.new_tensor([width, height, width, height])

    @property
    def _regions(self) -> int:
        """Levels that the second stage reads."""
        return len(cast("Any", self.detector).roi_heads.box_roi_pool.featmap_names)


def read_at(part: nn.Module, height: int, width: int) -> None:
    """Make an SSD, which brings all images to one size, one for images of another; its default boxes follow."""
    transform = cast("Any", part).detector.transform
    if transform.fixed_size is not None:
        transform.fixed_size = (width, height)
