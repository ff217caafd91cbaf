"""A narrow network on small digits, trained for a moment: what the tests of whole methods work on."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clusterprune import data, train
from clusterprune.methods import Network
from clusterprune.tasks import Classification, Task
from clusterprune.train import TrainConfig

MEAN, STD = (0.3,), (0.4,)
FAST = TrainConfig(epochs=2, batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu")


def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))


class Narrow(nn.Module):
    """A stem, a residual block, one more convolution, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.last = block(1, 8), block(8, 16), block(16, 8), block(8, 12, 2)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for images (n, 1, 8, 8)."""
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(functional.adaptive_avg_pool2d(self.last(x).relu(), 2).flatten(1))


def make_task() -> tuple[Network, Task]:
    """Return a trained network, and its task: 256 images to train on, and 64 held out."""
    images, held_out = data.holdout(data.sample(data.load("digits", image_size=8).train, 320, 0), 0.2)
    torch.manual_seed(0)
    model = Narrow()
    train.fit(model, Classification(images, mean=MEAN, std=STD), FAST.model_copy(update={"epochs": 4}))
    return Network(model.eval(), torch.zeros(1, 1, 8, 8), Narrow), Classification(images, held_out, mean=MEAN, std=STD)
