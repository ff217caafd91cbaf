"""ACP's fitness with and without training: how well each tells a structure's worth, and at what cost.

Claim under test: accuracy right after merging, without training, ranks structures at least as well as the paper's
three epochs of training from random weights do, at less than 2 % of the cost. The truth is the accuracy after
retraining. Beside them stands what costs nothing to know: the number of a structure's parameters.

    python benchmarks/fitness_rank.py --weights WEIGHTS --data folder:CIFAR

WEIGHTS is resnet20-jpeg.safetensors; CIFAR holds train/ and test/, one folder per class. Structures are drawn at
random, each inner width between an eighth and all of its channels, and scaled to half of the network's MACs, so that
MACs say nothing about which is better. With `--draw stages` the blocks of a stage share one width, drawn on a
logarithmic scale: structures that differ by more at the same MACs, so that their order may repeat.

Both fitnesses are measured on images held out of the training images; retraining starts from random weights at a rate
of 0.1, as published, or, `--inherit`, from what merging left at a rate of 0.01. Its accuracy is that on the test
images. Every finished number is in results/fitness_rank.json at once, and the same command goes on where it was
stopped.

Kendall's τ and Spearman's ρ are over the structures; the cost is wall time, loading and planning included (`--workers`
trains several structures at a time, so measure the cost with one, and `--seeds 0`, which retrains none). A truth is
only as good as it repeats: with `--seeds` it is the mean over as many retrainings, and `seeds_agree` is Spearman's ρ
between single ones, averaged over the pairs. From it follows how well the mean would repeat (Spearman and Brown's
formula), and the square root of that is the most that any fitness can be expected to reach (`ceiling`).
"""

import argparse
import json
import math
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

import clusterprune as cp
from clusterprune import data, evaluate, models, runs, train
from clusterprune.files.writing import write_json
from clusterprune.methods import acp_structures
from clusterprune.methods._base import FINE_TUNING
from clusterprune.methods.acp import ACP
from clusterprune.methods.acp_search import FITNESS_TRAINING, StructureFitness
from clusterprune.methods.acp_structures import macs_of
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Classification

RESULTS = Path(__file__).parent / "results" / "fitness_rank.json"
NETWORK = "resnet20"
KEEP = 0.5
SCRATCH, INHERITING = "retrained", "retrained_inheriting"

RETRAINING = ACP.training
assert RETRAINING is not None


