"""A small training run, for the tests in this folder and as a process that can be killed.

Usage: worker.py FOLDER CHECKPOINT_MINUTES. It begins when its standard input ends.
"""

import sys
import time

import torch
from torch import Tensor, nn

from clusterprune import tasks, train

MEAN, STD = (0.5,), (0.25,)
CONFIG = train.TrainConfig(epochs=5, batch_size=32, lr=0.05, warmup_epochs=1, device="cpu")


def network(classes: int = 5) -> nn.Module:
    """Return a network with all that a resume can lose: statistics, dropout, a shared weight."""
    torch.manual_seed(7)
    tied = nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        tied,
        nn.Dropout(0.2),
        tied,
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    )


def images(count: int = 330, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy images (n, 1, 8, 8), each with a bright row that tells its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    pixels[torch.arange(count), 0, labels + 1] += 100
    return pixels.to(torch.uint8), labels


def task() -> tasks.Classification:
    """Return the task of the runs."""
    return tasks.Classification(images(), images(50, seed=1), mean=MEAN, std=STD)


def main(folder: str, minutes: str) -> None:
    """Train slowly, and say on standard output what is done."""
    torch.set_num_threads(1)
    sys.stdin.read()

    def progress(event: train.Progress) -> None:
        sys.stdout.write(f"{event.kind}\n")
        sys.stdout.flush()
        time.sleep(0.01)

    train.fit(
        network(),
        task(),
        CONFIG.model_copy(update={"checkpoint_minutes": float(minutes)}),
        out=folder,
        resume=True,
        progress=progress,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
