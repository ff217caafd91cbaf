"""Squares of two colours as a folder in VOC's format."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image


def write_squares(root: Path, more_classes: Sequence[str] = ()) -> str:
    """Write 12 images to train on and 4 to test, with a square of one of two colours each; return their --data."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    names = [f"{at:02}" for at in range(16)]
    for at, name in enumerate(names):
        image = torch.full((3, 64, 80), 128, dtype=torch.uint8)
        left, top = 4 * (at % 8), 2 * at
        image[at % 2, top : top + 24, left : left + 24] = 255
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"JPEGImages/{name}.png")
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>{('red', 'green')[at % 2]}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}"
            f"</ymin><xmax>{left + 24}</xmax><ymax>{top + 24}</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:12]))
    (root / "ImageSets/Main/val.txt").write_text("\n".join(names[12:]))
    if more_classes:
        (root / "classes.txt").write_text("\n".join(["red", "green", *more_classes]))
    return f"voc:{root}"
