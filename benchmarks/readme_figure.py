"""Draw the README's figures from results that are there: one shot beside its peers, and all methods; ResNet-20.

    python benchmarks/readme_figure.py

Reads benchmarks/results/oneshot_accuracy.json and writes docs/images/oneshot.svg: no training, means over the seeds
that were measured; of Torch-Pruning, the criterion that keeps the most at each budget. Reads competitors.json, a study
with the same short training for all, and writes docs/images/methods.svg.
"""

import json
import statistics
from pathlib import Path

from clusterprune.studies.figures.drawing import Drawing
from clusterprune.studies.figures.searches import Competitors

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
    """Draw both."""
    one_shot()
    methods()


def methods() -> None:
    """Draw all methods after the same training."""
    found = json.loads((HERE / "results" / "competitors.json").read_text())
    study = Competitors.read(found["settings"] | {"panels": ["macs"]})
    drawing = Drawing(found["title"])
    study.draw(found["rows"], drawing)
    save(drawing, "methods")


def one_shot() -> None:
    """Draw one shot beside its peers."""
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
    save(drawing, "oneshot")


def save(drawing: Drawing, name: str) -> None:
    """Write a figure into the folder of the documentation's pictures."""
    folder = HERE.parent / "docs" / "images"
    folder.mkdir(exist_ok=True)
    drawing.save(folder)
    for kind in ("svg", "png"):
        (folder / f"figure.{kind}").replace(folder / f"{name}.{kind}")


if __name__ == "__main__":
    main()
