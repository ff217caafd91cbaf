"""Draw the README's figure from results that are there: one shot beside its peers, ResNet-20, no training.

    python benchmarks/readme_figure.py

Reads benchmarks/results/oneshot_accuracy.json and writes docs/images/oneshot.svg. Means over the seeds that were
measured; of Torch-Pruning, the criterion that keeps the most at each budget.
"""

import json
import statistics
from pathlib import Path

from clusterprune.studies.figures.drawing import Drawing

HERE = Path(__file__).parent
NETWORK = "resnet20"
PEERS = {
    "clusterprune": lambda row: row == ("ours", "", ""),
    "clusterprune, no images": lambda row: row == ("ours without data", "", ""),
    "OSSCAR": lambda row: row[0] == "osscar",
    "Torch-Pruning": lambda row: row[0] in ("l1", "l2", "fpgm", "bn-scale", "taylor", "hessian"),
    "model folding": lambda row: row[0] == "folding",
    "model folding, no images": lambda row: row[0] == "folding without data",
}


def main() -> None:
    """Draw."""
    cells = json.loads((HERE / "results" / "oneshot_accuracy.json").read_text())["cells"]
    found: dict[float, dict[tuple[str, str, str], list[float]]] = {}
    whole = 0.0
    for key, cell in cells.items():
        network, keep, criterion, scope, batch_norm, _ = key.split("/")
        if network != NETWORK:
            continue
        if criterion == "unpruned":
            whole = cell["top1"]
        elif cell["images"] == cell["config"]["test_images"]:
            found.setdefault(float(keep), {}).setdefault((criterion, scope, batch_norm), []).append(cell["top1"])
    drawing = Drawing("ResNet-20 on CIFAR-10 (JPEG), no training: accuracy by MACs kept")
    (axes,) = drawing.axes()
    for number, (label, belongs) in enumerate(PEERS.items()):
        points = {
            keep: max((statistics.mean(values) for row, values in rows.items() if belongs(row)), default=None)
            for keep, rows in found.items()
        }
        x = [keep for keep in sorted(points) if points[keep] is not None]
        drawing.line(axes, [100 * keep for keep in x], [points[keep] for keep in x], label, number)
    axes.axhline(whole, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xlim(45, 80)
    drawing.finish(axes, "MACs kept (%)", "top-1 on all 10,000 test images (%)")
    folder = HERE.parent / "docs" / "images"
    folder.mkdir(exist_ok=True)
    drawing.save(folder)
    (folder / "figure.svg").replace(folder / "oneshot.svg")
    (folder / "figure.png").replace(folder / "oneshot.png")


if __name__ == "__main__":
    main()
