"""A detection that trains in seconds: red and blue squares on grey, and a detector of two convolutions."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterprune.data import Boxes, Split
from clusterprune.data.store import MemoryStore
from clusterprune.models.ssd import default_boxes
from clusterprune.tasks import Detection
from clusterprune.tasks.multibox import MultiBox

SIZE = 32
STATISTICS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
DEFAULTS = default_boxes((8,), (0.3, 0.4))


def squares(count: int, seed: int = 0) -> Split:
    """Images of 32 pixels with a square each, of 8 to 12 pixels; every tenth is empty."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(100, 156, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    boxes: list[Boxes] = []
    for at, image in enumerate(images):
        side, label = (int(torch.randint(*span, (), generator=generator)) for span in ((8, 13), (0, 2)))
        left, top = torch.randint(0, SIZE - side + 1, (2,), generator=generator).tolist()
        shown = at % 10 < 9
        if shown:
            image[:, top : top + side, left : left + side] = 0
            image[2 * label, top : top + side, left : left + side] = 255
        corners = torch.tensor([[left, top, left + side, top + side]]) / SIZE
        boxes.append(
            Boxes(corners[: int(shown)], torch.tensor([label])[: int(shown)], torch.zeros(int(shown), dtype=torch.bool))
        )
    return Split(MemoryStore(images), None, ("red", "blue"), boxes=boxes)


class Detector(nn.Sequential):
    """Two convolutions to maps of 8 x 8, with four default boxes at each position."""

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2, 2), nn.ReLU())
        self.locations, self.scores = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4 * classes, 3, padding=1)
        self.classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in list(self)[:4]:
            x = layer(x)
        parts = [self.locations(x), self.scores(x)]
        rows = [part.permute(0, 2, 3, 1).reshape(len(x), len(DEFAULTS), -1) for part in parts]
        return rows[0], rows[1]


class Normed(nn.Module):
    """A detector of the same outputs with batch norms, and layers inside that the papers cut."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 8, 2), (8, 12, 2), (12, 12, 1), (12, 12, 1)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.locations, self.scores = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(12, 4 * classes, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        rows = [
            part.permute(0, 2, 3, 1).reshape(len(x), len(DEFAULTS), -1) for part in (self.locations(x), self.scores(x))
        ]
        return rows[0], rows[1]


def task(count: int = 120) -> Detection:
    return Detection(squares(count), squares(40, 1), head=MultiBox(DEFAULTS), **STATISTICS)
