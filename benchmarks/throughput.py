"""Images per second of the training loop, beside a plain DataLoader loop in the same run.

Claim under test: small images, kept on the device as bytes and augmented there in batch, train at least five times as
fast on a GPU as a plain PyTorch loop over ImageFolder, transforms and DataLoader does. Large ones, streamed from their
files by threads, are read at least as fast as by DataLoader's processes.

    python benchmarks/throughput.py --data folder:CIFAR --size 32 --model resnet20
    python benchmarks/throughput.py --data folder:CIFAR --size 32 --model none
    python benchmarks/throughput.py --data folder:IMAGES --size 224 --model none --streamed

With ``--model none`` batches are made ready for a network (augmented, normalised, on the device) and dropped: that is
the speed of the input alone, which a processor without a GPU can show. The plain loop is what a tutorial does:
``RandomCrop(size, padding)``, ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize``, as many workers as cores, pinned
memory, the same network, batch size, precision and memory format. Of `--epochs` passes the first is not counted. On
CUDA, where our loop records a step as one graph, the same loop that takes its steps one by one is timed too.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from clusterprune import data, models, runs, train
from clusterprune.data.augment import augment, padding_for
from clusterprune.tasks import Classification
from clusterprune.train.config import resolve_precision
from clusterprune.train.images import source

RESULTS = Path(__file__).parent / "results" / "throughput.json"


def ours(
    options: argparse.Namespace, split: data.Split, model: nn.Module | None, spec: Any, *, capture: bool = True
) -> list[float]:
    """Return the seconds of each counted pass of our loop, its steps recorded as a whole or taken one by one."""
    limit = 0.0 if options.streamed else 64.0
    if model is not None:
        config = train.TrainConfig(
            epochs=options.epochs, batch_size=options.batch, lr=0.01, precision=options.precision,
            memory_limit_gib=limit, capture=capture, compile=options.compile and capture,
        )  # fmt: skip
        done = train.fit(model, Classification(split, mean=spec.mean, std=spec.std), config)
        return [record["seconds"] for record in done.history[1:]]
    device = runs.pick_device(None)
    images = source(split, split.labels.__getitem__, name="train", channels=3, device=device, limit=limit * 2**30)
    seconds = []
    for epoch in range(options.epochs):
        generator = torch.Generator().manual_seed(epoch)
        began = time.perf_counter()
        for pixels, _ in images.batches(torch.randperm(len(split), generator=generator), options.batch):
            ready = augment(pixels, "crop_flip", generator)
            data.normalize(ready, spec.mean, spec.std)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def plain(options: argparse.Namespace, count: int, model: nn.Module | None, spec: Any) -> list[float]:
    """Return the seconds of each counted pass of a plain loop."""
    device = runs.pick_device(None)
    pad = padding_for(options.size)
    steps = [v2.RandomCrop(options.size, pad), v2.RandomHorizontalFlip(), v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    resize = [] if options.size == 32 else [v2.Resize(options.size), v2.CenterCrop(options.size)]
    folder = Path(options.data.partition(":")[2]) / "train"
    whole = torchvision.datasets.ImageFolder(str(folder), v2.Compose(resize + steps))
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:count].tolist()
    loader = DataLoader(
        Subset(whole, chosen), options.batch, shuffle=True, num_workers=os.cpu_count() or 1,
        pin_memory=device.type == "cuda", persistent_workers=True,
    )  # fmt: skip
    seconds = []
    for _ in range(options.epochs):
        began = time.perf_counter()
        for _ in _steps(loader, model, device, options.precision):
            pass
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _steps(loader: Any, model: nn.Module | None, device: torch.device, precision: Any) -> Iterator[Tensor]:
    dtype = resolve_precision(precision, device)
    optimizer = None
    if model is not None:
        model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for images, labels in loader:
        inputs = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        if model is not None and optimizer is not None:
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = nn.functional.cross_entropy(model(inputs), labels.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
        yield inputs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure both in turns, print and append to the results."""
    parser = argparse.ArgumentParser(description="Images per second, beside a plain DataLoader loop.")
    parser.add_argument("--data", required=True, help="folder:DIR with train/")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--model", default="resnet20", help="a network by name, or none for the input alone")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--streamed", action="store_true", help="read ours from the files in every pass")
    parser.add_argument("--images", type=int, help="of the training images (default: all)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the network too, where steps are recorded")
    options = parser.parse_args()
    spec = models.resolve("resnet20" if options.model == "none" else options.model)
    dataset = data.load(options.data, image_size=options.size)
    count = min(options.images or len(dataset.train), len(dataset.train))
    split = data.sample(dataset.train, count, 0)

    def network() -> nn.Module | None:
        classes = len(dataset.classes)
        return None if options.model == "none" else models.build(options.model, num_classes=classes, seed=0)

    seconds = {"ours": ours(options, split, network(), spec), "plain": plain(options, count, network(), spec)}
    if options.model != "none" and torch.cuda.is_available():
        seconds["ours, step by step"] = ours(options, split, network(), spec, capture=False)
    rate = {name: round(count / statistics.median(times), 1) for name, times in seconds.items()}
    found = {
        "data": Path(options.data).name,
        "size": options.size,
        "model": options.model,
        "images": count,
        "batch": options.batch,
        "streamed": options.streamed,
        "images_per_second": rate,
        "seconds_of_an_epoch": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "compiled": options.compile,
        "times_as_fast": round(rate["ours"] / rate["plain"], 2),
        "device": runs.environment(runs.pick_device(None))["device"],
        "cores": os.cpu_count(),
        "precision": options.precision,
        "versions": {n: version(n) for n in ("clusterprune", "torch", "torchvision")}
        | {"python": platform.python_version()},
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
    }
    measured = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    RESULTS.write_text(json.dumps({"benchmark": "throughput", "runs": [*measured, found]}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
