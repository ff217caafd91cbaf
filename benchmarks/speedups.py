"""Measured speed-up beside the theoretical one, at half the multiply-adds: ours, and Torch-Pruning at the same MACs.

Claim under test: on one CPU thread, what ``clusterprune.oneshot`` makes with its default settings is faster by at least
nine tenths of what the multiply-adds say in ONNX Runtime, and faster than Torch-Pruning's network of as many of them,
in PyTorch and in ONNX Runtime; and ``keep_latency=0.5`` leaves 45 to 52 % of the time, and more multiply-adds than a
search for a share of these does.

    python benchmarks/speedups.py --weights WEIGHTS --data folder:CIFAR [--only speed|latency] [--networks NAME ...]

WEIGHTS holds ``{resnet56,vgg16}-jpeg.safetensors``, CIFAR train/ and test/. Needs the ``bench`` and ``onnx`` extras.
Every finished row is in benchmarks/results/speedups.json at once, and is not measured again.

What is compared
    The original, ours with its defaults (``round_to="auto"``), ours with ``round_to=1``, and Torch-Pruning's
    (l2, the same share of every layer) at the multiply-adds of ours, counted on the networks themselves.
How time is taken
    In turns: a round runs each network for a while, the next one in the other order; a speed-up is the median of the
    rounds' ratios, with quartiles. Networks run on one thread, whose own processor time counts: another program on the
    machine takes turns with it, and does not count. The load of the machine stands beside every row.
Weights
    Networks of 224 pixels have random weights, for none are at hand, and batch norms with the statistics of noise;
    images are noise too. Widths are then as random as the losses that they go by: their speed is of interest, not what
    they would classify.
Left out
    Refits change no width, and take the longest. Which way of sharing the budget goes on is decided by least squares.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, evaluate, models, runs
from clusterprune.errors import BudgetError, BudgetWarning
from clusterprune.methods.latency import Clock
from clusterprune.methods.planner import Planner
from clusterprune.runtimes.racing import race
from clusterprune.runtimes.running import create_runtime

RESULTS = Path(__file__).parent / "results" / "speedups.json"
RUNTIMES = ("torch:threads=1", "onnxruntime:threads=1")
OURS, FREE, THEIRS = "ours", "ours, round_to=1", "torch-pruning"
KEEP = 0.5


@dataclass(frozen=True)
class Case:
    """A network; whether its weights are at hand; in which batches it runs; calibration images."""

    model: str
    trained: bool
    batches: tuple[int, ...]
    images: int


CASES = {
    "resnet56": Case("resnet56", True, (1, 64), 1024),
    "vgg16": Case("vgg16", True, (1, 64), 1024),
    "resnet50": Case("torchvision:resnet50", False, (1,), 48),
    "mobilenet_v2": Case("torchvision:mobilenet_v2", False, (1,), 64),
    "efficientnet_b0": Case("torchvision:efficientnet_b0", False, (1,), 64),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, its trace, and images to plan with."""

    name: str
    model: nn.Module
    graph: cp.ChannelGraph
    images: Tensor
    planner: Planner

    @property
    def example(self) -> Tensor:
        """One image."""
        return self.graph.example_tensors[0][:1]

    def plan(self, **budget: Any) -> cp.Plan:
        """Plan by our method; the share that is left stands beside every row, also where it misses the budget."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BudgetWarning)
            return self.planner.plan(**budget)

    def macs_kept(self, model: nn.Module) -> float:
        """Return the share of the multiply-adds that a network has left."""
        return evaluate.macs(model, self.example) / evaluate.macs(self.model, self.example)


def subject(name: str, arguments: argparse.Namespace) -> Subject:
    """Open a network."""
    case, generator = CASES[name], torch.Generator().manual_seed(arguments.seed)
    spec = models.resolve(case.model)
    if case.trained:
        model = models.build(spec, weights=arguments.weights / f"{name}-jpeg.safetensors").eval()
        images, _ = data.sample(_dataset(arguments.data).train, case.images, arguments.seed).load()
        pixels = data.normalize(images, spec.mean, spec.std)
    else:
        model = models.build(spec, seed=arguments.seed)
        pixels = torch.randn(case.images, *spec.input_shape, generator=generator)
        _settle(model, pixels[:16])
    graph = cp.trace(model.eval(), spec.example())
    config = cp.OneShot(refit=None) if case.trained else cp.OneShot(refit=None, macs_to_spend=4e11)
    return Subject(name, model, graph, pixels, cp.measure(graph, pixels, seed=arguments.seed, config=config))


@cache
def _dataset(text: str) -> data.Dataset:
    return data.load(text)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of some images: with others, activations fade into denormal numbers."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(images)


def their_network(of: Subject, target: int) -> nn.Module:
    """Return Torch-Pruning's network of so many multiply-adds, or the nearest to it, by bisection."""
    low, high, best = 0.0, 0.95, (float("inf"), of.model)
    for _ in range(14):
        middle = (low + high) / 2
        small = _pruned(of, middle)
        macs = evaluate.macs(small, of.example)
        best = min(best, (abs(macs / target - 1), small), key=lambda found: found[0])
        low, high = (middle, high) if macs > target else (low, middle)
        if best[0] < 0.002:
            break
    return best[1]


