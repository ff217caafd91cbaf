"""Images as large as CIFAR's, and a recipe that takes seconds."""

from pathlib import Path

import pytest
import torch
from PIL import Image

OWN = """
model: net.py:build
data: digits
method: icp
settings: {eps: 0.2, min_samples: 2, samples: 64, steps: 2, epochs_between: 2}
training: {epochs: 2, batch_size: 32, lr: 0.05, schedule: cosine, augment: none, precision: float32}
baseline: {epochs: 3, batch_size: 32, lr: 0.1, schedule: cosine, augment: none, precision: float32}
"""
NETWORK = """
from torch import nn

INPUT_SHAPE = (1, 8, 8)
MEAN = (0.3,)
STD = (0.37,)


def build(num_classes=10):
    widths = (1, 16, 16, 16)
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in zip(widths, widths[1:])
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


def write_images(folder: Path, classes: int) -> Path:
    """Write ten images for each class: noise around a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("test", 2)):
        for label in range(classes):
            place = folder / part / f"{label:04d}"
            place.mkdir(parents=True)
            colour = torch.rand(3, generator=generator)
            for index in range(count):
                pixels = 100 * torch.rand(32, 32, 3, generator=generator) + 150 * colour
                Image.fromarray(pixels.byte().numpy()).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "ten", 10)


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "hundred", 100)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe of one's own, for a network in a file and the embedded digits."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NETWORK)
    (folder / "own.yaml").write_text(OWN)
    return folder / "own.yaml"
