"""The papers' rows of ResNet-56 and VGG-16 on CIFAR-10, one of each method, at a scale that fits a CPU.

No claim is tested: a trial shows that every step of a recipe runs on real networks and images, and how a short training
ends. It is a twentieth of the recipe's epochs, on some thousand images; what the papers report takes the whole of both.

    python benchmarks/recipe_trials.py --weights WEIGHTS --data folder:CIFAR --out RUNS

WEIGHTS holds ``{resnet56,vgg16}-jpeg.safetensors``; CIFAR holds train/ and test/, one folder per class. ICP starts
from these weights, ACP and CP train their original network first. Every row is one ``clusterprune reproduce``, in a
folder of its own in RUNS: a trial that was stopped goes on, one that is finished is only read. What came out is in
results/recipe_trials.json, beside what was published. Several calls may share the work: `--rows` says who has which.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "recipe_trials.json"
ROWS = {  # training images, chosen for rows that take about equally long
    "icp-resnet56-cifar10-0.025": 3000,
    "acp-resnet56-cifar10-0.035": 3000,
    "cp-resnet56-cifar10-50": 3000,
    "icp-vgg16-cifar10-0.010": 2000,
    "acp-vgg16-cifar10-0.010": 600,
    "cp-vgg16-cifar10-40": 2000,
}
EPOCHS_SCALE = 0.05
FIGURES = ("trial", "published", "baseline", "compressed", "seeds", "versions", "device", "threads")


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a recipe, or what is left of it; return what it has written."""
    out = Path(options.out) / name
    network = name.split("-")[1]
    asked = [name, "--data", options.data, "--epochs-scale", str(EPOCHS_SCALE), "--limit", str(ROWS[name])]
    asked += ["--seeds", "0", "--precision", "float32"]
    if name.startswith("icp"):
        asked += ["--weights", str(Path(options.weights) / f"{network}-jpeg.safetensors")]
    if not (out / "result.json").exists():
        arguments = ["--resume"] if (out / "config.yaml").exists() else asked
        command = [sys.executable, "-m", "clusterprune.cli", "reproduce", *arguments, "--out", str(out)]
        if status := subprocess.run(command, check=False).returncode:
            sys.exit(status)  # it has said why
    found = json.loads((out / "result.json").read_text())
    return {"recipe": name} | {key: found[key] for key in FIGURES}


def main() -> None:
    """Run the rows, and collect their figures."""
    parser = argparse.ArgumentParser(description="Trials of the papers' rows.")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="RECIPE")
    options = parser.parse_args()
    for name in options.rows:
        row = run(name, options)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"benchmark": "recipe_trials", "rows": []}
        found["rows"] = [old for old in found["rows"] if old["recipe"] != name] + [row]
        found["command"] = shlex.join(["python", *sys.argv])
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
