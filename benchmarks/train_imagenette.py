"""Train the networks that ``oneshot_imagenet.py`` compresses: torchvision's, on Imagenette, from random weights.

    python benchmarks/train_imagenette.py --data IMAGENETTE --out WEIGHTS --network resnet18

IMAGENETTE holds train/ and val/, ten folders of images each; they are brought to 128 pixels. WEIGHTS gets
NETWORK.safetensors, and in NETWORK/ a checkpoint of every epoch: a run that is stopped goes on where it was.

No claim is made for the accuracy. It is training that one core finishes in about half an hour, and that the same seed
repeats: windows of 64 pixels in the first four fifths of the run and of 96 pixels in the rest (validation is on whole
images of 128 pixels; Touvron et al. 2019 explain why larger is better there), with between 35 and 100 % of the image's
area, half of them mirrored; stochastic gradient descent, one cycle, label smoothing 0.1. Epochs are validated on 500
images, the end on all.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from clusterprune import data, evaluate, models
from clusterprune.data.crops import DRAWS, SMALLEST_AREA, mirrored, windows
from clusterprune.tasks import Classification
from clusterprune.train import Progress, TrainConfig, fit

EPOCHS = {"resnet18": 9, "mobilenet_v2": 16}
PIXELS = 128
"""Sides of the images, in memory and in validation."""
WINDOWS = ((0.8, 64), (1.0, 96))
"""Until which share of the run windows have how many pixels: the early epochs need no detail."""
VALIDATED = 500
"""Images that each epoch is validated on; all of them would take as long as a third of the epoch's training."""
LEAST_AREA = 0.35
"""Of a window, as a share of the image's. Smaller ones pay only in runs of many more epochs."""


class Windowed(nn.Module):
    """A network that reads random windows while it trains, and whole images otherwise.

    Where the run is, is a buffer and so a part of the checkpoint; the draws are from PyTorch's own generator, which the
    checkpoint holds too.
    """

    steps_done: Tensor

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (n, 3, h, w)."""
        if self.training:
            where = self.steps_done.item() / self.steps
            images = random_windows(images, next((pixels for end, pixels in WINDOWS if where < end), WINDOWS[-1][1]))
            self.steps_done += 1
        return self.network(images)


def random_windows(images: Tensor, pixels: int) -> Tensor:
    """Take a window of each image at random, by linear interpolation, and mirror half of them.

    Returns
    -------
    Tensor
        (n, 3, pixels, pixels) in channels-last format.
    """
    draws = torch.rand(len(images), DRAWS)
    place = draws.clone()
    # A draw of 0 is the least area that the library's own windows have, which is smaller.
    place[:, 0] = 1 - (1 - LEAST_AREA) / (1 - SMALLEST_AREA) * (1 - draws[:, 0])
    left, top, across, down = windows(place, *images.shape[-2:]).unbind(1)
    flip = torch.where(mirrored(draws), -across, across)
    zero = torch.zeros_like(across)
    maps = torch.stack([flip, zero, 2 * left + across - 1, zero, down, 2 * top + down - 1], 1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, [len(images), 3, pixels, pixels], align_corners=False)
    found = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return found.contiguous(memory_format=torch.channels_last)


def report(progress: Progress) -> None:
    """Print a line for every epoch."""
    if progress.kind == "note":
        print(progress.message, flush=True)
    if progress.kind == "epoch" and (record := progress.record) is not None:
        print(
            f"epoch {record['epoch']}/{progress.epochs}: loss {record['loss']:.3f}, "
            f"top-1 {record['train_accuracy']:.2f} in training and {record['validation_accuracy']:.2f} in validation, "
            f"{record['seconds']:.0f} s",
            flush=True,
        )


def main() -> None:
    """Train one network, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and checkpoints")
    parser.add_argument("--network", choices=list(EPOCHS), required=True)
    parser.add_argument("--epochs", type=int, help="default: 9 for resnet18, 16 for mobilenet_v2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.05, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = models.resolve(f"torchvision:{arguments.network}")
    dataset = data.load(f"folder:{arguments.data}", image_size=PIXELS)
    # Decoded here, so that the data set's own cache is not a second copy for the length of the run.
    train, test = dataset.train.load(), data.Split.from_tensors(*dataset.test.load(), dataset.classes)
    del dataset
    config = TrainConfig(
        epochs=arguments.epochs or EPOCHS[arguments.network],
        batch_size=64,
        lr=arguments.lr,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.1,
        augment="none",  # the network's own windows take its place
        precision="float32",
        seed=arguments.seed,
        device="cpu",
    )
    steps = config.epochs * -(-len(train[0]) // config.batch_size)
    model = Windowed(spec.build(len(test.classes), seed=arguments.seed), steps)
    fit(
        model,
        Classification(train, data.sample(test, min(VALIDATED, len(test)), seed=0), mean=spec.mean, std=spec.std),
        config,
        out=arguments.out / arguments.network,
        resume=True,
        progress=report,
    )
    found = evaluate.accuracy(model.network, test, mean=spec.mean, std=spec.std, batch_size=64, topk=(1,))
    print(f"{arguments.network}: top-1 {found.top1:.2f} on all {found.images} validation images", flush=True)
    save_file(model.network.state_dict(), arguments.out / f"{arguments.network}.safetensors")


if __name__ == "__main__":
    main()
