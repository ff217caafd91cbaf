"""One-shot compression without training: accuracy at equal MACs, against Torch-Pruning and two published methods.

Claim under test: at the same multiply-adds, with the same few unlabelled images and no training, the networks
that ``clusterprune.oneshot`` makes classify better than those of every criterion of Torch-Pruning, of OSSCAR and of
model folding, in every cell; and those that it makes without any image better than all that others make without.

    python benchmarks/oneshot_accuracy.py --weights WEIGHTS --data folder:CIFAR

WEIGHTS holds ``{resnet20,resnet56,vgg16}-jpeg.safetensors``; CIFAR holds train/ and test/, one folder per class.
Needs the ``bench`` extra. Every finished cell is in benchmarks/results/oneshot_accuracy.json at once: a run that
is stopped goes on where it was, and parts (``--networks --keep --criteria --methods --only --seeds``) add up.

What is compared
    Network and weights, calibration images, MACs (within 1 % of the target, counted by PyTorch's FLOP counter on
    the compact network itself) and test images are the same for all. Accuracy is top-1 in float32.
Ours
    ``clusterprune.oneshot(graph, images, keep_macs=..., round_to=1)`` with its other defaults. It sees no label. "ours,
    aligned" leaves ``round_to`` at its default, widths that run fast. "ours without data" sees no image either. "same
    share" does without prices and without cuts of residual streams: every group that one
    layer makes keeps the same share, as in the peers; "same share, streams too" cuts all groups alike. These two are
    there to be compared, and no verdict counts them, nor the aligned.
Peers
    OSSCAR and model folding, our own implementations from the papers: see ``peers.py``. They see the same unlabelled
    images, and keep the same share of every layer. Folding re-estimates the batch norms on the images; without data
    it corrects their variances in closed form.
Theirs
    Magnitude (l1, l2), FPGM, BN-scale, Taylor and Hessian importance; each local (the same share of every layer)
    and global (one threshold); each as pruned, and with the batch-norm statistics re-estimated on the same images.
In their favour
    * Taylor and Hessian get the labels of the calibration images. (Hessian, which needs the gradient of each
      image by itself, uses the first 256 of them.)
    * Global pruning is tried with one step, five steps, and scores that are not normalised by layer; the best on
      labelled calibration images of seed 0 is used, chosen separately as pruned and re-estimated.
    * Each cell of ours is held against the best of all others on the test set. Without data the others are
      folding and the criteria that read weights alone, as pruned (settings still chosen with labels).
    * OSSCAR is tested as pruned, as in its paper, and with re-estimated batch norms.
    * Where one channel more in every layer would miss the MACs, local pruning may remove it in some layers only.
Against them
    Torch-Pruning stops with an IndexError when it cuts the residual stream of these ResNets, whose shortcuts pad
    channels. There it prunes the first convolution of every block, the best that is left to it; the stem and the
    second convolution of each block stay whole. In VGG it prunes every convolution. The peers cut the same layers.
Trials
    Seeds 0, 1 and 2 draw the calibration images, and what else is random in ours and in the peers; mean and sample
    standard deviation over them. What depends on neither (l1, l2, FPGM and BN-scale as pruned) is measured once.
"""

import argparse
import copy
import hashlib
import itertools
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import baselines
import peers
import torch
from baselines import CANDIDATES, CRITERIA, SCOPES, WITHIN, Pruned, Settings
from results_file import (
    ALIGNED,
    AS_PRUNED,
    FOLDING,
    FOLDING_WITHOUT,
    OSSCAR,
    OURS,
    OURS_WITHOUT,
    PEERS,
    REESTIMATED,
    SAME_SHARE,
    SAME_SHARE_STREAMS,
    VARIANTS,
    WHOLE,
    Cell,
    Results,
    table,
)
from rich.console import Console
from torch import Tensor, nn

import clusterprune
from clusterprune import data, evaluate, models

