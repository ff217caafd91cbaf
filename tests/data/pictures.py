"""Pictures that tests write."""

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 12, width: int = 12) -> Image.Image:
    """Random RGB picture; its seed is the red value of the top left pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0, 0] = seed % 256
    return Image.fromarray(pixels)
