"""What the published ε of ACP removes here: the multiply-adds of C' beside those of the papers' C*.

Claim under test: on networks with the papers' shapes, clusters at a published ε cut in the papers' order of size.

    python benchmarks/published_eps.py --weights WEIGHTS --data folder:CIFAR

WEIGHTS holds ``{resnet56,vgg16}-jpeg.safetensors``; CIFAR holds train/ and test/, one folder per class. No network is
trained. C' is where the search begins; the papers' figure is that of C*, where theirs ended, and their ε was chosen on
their own trained networks, so the two columns need not agree.
"""

import argparse
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import clusterprune as cp
from clusterprune import data, models, runs, studies
from clusterprune.graph import ChannelGraph
from clusterprune.methods import ClusterCut, Keep
from clusterprune.methods.acp_search import widths_of
from clusterprune.methods.acp_structures import macs_of
from clusterprune.methods.layers import inner_groups

RESULTS = Path(__file__).parent / "results" / "published_eps.json"
NETWORKS = ("resnet56", "vgg16")


def removed(graph: ChannelGraph, widths: dict[str, int]) -> float:
    """Return the percentage of the multiply-adds that a structure does without."""
    return 100 * (1 - macs_of(graph, widths) / macs_of(graph, {}))


def measure(network: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cluster a network's layers at each ε that the paper has for it."""
    spec = models.resolve(network)
    model = models.build(network, weights=Path(options.weights) / f"{network}-jpeg.safetensors").eval()
    graph = cp.trace(model, spec.example())
    graph = graph.only(inner_groups(graph))
    images = data.load(options.data, image_size=spec.input_shape[-1]).train
    rows = []
    for name in studies.names():
        recipe = studies.read(name)
        if (recipe.method, recipe.model, recipe.data) != ("acp", network, "cifar10"):
            continue
        for count in options.samples:
            found = []
            for seed in options.seeds:
                normal = data.normalize(data.sample(images, count, seed).load()[0], spec.mean, spec.std)
                widths = widths_of(graph, normal, ClusterCut(eps=recipe.settings["eps"]), Keep())
                found.append(round(removed(graph, widths), 2))
            published = recipe.published.macs_removed
            rows.append({"recipe": name, "samples": count, "published_percent": published, "percent_by_seed": found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="Multiply-adds that ACP's clusters remove at the published ε.")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024], help="images whose maps are averaged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="draw the images")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {
        "benchmark": "published_eps",
        "rows": [row for network in NETWORKS for row in measure(network, options)],
        "command": shlex.join(["python", *sys.argv]),
        "device": runs.environment(torch.device("cpu"))["device"],
        "versions": {n: version(n) for n in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
