"""What it costs to cut norms over the channels.

Question
--------
A cut in front of a layer norm over the channels changes the statistics of all that stays, so the cut network is more
than the masked one: `trace(…, approximate=True)`. Is that worth it? Exact cuts leave the residual streams whole and
have to take everything from the layers inside the blocks; approximate ones share the same budget among all layers.

How to run
----------
    python benchmarks/approximate_norms.py --data digits --epochs 30 --seeds 0 1 2

A small ConvNeXt (layer norm, channels first; depthwise 5x5; layer scale; residual streams) and the same network with
group norms of one group (as in PoolFormer) are trained from nothing with every seed, then cut in one shot at 0.75, 0.5,
0.25 and 0.1 of their MACs, exactly and approximately, on 512 training images. Top-1 on the test split, no training
after the cut. `reachable` is the least share of MACs that any cut leaves. Results go to
benchmarks/results/approximate_norms.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune import data, evaluate, train
from clusterprune.budget.allocation import CostModel, reachable
from clusterprune.errors import BudgetError
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "approximate_norms.json"
KEEP = (0.75, 0.5, 0.25, 0.1)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of maps."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as its base names it)
        """Normalise every pixel."""
        x = input.permute(0, 2, 3, 1)
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise convolution, norm, perceptron, layer scale, on top of the input."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 5, padding=2, groups=width), norm(width)
        self.expand, self.project = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block makes to its input."""
        return x + self.scale * self.project(functional.gelu(self.expand(self.norm(self.depthwise(x)))))


def network(kind: str, channels: int, classes: int) -> nn.Module:
    """Return a small network of two stages."""
    norm: Callable[[int], nn.Module] = LayerNorm2d if kind == "layer" else lambda width: nn.GroupNorm(1, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, 24, 3, padding=1), norm(24), Block(24, norm), Block(24, norm)]
    layers += [norm(24), nn.Conv2d(24, 48, 2, 2), Block(48, norm), Block(48, norm)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, classes))


def rows(kind: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one network and cut it every way."""
    dataset = data.load(arguments.data)
    images, test = dataset.train, dataset.test
    if arguments.train_images:
        images = data.sample(images, arguments.train_images, seed)
    pixels = images.images()
    channels = pixels.shape[1]
    mean, std = (0.3,) * channels, (0.37,) * channels
    torch.manual_seed(seed)
    model = network(kind, channels, len(dataset.classes))
    config = TrainConfig(
        epochs=arguments.epochs, batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu", seed=seed
    )
    train.fit(model, Classification(images, mean=mean, std=std), config)
    model.eval()
    whole = evaluate.accuracy(model, test, mean=mean, std=std).top1
    sample = data.normalize(data.sample(images, min(512, len(images)), seed).images(), mean, std)
    example = sample[:1]
    found = []
    for approximate in (False, True):
        graph = cp.trace(model, example, approximate=approximate)
        least = reachable(CostModel(graph), "macs")
        for keep in KEEP:
            row = {"norm": kind, "seed": seed, "approximate": approximate, "keep": keep, "baseline": whole}
            row["reachable"] = round(float(least), 4)
            start = time.perf_counter()
            try:
                plan = cp.oneshot(graph, sample, keep_macs=keep, round_to=1, seed=seed)
                small = cp.apply(model, plan, graph=graph)
            except BudgetError:
                found.append(row | {"top1": None, "macs_kept": None, "seconds": None})
                continue
            row["seconds"] = round(time.perf_counter() - start, 1)
            row["macs_kept"] = round(evaluate.macs(small, example) / evaluate.macs(model, example), 4)
            row["top1"] = evaluate.accuracy(small, test, mean=mean, std=std).top1
            found.append(row)
    return found


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for clusterprune")
    parser.add_argument("--train-images", type=int, default=None, help="train on so many (default: all)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    name = arguments.data.partition(":")[0]
    for kind in ("layer", "group"):
        for seed in arguments.seeds:
            key = f"{name}/{kind}/{seed}/{arguments.epochs}/{arguments.train_images}"
            if key in saved["rows"]:
                continue
            saved["rows"][key] = rows(kind, seed, arguments)
            saved["environment"] = {
                "processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                "python": platform.python_version(), "torch": torch.__version__, "clusterprune": "0.1.0",
                "command": f"python benchmarks/approximate_norms.py --data {name} --epochs {arguments.epochs}",
            }  # fmt: skip
            RESULTS.parent.mkdir(exist_ok=True)
            temporary = RESULTS.with_suffix(".tmp")
            temporary.write_text(json.dumps(saved, indent=1) + "\n")
            temporary.replace(RESULTS)
    Console().print(table([row for part in saved["rows"].values() for row in part]))


def table(found: list[dict[str, Any]]) -> Table:
    """Return means over the seeds."""
    made = Table(title="Norms over channels: top-1 in percent after a cut in one shot")
    for column in ("norm", "MACs asked", "whole", "exact", "kept", "approximate", "kept", "reachable exact / approx."):
        made.add_column(column)
    for kind in ("layer", "group"):
        for keep in KEEP:
            cells = [kind, f"{keep:g}"]
            least = []
            for approximate in (False, True):
                same = [r for r in found if (r["norm"], r["keep"], r["approximate"]) == (kind, keep, approximate)]
                if not approximate:
                    cells.append(f"{statistics.mean(r['baseline'] for r in same):.2f}")
                done = [r for r in same if r["top1"] is not None]
                least.append(f"{statistics.mean(r['reachable'] for r in same):.2f}")
                top = [r["top1"] for r in done]
                spread = f" ±{statistics.stdev(top):.2f}" if len(top) > 1 else ""
                cells += [f"{statistics.mean(top):.2f}{spread}"] if done else ["out of reach"]
                cells += [f"{statistics.mean(r['macs_kept'] for r in done):.3f}" if done else "-"]
            made.add_row(*cells, " / ".join(least))
    return made


if __name__ == "__main__":
    main()
