"""CP removes identical filters: the network computes the same afterwards.

Claim under test: after training with CP, channel addition changes the logits by less than 1e-5 relative in float32 and
1e-12 in float64, and no prediction on the 10,000 test images of CIFAR-10; for VGG-16, ResNet-56 and GoogLeNet, with
batch norm removed (as published) and tied (ours).

    python benchmarks/cp_lossless.py --weights WEIGHTS --data folder:CIFAR

WEIGHTS holds ``{resnet56,vgg16}-jpeg.safetensors``; there are none for GoogLeNet, which begins with random ones. What
is shown does not depend on how long the training is, so it is short: `--epochs` epochs of `--images` images. Logits are
compared on all test images in float32 and on `--double-images` of them in float64. Finished rows are in
results/cp_lossless.json at once, and are not measured again.
"""

import argparse
import copy
import json
import platform
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, evaluate, models, runs
from clusterprune.methods.cp_addition import channel_addition
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "cp_lossless.json"


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of all images."""
    return torch.cat([model(batch) for batch in images.split(250)])


def change(whole: nn.Module, compact: nn.Module, images: Tensor) -> tuple[float, int]:
    """Return the relative change of the logits, and how many predictions differ."""
    before, after = logits(whole, images), logits(compact, images)
    return float((after - before).norm() / before.norm()), int((after.argmax(1) != before.argmax(1)).sum())


def measure(network: str, batch_norm: Any, dataset: data.Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Train with CP, remove what is identical, and compare."""
    spec = models.resolve(network)
    file = Path(options.weights) / f"{network}-jpeg.safetensors"
    model = models.build(network, weights=file if file.exists() else None, seed=0)
    config = TrainConfig(epochs=options.epochs, lr=0.01, weight_decay=5e-4, batch_size=64, precision="float32")
    began = time.perf_counter()
    task = Classification(data.sample(dataset.train, options.images, 0), mean=spec.mean, std=spec.std)
    with tempfile.TemporaryDirectory() as folder:
        learnt, _ = cp.CP(batch_norm=batch_norm).learn(cp.Network(model, spec.example()), task, cp.Work(folder, config))
    trained = time.perf_counter() - began
    whole = learnt.model.eval().cpu()
    graph = cp.trace(whole, spec.example())
    compact = cp.apply(whole, channel_addition(whole, graph), graph=graph).eval()
    pixels = dataset.test.load()[0]
    images = data.normalize(pixels, spec.mean, spec.std)
    single, differ = change(whole, compact, images)
    example = spec.example()
    # Removed once more, in float64: rounding the sums of kernels to float32 is what single precision costs.
    precise = copy.deepcopy(whole).double()
    graph = cp.trace(precise, example.double())
    removed = cp.apply(precise, channel_addition(precise, graph), graph=graph)
    double, _ = change(precise, removed, images[: options.double_images].double())
    return {
        "network": network,
        "batch_norm": batch_norm,
        "weights": file.name if file.exists() else "random",
        "macs_removed_percent": round(100 * (1 - evaluate.macs(compact, example) / evaluate.macs(whole, example)), 2),
        "relative_change_float32": single,
        "relative_change_float64": double,
        "predictions_that_differ": differ,
        "test_images": len(images),
        "seconds_of_training": round(trained, 1),
    }


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description="Is CP's channel addition lossless?")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--networks", nargs="+", default=["vgg16", "resnet56", "googlenet"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--double-images", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = data.load(options.data, image_size=32)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"benchmark": "cp_lossless", "rows": []}
    for network in options.networks:
        for batch_norm in ("tied", "removed"):
            if any((row["network"], row["batch_norm"]) == (network, batch_norm) for row in found["rows"]):
                continue
            row = measure(network, batch_norm, dataset, options)
            row |= {
                "command": shlex.join(["python", *sys.argv]),
                "device": runs.environment(torch.device("cpu"))["device"],
                "versions": {n: version(n) for n in ("clusterprune", "torch")} | {"python": platform.python_version()},
                "date": datetime.now(UTC).date().isoformat(),
            }
            found["rows"].append(row)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
