# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""Detection: objects as boxes with classes, and mean average precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.data import Split
from clusterprune.data.augment import Augmentation, augment, augmented, draw, padding_for
from clusterprune.errors import ArgumentError
from clusterprune.tasks._images import ImageTask
from clusterprune.tasks.average_precision import COLUMNS, coco_precision, voc_precision
from clusterprune.tasks.box_sheet import draw_boxes
from clusterprune.tasks.multibox import Head, Target

OWN = "metric"
"""The name of a head's own."""


class Detection(ImageTask):
    """Images with boxes, for networks whose outputs a `head` makes boxes of.

    Measured are the mean average precisions of PASCAL VOC at an intersection over union of a half (over all points as
    from 2010 on, and over eleven points as in 2007), and COCO's from 0.5 to 0.95; all in percent. Difficult objects
    count neither way, and are trained on, as SSD does. COCO's is None where torchmetrics is not installed.

    Targets of an image are `boxes` (k, 4) in pixels of the images as the split has them, `labels` (k,) from 1 on (0 is
    the background), `difficult` (k,) and the number of the `image`.

    Parameters
    ----------
    train, validation, whole
        Splits with boxes, such as those of ``data.load("voc:DIR")``.
    head
        What the network's outputs mean, such as ``MultiBox(network.default_boxes)``.

    See :class:`clusterprune.tasks._images.ImageTask` for the others. A head may have a metric of its own, which then
    decides: its mean over the images, `metric`.
    """

    name = "detection"
    titles: ClassVar[dict[str, str]] = {
        "map50": "mAP50 (VOC)", "map50_11point": "mAP50 (VOC2007, 11 points)", "map": "mAP (COCO)",
    }  # fmt: skip
    metrics = tuple(titles)
    titles[OWN] = "own metric"

    def __init__(
        self,
        train: Split,
        validation: Split | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        head: Head,
        whole: Split | None = None,
    ) -> None:
        super().__init__(train, validation, mean=mean, std=std, whole=whole)
        self._head = head
        if head.has_metric:
            self.metrics = (OWN, *Detection.metrics)

    def __repr__(self) -> str:
        """Say how many classes there are, and what the outputs mean."""
        return f"Detection({len(self.train.classes)} classes, {self._head!r})"

    def targets(self, split: Split) -> Callable[[Tensor], list[Target]]:
        """Return a function from positions to what each image shows."""
        found = split.boxes
        if found is None:
            raise ArgumentError("has no boxes; detection needs images such as those of voc:DIR or coco:DIR")
        _, height, width = split.shape
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)

        def collate(positions: Tensor) -> list[Target]:
            return [
                {
                    "boxes": found[at].corners * scale,
                    "labels": found[at].labels + 1,
                    "difficult": found[at].difficult,
                    "image": torch.tensor(at),
                }
                for at in positions.tolist()
            ]

        return collate

    def crops_files(self, kind: Augmentation) -> bool:
        """False: boxes are cropped with their image."""
        del kind
        return False

    def augment(
        self,
        images: Tensor,
        targets: list[Target],
        kind: Augmentation,
        generator: torch.Generator,
        total: int | None = None,
        share: slice | None = None,
    ) -> tuple[Tensor, list[Target]]:
        """Change images and boxes.

        - ``"crop_flip"`` shifts an image within a black border and mirrors half of them, ``"crop"`` only shifts: see
          :func:`clusterprune.data.augment.augment`.
        - ``"resized_crop_flip"`` is SSD's (the paper's §2.2): other colours, zooming out, a crop that leaves a box at
          least so much of itself, and a mirror image.

        An object whose centre leaves the image is left out.
        """
        if kind in ("crop_flip", "crop"):
            return self._shifted(images, targets, kind, generator, total, share)
        if kind != "resized_crop_flip":
            return augment(images, kind, generator, total, share), targets
        from torchvision.transforms import v2  # whose import takes seconds, and which classifiers do not need
        from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

        size = (images.shape[2], images.shape[3])
        change = v2.Compose(
            [
                v2.RandomPhotometricDistort(p=0.5),
                v2.RandomZoomOut(fill=[round(255 * value) for value in self.mean]),
                v2.RandomIoUCrop(),
                v2.RandomHorizontalFlip(),
                v2.Resize(size, antialias=True),
                v2.SanitizeBoundingBoxes(labels_getter=_rest),
            ]
        )
        seeds = torch.randint(2**62, (total or len(images),), generator=generator)[share or slice(None)].tolist()
        changed: list[Tensor] = []
        left: list[Target] = []
        with torch.random.fork_rng(devices=[]):
            for image, target, seed in zip(images, targets, seeds, strict=False):
                torch.default_generator.manual_seed(seed)
                boxes: Any = BoundingBoxes(target["boxes"], format=BoundingBoxFormat.XYXY, canvas_size=size)  # pyright: ignore
                made, found = change(image, {**target, "boxes": boxes})
                changed.append(made)
                left.append({**found, "boxes": found["boxes"].as_subclass(Tensor)})
        return torch.stack(changed), left

    def draws(self, kind: Augmentation, count: int, size: tuple[int, int], generator: torch.Generator) -> None:
        """None: images have objects of any number, and steps are taken one by one."""
        del kind, count, size, generator

    def _shifted(
        self,
        images: Tensor,
        targets: list[Target],
        kind: Augmentation,
        generator: torch.Generator,
        total: int | None,
        share: slice | None,
    ) -> tuple[Tensor, list[Target]]:
        """Shift and mirror, the boxes by the draws that the images are shifted by."""
        height, width = images.shape[2:]
        drawn = draw(kind, total or len(images), (height, width), generator)
        draws = tuple(one[share or slice(None)][: len(images)] for one in drawn)
        moved: list[Target] = []
        for at, target in enumerate(targets):
            top, left, *mirrored = (int(one[at]) for one in draws)
            by = torch.tensor([padding_for(width) - left, padding_for(height) - top] * 2)
            boxes = target["boxes"] + by.to(target["boxes"])
            if any(mirrored):
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            limit = torch.tensor([width, height]).to(boxes)
            inside = ((centres > 0) & (centres < limit)).all(1)
            boxes = boxes.clamp_min(0).minimum(limit.repeat(2))
            rest = {name: target[name][inside] for name in ("labels", "difficult")}
            moved.append({**target, **rest, "boxes": boxes[inside]})
        return augmented(images, kind, draws), moved

    def check(self, outputs: Any, images: Tensor) -> None:
        """Check that the outputs are those of the data's classes, and the images of the boxes' size."""
        if tuple(images.shape[2:]) != tuple(self.train.shape[1:]):
            raise ArgumentError(
                f"the images are brought to {images.shape[2]} x {images.shape[3]} pixels, but their boxes to "
                f"{self.train.shape[1]} x {self.train.shape[2]}; open the data at the size that is wanted"
            )
        self._head.check(outputs, images, len(self.train.classes))

    def loss(self, outputs: Any, images: Tensor, targets: list[Target], *, smoothing: float = 0.0) -> Tensor:
        """Return the head's loss."""
        return self._head.loss(outputs, images, targets, smoothing)

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return the head's measure of a student against its teacher."""
        return self._head.distillation(outputs, guide, temperature)

    def divergence(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
        """Return the head's."""
        return self._head.divergence(expected, actual)

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        """Return the head's."""
        return self._head.score(outputs, temperature, generator)

    def right(self, outputs: Any, targets: Any) -> Tensor:
        """Fail: no image is simply right or wrong."""
        raise NotImplementedError

    def observe(self, outputs: Any, images: Tensor, targets: list[Target]) -> Tensor:
        """Return a row of :data:`clusterprune.tasks.average_precision.COLUMNS` for each object and each detection."""
        rows: list[Tensor] = []
        for found, target in zip(self._head.detections(outputs, images), targets, strict=True):
            for boxes, labels, scores, difficult in (
                (target["boxes"], target["labels"], torch.full_like(target["labels"], -1), target["difficult"]),
                (found["boxes"], found["labels"], found["scores"], torch.zeros_like(found["labels"])),
            ):
                columns = [target["image"].expand(len(labels)), labels, scores, difficult]
                rows.append(torch.cat([torch.stack([c.float() for c in columns], 1), boxes.float()], 1))
        if self._head.has_metric:
            # As a find of the background, which nothing else is.
            figures = self._head.metric(outputs, targets)
            rows.append(functional.pad(figures[:, None], (2, len(COLUMNS) - 3)).to(rows[0]))
        return torch.cat(rows)

    def sheet(self, images: Tensor, targets: list[Target], outputs: Mapping[str, Any]) -> Tensor:
        """Draw a row an image: its objects, then what each network has found."""
        heads = {name: self._head.detections(found, images) for name, found in outputs.items()}
        return draw_boxes(images, {"objects": targets, **heads}, self.train.classes)

    def summarise(self, rows: Tensor) -> dict[str, float | None]:
        """Return the mean average precisions over the classes that there are objects of, in percent."""
        if not len(rows):
            return dict.fromkeys(self.metrics)
        rows = rows.reshape(-1, len(COLUMNS))
        own, rows = rows[rows[:, 1] == 0], rows[rows[:, 1] > 0]
        found = (voc_precision(rows), voc_precision(rows, eleven_points=True), coco_precision(rows))
        figures = dict(zip(Detection.metrics, found, strict=True))
        return ({OWN: float(own[:, 2].double().mean())} if self._head.has_metric else {}) | figures


def _rest(sample: Any) -> list[Tensor]:
    """Return what goes with each box, for torchvision to leave out where a box is left out."""
    target = sample[1]
    return [target["labels"], target["difficult"]]
