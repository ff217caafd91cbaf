"""Time and memory of a one-shot run on a large network: ResNet-50, 224 pixels, 256 images.

Claim under test: from the images on disk to the compact network in under two minutes and 6 GB, on two cores.

    python benchmarks/oneshot_cost.py --data folder:IMAGES

IMAGES holds train/ with one folder per class. Each run is a process of its own, so that its peak of resident memory is
its own too. Weights are random: neither time nor memory depends on them.
"""

import argparse
import json
import platform
import resource
import shlex
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import clusterprune
from clusterprune import data, evaluate, models, run

RESULTS = Path(__file__).parent / "results" / "oneshot_cost.json"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compress once; return seconds, memory and what came out."""
    spec = models.resolve(options.model)
    model = models.build(options.model, seed=0)
    example = spec.example()
    size = example.shape[-1]
    dataset = data.load(options.data, image_size=size)
    began = time.perf_counter()
    pixels = data.sample(dataset.train, options.images, 0).images(size=size)
    images = data.normalize(pixels, spec.mean, spec.std)
    read = time.perf_counter()
    graph = clusterprune.trace(model, example)
    traced = time.perf_counter()
    plan = clusterprune.oneshot(graph, images, keep_macs=options.keep_macs)
    small = clusterprune.apply(model, plan, graph=graph)
    ended = time.perf_counter()
    phases = {"read images": read - began, "trace": traced - read, **plan.notes["seconds"]}
    return {
        "model": options.model,
        "pixels": size,
        "images": options.images,
        "keep_macs": options.keep_macs,
        "macs_kept": round(evaluate.macs(small, example) / evaluate.macs(model, example), 4),
        "seconds": round(ended - began, 1),
        "seconds_by_phase": {name: round(seconds, 2) for name, seconds in phases.items()},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "processor": run.environment(torch.device("cpu"))["device"],
        "versions": {name: version(name) for name in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """Measure, print and append to the results."""
    parser = argparse.ArgumentParser(description="Time and memory of a one-shot run on a large network.")
    parser.add_argument("--data", required=True, help="folder:DIR with train/")
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--keep-macs", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    RESULTS.write_text(json.dumps({"benchmark": "oneshot_cost", "runs": [*runs, found]}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
