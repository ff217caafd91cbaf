"""The files of runs, written without running anything."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

BASELINE = {
    "params": 1000, "macs": 40000, "accuracy": 90.0, "accuracy_top5": 99.0, "images": 2000, "latency_ms": 2.0,
    "latency_iqr_ms": 0.1, "latency_batch": 1,
}  # fmt: skip
COMPRESSED = {**BASELINE, "params": 400, "macs": 20000, "accuracy": 88.0, "latency_ms": 1.1}
CURVE = {"removed": [0, 2, 4], "loss": [0.0, 0.1, 0.5], "macs": 1000}
NAME = "<img src=x onerror=alert(1)>"
"""Of a class: what a run's files hold is text, never markup."""


def compressed(folder: Path, **changes: Any) -> Path:
    """Write all files of a run that shows everything a run of a method can show."""
    epochs = [
        {"epoch": n, "loss": 1 / n, "train_accuracy": 80.0 + n, "validation_accuracy": 79.0 + n, "learning_rate": 0.1}
        for n in range(1, 5)
    ]
    files: dict[str, Any] = {
        "config.yaml": {"command": "compress", "model": "net", "method": "oneshot", "keep_macs": 0.5},
        "result.json": {
            "command": "compress", "method": "oneshot", "baseline": BASELINE, "compressed": COMPRESSED,
            "seconds": {"compress": 1.5}, "command_line": "clusterprune compress", "versions": {"torch": "2"},
        },
        "details.json": {
            "networks": ["baseline", "compressed"],
            "widths": {"conv1": [16, 8], "conv2": [32, 2], "linear": [10, 10]},
            "classes": {
                "names": ["cat", NAME], "images": [1000, 1000],
                "hits": {"baseline": [900, 900], "compressed": [890, 700]},
            },
        },
        "cut-record/cut.json": {
            "groups": {"conv1": 16, "conv2": 32},
            "frozen": [{"layers": ["linear"], "channels": 10, "of": 10, "reason": "it reaches the network's output"}],
            "similar": [{"group": "conv1", "removed": [3, 4], "kept": [1, 2], "correlation": [0.9, 0.8]}],
        },
        "plan/plan.json": {
            "notes": {
                "curves": {"conv1": CURVE, "conv2": {**CURVE, "macs": 10}}, "shared_by": "priced", "few_rows": {},
                "history": [50.0, None, 60.0, 55.0],
            }
        },
        "training/log.jsonl": epochs,
    }  # fmt: skip
    for name, content in (files | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, lines)))
    Image.new("LA", (60, 40), 128).save(folder / "cut-record" / "0.png")
    return folder


def comparison(folder: Path) -> Path:
    """Write the result of a comparison of two methods over two seeds."""
    entries = [
        {"contender": name, "seed": seed, "params": 500, "macs": 20000, "accuracy_cut": cut, "accuracy": final + seed,
         "seconds": 1.0}
        for name, cut, final in (("l1", 20.0, 80.0), ("oneshot", 85.0, 88.0), ("cp", None, 70.0))
        for seed in (0, 1)
    ]  # fmt: skip
    whole = {name: BASELINE[name] for name in ("params", "macs", "accuracy")}
    return _result(folder, {"command": "compare", "whole": whole, "entries": entries})


def reproduction(folder: Path) -> Path:
    """Write the result of a reproduction."""
    published = {
        "paper": "ICP", "table": "II", "drop": 0.5, "macs_removed": 50.0,
        "baseline": {"accuracy": 93.0}, "compressed": {"accuracy": 92.5},
    }  # fmt: skip
    return _result(
        folder,
        {
            "command": "reproduce", "recipe": {"name": "icp-net"}, "trial": "0.1 times the epochs",
            "published": published, "baseline": BASELINE, "compressed": COMPRESSED, "deviation": {"accuracy": 0.2},
        },
    )  # fmt: skip


def _result(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder
