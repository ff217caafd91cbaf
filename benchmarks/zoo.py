"""Every network of torchvision and one of every timm family: traced, halved, and compared with the masked original.

Claims under test, with Torch-Pruning on the same networks: all networks of torchvision (classification, segmentation,
video) and at least 98 % of timm's families are traced; at least 95 % are within 2 % of half their MACs by PyTorch's
own counter; a cut network equals the masked original to 1e-9 in float64, everywhere; and all this takes no more CPU
seconds than 1.5 times Torch-Pruning's on the networks that both cut.

    python benchmarks/zoo.py
    python benchmarks/zoo.py --only ours --models 'torchvision:*' 'timm:resnet*'
    python benchmarks/zoo.py --summary

One process a network, one thread, one network after the other. Each is recorded as soon as it is done, and a run that
was stopped goes on where it was; ``--redo`` measures again. Weights are random: nothing here is about accuracy.

- **ours** is ``trace``, ``prune_by("l1", keep_macs=0.5, round_to=1)`` and ``apply``. Then, not timed, it is made again
  in float64 with statistics and scales at random, cut by a random plan with random mixing matrices, and its output
  compared with that of the original whose channels are masked (‖difference‖ / ‖output‖, the worst of its outputs).
- **Torch-Pruning** is its README's way to a number of MACs: ``BasePruner`` with ``GroupMagnitudeImportance``, the
  layers that make the output ignored, in steps of 5 % of the channels, counting after every step, until half the MACs
  are left. Seconds of its dependency graph and first step alone are recorded beside it.

Seconds are of the process (all threads), after a small network has warmed both up.
"""

import argparse
import fnmatch
import gc
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode
from zoo_models import Entry, build, example_for, quiet, randomize, timm_entries, torchvision_entries

RESULTS = Path(__file__).parent / "results" / "zoo.json"
KEEP = 0.5
CLOSE = 0.02
EXACT = 1e-9
TOOLS = ("ours", "torch-pruning")
LIMIT = 1200.0
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


def counted(model: nn.Module, example: Tensor) -> tuple[int, list[Tensor]]:
    """Return multiply-adds by PyTorch's own counter, and the network's outputs."""
    from clusterprune.evaluate.cost import countable

    with torch.no_grad(), quiet(), countable(model), FlopCounterMode(display=False) as counter:
        outputs = pytree.tree_leaves(model(example))
    return counter.get_total_flops() // 2, [leaf for leaf in outputs if isinstance(leaf, Tensor)]


@contextmanager
def timed(record: dict[str, Any], name: str) -> Iterator[None]:
    """Add the CPU seconds of this process to a record."""
    start = time.process_time()
    try:
        yield
    finally:
        record[name] = round(time.process_time() - start, 3)


def said(error: BaseException) -> str:
    """Return an error's kind and first line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"[:400]


def measure_ours(entry: Entry, record: dict[str, Any], save: Any) -> None:
    """Trace, cut and compare one network; the record is saved after every step."""
    import clusterprune as cp
    from clusterprune.budget.allocation import CostModel, reachable

    model = build(entry.name)
    example = example_for(model, entry.native)
    before, _ = counted(model, example)
    record |= {"input": list(example.shape[1:]), "macs": before, "params": sum(p.numel() for p in model.parameters())}
    record["seconds"] = {}
    try:
        with timed(record["seconds"], "trace"), warned(record):
            graph = cp.trace(model, example)
    except Exception as error:  # what it cannot do is what is measured here
        record["not_traced"] = said(error)
        save()
        return
    record["groups"], record["cuttable"] = len(graph.groups), len(graph.prunable)
    record["conv_share"] = prunable_share(graph)
    record["frozen_by"] = dict(list(frozen_channels(graph).items())[:6])
    record["unknown"] = {name: len(nodes) for name, nodes in graph.unknown.items()}
    save()
    try:
        with timed(record["seconds"], "plan"), warned(record):
            plan = cp.prune_by(graph, "l1", keep_macs=KEEP, round_to=1)
        with timed(record["seconds"], "apply"), warned(record):
            small = cp.apply(model, plan, graph=graph)
        after, _ = counted(small, example)
        record["kept"] = after / before
        record["class"] = class_of(small)
    except Exception as error:
        record["not_cut"] = said(error)
        record["reachable"] = reachable(CostModel(graph), "macs")
    save()
    small = plan = graph = None
    gc.collect()
    try:
        record["law2"], record["law2_class"] = law2(model, example)
    except Exception as error:
        record["law2_failed"] = said(error)
    save()


@contextmanager
def warned(record: dict[str, Any]) -> Iterator[None]:
    """Record the library's own warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [f"{w.category.__name__}: {w.message}" for w in caught if "clusterprune" in w.category.__module__]
    if texts:
        record.setdefault("warnings", []).extend(texts)