def _pruned(of: Subject, ratio: float) -> nn.Module:
    small = copy.deepcopy(of.model)
    ignored = [m for m in small.modules() if isinstance(m, nn.Linear)]
    if of.name == "resnet56":  # whose padded shortcuts it cannot cut: see oneshot_accuracy.py
        ignored += [m for n, m in small.named_modules() if isinstance(m, nn.Conv2d) and not n.endswith(".conv1")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importance = torch_pruning.pruner.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            small, of.example, importance=importance, pruning_ratio=ratio, ignored_layers=ignored
        ).step()
    return small.eval()


def networks(of: Subject) -> dict[str, nn.Module]:
    """Return what is timed, by name."""
    found = {"original": of.model}
    for name, round_to in ((OURS, "auto"), (FREE, 1)):
        plan = of.plan(keep_macs=KEEP, round_to=round_to)
        found[name] = cp.apply(of.model, plan, graph=of.graph)
        print(f"{of.name}: {name}, {plan.notes.get('widths', '')}", flush=True)
    found[THEIRS] = their_network(of, evaluate.macs(found[OURS], of.example))
    return found


def speed(of: Subject, rounds: int) -> dict[str, Any]:
    """Race the networks, at every batch on every runtime."""
    made = networks(of)
    kept = {name: of.macs_kept(model) for name, model in made.items()}
    rows: dict[str, Any] = {}
    for batch in CASES[of.name].batches:
        images = of.images[:batch].contiguous()
        for text in RUNTIMES:
            prepared = [create_runtime(text).prepare(model, images) for model in made.values()]
            load = os.getloadavg()[0]
            found = race(prepared, rounds=rounds, seconds=0.2, clock=time.thread_time)
            row: dict[str, Any] = {"original_ms": found.median_ms(0), "load": [load, os.getloadavg()[0]]}
            for number, name in enumerate(made):
                if number:
                    won = found.speedup(number)
                    measured = {"ms": found.median_ms(number), "speedup": [won.low, won.times, won.high]}
                    row[name] = {**measured, "macs_kept": kept[name], "of_theory": won.times * kept[name]}
            rows[f"{text.partition(':')[0]}, batch {batch}"] = row
            print(f"{of.name}, {text}, batch {batch}: {json.dumps(row)}", flush=True)
    return {"rows": rows}


