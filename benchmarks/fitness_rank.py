"""ACP's fitness with and without training: how well each tells a structure's worth, and at what cost.

Claim under test: accuracy right after merging, without training, ranks structures at least as well as the paper's
three epochs of training from random weights do, at less than 2 % of the cost. The truth is the accuracy after
retraining.

    python benchmarks/fitness_rank.py --weights WEIGHTS --data folder:CIFAR

WEIGHTS is resnet20-jpeg.safetensors; CIFAR holds train/ and test/, one folder per class. Structures are drawn at
random, each inner width between an eighth and all of its channels, and scaled to half of the network's MACs, so that
size says nothing about which is better. Both fitnesses are measured on images held out of the training images;
retraining starts from random weights at a rate of 0.1, as published, or, `--inherit`, from what merging left at a rate
of 0.01. Its accuracy is that on the test images. Every finished number is in results/fitness_rank.json at once.

Kendall's τ and Spearman's ρ are over the structures; the cost is wall time, loading and planning included.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

import clusterprune as cp
from clusterprune import data, evaluate, models, run, train
from clusterprune.methods import acp_structures
from clusterprune.methods.acp import ACP, FITNESS_TRAINING, RETRAINING, StructureFitness
from clusterprune.methods.acp_structures import macs_of
from clusterprune.methods.trainings import FINE_TUNING
from clusterprune.surgery import apply

RESULTS = Path(__file__).parent / "results" / "fitness_rank.json"
NETWORK = "resnet20"
KEEP = 0.5


def structures(fitness: StructureFitness, count: int) -> list[dict[str, int]]:
    """Draw structures, scaled to the limit of the multiply-adds."""
    rng = np.random.default_rng(0)
    groups = fitness.graph.by_name
    found = []
    for _ in range(count):
        drawn = {name: int(rng.integers(groups[name].width // 8, groups[name].width + 1)) for name in fitness.start}
        while macs_of(fitness.graph, drawn) < fitness.limit:
            drawn = {name: min(groups[name].width, width + 1) for name, width in drawn.items()}
        found.append(fitness.repair(drawn))
    return found


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="ACP's fitness with and without training.")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--structures", type=int, default=12)
    parser.add_argument("--train-images", type=int, help="spread over the classes (default: all)")
    parser.add_argument("--fitness-epochs", type=int, default=FITNESS_TRAINING.epochs)
    parser.add_argument("--retrain-epochs", type=int, default=RETRAINING.epochs)
    parser.add_argument(
        "--from-random", type=int, metavar="N", help="retrain the first N structures from random weights (default: all)"
    )
    parser.add_argument("--inherit", action="store_true", help="also retrain from what merging left")
    parser.add_argument("--inherit-epochs", type=int, default=FINE_TUNING.epochs)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, and print the correlations."""
    options = read_options()
    torch.set_num_threads(options.threads)
    spec = models.resolve(NETWORK)
    dataset = data.load(options.data, image_size=32)
    images = data.sample(dataset.train, options.train_images or len(dataset.train), 0)
    own, held_out = data.holdout(images, 0.1)
    device = run.pick_device(None)
    model = models.build(NETWORK, weights=options.weights).eval().to(device)
    graph = cp.trace(model, spec.example().to(device))
    where: dict[str, Any] = {"mean": spec.mean, "std": spec.std}
    factory = partial(spec.build, 10)
    short = train.TrainConfig(**{**FITNESS_TRAINING.model_dump(), "epochs": options.fitness_epochs})
    long = train.TrainConfig(**{**RETRAINING.model_dump(), "epochs": options.retrain_epochs})
    tune = train.TrainConfig(**{**FINE_TUNING.model_dump(), "epochs": options.inherit_epochs})
    began = time.perf_counter()
    without = ACP(keep_macs=KEEP, fitness="merge")
    merging = StructureFitness(graph, own, held_out, config=without, factory=factory, **where)
    once = time.perf_counter() - began
    trains = ACP(keep_macs=KEEP, fitness="train")
    training = StructureFitness(graph, own, held_out, config=trains, training=short, factory=factory, **where)

    def retrain(widths: dict[str, int], *, inherit: bool) -> float:
        plan = merging.plan(widths)
        small = apply(model, plan, graph=graph) if inherit else acp_structures.from_random(graph, plan, factory=factory)
        train.fit(small, own, config=tune if inherit else long, **where)
        return evaluate.accuracy(small.eval(), dataset.test, **where, topk=(1,)).top1

    ways: dict[str, Callable[[dict[str, int]], float]] = {"merge": merging, "train": training}
    ways["retrained"] = partial(retrain, inherit=False)
    if options.inherit:
        ways["retrained_inheriting"] = partial(retrain, inherit=True)
    found: dict[str, Any] = {"benchmark": "fitness_rank", "rows": []}
    if options.results.exists():
        found = json.loads(options.results.read_text())
    found |= {
        "command": shlex.join(["python", *sys.argv]),
        "network": NETWORK,
        "keep_macs": KEEP,
        "train_images": len(own),
        "fitness_epochs": options.fitness_epochs,
        "retrain_epochs": options.retrain_epochs,
        "inherit_epochs": options.inherit_epochs if options.inherit else None,
        "seconds_once_for_merging": round(once, 1),
        "device": run.environment(device)["device"],
        "threads": options.threads,
        "versions": {n: version(n) for n in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    from_random = options.structures if options.from_random is None else options.from_random
    for number, widths in enumerate(structures(merging, options.structures)):
        if number == len(found["rows"]):
            found["rows"].append({"widths": widths})
        row = found["rows"][number]
        for name, way in ways.items():
            if name in row or (name == "retrained" and number >= from_random):
                continue
            began = time.perf_counter()
            row[name] = way(widths)
            row[f"{name}_seconds"] = round(time.perf_counter() - began, 2)
            found["summary"] = summary(found["rows"], once)
            options.results.write_text(json.dumps(found, indent=1) + "\n")
            print(number, name, row[name], row[f"{name}_seconds"], flush=True)
    print(json.dumps(found["summary"], indent=1))


def summary(rows: list[dict[str, Any]], once: float) -> dict[str, Any]:
    """Return rank correlations and the ratio of the costs, over the rows that have everything."""
    found: dict[str, Any] = {}
    for truth in ("retrained", "retrained_inheriting"):
        whole = [row for row in rows if truth in row and "train" in row]
        if len(whole) < 3:
            continue
        for name in ("merge", "train"):
            pairs = [row[name] for row in whole], [row[truth] for row in whole]
            found[f"{name}_with_{truth}"] = {
                "spearman": round(float(spearmanr(*pairs)[0]), 3),
                "kendall": round(float(kendalltau(*pairs)[0]), 3),
                "structures": len(whole),
            }
    done = [row for row in rows if "train_seconds" in row]
    if done:
        merging = sum(row["merge_seconds"] for row in done) + once
        found["cost_ratio_percent"] = round(100 * merging / sum(row["train_seconds"] for row in done), 2)
    return found


if __name__ == "__main__":
    main()