def prunable_share(graph: Any) -> float:
    """Return the share of convolution MACs in convolutions that read or make channels which may be cut."""
    free = {use.path for group in graph.prunable for use in group.uses}
    all_of_it = inside = 0.0
    for node in graph.fx.nodes:
        if "conv" not in str(node.target) or not isinstance(node.meta.get("val"), Tensor) or len(node.args) < 2:
            continue
        weight = node.args[1]
        if not isinstance(weight, fx.Node):
            continue
        made = node.args[0].meta["val"] if "transpose" in str(node.target) else node.meta["val"]
        macs = made.numel() * weight.meta["val"][0].numel()
        all_of_it += macs
        inside += macs * bool(_sources(weight, graph) & free)
    return inside / all_of_it if all_of_it else float("nan")


def _sources(node: fx.Node, graph: Any) -> set[str]:
    """Return the parameters that a (computed) weight is made of."""
    if node.name in graph.inputs:
        return {graph.inputs[node.name]}
    return set().union(*(_sources(source, graph) for source in node.all_input_nodes))


def frozen_channels(graph: Any) -> dict[str, int]:
    """Count the frozen channels by reason, without the nodes' names; the most first."""
    counts: dict[str, int] = {}
    for group in graph.groups:
        if group.frozen is not None:
            reason = group.frozen.partition(": ")[2] or group.frozen
            counts[reason] = counts.get(reason, 0) + group.width
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def law2(model: nn.Module, example: Tensor) -> tuple[float, str]:
    """Compare a randomly cut network with the masked original in float64; return the error, and the class."""
    import clusterprune as cp
    from clusterprune.surgery.masking import masked_state

    randomize(model)
    model, example = model.double(), example.double()
    graph = cp.trace(model, example)
    plan = random_plan(graph, 0)
    small = cp.apply(model, plan, graph=graph)
    kind = class_of(small)
    with torch.no_grad():
        actual = counted(small, example)[1]
        del small
        gc.collect()
        # The original itself takes the masked tensors: of the largest networks no second copy fits.
        masked = masked_state(graph, plan)
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for path, tensor in masked.items():
            if path in own:
                own[path].copy_(tensor)
            else:
                owner, _, name = path.rpartition(".")
                model.get_submodule(owner).register_parameter(name, nn.Parameter(tensor))
        expected = counted(model, example)[1]
    if [a.shape for a in actual] != [b.shape for b in expected]:
        raise RuntimeError("the outputs differ in shape")
    if not all(bool(torch.isfinite(b).all()) for b in expected if b.is_floating_point()):
        raise RuntimeError("the masked original's output is not finite")
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(actual, expected, strict=True)]
    return max(errors, default=0.0), kind


def class_of(small: nn.Module) -> str:
    """Say whether a compact model is of the original's class."""
    return "GraphModule" if isinstance(small, fx.GraphModule) else "kept"