def latency(of: Subject, rounds: int) -> dict[str, Any]:
    """Meet half the time in ONNX Runtime, by layers' times and by bisecting on multiply-adds."""
    clock = Clock("onnxruntime:threads=1", rounds=rounds)
    found: dict[str, Any] = {}
    runtime = create_runtime(clock.runtime)
    original = runtime.prepare(of.model, of.example)

    def milliseconds(model: nn.Module) -> float:
        timed = race([original, runtime.prepare(model, of.example)], rounds=5, clock=time.thread_time)
        return 1 / timed.speedup(1).times

    for name, by in (("by layers' times", clock), ("by multiply-adds", milliseconds)):
        began = time.perf_counter()
        try:
            plan = of.plan(keep_latency=KEEP, latency=by)
        except BudgetError as error:
            found[name] = {"error": str(error)}
            continue
        small = cp.apply(of.model, plan, graph=of.graph)
        timed = race([original, runtime.prepare(small, of.example)], rounds=rounds, clock=time.thread_time)
        won = timed.speedup(1)
        shares = [1 / won.high, 1 / won.times, 1 / won.low]
        found[name] = {"share": shares, "macs_kept": of.macs_kept(small), "load": os.getloadavg()[0]}
        found[name] |= {"seconds": round(time.perf_counter() - began, 1), "tries": plan.notes["latency"]["tries"]}
        found[name] |= {"predicted_loss": plan.notes.get("predicted_loss")}
        print(f"{of.name}, half the time, {name}: {json.dumps(found[name])}", flush=True)
    return found


def record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe a run, with folders replaced by placeholders."""
    words = ["python", "benchmarks/speedups.py", "--weights", "WEIGHTS", "--data", "folder:CIFAR"]
    words += ["--networks", *arguments.networks, *(["--only", arguments.only] if arguments.only else [])]
    words += ["--seed", str(arguments.seed), "--rounds", str(arguments.rounds)]
    packages = ("clusterprune", "torch", "torchvision", "torch-pruning", "onnxruntime", "onnxscript")
    return {
        "command": shlex.join(words),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": runs.environment(torch.device("cpu"))["device"],
        "cores": os.cpu_count(),
        "threads": 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "seed": arguments.seed,
    }


def table(content: Mapping[str, Any]) -> list[Table]:
    """Lay out what was measured."""
    speeds = Table(title="Speed-up at half the MACs (quartiles), and its share of the theoretical one")
    for title in ("network", "runtime", "original"):
        speeds.add_column(title)
    for title in (OURS, "of theory", FREE, "of theory", THEIRS, "of theory"):
        speeds.add_column(title, justify="right")
    for name, entry in content.get("speed", {}).items():
        for title, row in entry["rows"].items():
            cells: list[str] = []
            for one in (OURS, FREE, THEIRS):
                low, middle, high = row[one]["speedup"]
                cells += [f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{row[one]['of_theory']:.2f}"]
            speeds.add_row(name, title, f"{row['original_ms']:.1f} ms", *cells)
    times = Table(title="Half the time in ONNX Runtime")
    for title in ("network", "by", "share of the time", "MACs kept", "predicted loss"):
        times.add_column(title)
    for name, entry in content.get("latency", {}).items():
        for by, row in entry.items():
            if "share" in row:
                low, middle, high = row["share"]
                loss = "" if row["predicted_loss"] is None else f"{row['predicted_loss']:.3g}"
                times.add_row(name, by, f"{middle:.3f} ({low:.3f}-{high:.3f})", f"{row['macs_kept']:.3f}", loss)
    return [speeds, times]


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME-jpeg.safetensors")
    parser.add_argument("--data", required=True, help="folder:DIR, with train/ and test/")
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--only", choices=["speed", "latency"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"benchmark": "speedups"}
    parts = {"speed": speed, "latency": latency}
    for name in arguments.networks if not arguments.table else ():
        of: Subject | None = None
        for part, measure in parts.items():
            if arguments.only in (None, part) and name not in content.get(part, {}):
                of = of or subject(name, arguments)
                found = measure(of, arguments.rounds)
                content.setdefault(part, {})[name] = found
                content.setdefault("runs", {})[f"{part} {name}"] = record(arguments)
                temporary = arguments.results.with_suffix(".tmp")
                temporary.write_text(json.dumps(content, indent=1) + "\n")
                temporary.replace(arguments.results)
    for made in table(content):
        Console(width=None if sys.stdout.isatty() else 160).print(made)


if __name__ == "__main__":
    main()
