"""A training run that `accelerate launch` starts in several processes.

Usage: parallel_worker.py FOLDER NORM STOP. NORM is "plain" or "norm" (with batch norm and dropout); the run ends
with an error after STOP steps, unless that is 0.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from clusterprune import data, tasks, train

CONFIG = train.TrainConfig(
    epochs=3,
    batch_size=96,
    lr=0.05,
    warmup_epochs=1,
    augment="crop",
    device="cpu",
    checkpoint_minutes=1e-9,
    clip_norm=5,
)


def network(norm: str, seed: int = 0) -> nn.Module:
    """Return a small network for digits."""
    torch.manual_seed(seed)
    between = [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)] if norm == "norm" else [nn.ReLU()]
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *between, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 10))


def run(folder: Path, norm: str, stop: int, seed: int = 0) -> tuple[nn.Module, train.TrainResult]:
    """Train, and note every step that is reported."""
    left, model = stop, network(norm, seed)
    dataset = data.load("digits")

    def progress(event: train.Progress) -> None:
        nonlocal left
        with (folder.parent / f"{folder.name}.events").open("a") as file:
            file.write(f"{event.kind}\n")
        left -= event.kind == "step"
        if left == 0 and event.kind == "step":
            raise RuntimeError("stopped on purpose")

    # 7 steps per epoch, the last with 25 images: 13 for one process and 12 for the other.
    training, held_out = dataset.splits["train"].subset(torch.arange(601)), dataset.splits["test"]
    task = tasks.Classification(training, held_out, mean=(0.3,), std=(0.35,))
    result = train.fit(model, task, CONFIG, out=folder, resume=True, progress=progress)
    return model, result


def main(folder: str, norm: str, stop: str) -> None:
    """Train one process's part; each keeps its own weights for comparison."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    # Every process begins with weights of its own, so that the main process's must come to all.
    model, _ = run(Path(folder), norm, int(stop), seed=rank)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, f"{folder}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
