"""Small image trees for the tests of data sources."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Tree = Callable[[Mapping[str, Mapping[str, int]]], Path]


def picture(seed: int, height: int = 12, width: int = 12) -> Image.Image:
    """Random RGB picture; its seed is the red value of the top left pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0, 0] = seed % 256
    return Image.fromarray(pixels)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write {"train": {"cat": 3}} as train/cat/000.png … and return the root."""

    def write(layout: Mapping[str, Mapping[str, int]]) -> Path:
        root = tmp_path / "images"
        seed = 0
        for split, classes in layout.items():
            for name, count in classes.items():
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    picture(seed).save(folder / f"{i:03}.png")
                    seed += 1
        return root

    return write