RESULTS = Path(__file__).parent / "results" / "oneshot_accuracy.json"
KEEP = {"resnet20": (0.75, 0.5), "resnet56": (0.75, 0.5), "vgg16": (0.75, 0.5, 0.3)}
CALIBRATION = 1024
PER_IMAGE = 256
"""Images for the Hessian, which needs one backward pass each."""
CHOOSING = 256
"""Calibration images on which Torch-Pruning's settings are chosen."""
CONFIGS = {
    OURS: clusterprune.OneShot(),
    ALIGNED: clusterprune.OneShot(),
    SAME_SHARE: clusterprune.OneShot(sensitivity="uniform", residual_streams=False),
    SAME_SHARE_STREAMS: clusterprune.OneShot(sensitivity="uniform"),
    OURS_WITHOUT: clusterprune.OneShot(),
}


@dataclass(frozen=True, eq=False)
class Bench:
    """The data and networks that all cells share."""

    weights: Path
    dataset: data.Dataset
    test_images: int
    results: Results

    @cached_property
    def test(self) -> data.Split:
        """Test images, decoded once; in an order in which any beginning has all classes alike."""
        images, labels = data.sample(self.dataset.test, self.test_images, seed=0).load()
        return data.Split.from_tensors(images, labels, self.dataset.classes)

    @cache  # noqa: B019  (one bench lives as long as the program)
    def calibration(self, seed: int) -> tuple[Tensor, Tensor]:
        """Normalised calibration images of a seed, and their labels."""
        images, labels = data.sample(self.dataset.train, CALIBRATION, seed).load()
        return data.normalize(images, models.resolve("resnet20").mean, models.resolve("resnet20").std), labels

    @cache  # noqa: B019
    def network(self, name: str) -> nn.Module:
        """Trained network."""
        return models.build(name, weights=self.weights / f"{name}-jpeg.safetensors")

    @cache  # noqa: B019
    def whole_macs(self, name: str) -> int:
        """MACs of the trained network."""
        return evaluate.macs(self.network(name), models.resolve(name).example())

    @cache  # noqa: B019
    def gradients(self, name: str, kind: str, seed: int) -> dict[str, Tensor]:
        """Return what Taylor or Hessian read from the labelled calibration images."""
        images, labels = self.calibration(seed)
        count = PER_IMAGE if kind == "square" else len(images)
        return baselines.gradients(self.network(name), images[:count], labels[:count], kind)  # type: ignore[arg-type]

    def accuracy(self, model: nn.Module, split: data.Split) -> float:
        """Top-1 in percent, float32."""
        spec = models.resolve("resnet20")
        model = model.to(memory_format=torch.channels_last)
        found = evaluate.accuracy(
            model, split, mean=spec.mean, std=spec.std, batch_size=125, topk=(1,), channels_last=True
        )
        return found.top1

    def measure(self, cell: Cell, images: int) -> dict[str, Any]:
        """Make a cell's network and test it on so many images."""
        start = time.perf_counter()
        extra: dict[str, Any] = {}
        if cell.criterion == WHOLE:
            model = copy.deepcopy(self.network(cell.network))
        elif cell.criterion in VARIANTS:
            model, extra["phases"] = self._ours(cell)
        elif cell.criterion in PEERS:
            model = self._peer(cell)
        else:
            pruned = self._theirs(cell)
            extra = {"ratio": pruned.ratio, "settings": asdict(pruned.settings)}
            model = pruned.model
            if cell.batch_norm == REESTIMATED:
                model = baselines.reestimate_batch_norm(model, self.calibration(cell.seed or 0)[0])
        made = time.perf_counter()
        macs = evaluate.macs(model, models.resolve(cell.network).example())
        parameters = evaluate.params(model)
        top1 = self.accuracy(model, self.test.subset(range(images)))
        whole = self.whole_macs(cell.network)
        return {
            **asdict(cell),
            "top1": top1,
            "images": images,
            "macs": macs,
            "macs_kept": macs / whole,
            "within": abs(macs / (cell.keep * whole) - 1) <= WITHIN,
            "params": parameters,
            "seconds_made": round(made - start, 2),
            "seconds_tested": round(time.perf_counter() - made, 2),
            **extra,
        }

    @cache  # noqa: B019
    def graph(self, name: str) -> clusterprune.ChannelGraph:
        """Trace the trained network."""
        return clusterprune.trace(self.network(name), models.resolve(name).example())

    def _ours(self, cell: Cell) -> tuple[nn.Module, Any]:
        graph, seed = self.graph(cell.network), cell.seed or 0
        images = None if cell.criterion == OURS_WITHOUT else self.calibration(seed)[0]
        round_to = "auto" if cell.criterion == ALIGNED else 1
        plan = clusterprune.oneshot(
            graph, images, keep_macs=cell.keep, round_to=round_to, seed=seed, config=CONFIGS[cell.criterion]
        )
        return clusterprune.apply(self.network(cell.network), plan, graph=graph), plan.notes.get("seconds")

    def _peer(self, cell: Cell) -> nn.Module:
        seed = cell.seed or 0
        peer = FOLDING if cell.criterion == FOLDING_WITHOUT else cell.criterion
        model = self._compressed(cell.network, cell.keep, peer, seed)
        if cell.batch_norm == REESTIMATED:
            return baselines.reestimate_batch_norm(model, self.calibration(seed)[0])
        return model

    @lru_cache(maxsize=2)  # noqa: B019  (cells that differ in their batch norms alone follow one another)
    def _compressed(self, name: str, keep: float, peer: str, seed: int) -> nn.Module:
        graph = self.graph(name)
        if peer == OSSCAR:
            generator = torch.Generator().manual_seed(seed)
            plan = peers.osscar(graph, self.calibration(seed)[0], keep, generator=generator)
        else:
            plan = peers.fold(graph, keep, seed=seed)
        return clusterprune.apply(self.network(name), plan, graph=graph)

    def _theirs(self, cell: Cell, settings: Settings | None = None) -> Pruned:
        seed = 0 if CRITERIA[cell.criterion].gradients == "nothing" else cell.seed or 0
        return self._pruned(cell.network, cell.keep, cell.criterion, settings or self._settings(cell), seed)

    @lru_cache(maxsize=64)  # noqa: B019
    def _pruned(self, name: str, keep: float, criterion: str, settings: Settings, seed: int) -> Pruned:
        return baselines.prune(
            self.network(name),
            models.resolve(name).example(),
            CRITERIA[criterion],
            settings,
            round(keep * self.whole_macs(name)),
            self.gradients(name, CRITERIA[criterion].gradients, seed),
        )

    def _settings(self, cell: Cell) -> Settings:
        """Choose Torch-Pruning's settings: the best on labelled calibration images of seed 0."""
        candidates = CANDIDATES[cell.scope]  # type: ignore[index]
        if len(candidates) == 1:
            return candidates[0]
        key = "/".join((cell.network, str(cell.keep), cell.criterion, cell.scope))
        entry = self.results.entry("settings", key)
        if entry is None:
            entry = self._choose(cell, candidates)
            self.results.update("settings", key, entry)
        return Settings(**entry[cell.batch_norm])

    def _choose(self, cell: Cell, candidates: tuple[Settings, ...]) -> dict[str, Any]:
        tuning = Cell(cell.network, cell.keep, cell.criterion, cell.scope, seed=0)
        images, labels = data.sample(self.dataset.train, CALIBRATION, 0).load()
        split = data.Split.from_tensors(images[:CHOOSING], labels[:CHOOSING], self.dataset.classes)
        best: dict[str, tuple[tuple[bool, float], Settings]] = {}
        trials = []
        for settings in candidates:
            pruned = self._theirs(tuning, settings)
            fits = abs(pruned.macs / (cell.keep * self.whole_macs(cell.network)) - 1) <= WITHIN
            for batch_norm in (AS_PRUNED, REESTIMATED):
                model = pruned.model
                if batch_norm == REESTIMATED:
                    model = baselines.reestimate_batch_norm(model, self.calibration(0)[0][:CHOOSING])
                score = (fits, self.accuracy(model, split))
                trials.append(
                    {**asdict(settings), "batch_norm": batch_norm, "macs": pruned.macs, "calibration_top1": score[1]}
                )
                if batch_norm not in best or score > best[batch_norm][0]:
                    best[batch_norm] = (score, settings)
        return {
            **{name: asdict(settings) for name, (_, settings) in best.items()},
            "images": CHOOSING,
            "trials": trials,
        }


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """List what a run measures: with batch norm re-estimated, then as pruned; then the next seed."""
    for seed, batch_norm, network in itertools.product(args.seeds, (REESTIMATED, AS_PRUNED), args.networks):
        if seed == args.seeds[0]:
            yield Cell(network, 1.0, WHOLE)
        for keep in args.keep or KEEP[network]:
            for name in args.methods:
                if args.only in (None, "ours" if name in VARIANTS else "peers"):
                    yield from (Cell(network, keep, name, "", kind, seed) for kind in PEERS.get(name, ("",)))
            if args.only not in (None, "others"):
                continue
            for criterion, scope in itertools.product(args.criteria, SCOPES):
                fixed = batch_norm == AS_PRUNED and CRITERIA[criterion].gradients == "nothing"
                yield Cell(network, keep, criterion, scope, batch_norm, None if fixed else seed)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _run_record(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the run, with folders replaced by placeholders."""
    words = ["python", "benchmarks/oneshot_accuracy.py", "--weights", "WEIGHTS", "--data", "folder:CIFAR"]
    for name in ("networks", "keep", "seeds", "criteria", "methods"):
        words += [f"--{name}", *(str(value) for value in getattr(args, name) or ())] if getattr(args, name) else []
    words += ["--only", args.only] if args.only else []
    words += ["--test-images", str(args.test_images)] if args.test_images else []
    words += ["--quick", str(args.quick)] if args.quick else []
    words += ["--threads", str(args.threads)]
    return {
        "command": shlex.join(words),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "torch-pruning", "numpy")},
        "seeds": args.seeds,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME-jpeg.safetensors")
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--networks", nargs="+", choices=list(KEEP), default=list(KEEP))
    parser.add_argument("--keep", nargs="+", type=float, help="shares of MACs (default: two for each network)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=list(CRITERIA))
    methods = [*VARIANTS, *PEERS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="rows of ours and of the peers")
    parser.add_argument("--only", choices=["ours", "others", "peers"], help="others: the criteria of Torch-Pruning")
    parser.add_argument("--test-images", type=int, help="spread over the classes (default: all)")
    parser.add_argument("--quick", type=int, help="measure every cell on so many test images before any on all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    return parser.parse_args()


def _best_first(results: Results, todo: list[Cell]) -> list[Cell]:
    """Put the cells that matter first: those not measured yet, then each column from its best on."""
    known = {cell["key"]: cell["top1"] for cell in results.cells()}
    ranked = sorted(todo, key=lambda cell: -known.get(cell.key, 100.0))
    column: dict[tuple[Any, ...], int] = {}
    order = {}
    for cell in ranked:
        place = (cell.network, cell.keep)
        order[cell] = column[place] = column.get(place, 0) + (cell.key in known)
    return sorted(ranked, key=order.__getitem__)


def _measure(bench: Bench, todo: list[Cell], images: int) -> None:
    todo = [cell for cell in dict.fromkeys(todo) if not bench.results.done(cell, images)]
    for number, cell in enumerate(todo, 1):
        if bench.results.done(cell, images):
            continue  # another process was faster
        found = bench.measure(cell, images)
        bench.results.update("cells", cell.key, found)
        print(
            f"[{number}/{len(todo)}] {cell.key}: top-1 {found['top1']:.2f} on {images} images, "
            f"{found['macs_kept']:.4f} of the MACs, {found['seconds_made']:.1f} + {found['seconds_tested']:.1f} s",
            flush=True,
        )


def main() -> None:
    """Measure what is missing, then print the table."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    dataset = data.load(args.data)
    digests = {
        name: hashlib.sha256((args.weights / f"{name}-jpeg.safetensors").read_bytes()).hexdigest()[:12] for name in KEEP
    }
    config = {
        "weights": digests,
        "calibration_images": CALIBRATION,
        "hessian_images": PER_IMAGE,
        "test_images": args.test_images or len(dataset.test),
    }
    results = Results(args.results, config)
    bench = Bench(args.weights, dataset, config["test_images"], results)
    if not args.table:
        record = _run_record(args)
        results.update("runs", record["command"], record)
        if args.quick:
            _measure(bench, list(cells(args)), min(args.quick, bench.test_images))
        _measure(bench, _best_first(results, list(cells(args))), bench.test_images)
    console = Console(width=None if sys.stdout.isatty() else 160)
    made, verdicts = table(results.cells())
    console.print(made)
    for verdict in verdicts:
        print(verdict)
    if verdicts:
        lost = sum("DOES NOT" in verdict for verdict in verdicts)
        print(f"Ours leads in {len(verdicts) - lost} of the {len(verdicts)} verdicts, with data and without.")


if __name__ == "__main__":
    main()
