"""One-shot compression against the same share of every group, on networks of the zoo with random weights.

Claim under test: the plan that ``clusterprune.oneshot`` makes is never further from the original, on images that it has
not seen, than one that keeps the same share of every group (inside blocks, or of residual streams too) by more than
twice the standard error of the difference.

    python benchmarks/oneshot_same_share.py

Ten networks of torchvision, random weights with random norms, 64 pixels; 256 smooth random images to learn from and 512
others to compare on. How far is :func:`clusterprune.merge.divergence.divergence`: nats for logits. Every finished
network is in benchmarks/results/oneshot_same_share.json at once, and not done again.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import zoo_models
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import BudgetError
from clusterprune.merge.data_free import noise_images
from clusterprune.merge.divergence import divergence

RESULTS = Path(__file__).parent / "results" / "oneshot_same_share.json"
NETWORKS = (
    "resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5",
    "efficientnet_b0", "regnet_y_400mf", "densenet121", "googlenet",
)  # fmt: skip
WAYS = {
    "ours": cp.OneShot(),
    "inside blocks": cp.OneShot(sensitivity="uniform", residual_streams=False),
    "streams too": cp.OneShot(sensitivity="uniform"),
}


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a classifier makes of images."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(32)])


def measure(name: str, keep: float, images: int, held_out: int, seed: int) -> dict[str, object]:
    """Return, by way, the mean divergence on held-out images and how much it differs from ours."""
    model = zoo_models.build(f"torchvision:{name}")
    zoo_models.randomize(model, seed)
    graph = cp.trace(model, torch.zeros(1, 3, 64, 64))
    everything = noise_images(graph, images + held_out, torch.Generator().manual_seed(seed))[0]
    # Statistics as training would have left them: without, random layers drown one another.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for batch in everything[:images].split(64):
            model(batch)
    model.eval()
    graph = cp.trace(model, torch.zeros(1, 3, 64, 64))
    seen, fresh = everything[:images], everything[images:]
    expected = outputs(model, fresh)
    found: dict[str, Tensor] = {}
    seconds = {}
    for way, config in WAYS.items():
        began = time.process_time()
        try:
            plan = cp.oneshot(graph, seen, keep_macs=keep, round_to=1, seed=seed, config=config)
        except BudgetError:
            continue  # too little may be cut inside blocks alone
        seconds[way] = round(time.process_time() - began, 1)
        found[way] = divergence([expected], [outputs(cp.apply(model, plan, graph=graph), fresh)])
    record: dict[str, object] = {"keep": keep, "images": images, "held_out": held_out, "cpu_seconds": seconds}
    for way, values in found.items():
        gain = values - found["ours"]
        record[way] = {
            "divergence": float(values.mean()),
            "above_ours": float(gain.mean()),
            "standard_error": float(gain.std() / len(gain) ** 0.5),
        }
    return record


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"networks": {}}
    for name in arguments.networks:
        if name in results["networks"]:
            continue
        results["networks"][name] = measure(name, arguments.keep, arguments.images, arguments.held_out, arguments.seed)
        results["versions"] = {"torch": version("torch"), "python": platform.python_version()}
        results["command"] = shlex.join(["python", "benchmarks/oneshot_same_share.py", *sys.argv[1:]])
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results['networks'][name]}", flush=True)
    table = Table("network", *WAYS, "verdict", title="Divergence on held-out images")
    for name, record in results["networks"].items():
        others = [record[way] for way in WAYS if way != "ours" and way in record]
        holds = all(other["above_ours"] > -2 * other["standard_error"] for other in others)
        cells = [f"{record[way]['divergence']:.4f}" if way in record else "-" for way in WAYS]
        table.add_row(name, *cells, "holds" if holds else "DOES NOT HOLD")
    Console().print(table)


if __name__ == "__main__":
    main()
