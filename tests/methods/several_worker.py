"""Methods in the processes that `accelerate launch` starts.

Usage: several_worker.py FOLDER METHODS STOP. Each method, of those with commas between them, runs in a folder of its
name, and leaves its network's weights beside it, those of every process. The first ends with an error after STOP
reports of a training, unless that is 0.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clusterprune import data, train
from clusterprune.methods import CP, ICP, ClusterCut, CutOnce, Method, Network, Outcome, Soft, Work
from clusterprune.methods.acp import ACP
from clusterprune.tasks import Classification

TRAINING = train.TrainConfig(
    epochs=2, batch_size=64, lr=0.05, schedule="constant", augment="crop", precision="float32", device="cpu",
    checkpoint_minutes=1e-9,
)  # fmt: skip
CUT = ClusterCut(min_samples=2)
START = "start.safetensors"
METHODS: dict[str, Callable[[], Method]] = {
    "icp": lambda: ICP(
        keep_macs=0.6, cut=CUT, steps=2, epochs_between=1, samples=32, stages=("a", "b"), carry_momentum=True
    ),
    "acp": lambda: ACP(
        keep_macs=0.6, cut=CUT, samples=32, particles=2, cycles=1, fitness_epochs=1, equal_macs=False,
        candidates_inherit=True, retraining_inherits=True,
    ),
    "cp": lambda: CP(keep_macs=0.6, batch_norm="removed"),
    "sfp": lambda: Soft(keep_macs=0.6),
    "oneshot": lambda: CutOnce(keep_macs=0.6, images=64),
}  # fmt: skip


class Small(nn.Module):
    """Four convolutions and a linear layer; no batch norms, which would see half a batch in each of two processes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, 2, padding=1)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, padding=1)
        self.head = nn.Linear(64, 10)
        for layer in (self.a, self.b, self.c, self.d):
            nn.init.kaiming_normal_(layer.weight)  # learns from the first epoch on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for images (n, 1, 8, 8)."""
        for layer in (self.a, self.b, self.c, self.d):
            x = layer(x).relu()
        return self.head(x.flatten(1))


def make_task() -> Classification:
    """Return 384 images to train on, and 96 held out."""
    images, held_out = data.holdout(data.sample(data.load("digits", image_size=8).train, 480, 0), 0.2)
    return Classification(images, held_out, mean=(0.3,), std=(0.4,))


def prepare(folder: Path) -> None:
    """Train the network that methods are given, in one process, into a folder."""
    torch.manual_seed(0)
    model = Small()
    train.fit(model, make_task(), TRAINING.model_copy(update={"epochs": 4}))
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / START)


def run(name: str, folder: Path, stop: int = 0) -> Outcome:
    """Run a method in a folder, on the network beside it."""
    left, model = stop, Small().eval()
    model.load_state_dict(load_file(folder.parent / START))
    given = Network(model, torch.zeros(1, 1, 8, 8), Small)

    def watch(phase: str, event: train.Progress) -> None:
        nonlocal left
        with Path(f"{folder}.events").open("a") as file:
            file.write(f"{phase} {event.kind}\n")
        left -= event.kind == "step"
        if left == 0 and event.kind == "step":
            raise RuntimeError("stopped on purpose")

    return METHODS[name]().run(given, make_task(), Work(folder, TRAINING, resume=True, watch=watch))


def main(folder: str, methods: str, stop: str) -> None:
    """Run one process's part."""
    torch.set_num_threads(1)
    for name in methods.split(","):
        made: Any = run(name, Path(folder, name), int(stop))
        save_file(
            {key: value.clone() for key, value in made.model.state_dict().items()},
            f"{folder}/{name}.{os.environ['RANK']}",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
