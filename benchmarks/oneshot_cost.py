"""Time and memory of a one-shot run: ResNet-50 at 224 pixels with 256 images, ResNet-20 with 1,024 of CIFAR's size.

Claim under test: on two cores, from images in memory to the compact network, ResNet-50 takes under two minutes and
4 GB, and ResNet-20 under 30 seconds.

    python benchmarks/oneshot_cost.py

Each network has a process of its own, so that its peak of resident memory is its own too: Python, PyTorch, weights and
the calibration images included. Seconds are of tracing, planning and applying; importing PyTorch and making images come
before. Processor seconds are of all threads together: on a machine that does other work too, they say more than the
clock. Weights and images are random, so that nothing has to be downloaded: neither time nor memory depends much on
them. Every run is added to benchmarks/results/oneshot_cost.json; older ones stay.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import clusterprune
from clusterprune import evaluate, models, runs

RESULTS = Path(__file__).parent / "results" / "oneshot_cost.json"


@dataclass(frozen=True)
class Case:
    """What is measured, and what it may take; memory in MB of 2**20 bytes, None where nothing is claimed."""

    model: str
    images: int
    seconds: float
    memory_mb: int | None


CASES = {
    "resnet50": Case("torchvision:resnet50", 256, 120, 4096),
    "resnet20": Case("resnet20", 1024, 30, None),
}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress once; return seconds, memory and what came out."""
    case = CASES[name]
    spec = models.resolve(case.model)
    model = models.build(spec, seed=0)
    example = spec.example()
    count = arguments.images or case.images
    images = torch.randn(count, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    began, busy = time.perf_counter(), time.process_time()
    graph = clusterprune.trace(model, example)
    traced = time.perf_counter()
    plan = clusterprune.oneshot(graph, images, keep_macs=arguments.keep_macs, round_to=1, seed=0)
    planned = time.perf_counter()
    small = clusterprune.apply(model, plan, graph=graph)
    ended, busy = time.perf_counter(), time.process_time() - busy
    # Read before the rest of this function, which might need more.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    phases = {"trace": traced - began, **plan.notes["seconds"], "apply": ended - planned}
    return {
        "model": case.model,
        "pixels": spec.input_shape[-1],
        "images": count,
        "keep_macs": arguments.keep_macs,
        "macs_kept": round(evaluate.macs(small, example) / evaluate.macs(model, example), 4),
        "seconds": round(ended - began, 1),
        "processor_seconds": round(busy, 1),
        "seconds_by_phase": {phase: round(seconds, 2) for phase, seconds in phases.items()},
        "peak_memory_mb": peak,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": runs.environment(torch.device("cpu"))["device"],
        "versions": {name: version(name) for name in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "seed": 0,
        "date": datetime.now(UTC).date().isoformat(),
    }


def in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a case in a fresh process, with this one's options."""
    options = ["--keep-macs", str(arguments.keep_macs), "--threads", str(arguments.threads)]
    options += ["--images", str(arguments.images)] if arguments.images else []
    command = [sys.executable, __file__, "--cases", name, *options, "--here"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "command": shlex.join(["python", "benchmarks/oneshot_cost.py", "--cases", name, *options])}


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Lay out what was measured beside what is claimed."""
    made = Table(title="One-shot compression: what it takes")
    for title in ("network", "images", "threads"):
        made.add_column(title)
    for title in ("seconds", "claim", "processor seconds", "peak MB", "claim", "longest phases"):
        made.add_column(title, justify="right")
    for name, cell in found.items():
        case = CASES[name]
        phases = sorted(cell["seconds_by_phase"].items(), key=lambda phase: -phase[1])[:3]
        made.add_row(
            name,
            f"{cell['images']} of {cell['pixels']} px",
            str(cell["threads"]),
            f"{cell['seconds']:.1f}",
            _claim(cell["seconds"], case.seconds),
            f"{cell['processor_seconds']:.1f}",
            str(cell["peak_memory_mb"]),
            _claim(cell["peak_memory_mb"], case.memory_mb),
            ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in phases),
        )
    return made


def _claim(value: float, most: float | None) -> str:
    if most is None:
        return ""
    return f"< {most:g}" if value < most else f"NOT < {most:g}"


def main() -> None:
    """Measure each case in a process of its own, print, and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--images", type=int, help="calibration images (default: 256 for resnet50, 1024 for resnet20)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help="measure in this process, and print one line of JSON")
    arguments = parser.parse_args()
    if arguments.here:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(arguments.cases[0], arguments)))
        return
    found = {}
    for name in arguments.cases:
        found[name] = in_own_process(name, arguments)
        saved = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"runs": []}
        content = {"benchmark": "oneshot_cost", "runs": [*saved["runs"], found[name]]}
        temporary = arguments.results.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(arguments.results)
    Console(width=None if sys.stdout.isatty() else 160).print(table(found))


if __name__ == "__main__":
    main()