def random_plan(graph: Any, seed: int) -> Any:
    """Draw which channels stay in every group that may be cut, and mixing matrices near the selection of these."""
    import clusterprune as cp

    rng = np.random.default_rng(seed)
    merges = []
    for group in graph.prunable:
        members = [np.flatnonzero(group.blocks == block) for block in range(group.n_blocks)]
        count = int(rng.integers(1, max(2, len(members[0]))))
        kept = np.sort(np.concatenate([rng.choice(block, count, replace=False) for block in members]))
        mixing = {}
        for use in group.consumers:
            matrix = rng.normal(size=(group.width, len(kept))) * 0.3 / np.sqrt(group.width)
            matrix *= group.blocks[:, None] == group.blocks[kept][None]
            matrix[kept, np.arange(len(kept))] += 1
            mixing[use.path] = torch.from_numpy(matrix)
        merges.append(cp.Merge(group.name, kept, mixing))
    return cp.Plan.of(graph, tuple(merges))


def measure_theirs(entry: Entry, record: dict[str, Any], save: Any) -> None:
    """Cut one network with Torch-Pruning, as its README says."""
    import torch_pruning

    model = build(entry.name)
    example = example_for(model, entry.native)
    before, outputs = counted(model, example)
    last = makers_of(model, example, outputs)
    record["seconds"] = {}
    steps = 0
    after, made = before, outputs
    try:
        with timed(record["seconds"], "all"), quiet():
            start = time.process_time()
            pruner = torch_pruning.pruner.BasePruner(
                model,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
                pruning_ratio=1.0,
                iterative_steps=20,
                ignored_layers=last,
            )
            while after > KEEP * before and steps < 20:
                pruner.step()
                steps += 1
                if steps == 1:
                    record["seconds"]["graph_and_one_step"] = round(time.process_time() - start, 3)
                after, made = counted(model, example)
        record |= {"kept": after / before, "steps": steps}
        if after > KEEP * before:
            record["not_cut"] = f"{after / before:.3f} of the MACs are left after all {steps} steps"
        elif [tuple(a.shape) for a in made] != [tuple(b.shape) for b in outputs]:
            record["not_cut"] = "the output has changed its shape"
    except Exception as error:
        record["not_cut"] = said(error)
    save()


