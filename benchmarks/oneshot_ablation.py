"""What each idea of the one-shot compressor is worth.

Claim
-----
Pricing cuts by Fisher loss and refitting every kernel through the additions carry most of the result; the
table says how much each contributes when it alone is taken away.

How to run
----------
    python benchmarks/oneshot_ablation.py --weights DIR --data folder:DIR --networks resnet20 --keep 0.5 --seeds 0 1 2

Every row is the full method with one thing changed, on the same calibration images and seeds; accuracy is
top-1 on the test split (all of it unless --test-images says otherwise), in float32, read once per row.
Results go to benchmarks/results/oneshot_ablation.json after every row; rows already there are not repeated.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import clusterprune as cp
from clusterprune import data, evaluate, models
from clusterprune.merge.refit import Refit

FULL = cp.OneShot()
VARIANTS: dict[str, tuple[cp.OneShot, int]] = {
    "full method": (FULL, 1024),
    "price: squared error of each layer": (replace(FULL, sensitivity="error"), 1024),
    "price: none, same fraction everywhere": (replace(FULL, sensitivity="uniform"), 1024),
    "Fisher information at temperature 1": (replace(FULL, temperature=1.0), 1024),
    "order: outputs unweighted": (replace(FULL, output_aware=False), 1024),
    "order: channel moments only": (replace(FULL, whole_kernel_limit=0), 1024),
    "residual streams left whole": (replace(FULL, residual_streams=False), 1024),
    "refit: none, mixing matrices": (replace(FULL, refit=None), 1024),
    "refit: only layers that read a cut": (replace(FULL, refit=Refit(all_layers=False)), 1024),
    "refit: own output, not the sum": (replace(FULL, refit=Refit(through_additions=False)), 1024),
    "refit: rectifiers not looked through": (replace(FULL, refit=Refit(rectified=0)), 1024),
    "refit: ridge 0.01": (replace(FULL, refit=Refit(ridge=1e-2)), 1024),
    "refit: ridge 0.001": (replace(FULL, refit=Refit(ridge=1e-3)), 1024),
    "plans: not compared": (replace(FULL, compare=False), 1024),
    "256 images": (FULL, 256),
    "512 images": (FULL, 512),
}
RESULTS = Path(__file__).parent / "results" / "oneshot_ablation.json"


def main() -> None:
    """Run the rows that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with NAME-jpeg.safetensors")
    parser.add_argument("--data", required=True, help="as for clusterprune, e.g. folder:DIR")
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5])
    parser.add_argument("--test-images", type=int, default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    dataset = data.load(arguments.data)
    test = dataset.test
    if arguments.test_images:
        test = data.sample(test, arguments.test_images, 0)
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for network in arguments.networks:
        spec = models.resolve(network)
        model = models.build(network, weights=arguments.weights / f"{network}-jpeg.safetensors")
        graph = cp.trace(model, spec.example())
        base = evaluate.accuracy(model, test, mean=spec.mean, std=spec.std).top1
        for keep in arguments.keep:
            for seed, (name, (config, count)) in itertools.product(arguments.seeds, VARIANTS.items()):
                key = f"{network}/{keep:g}/{name}/{seed}/{len(test)}"
                if key in saved["rows"]:
                    continue
                images = data.normalize(data.sample(dataset.train, count, seed).images(), spec.mean, spec.std)
                start = time.perf_counter()
                plan = cp.oneshot(graph, images, keep_macs=keep, round_to=1, seed=seed, config=config)
                seconds = time.perf_counter() - start
                small = cp.apply(model, plan, graph=graph)
                top1 = evaluate.accuracy(small, test, mean=spec.mean, std=spec.std).top1
                share = evaluate.macs(small, spec.example()) / evaluate.macs(model, spec.example())
                saved["rows"][key] = {
                    "network": network, "keep": keep, "variant": name, "seed": seed,
                    "test_images": len(test), "baseline": base, "top1": top1, "drop": round(base - top1, 2),
                    "macs_kept": round(share, 4), "seconds": round(seconds, 1),
                }  # fmt: skip
                saved["environment"] = {
                    "processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                    "python": platform.python_version(), "torch": torch.__version__, "clusterprune": "0.1.0",
                    "command": _command(arguments),
                }  # fmt: skip
                RESULTS.parent.mkdir(exist_ok=True)
                temporary = RESULTS.with_suffix(".tmp")
                temporary.write_text(json.dumps(saved, indent=1) + "\n")
                temporary.replace(RESULTS)
    table = Table(title="One-shot ablation: points of top-1 lost")
    for column in ("network", "keep", "variant", "drop", "seeds", "MACs kept"):
        table.add_column(column)
    same: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in saved["rows"].values():
        same.setdefault((row["network"], row["keep"], row["variant"]), []).append(row)
    for (network, keep, variant), rows in same.items():
        drops = [row["drop"] for row in rows]
        spread = f" ±{statistics.stdev(drops):.2f}" if len(drops) > 1 else ""
        kept = statistics.mean(row["macs_kept"] for row in rows)
        table.add_row(
            network, f"{keep:g}", variant, f"{statistics.mean(drops):.2f}{spread}", str(len(rows)), f"{kept:.4f}"
        )
    Console().print(table)


def _command(arguments: argparse.Namespace) -> str:
    """Return the command of this run, with folders replaced by placeholders."""
    words = ["python", "benchmarks/oneshot_ablation.py", "--weights", "WEIGHTS", "--data", "folder:CIFAR"]
    for name in ("networks", "keep", "seeds"):
        words += [f"--{name}", *map(str, getattr(arguments, name))]
    return " ".join(words + (["--test-images", str(arguments.test_images)] if arguments.test_images else []))


if __name__ == "__main__":
    main()
