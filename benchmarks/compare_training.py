"""All methods with the same training: ResNet-20 on CIFAR-10 at half its MACs.

Claim under test: ours (one-shot with fine-tuning, and ICP and ACP that merge) end with more accuracy than the usual
criteria and Torch-Pruning's best, when all may train for the same number of epochs on the same images.

    python benchmarks/compare_training.py --weights WEIGHTS --data folder:CIFAR --out RUNS

WEIGHTS is resnet20-jpeg.safetensors; CIFAR holds train/ and test/, one folder per class. The comparison itself is
``clusterprune compare``, whose run folders appear in RUNS and from which a run that was stopped goes on; this file adds
Torch-Pruning, and a limit to the training images. A tenth of them is held out for ACP to choose by. Test images are
read once per run, after its end (and once for the network right after its cut).

Torch-Pruning's best: of its criteria, the one that keeps the most at this network and budget in oneshot_accuracy.json
(global l1). Its batch norms are re-estimated before the first epoch, as they are there.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import baselines
import torch
from rich.console import Console

from clusterprune import data, evaluate, models, runs, train
from clusterprune.cli.compare import ranking
from clusterprune.methods import Network, Work
from clusterprune.studies.comparison import TRAINING, Contender, Entry, compare
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "compare_training.json"
NETWORK = "resnet20"
METHODS = ",".join(
    name if name in ("icp", "acp", "cp") else f"{name}:round_to=1"
    for name in ("oneshot", "icp", "acp", "cp", "l1", "fpgm", "bn_scale", "taylor")
)
THEIRS = "torch-pruning l1 global"


def torch_pruning(network: Network, task: Classification, test: data.Split, keep_macs: float, work: Work) -> Entry:
    """Prune by Torch-Pruning, train as the others do; go on where it was stopped."""
    path = work.place / THEIRS.replace(" ", "-") / f"seed-{work.seed}"
    if (path / "entry.json").exists():
        return Entry(**json.loads((path / "entry.json").read_text()))
    began = time.perf_counter()
    target = round(keep_macs * evaluate.macs(network.model, network.example))
    criterion, settings = baselines.CRITERIA["l1"], baselines.CANDIDATES["global"][0]
    small = baselines.prune(network.model, network.example, criterion, settings, target, {}).model
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(work.seed))[:1024]
    images = data.normalize(task.train.subset(order).load()[0], task.mean, task.std)
    small = baselines.reestimate_batch_norm(small, images)
    where: dict[str, Any] = {"mean": task.mean, "std": task.std}
    cut = evaluate.accuracy(small, test, **where, topk=(1,)).top1
    config = TrainConfig(**{**work.needed().model_dump(), "seed": work.seed})
    train.fit(small, task, config, out=path / "training", resume=True)
    accuracy = evaluate.accuracy(small.eval(), test, **where, topk=(1,)).top1
    size = evaluate.params(small), evaluate.macs(small, network.example)
    entry = Entry(THEIRS, work.seed, *size, cut, accuracy, round(time.perf_counter() - began, 1))
    (path / "entry.json").write_text(json.dumps(asdict(entry), indent=1))
    return entry


def main() -> None:
    """Run what is not finished, print the table and write the results after every run."""
    parser = argparse.ArgumentParser(description="All methods with the same training.")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs)
    parser.add_argument("--lr", type=float, default=TRAINING.lr)
    parser.add_argument("--train-images", type=int, help="spread over the classes (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-theirs", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = models.resolve(NETWORK)
    dataset = data.load(options.data, image_size=32)
    images = data.sample(dataset.train, options.train_images or len(dataset.train), 0)
    device = runs.pick_device(None)
    model = models.build(NETWORK, weights=options.weights).eval().to(device)
    own, held_out = data.holdout(images, 0.1)
    network = Network(model, spec.example().to(device), partial(spec.build, 10))
    task = Classification(own, held_out, mean=spec.mean, std=spec.std)
    training = TrainConfig(**{**TRAINING.model_dump(), "epochs": options.epochs, "lr": options.lr})
    contenders = [Contender.read(text) for text in options.methods.split(",")]
    whole = {
        "params": evaluate.params(model),
        "macs": evaluate.macs(model, network.example),
        "accuracy": evaluate.accuracy(model, dataset.test, mean=spec.mean, std=spec.std, topk=(1,)).top1,
    }
    entries: list[Entry] = []

    def done(entry: Entry) -> None:
        entries.append(entry)
        print(entry, flush=True)
        facts = {
            "benchmark": "compare_training",
            "command": shlex.join(["python", *sys.argv]),
            "network": NETWORK,
            "keep_macs": options.keep_macs,
            "train_images": len(own),
            "test_images": len(dataset.test),
            "training": training.model_dump(mode="json"),
            "whole": whole,
            "entries": [asdict(e) for e in entries],
            "device": runs.environment(device)["device"],
            "threads": options.threads,
            "versions": {n: version(n) for n in ("clusterprune", "torch", "torch-pruning")}
            | {"python": platform.python_version()},
            "date": datetime.now(UTC).date().isoformat(),
        }
        options.results.write_text(json.dumps(facts, indent=1) + "\n")

    for seed in options.seeds:
        compare(
            network, task, dataset.test, contenders, keep_macs=options.keep_macs, training=training, seeds=[seed],
            out=options.out, done=done,
        )  # fmt: skip
        if not options.no_theirs:
            done(torch_pruning(network, task, dataset.test, options.keep_macs, Work(options.out, training, seed)))
    Console(width=120).print(ranking(NETWORK, options.keep_macs, whole, entries))
    names = dict.fromkeys(entry.contender for entry in entries)
    best = max(names, key=lambda name: statistics.mean(e.accuracy for e in entries if e.contender == name))
    print(f"best: {best}")


if __name__ == "__main__":
    main()