def structures(fitness: StructureFitness, count: int, draw: str) -> list[dict[str, int]]:
    """Draw structures, scaled to the limit of the multiply-adds."""
    rng = np.random.default_rng(0)
    full = {name: fitness.graph.by_name[name].width for name in fitness.start}
    stages = sorted({name.split(".")[0] for name in full})
    found = []
    for _ in range(count):
        if draw == "stages":
            share = dict(zip(stages, np.exp(rng.uniform(math.log(1 / 8), 0, len(stages))), strict=True))
            drawn = {name: round(width * share[name.split(".")[0]]) for name, width in full.items()}
        else:
            drawn = {name: int(rng.integers(width // 8, width + 1)) for name, width in full.items()}
            while macs_of(fitness.graph, drawn) < fitness.limit:
                drawn = {name: min(full[name], width + 1) for name, width in drawn.items()}
        found.append(fitness.repair(drawn))
    return found


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="ACP's fitness with and without training.")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--structures", type=int, default=12)
    parser.add_argument(
        "--draw",
        choices=("blocks", "stages"),
        default="blocks",
        help="a width for each block, or a share of its channels for each stage (default: %(default)s)",
    )
    parser.add_argument("--train-images", type=int, help="spread over the classes (default: all)")
    parser.add_argument("--fitness-epochs", type=int, default=FITNESS_TRAINING.epochs)
    parser.add_argument("--retrain-epochs", type=int, default=RETRAINING.epochs)
    parser.add_argument(
        "--schedule", default=RETRAINING.schedule, help="of the retraining from random weights (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="retrain with seeds 0 to SEEDS - 1; 0: only time the fitnesses (default: 1)",
    )
    parser.add_argument("--inherit", action="store_true", help="also retrain from what merging left")
    parser.add_argument("--inherit-epochs", type=int, default=FINE_TUNING.epochs)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="structures measured at a time (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


class Task(NamedTuple):
    """One number to measure: a fitness of a structure, or its accuracy after one retraining."""

    number: int
    """Of the structure."""
    way: str
    """ "merge" and "train" are fitnesses, SCRATCH and INHERITING are accuracies after retraining."""
    seed: int | None = None
    """Of a retraining."""


class Bench:
    """What every number is measured with; `seconds` is what merging costs once, before the first structure."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        spec = models.resolve(NETWORK)
        dataset = data.load(options.data, image_size=32)
        images = data.sample(dataset.train, options.train_images or len(dataset.train), 0)
        self.own, held_out = data.holdout(images, 0.1)
        self.test = dataset.test
        self.device = runs.pick_device(None)
        self.model = models.build(NETWORK, weights=options.weights).eval().to(self.device)
        self.graph = cp.trace(self.model, spec.example().to(self.device))
        self.where: dict[str, Any] = {"mean": spec.mean, "std": spec.std}
        self.factory = partial(spec.build, 10)
        task = Classification(self.own, held_out, **self.where)
        began = time.perf_counter()
        without = ACP(keep_macs=KEEP, fitness="merge")
        self.merging = StructureFitness(self.graph, task, without, factory=self.factory)
        self.seconds = time.perf_counter() - began
        short = train.TrainConfig(**{**FITNESS_TRAINING.model_dump(), "epochs": options.fitness_epochs})
        trains = ACP(keep_macs=KEEP, fitness="train")
        self.training = StructureFitness(self.graph, task, trains, training=short, factory=self.factory)
        self.long = train.TrainConfig(
            **{**RETRAINING.model_dump(), "epochs": options.retrain_epochs, "schedule": options.schedule}
        )
        self.tune = train.TrainConfig(**{**FINE_TUNING.model_dump(), "epochs": options.inherit_epochs})
        self.structures = structures(self.merging, options.structures, options.draw)

    def __call__(self, task: Task) -> tuple[Task, float, float]:
        """Measure one number; return it with its seconds."""
        began = time.perf_counter()
        widths = self.structures[task.number]
        if task.way in ("merge", "train"):
            value = (self.merging if task.way == "merge" else self.training)(widths)
        else:
            value = self.retrained(widths, task.seed or 0, inherit=task.way == INHERITING)
        return task, value, round(time.perf_counter() - began, 2)

    def parameters(self, widths: dict[str, int]) -> int:
        """Return how many a structure has."""
        small = apply(self.model, self.merging.plan(widths), graph=self.graph)
        return sum(parameter.numel() for parameter in small.parameters())

    def retrained(self, widths: dict[str, int], seed: int, *, inherit: bool) -> float:
        """Return the test accuracy after retraining, from what merging left or from random weights."""
        plan, graph = self.merging.plan(widths), self.graph
        if inherit:
            small = apply(self.model, plan, graph=graph)
        else:
            small = acp_structures.from_random(graph, plan, factory=self.factory, seed=seed)
        config = train.TrainConfig(**{**(self.tune if inherit else self.long).model_dump(), "seed": seed})
        train.fit(small, Classification(self.own, **self.where), config)
        return evaluate.accuracy(small.eval(), self.test, **self.where, topk=(1,)).top1


@cache
def prepared() -> Bench:
    """Return this process's bench: a worker has the command line of its parent, and prepares once."""
    return Bench(read_options())


def work(task: Task) -> tuple[Task, float, float]:
    """Measure one number in a worker."""
    return prepared()(task)


def main() -> None:
    """Measure what is missing, and print the correlations."""
    options = read_options()
    bench = prepared()
    found: dict[str, Any] = {"benchmark": "fitness_rank", "rows": []}
    if options.results.exists():
        found = json.loads(options.results.read_text())
    settings = {
        "network": NETWORK,
        "keep_macs": KEEP,
        "draw": options.draw,
        "train_images": len(bench.own),
        "fitness_epochs": options.fitness_epochs,
        "retrain_epochs": options.retrain_epochs,
        "retrain_schedule": options.schedule,
        "inherit_epochs": options.inherit_epochs if options.inherit else found.get("inherit_epochs"),
    }
    if other := {name for name, value in settings.items() if found.get(name) not in (None, value)}:
        sys.exit(f"{options.results} was measured with other {', '.join(sorted(other))}; give another --results")
    found |= settings | {
        "command": shlex.join(["python", *sys.argv]),
        "seconds_once_for_merging": found.get("seconds_once_for_merging", round(bench.seconds, 1)),
        "device": runs.environment(bench.device)["device"],
        "threads": options.threads,
        "workers": options.workers,
        "versions": {n: version(n) for n in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    rows = found["rows"]
    rows += [{"widths": widths} for widths in bench.structures[len(rows) :]]
    if [row["widths"] for row in rows[: options.structures]] != bench.structures:
        sys.exit(f"{options.results} holds other structures; give another --results")
    for row in rows:
        row["parameters"] = bench.parameters(row["widths"])

    def save() -> None:
        found["summary"] = summary(rows, found["seconds_once_for_merging"])
        write_json(options.results, found)

    def note(task: Task, value: float, seconds: float) -> None:
        row = rows[task.number]
        if task.seed is None:
            row[task.way], row[f"{task.way}_seconds"] = value, seconds
        else:
            row.setdefault(task.way, {})[str(task.seed)] = value
            row.setdefault(f"{task.way}_seconds", {})[str(task.seed)] = seconds
        save()
        print(*task, value, seconds, flush=True)

    tasks = missing(rows[: options.structures], options)
    if options.workers == 1:
        for task in tasks:
            note(*bench(task))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, context) as pool:
            for done in as_completed([pool.submit(work, task) for task in tasks]):
                note(*done.result())
    save()
    print(json.dumps(found["summary"], indent=1))


def missing(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[Task]:
    """Return what is to be measured still: all of a structure, then the next one; then the further seeds."""
    truths = (SCRATCH, INHERITING) if options.inherit else (SCRATCH,)
    tasks = []
    for seed in range(max(options.seeds, 1)):
        for number, row in enumerate(rows):
            if seed == 0:
                tasks += [Task(number, way) for way in ("merge", "train") if way not in row]
            if options.seeds:
                tasks += [Task(number, truth, seed) for truth in truths if str(seed) not in row.get(truth, {})]
    return tasks


def correlation(by: Callable[..., Any], one: Sequence[float], other: Sequence[float]) -> float:
    """Return a rank correlation without its p-value."""
    return float(by(one, other).statistic)


def summary(rows: list[dict[str, Any]], once: float) -> dict[str, Any]:
    """Return what the fitnesses tell of each truth, and the ratio of their costs, over the rows that have it all."""
    found: dict[str, Any] = {}
    done = [row for row in rows if {"merge", "train"} <= set(row)]
    for truth in (SCRATCH, INHERITING):
        whole = [row for row in done if row.get(truth)]
        seeds = sorted(set.intersection(*(set(row[truth]) for row in whole))) if whole else []
        if len(whole) < 3 or not seeds:
            continue
        runs = [[row[truth][seed] for row in whole] for seed in seeds]
        found[truth] = {"seeds": len(seeds)} | told(whole, [sum(v) / len(v) for v in zip(*runs, strict=True)])
        if len(seeds) >= 2:
            found[truth] |= repeatability(runs) | {"each_seed": [told(whole, run) for run in runs]}
    if done:
        merging = sum(row["merge_seconds"] for row in done) + once
        found["cost_ratio_percent"] = round(100 * merging / sum(row["train_seconds"] for row in done), 2)
    return found


def told(rows: list[dict[str, Any]], truth: list[float]) -> dict[str, Any]:
    """Return how each fitness, and mere size, ranks a truth, and what the structure that it would choose is worth."""
    found: dict[str, Any] = {
        "structures": len(rows),
        "mean": round(sum(truth) / len(truth), 2),
        "best": round(max(truth), 2),
    }
    for name in ("merge", "train", "parameters"):
        values = [row[name] for row in rows]
        found[name] = {
            "spearman": round(correlation(spearmanr, values, truth), 3),
            "kendall": round(correlation(kendalltau, values, truth), 3),
            "chosen": round(truth[values.index(max(values))], 2),
        }
    return found


def repeatability(runs: list[list[float]]) -> dict[str, float]:
    """Return how single retrainings agree, and the most that a fitness can be expected to agree with their mean."""
    pairwise = [correlation(spearmanr, one, other) for one, other in combinations(runs, 2)]
    agree = sum(pairwise) / len(pairwise)
    of_mean = len(runs) * agree / (1 + (len(runs) - 1) * agree) if agree > 0 else 0.0
    return {"seeds_agree": round(agree, 3), "ceiling": round(math.sqrt(of_mean), 3)}


if __name__ == "__main__":
    main()
