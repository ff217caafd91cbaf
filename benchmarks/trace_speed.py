"""Seconds from a model to all its groups of channels, beside Torch-Pruning's dependency graph.

Claim under test: every listed network is traced to all its groups within five seconds on one CPU core,
DenseNet-201 and ResNet-152 included.

    python benchmarks/trace_speed.py

Ours is ``clusterprune.trace(model, example)``: it returns every group, frozen ones with the reason. Theirs is
``DependencyGraph().build_dependency(model, example)`` and then ``get_all_groups()`` to the end. Both get the same
random weights and one image. One small network warms both up first (the exporter imports much of PyTorch on its
first call); then the two take turns. What one of the two cannot do is written down with its error.

The two do not do the same work: theirs follows layers through autograd hooks; ours exports the network to ATen
operations, which also yields what measuring and rebuilding need, and is where nearly all of its time goes.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import clusterprune
from clusterprune import models

RESULTS = Path(__file__).parent / "results" / "trace_speed.json"
NETWORKS = (
    "resnet56 vgg16 googlenet torchvision:resnet18 torchvision:resnet50 torchvision:resnet152 torchvision:vgg16_bn "
    "torchvision:googlenet torchvision:inception_v3 torchvision:densenet121 torchvision:densenet201 "
    "torchvision:mobilenet_v2 torchvision:mobilenet_v3_large torchvision:efficientnet_b0 "
    "torchvision:shufflenet_v2_x1_0 torchvision:regnet_y_400mf torchvision:convnext_tiny "
    "torchvision:squeezenet1_1 torchvision:mnasnet1_0"
).split()


def ours(model: nn.Module, example: Tensor) -> int:
    """Return the number of groups that may be cut."""
    return len(clusterprune.trace(model, example).prunable)


def theirs(model: nn.Module, example: Tensor) -> int:
    """Return the number of groups that Torch-Pruning finds."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    return sum(1 for _ in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))


def timed(find: Callable[[nn.Module, Tensor], int], model: nn.Module, example: Tensor) -> tuple[float, int | str]:
    """Return seconds, and the number of groups or the error."""
    start = time.perf_counter()
    try:
        found: int | str = find(model, example)
    except Exception as error:  # what the other tool cannot do is a result too
        found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
    return time.perf_counter() - start, found


def measure(name: str, runs: int) -> dict[str, Any]:
    """Time both on one network, in turns."""
    spec = models.resolve(name)
    model = models.build(name, seed=0).eval()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    groups: dict[str, int | str] = {}
    for _ in range(runs):
        for tool, find in (("ours", ours), ("theirs", theirs)):
            took, groups[tool] = timed(find, model, spec.example())
            seconds[tool].append(round(took, 3))
    medians = {tool: statistics.median(times) for tool, times in seconds.items()}
    return {"seconds": seconds, "median": medians, "ratio": medians["ours"] / medians["theirs"], "groups": groups}


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Lay out the medians."""
    made = Table(title="Seconds to all groups of channels (median)")
    for title in ("network", "ours", "Torch-Pruning", "ours / theirs", "groups (ours, cuttable)", "groups (theirs)"):
        made.add_column(title, justify="left" if title == "network" else "right")
    for name, found in results.items():
        made.add_row(
            name,
            f"{found['median']['ours']:.2f}",
            f"{found['median']['theirs']:.2f}",
            f"{found['ratio']:.2f}",
            *(
                str(found["groups"][tool]) if isinstance(found["groups"][tool], int) else "fails"
                for tool in ("ours", "theirs")
            ),
        )
    return made


def main() -> None:
    """Time every network, write the figures and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--runs", type=int, default=3, help="of each tool on each network; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure("resnet20", 1)
    results = {}
    for name in arguments.networks:
        results[name] = measure(name, arguments.runs)
        print(f"{name}: {results[name]['median']}", file=sys.stderr, flush=True)
    record = {
        "benchmark": "trace_speed",
        "command": f"python benchmarks/trace_speed.py --runs {arguments.runs} --threads {arguments.threads}",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "torchvision", "torch-pruning")},
        "networks": results,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(record, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 120).print(table(results))


if __name__ == "__main__":
    main()
