# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
"""Images with boxes on them, side by side, for people to look at."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SHOWN = 0.4
"""The least score of a box that is drawn."""
LEAST_SIDE = 240
"""Images are enlarged to at least so many pixels, a whole number of times, for their labels to be read."""
GAP, TITLE, FONT = 4, 22, 13
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""Okabe and Ito's, which the colour-blind can tell."""


def draw_boxes(images: Tensor, found: Mapping[str, Sequence[Mapping[str, Tensor]]], classes: Sequence[str]) -> Tensor:
    """Return a row for each image, a column for each of what was found, with its name above.

    Parameters
    ----------
    images
        uint8 (n, c, h, w), of one channel or three.
    found
        By name, for each image `boxes` (k, 4) in pixels, `labels` (k,) from 1 on, and `scores` (k,) if there are any.
    classes
        Names of the labels.

    Returns
    -------
    Tensor
        uint8 (3, height, width).
    """
    times = max(1, -(-LEAST_SIDE // min(images.shape[2:])))
    pixels = images.cpu().expand(-1, 3, -1, -1).repeat_interleave(times, 2).repeat_interleave(times, 3)
    columns = [
        torch.cat(
            [
                _title(name, pixels.shape[3]),
                *(_framed(_drawn(*one, times, classes)) for one in zip(pixels, of, strict=True)),
            ],
            1,
        )
        for name, of in found.items()
    ]
    return torch.cat(columns, 2)


def _drawn(pixels: Tensor, one: Mapping[str, Tensor], times: int, classes: Sequence[str]) -> Tensor:
    from torchvision.utils import draw_bounding_boxes  # whose import takes seconds, and which classifiers do not need

    scores = one.get("scores")
    kept = torch.ones(len(one["labels"]), dtype=torch.bool) if scores is None else scores.cpu() >= SHOWN
    boxes, labels = (one[name].cpu()[kept] for name in ("boxes", "labels"))
    height, width = pixels.shape[1:]
    boxes = (times * boxes.float()).clamp_min(0).minimum(torch.tensor([width, height, width, height]).float())
    numbers = [int(label) for label in labels]
    names = [classes[number - 1] for number in numbers]
    if scores is not None:
        names = [f"{name} {float(score):.2f}" for name, score in zip(names, scores.cpu()[kept], strict=True)]
    if not names:
        return pixels
    colours: list[str | tuple[int, int, int]] = [_COLOURS[(number - 1) % len(_COLOURS)] for number in numbers]
    return draw_bounding_boxes(pixels, boxes, names, colours, width=2)


def _framed(pixels: Tensor) -> Tensor:
    return functional.pad(pixels, (0, GAP, 0, GAP), value=255)


def _title(name: str, width: int) -> Tensor:
    """Return a strip with a column's name."""
    strip = Image.new("RGB", (width + GAP, TITLE), "white")
    ImageDraw.Draw(strip).text((3, 3), name, fill="black", font=ImageFont.load_default(FONT))
    return torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(TITLE, width + GAP, 3).permute(2, 0, 1)