def makers_of(model: nn.Module, example: Tensor, outputs: list[Tensor]) -> list[nn.Module]:
    """Return for every output the layer that ran last of those as wide as it."""
    called: list[tuple[int, nn.Module]] = []
    hooks = [
        module.register_forward_hook(_noter(called, column))
        for kind, column in ((nn.Linear, -1), (nn.modules.conv._ConvNd, 1))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    counted(model, example)
    for hook in hooks:
        hook.remove()
    makers = []
    for output in outputs:
        widths = set(output.shape[1:2]) | set(output.shape[-1:])
        makers += [layer for width, layer in called if width in widths][-1:]
    return makers


def _noter(called: list[tuple[int, nn.Module]], column: int) -> Any:
    return lambda layer, _, made: called.append((made.shape[column], layer))


def warm_up(tool: str) -> None:
    """Let PyTorch and the tool import what they import on first use."""
    import timm  # noqa: F401

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    example = torch.zeros(1, 3, 16, 16)
    if tool == "ours":
        import clusterprune as cp

        graph = cp.trace(net, example)
        cp.apply(net, cp.prune_by(graph, "l1", keep_macs=0.5, round_to=1), graph=graph)
    else:
        import torch_pruning

        with quiet():
            importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
            torch_pruning.pruner.BasePruner(net, example, importance=importance, pruning_ratio=0.5).step()


def measure_one(entry: Entry, tool: str, target: Path) -> None:
    """Measure one network with one tool, in this process, and write the record to a file after every step."""
    record: dict[str, Any] = {"tool": tool}

    def save() -> None:
        record["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(target)

    save()
    try:
        (measure_ours if tool == "ours" else measure_theirs)(entry, record, save)
    except BaseException as error:
        record["stopped"] = said(error)
        save()


class Running:
    """A network that is being measured, in a process that is a copy of this one, where all is imported and warm."""

    def __init__(self, entry: Entry, tool: str, limit: float) -> None:
        self.entry, self.tool, self.limit = entry, tool, limit
        self.folder = tempfile.TemporaryDirectory()
        self.target = Path(self.folder.name) / "record.json"
        self.start = time.monotonic()
        # A copy, not a new process: importing all there is takes longer than most networks do.
        self.process = multiprocessing.get_context("fork").Process(target=measure_one, args=(entry, tool, self.target))
        self.process.start()

    def over(self) -> bool:
        """Tell whether it is done; it is ended when its time is up."""
        if self.process.is_alive() and time.monotonic() - self.start > self.limit:
            self.process.kill()
            self.process.join()
        return not self.process.is_alive()

    def record(self) -> dict[str, Any]:
        """Return what was found, also when the process did not get to its end."""
        record: dict[str, Any] = json.loads(self.target.read_text()) if self.target.exists() else {"tool": self.tool}
        record["wall"] = round(time.monotonic() - self.start, 1)
        if record["wall"] > self.limit:
            record["stopped"] = f"not done after {self.limit:.0f} seconds"
        elif self.process.exitcode:
            record["stopped"] = f"ended with status {self.process.exitcode}"
        self.folder.cleanup()
        return record


def measure_all(todo: list[tuple[Entry, str]], jobs: int, limit: float) -> Iterator[tuple[Entry, str, dict[str, Any]]]:
    """Measure so many networks at once; yield their records as they come."""
    for tool in dict.fromkeys(tool for _, tool in todo):
        warm_up(tool)
    waiting, running = list(todo), []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Running(*waiting.pop(0), limit))
        time.sleep(0.1)
        for one in [one for one in running if one.over()]:
            running.remove(one)
            yield one.entry, one.tool, one.record()


class Results:
    """The results file: which networks there are, and a record for each tool and network."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return what is in the file, or an empty content."""
        if self.path.exists():
            return json.loads(self.path.read_text())
        return {"benchmark": "zoo", "keep": KEEP, "networks": {}, "records": {}}

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file as a whole."""
        content["threads"] = 1
        content["versions"] = {n: version(n) for n in ("torch", "torchvision", "timm", "torch-pruning")}
        content["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.path)

    def entries(self) -> list[Entry]:
        """Return every network, looked up once for each pair of versions and then read from the file."""
        content = self.read()
        key = f"torchvision {version('torchvision')}, timm {version('timm')}"
        if key not in content["networks"]:
            found = [asdict(entry) for entry in (*torchvision_entries(), *timm_entries())]
            content["networks"] = {key: found}
            self.write(content)
        return [Entry(e["name"], e["family"], tuple(e["native"])) for e in content["networks"][key]]

    def add(self, entry: Entry, tool: str, record: dict[str, Any]) -> None:
        """Add one record."""
        content = self.read()
        content["records"].setdefault(entry.name, {})[tool] = record
        content["records"] = dict(sorted(content["records"].items()))
        self.write(content)


def summary(entries: list[Entry], records: dict[str, Any]) -> str:
    """Lay out in Markdown what was found: the claims, then a row for each network."""
    ours = {e.name: records[e.name]["ours"] for e in entries if "ours" in records.get(e.name, {})}
    theirs = {e.name: records[e.name]["torch-pruning"] for e in entries if "torch-pruning" in records.get(e.name, {})}
    lines = []
    for source in ("torchvision", "timm"):
        known = [name for name in ours if name.startswith(source)]
        traced = [name for name in known if "groups" in ours[name]]
        lines.append(f"- {source}: {len(traced)} of {len(known)} traced{_missing(known, traced)}")
    close = [name for name, r in ours.items() if abs(r.get("kept", 9.0) / KEEP - 1) <= CLOSE]
    lines.append(f"- within {CLOSE:.0%} of half their MACs: {len(close)} of {len(ours)}{_missing(ours, close)}")
    compared = {name: r["law2"] for name, r in ours.items() if "law2" in r}
    bad = [name for name, error in compared.items() if not error <= EXACT]
    worst = max(compared.values(), default=float("nan"))
    lines.append(
        f"- cut against masked in float64: {len(compared)} of {len(ours)} compared"
        f"{_missing(ours, compared)}, the worst {worst:.1e}, above {EXACT:g}: {', '.join(bad) or 'none'}"
    )
    kept = [name for name, r in ours.items() if r.get("class") == "kept"]
    lines.append(f"- of the model's own class after the cut: {len(kept)} of {sum('class' in r for r in ours.values())}")
    their_cut = [name for name, r in theirs.items() if "not_cut" not in r and "stopped" not in r]
    lines.append(f"- Torch-Pruning halves {len(their_cut)} of {len(theirs)}")
    both = [name for name in their_cut if "class" in ours.get(name, {})]
    if both:
        mine = sum(_seconds(ours[name]) for name in both)
        whole = sum(theirs[name]["seconds"]["all"] for name in both)
        first = sum(theirs[name]["seconds"]["graph_and_one_step"] for name in both)
        lines.append(
            f"- CPU seconds on the {len(both)} networks that both cut: ours {mine:.0f}, Torch-Pruning {whole:.0f} "
            f"(ratio {mine / whole:.2f}), its graph and first step alone {first:.0f} (ratio {mine / first:.2f})"
        )
    lines += ["", *_rows(entries, ours, theirs)]
    return "\n".join(lines)


def _rows(entries: list[Entry], ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    titles = ("network", "pixels", "groups (cuttable)", "conv MACs cuttable", "MACs kept", "float64 error", "class",
              "seconds", "Torch-Pruning", "its seconds")  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for entry in entries:
        r, t = ours.get(entry.name), theirs.get(entry.name, {})
        if r is None:
            continue
        fails = r.get("not_traced") or r.get("not_cut") or (r.get("stopped") if "kept" not in r else None)
        cells = [
            entry.name,
            " x ".join(map(str, r["input"][1:])) if "input" in r else "",
            f"{r['groups']} ({r['cuttable']})" if "groups" in r else "",
            f"{r['conv_share']:.0%}" if r.get("conv_share", float("nan")) >= 0 else "",
            f"{r['kept']:.3f}" if "kept" in r else (fails or ""),
            f"{r['law2']:.0e}" if "law2" in r else r.get("law2_failed", ""),
            r.get("class", ""),
            f"{_seconds(r):.1f}" if "seconds" in r else "",
            t.get("not_cut") or t.get("stopped") or (f"{t['kept']:.3f}" if "kept" in t else ""),
            f"{t['seconds']['all']:.1f}" if "all" in t.get("seconds", {}) else "",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/")[:120] for cell in cells) + " |")
    return lines


def _missing(known: Any, found: Any) -> str:
    missing = [name for name in known if name not in found]
    return f" (not {', '.join(missing)})" if missing else ""


def _seconds(record: dict[str, Any]) -> float:
    return sum(record["seconds"].values())


def main() -> None:
    """Measure what is not yet measured, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--only", choices=TOOLS)
    parser.add_argument("--redo", action="store_true", help="measure again what is in the results file")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each network and tool")
    parser.add_argument("--jobs", type=int, default=1, help="networks measured at once, each in one thread")
    parser.add_argument("--summary", action="store_true", help="print what is in the results file")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    entries = [e for e in results.entries() if any(fnmatch.fnmatchcase(e.name, g) for g in arguments.models)]
    todo = [
        (entry, tool)
        for tool in ([arguments.only] if arguments.only else TOOLS)
        for entry in entries
        if arguments.redo or tool not in results.read()["records"].get(entry.name, {})
    ]
    if not ONE_THREAD.items() <= os.environ.items():
        # A copy of a process has none of its threads, and would wait for them for ever: there must be none.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    found = measure_all([] if arguments.summary else todo, arguments.jobs, arguments.limit)
    for number, (entry, tool, record) in enumerate(found, 1):
        results.add(entry, tool, record)
        short = {k: v for k, v in record.items() if k not in ("tool", "frozen_by", "unknown", "input", "params")}
        print(f"[{number}/{len(todo)}] {entry.name} {tool}: {short}", file=sys.stderr, flush=True)
    print(summary(entries, results.read()["records"]))


if __name__ == "__main__":
    main()
