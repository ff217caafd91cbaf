"""The parts of ``gpu_check.py``: each does something small on the CPU and on another device, and compares.

A part is a generator of rows. It says what it did, what came out on the CPU and on the device, how far the two are
apart and how far they may be. What a row's numbers are, its name says; a difference of 0 means: the same, exactly.
"""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune import criteria, data, evaluate, train
from clusterprune.clustering import DBSCAN, HDBSCAN, OPTICS, Agglomerative, Birch, KMeans, MeanShift, Spectral
from clusterprune.data import Split
from clusterprune.methods.soft_pruning import SoftPruning
from clusterprune.plan import Merge, Plan
from clusterprune.similarity import FeatureMaps, Filters
from clusterprune.surgery.masking import masked_state
from clusterprune.tasks import Classification
from clusterprune.train import Guidance, TrainConfig

T = TypeVar("T")

SEED = 0
MEAN, STD = (0.3,), (0.4,)
ROUNDING = 1e-9
"""Of float64, relative: through some twenty layers."""
SAME_PLAN = 1e-4
"""Least squares in float64 on moments that were summed in another order, kept in a plan as float32."""
SINGLE = 1e-3
"""Of float32, relative: convolutions by other algorithms."""


@dataclass(frozen=True)
class Row:
    """One comparison. ``allowed`` is the largest difference at which it is in order."""

    what: str
    cpu: str
    device: str
    difference: float
    allowed: float

    @property
    def fine(self) -> bool:
        """Tell whether the difference is small enough (NaN is not)."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Place:
    """Where a part works: a device, and a folder of its own."""

    device: torch.device
    folder: Path

    @property
    def gpu(self) -> bool:
        """Tell whether there is a GPU to check what only a GPU has."""
        return self.device.type == "cuda"

    @property
    def brief(self) -> bool:
        """Tell whether the device only stands for one: then a few of many like cases are enough."""
        return self.device.type not in ("cuda", "cpu")

    def some(self, cases: Sequence[T], few: int) -> Sequence[T]:
        """Return the cases, or the first few where that is enough."""
        return cases[:few] if self.brief else cases


def layer(before: int, after: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(after))


class Mixed(nn.Module):
    """Most of what networks are made of: a residual, a depthwise and a transposed layer, slopes, a flattened map."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.first, self.second = layer(channels, 12), layer(12, 20), layer(20, 12)
        self.depthwise, self.point, self.slopes = layer(12, 12, groups=12), layer(12, 16, stride=2), nn.PReLU(16)
        self.up, self.last = nn.ConvTranspose2d(16, 10, 2, 2), nn.Conv2d(10, 8, 3)
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for images (n, channels, height, width)."""
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        x = self.slopes(self.point(self.depthwise(x).relu()))
        x = self.last(self.up(x).relu()).relu()
        return self.head(functional.adaptive_avg_pool2d(x, 3).flatten(1))


class Halves(nn.Module):
    """A network whose own code does not fit every cut, so that surgery rewires it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = layer(3, 16), layer(6, 8), layer(10, 8)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for images (n, 3, height, width)."""
        left, right = self.first(x).relu().split([6, 10], 1)
        return self.head(torch.cat([self.left(left).relu(), self.right(right).relu()], 1).mean((2, 3)))


class Narrow(nn.Module):
    """A small residual network for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.last = layer(1, 8), layer(8, 16), layer(16, 8), layer(8, 12, stride=2)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for images (n, 1, 8, 8)."""
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(functional.adaptive_avg_pool2d(self.last(x).relu(), 2).flatten(1))


def images(count: int = 96, size: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return smooth noise (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.randn(count, 3, size // 3, size // 3, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    return (functional.interpolate(coarse, size=size, mode="bilinear") + 0.3 * fine).to(dtype)


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a model in evaluation mode and of the inputs' type whose batch norms differ from channel to channel."""
    model = model.to(inputs.dtype).train()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.5 * torch.randn(module.bias.shape, generator=generator))
        model(inputs)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                # A channel that is all but dead would blow up every rounding before it.
                module.running_var.clamp_min_(0.1 * float(module.running_var.mean()))
    return model.eval()


def mixed() -> tuple[nn.Module, Tensor]:
    """Return the network of most parts, and images for it."""
    torch.manual_seed(SEED)
    inputs = images()
    return settled(Mixed(), inputs), inputs


def relative(here: Tensor, there: Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest value."""
    here, there = here.detach().cpu().double(), there.detach().cpu().double()
    if here.shape != there.shape:
        return float("inf")
    return float((here - there).abs().max() / here.abs().max().clamp_min(1e-300))


def lost(model: nn.Module, small: nn.Module, inputs: Tensor) -> float:
    """Return the relative error of a compact model."""
    with torch.no_grad():
        wanted = model(inputs)
        return float((small(inputs) - wanted).norm() / wanted.norm())


def text(value: float) -> str:
    """Return a number as a table shows it."""
    return f"{value:.5g}"


def same_models(name: str, here: nn.Module, there: nn.Module) -> Row:
    """Compare what two models hold, bit by bit, wherever they are."""
    one, other = here.state_dict(), there.state_dict()
    equal = one.keys() == other.keys() and all(torch.equal(one[key].cpu(), other[key].cpu()) for key in one)
    return Row(f"{name}: the same tensors", str(len(one)), str(len(other)), 0.0 if equal else 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Pair:
    """The network of most parts, traced on the CPU and on the device."""

    model: nn.Module
    there: nn.Module
    graph: cp.ChannelGraph
    elsewhere: cp.ChannelGraph
    inputs: Tensor

    @classmethod
    def on(cls, place: Place) -> "Pair":
        """Make the pair for a place."""
        model, inputs = mixed()
        there = copy.deepcopy(model).to(place.device)
        return cls(model, there, cp.trace(model, inputs[:1]), cp.trace(there, inputs[:1]), inputs)


def compare_plans(
    name: str,
    place: Place,
    pair: Pair,
    choose: Callable[[cp.ChannelGraph, Tensor], Plan],
    *,
    different: float = 0.0,
) -> Iterator[Row]:
    """Make a plan on the CPU and on the device, compare them, and apply the device's in both places.

    `different` is the share of the kept channels that may be others.
    """
    model, there, graph, elsewhere, inputs = pair.model, pair.there, pair.graph, pair.elsewhere, pair.inputs
    places = [inputs.to(place.device), inputs]  # images may stay on the CPU
    plan = choose(graph, inputs)
    other, *again = (choose(elsewhere, given) for given in (places[len(name) % 2 :][:1] if place.brief else places))
    kept, others = ({(m.group, int(c)) for m in p.merges for c in m.kept} for p in (plan, other))
    apart = len(kept ^ others) / max(1, len(kept | others))
    yield Row(f"{name}: channels kept", str(len(kept)), str(len(others)), apart, different)
    small, compact = cp.apply(model, plan, graph=graph), cp.apply(there, other, graph=elsewhere)
    macs = evaluate.macs(small, inputs[:1]), evaluate.macs(compact, inputs[:1])
    yield Row(f"{name}: MACs", str(macs[0]), str(macs[1]), abs(macs[0] - macs[1]) / macs[0], different)
    on_device = inputs.to(place.device)
    errors = lost(model, small, inputs), lost(there, compact, on_device)
    allowed = SAME_PLAN if not apart else 0.1
    yield Row(f"{name}: error after the cut", *map(text, errors), abs(errors[0] - errors[1]), allowed)
    carried = cp.apply(model, other, graph=graph)
    with torch.no_grad():
        outputs = carried(inputs), compact(on_device)
    yield Row(f"{name}: the device's plan on the CPU", "outputs", "outputs", relative(*outputs), ROUNDING)
    for repeated in again:
        unlike = sum(m.kept.tolist() != n.kept.tolist() for m, n in zip(other.merges, repeated.merges, strict=True))
        yield Row(f"{name}: images from the CPU", "", "", unlike, 0.0)


def part_trace(place: Place) -> Iterator[Row]:
    """Group the channels of models on the CPU and on the device."""
    from torchvision import models

    makers = {"resnet18": models.resnet18, "mobilenet_v3_small": models.mobilenet_v3_small, "vgg11": models.vgg11}
    for name, make in place.some(tuple(makers.items()), 1):
        torch.manual_seed(SEED)
        model = make(weights=None).eval()
        there = copy.deepcopy(model).to(place.device)
        before = {path: tensor.clone() for path, tensor in there.state_dict().items()}
        example = torch.zeros(1, 3, 64, 64)
        here, other = cp.trace(model, example), cp.trace(there, example)  # the example goes to the model
        words = str(here), str(other)
        yield Row(f"trace {name}", f"{len(here.groups)} groups", f"{len(other.groups)} groups", words[0] != words[1], 0)
        changed = [path for path, tensor in there.state_dict().items() if not torch.equal(tensor, before[path])]
        yield Row(f"trace {name}: model left alone", "", "", len(changed), 0)


def part_oneshot(place: Place) -> Iterator[Row]:
    """Compress in one shot, with images and without, by every target and price."""
    pair = Pair.on(place)
    cases: tuple[tuple[str, bool, dict[str, Any]], ...] = (
        ("oneshot", True, {"keep_macs": 0.5}),
        ("oneshot, no images", False, {"keep_macs": 0.6, "config": cp.OneShot(from_norms=FEW)}),
        ("oneshot params", True, {"keep_params": 0.6, "round_to": 2}),
        ("oneshot, no refit", True, {"keep_macs": 0.5, "config": cp.OneShot(refit=None, sensitivity="error")}),
    )
    for name, given, options in place.some(cases, 2):
        yield from compare_plans(
            name, place, pair,
            lambda graph, x, given=given, options=options: cp.oneshot(graph, x if given else None, **options),
            different=0.05,
        )  # fmt: skip


def part_oneshot_wide(place: Place) -> Iterator[Row]:
    """Compress a model from torchvision in float32, as a user does."""
    from torchvision import models

    torch.manual_seed(SEED)
    inputs = images(128, 48, torch.float32)
    model = settled(models.resnet18(weights=None, num_classes=10), inputs)
    there = copy.deepcopy(model).to(place.device)
    plans = [
        cp.oneshot(cp.trace(one, inputs[:1]), inputs, keep_macs=0.5) for one in (model, there)
    ]  # fmt: skip
    small, compact = cp.apply(model, plans[0]), cp.apply(there, plans[1])
    macs = evaluate.macs(small, inputs[:1]), evaluate.macs(compact, inputs[:1])
    yield Row("oneshot resnet18: MACs", str(macs[0]), str(macs[1]), abs(macs[0] - macs[1]) / macs[0], 0.02)
    errors = lost(model, small, inputs), lost(there, compact, inputs.to(place.device))
    yield Row("oneshot resnet18: error after the cut", *map(text, errors), errors[1] - errors[0], 0.1)
    carried = cp.apply(model, plans[1])
    with torch.no_grad():
        outputs = carried(inputs), compact(inputs.to(place.device))
    yield Row("oneshot resnet18: the device's plan on the CPU", "", "", relative(*outputs), SINGLE)


def part_distil(place: Place) -> Iterator[Row]:
    """Teach the same compact network on the CPU and on the device, and make images from its batch norms."""
    pair = Pair.on(place)
    plan = cp.oneshot(pair.graph, pair.inputs, keep_macs=0.5)
    here, there = (cp.distil(graph, plan, pair.inputs, steps=6) for graph in (pair.graph, pair.elsewhere))
    far = [there.notes["distil"][name] / here.notes["distil"][name] - 1 for name in COMPARED]
    yield Row(
        "distil: divergence",
        *(text(p.notes["distil"]["divergence_after"]) for p in (here, there)),
        max(map(abs, far)),
        0.01,
    )
    made = [cp.images_from_norms(graph, config=FEW).cpu() for graph in (pair.graph, pair.elsewhere)]
    yield Row("images from batch norms", "images", "images", relative(*made), 0.01)


COMPARED = ("divergence_before", "divergence_after")
FEW = cp.FromNorms(images=32, steps=8)
"""Images that are made quickly, whatever they look like."""


def part_plan(place: Place) -> Iterator[Row]:
    """Cluster by every similarity, clustering and merge."""
    pair = Pair.on(place)
    counted = (KMeans(n_clusters=2), Agglomerative(n_clusters=2), Spectral(n_clusters=2), Birch(n_clusters=2))
    others = (DBSCAN(eps=0.05, min_samples=2), HDBSCAN(min_cluster_size=2), OPTICS(min_samples=2), MeanShift())
    similarities = (FeatureMaps(), FeatureMaps("euclidean", place="consumer_input"), Filters(fold_batch_norm=True))
    merges = itertools.cycle(("least_squares", "drop", "refit", "add", "scaled_add"))
    ways: list[tuple[Any, Any, dict[str, Any]]] = [
        (similarities[0], DBSCAN(eps=0.05, min_samples=2), {"keep_macs": 0.6}),
        (similarities[2], KMeans(n_clusters=6), {}),
    ]
    ways += [(similarities[1], clustering, {}) for clustering in others]
    ways += [(similarities[0], clustering, {"keep_macs": 0.6}) for clustering in counted]
    ways += [(Filters("cosine"), DBSCAN(eps=0.2, min_samples=2), {})]
    for similarity, clustering, options in place.some(ways, 5):
        merge = next(merges)
        name = f"plan {type(similarity).__name__} {type(clustering).__name__} {merge}"
        given = {"similarity": similarity, "clustering": clustering, "merging": merge, **options}
        yield from compare_plans(name, place, pair, lambda graph, x, given=given: cp.cluster(graph, x, **given))


def part_prune_by(place: Place) -> Iterator[Row]:
    """Prune by every criterion, with every way to hand over."""
    pair = Pair.on(place)
    labels = torch.arange(len(pair.inputs)) % 10
    merges = itertools.cycle(("drop", "least_squares", "refit"))
    for criterion, scope in zip(criteria.names(), itertools.cycle(("local", "global")), strict=False):
        given = {"keep_macs": 0.6, "scope": scope, "merging": next(merges), "labels": labels}
        # There is no batch norm behind two of the layers.
        given["ignore"] = ["up", "last"] if criterion == "bn_scale" else []
        yield from compare_plans(
            f"prune_by {criterion} {scope} {given['merging']}", place, pair,
            lambda graph, x, criterion=criterion, given=given: cp.prune_by(graph, criterion, images=x, **given),
            different=0.02,
        )  # fmt: skip


def part_law_2(place: Place) -> Iterator[Row]:
    """A cut model on the device is the masked original, in float64; and the same as on the CPU."""
    from torchvision import models

    makers: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "Mixed": (Mixed, 12),
        "Halves": (Halves, 12),
        "resnet18": (lambda: models.resnet18(weights=None, num_classes=10), 48),
        "mobilenet_v2": (lambda: models.mobilenet_v2(weights=None, num_classes=10), 48),
        "densenet121": (lambda: models.densenet121(weights=None, num_classes=10), 48),
    }
    for name, (make, size) in place.some(tuple(makers.items()), 2):
        torch.manual_seed(SEED)
        inputs = images(8, size)
        model = settled(make(), inputs)
        there = copy.deepcopy(model).to(place.device)
        graph = cp.trace(there, inputs[:1])
        generator = np.random.default_rng(SEED)
        merges = []
        for group in graph.prunable:
            per_block = max(1, int(group.width / group.n_blocks * 0.6))
            kept = np.sort(
                np.concatenate(
                    [
                        generator.choice(np.flatnonzero(group.blocks == block), per_block, replace=False)
                        for block in range(group.n_blocks)
                    ]
                )
            )
            whole = [use for use in group.consumers if use.groups == 1]
            mixing = {
                use.path: torch.from_numpy(generator.normal(size=(group.width, len(kept))) / len(kept) ** 0.5).float()
                for use in whole
            }
            merges.append(Merge(group.name, kept, mixing))
        plan = Plan.of(graph, tuple(merges))
        compact = cp.apply(there, plan, graph=graph)
        x = inputs.to(place.device)
        with torch.no_grad():
            masked = torch.func.functional_call(there, masked_state(graph, plan), (x,))
            outputs = compact(x)
            on_cpu = cp.apply(model, plan)(inputs)
        kind = "rewired" if isinstance(compact, torch.fx.GraphModule) else "class kept"
        yield Row(f"law 2, {name}: cut = masked", "", kind, relative(masked, outputs), ROUNDING)
        yield Row(f"law 2, {name}: CPU = device", kind, kind, relative(on_cpu, outputs), ROUNDING)


def digits() -> tuple[Split, Split]:
    """Return 320 digits to train on and 80 held out."""
    return data.holdout(data.sample(data.load("digits", image_size=8).train, 400, SEED), 0.2)


def training(place: Place | None, **changes: Any) -> TrainConfig:
    """Return a short training on a place, or on the CPU."""
    fields = {"epochs": 2, "batch_size": 64, "lr": 0.05, "augment": "none", "precision": "float32", "seed": SEED}
    return TrainConfig(**{**fields, "device": "cpu" if place is None else str(place.device), **changes})


def narrow() -> nn.Module:
    """Return the network for digits with random weights."""
    torch.manual_seed(SEED)
    return Narrow()


def part_fit(place: Place) -> Iterator[Row]:
    """Train in every precision, compiled, averaged, guided and streamed; twice on the device, and once on the CPU."""
    images_, held_out = digits()
    task = Classification(images_, held_out, mean=MEAN, std=STD)
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "crop_flip, clip, average": {"augment": "crop_flip", "clip_norm": 1.0, "ema_decay": 0.9},
        "resized crops, streamed": {"augment": "resized_crop_flip", "memory_limit_gib": 0.0},
        "resized crops": {"augment": "resized_crop_flip"},
        "bfloat16": {"precision": "bfloat16"},
    }
    ways |= {"float16": {"precision": "float16"}} if place.gpu else {}
    ways |= {"compiled": {"compile": True}} if place.device.type in ("cuda", "cpu") else {}
    for name, changes in ways.items():
        here, first, second = narrow(), narrow(), narrow()
        on_cpu = {**changes, "compile": False}
        on_cpu |= {"precision": "bfloat16"} if changes.get("precision") == "float16" else {}  # which the CPU has not
        losses = [
            train.fit(model, task, config).history[-1]["loss"]
            for model, config in (
                (here, training(None, **on_cpu)),
                (first, training(place, **changes)),
                (second, training(place, **changes)),
            )
        ]
        yield Row(f"fit {name}: loss", text(losses[0]), text(losses[1]), abs(losses[0] / losses[1] - 1), 0.05)
        yield same_models(f"fit {name}, twice on the device", first, second)
    guided = [
        train.fit(narrow(), task, training(where), loss=Guidance(narrow(), task, stages=["first"])).history[-1]["loss"]
        for where in (None, place)
    ]
    yield Row("fit guided: loss", *map(text, guided), abs(guided[0] / guided[1] - 1), 0.05)
    pixels, labels = images_.load()
    there = narrow()
    train.fit(there, task.on((pixels.to(place.device), labels.to(place.device)), held_out), training(place))
    again = narrow()
    train.fit(again, task, training(place))
    yield same_models("fit: tensors from the device", again, there)


VICTIM = "train_for_long"
EPOCHS = 20


def train_for_long(place: Place, *, resume: bool) -> nn.Module:
    """Train with a checkpoint after every step, slowly enough to be killed on the way."""
    model = narrow()
    train.fit(
        model, Classification(*digits(), mean=MEAN, std=STD),
        training(place, epochs=EPOCHS, checkpoint_minutes=1e-9), out=place.folder / "victim", resume=resume,
    )  # fmt: skip
    return model


def part_resume(place: Place) -> Iterator[Row]:
    """Kill a training with -9, go on, and compare with one that was left alone."""
    log = place.folder / "victim" / "log.jsonl"
    victim = subprocess.Popen(
        [*python(), sys.argv[0], "--part", VICTIM, "--device", str(place.device), "--folder", str(place.folder)]
    )
    while victim.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.005)
    killed = victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    epochs = len(log.read_text().splitlines())
    stopped = killed and epochs < EPOCHS
    yield Row("resume: killed on the way", f"{EPOCHS} epochs", f"killed after {epochs}", float(not stopped), 0.0)
    went_on = train_for_long(place, resume=True)
    whole = train_for_long(Place(place.device, place.folder / "whole"), resume=False)
    yield same_models("resume after kill -9", whole, went_on)


def both(place: Place, run: Callable[[nn.Module, TrainConfig], nn.Module], name: str) -> Iterator[Row]:
    """Run a method that trains in both places; compare what it leaves, and what is loaded from disk on the CPU."""
    images_, held_out = digits()
    trained = narrow()
    train.fit(trained, Classification(images_, mean=MEAN, std=STD), training(None, epochs=4))
    trained.eval()
    example = torch.zeros(1, 1, 8, 8)
    made = []
    for where in (None, place):
        model = copy.deepcopy(trained).to("cpu" if where is None else place.device)
        before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
        made.append(run(model, training(where)))
        unchanged = all(torch.equal(t, before[path]) for path, t in model.state_dict().items())
        if not unchanged:
            yield Row(f"{name}: the model given is left alone", "", "", 1.0, 0.0)
    macs = [evaluate.macs(model, example) for model in made]
    yield Row(f"{name}: MACs", *map(str, macs), abs(macs[0] - macs[1]) / macs[0], 0.1)
    right = [evaluate.accuracy(m, held_out, mean=MEAN, std=STD).top1 for m in made]
    yield Row(f"{name}: accuracy", *map(text, right), abs(right[0] - right[1]), 25.0)
    yield from through_disk(name, place, made[1].eval(), Narrow, data.normalize(held_out.images(), MEAN, STD))


def through_disk(
    name: str, place: Place, model: nn.Module, factory: Callable[[], nn.Module], inputs: Tensor
) -> Iterator[Row]:
    """Save a compact model from the device, load it on the CPU and run it there."""
    folder = place.folder / name.replace(" ", "_").replace(",", "")
    cp.save(model, folder)
    loaded = cp.load(folder, factory)
    yield same_models(f"{name}, saved there, loaded on the CPU", loaded, model)
    dtype = next(model.parameters()).dtype
    loaded = loaded.to(dtype)
    with torch.no_grad():
        outputs = loaded(inputs.to(dtype)), model(inputs.to(place.device, dtype))
    yield Row(f"{name}: loaded on the CPU, outputs", "", "", relative(*outputs), SINGLE)
    there = cp.load(folder, lambda: factory().to(place.device)).to(dtype)
    yield same_models(f"{name}, loaded there", there, model)
    with torch.no_grad():
        outputs = there(inputs.to(place.device, dtype)), model(inputs.to(place.device, dtype))
    yield Row(f"{name}: loaded there, outputs", "", "", relative(*outputs), SINGLE)


EXAMPLE = torch.zeros(1, 1, 8, 8)


def part_icp(place: Place) -> Iterator[Row]:
    """Iterative clustering pruning."""
    images_, held_out = digits()
    config = cp.ICP(
        0.6, cp.ClusterCut(min_samples=2), samples=64, steps=2, epochs_between=1, stages=("first",)
    )  # fmt: skip
    task = Classification(images_, held_out, mean=MEAN, std=STD)

    def run(model: nn.Module, config_: TrainConfig) -> nn.Module:
        network, work = cp.Network(model, EXAMPLE), cp.Work(tempfile.mkdtemp(dir=place.folder), config_, resume=True)
        config.run(network, task, work)
        return config.run(network, task, work).model

    yield from both(place, run, "icp")


def part_acp(place: Place) -> Iterator[Row]:
    """Automatic channel pruning by both fitnesses, and the training after it."""
    images_, held_out = digits()
    task = Classification(images_, held_out, mean=MEAN, std=STD)

    def run(fitness: str, model: nn.Module, config: TrainConfig) -> nn.Module:
        merges = fitness == "merge"
        settings = cp.ACP(
            0.7, cp.ClusterCut(min_samples=2), samples=64, particles=2, cycles=1, fitness=fitness, fitness_epochs=1,
            merging="refit" if merges else "drop", candidates_inherit=merges, retraining_inherits=merges,
            equal_macs=False,
        )  # fmt: skip
        return settings.run(cp.Network(model, EXAMPLE), task, cp.Work(training=config)).model

    for fitness in ("train", "merge"):
        yield from both(place, lambda model, config, f=fitness: run(f, model, config), f"acp {fitness}")


def part_cp_and_sfp(place: Place) -> Iterator[Row]:
    """Cluster pruning with both kinds of batch norm, and soft filter pruning."""
    images_, held_out = digits()
    common = {"mean": MEAN, "std": STD}

    def cluster(batch_norm: str, model: nn.Module, config: TrainConfig) -> nn.Module:
        settings = cp.CP(goal=0.6, batch_norm=batch_norm, curvature=20.0, mean_of="replaced")
        task = Classification(images_, held_out, **common)
        return settings.run(cp.Network(model, EXAMPLE), task, cp.Work(training=config)).model

    def soft(model: nn.Module, config: TrainConfig) -> nn.Module:
        network = copy.deepcopy(model)
        hook = SoftPruning(cp.trace(network, torch.zeros(1, 1, 8, 8)), keep_macs=0.6)
        train.fit(network, Classification(images_, held_out, **common), config, hook=hook)
        return cp.apply(network.eval(), hook.finish())

    for kind in ("tied", "removed"):
        yield from both(place, lambda model, config, k=kind: cluster(k, model, config), f"cp {kind}")
    yield from both(place, soft, "sfp")


def part_measure(place: Place) -> Iterator[Row]:
    """Evaluate, count and time."""
    images_, _ = digits()
    model = narrow()
    train.fit(model, Classification(images_, mean=MEAN, std=STD), training(None, epochs=4))
    test = data.load("digits", image_size=8).splits["test"]
    there = copy.deepcopy(model).to(place.device)
    right = [evaluate.accuracy(m, test, mean=MEAN, std=STD, batch_size=100).top1 for m in (model, there)]
    yield Row("accuracy", *map(text, right), abs(right[0] - right[1]), 0.6)
    moved = evaluate.accuracy(model, test, mean=MEAN, std=STD, device=place.device, channels_last=True).top1
    yield Row("accuracy, moved there for it", text(right[0]), text(moved), abs(right[0] - moved), 0.6)
    half = evaluate.accuracy(there, test, mean=MEAN, std=STD, dtype=torch.bfloat16).top1
    yield Row("accuracy in bfloat16", text(right[0]), text(half), abs(right[0] - half), 3.0)
    example = torch.zeros(1, 1, 8, 8)
    counts = [(evaluate.macs(m, example), evaluate.params(m)) for m in (model, there)]
    yield Row("MACs and parameters", *(f"{m}, {p}" for m, p in counts), float(counts[0] != counts[1]), 0.0)
    times = [evaluate.latency(m, example, runs=5) for m in (model, there)]
    sound = all(t.median_ms > 0 and t.runs == 5 for t in times)
    yield Row("latency, ms", *(text(t.median_ms) for t in times), 0.0 if sound else 1.0, 0.0)


def part_latency(place: Place) -> Iterator[Row]:
    """Compress to a measured latency a network that computes for longer than it takes to launch."""
    width, size, batch = (256, 64, 32) if place.gpu else (48, 24, 8)
    torch.manual_seed(SEED)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    ).to(place.device).eval()  # fmt: skip
    example = torch.randn(batch, 3, size, size)
    graph = cp.trace(net, example)
    plan = cp.prune_by(graph, "l1", keep_latency=0.6)
    small = cp.apply(net, plan, graph=graph)
    times = [evaluate.latency(m, example, runs=15).median_ms for m in (net, small)]
    yield Row("keep_latency=0.6", text(times[0]), text(times[1]), times[1] / times[0], 0.8)


def part_disk(place: Place) -> Iterator[Row]:
    """Save and load: plans, compact models whose class was kept, and rewired ones."""
    for name, make in (("kept class", Mixed), ("rewired", Halves)):
        torch.manual_seed(SEED)
        inputs = images(48)
        there = settled(make(), inputs).to(place.device)
        graph = cp.trace(there, inputs[:1])
        plan = cp.oneshot(graph, inputs, keep_macs=0.5)
        compact = cp.apply(there, plan, graph=graph)
        rewired = isinstance(compact, torch.fx.GraphModule)
        yield Row(f"disk, {name}", "", str(type(compact).__name__), float(rewired != (name == "rewired")), 0.0)
        yield from through_disk(f"disk {name}", place, compact, lambda make=make: make().double(), inputs)
        plan.save(place.folder / f"plan-{name}".replace(" ", "-"))
        again = cp.apply(there, Plan.load(place.folder / f"plan-{name}".replace(" ", "-")), graph=graph)
        yield same_models(f"disk, {name}: the plan, loaded and applied", compact, again)
        held = [t for m in plan.merges for t in (*m.mixing.values(), *m.offset.values())]
        strays = [t for t in (*held, *plan.replaced.values()) if t.device.type != "cpu"]
        yield Row(f"disk, {name}: a plan is on the CPU", "", "", len(strays), 0.0)
        twice = cp.apply(compact, cp.prune_by(cp.trace(compact, inputs[:1]), "l2", keep_macs=0.7))
        yield from through_disk(f"disk {name} cut twice", place, twice, lambda make=make: make().double(), inputs)


RECIPE = """
model: resnet20
data: digits
method: icp
knob: ε = 0.2
settings: {eps: 0.2, min_samples: 2, samples: 64, steps: 2, epochs_between: 1}
training: {epochs: 1, batch_size: 128, lr: 0.05, augment: none, precision: float32}
baseline: {epochs: 1, batch_size: 128, lr: 0.1, augment: none, precision: float32}
published:
  paper: Nobody (2026)
  table: "1"
  baseline: {accuracy: 99.5}
  compressed: {accuracy: 99.25}
  drop: 0.25
"""


class Commands:
    """The commands, started as a user starts them, in one folder."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *arguments: object) -> None:
        """Start a command in a process of its own."""
        with (self.place.folder / f"{name}.log").open("w") as log:
            self.running[name] = subprocess.Popen(
                [*python(), "-m", "clusterprune.cli", *map(str, arguments)],
                cwd=self.place.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "COLUMNS": "120"},
            )

    def end(self, *names: str) -> Iterator[Row]:
        """Wait for commands; a row says how each ended, and the end of its output is shown if it failed."""
        for name in names:
            code = self.running.pop(name).wait()
            if code:
                print(f"--- {name} ended with {code}\n{self.said(name)[-3000:]}", file=sys.stderr)
            yield Row(f"command {name}: exit status", "0", str(code), abs(code), 0)

    def said(self, name: str) -> str:
        """Return what a command has printed."""
        return (self.place.folder / f"{name}.log").read_text()

    def result(self, run: str) -> dict[str, Any]:
        """Return a run's result."""
        path = self.place.folder / run / "result.json"
        return json.loads(path.read_text()) if path.exists() else {}


NETWORK = ("--model", "resnet20", "--image-size", 8)
SHORT = ("--batch-size", 64, "--augment", "none")


def part_commands(place: Place) -> Iterator[Row]:
    """Every command, small: train, compress, compare, evaluate, inspect, reproduce, demo."""
    commands = Commands(place)
    device = ("--device", place.device)
    (place.folder / "own.yaml").write_text(RECIPE)
    commands.start("demo", "demo", "--out", "demo", "--epochs", 1)
    commands.start("reproduce", "reproduce", "own.yaml", "--data", "digits", "--limit", 256, "--out", "own", *device)
    commands.start("train", "train", *NETWORK, "--data", "digits", "--out", "base", "--epochs", 4, *SHORT, *device)
    yield from commands.end("train")
    given = (*NETWORK, "--weights", "base", "--data", "digits")
    cut = ("compress", *given, "--images", 256, "--keep-macs", 0.5)
    commands.start("oneshot-cpu", *cut, "--out", "oneshot-cpu", "--device", "cpu")
    commands.start("oneshot", *cut, "--out", "oneshot", *device)
    commands.start("no-images", "compress", *given, "--data-free", "--keep-macs", 0.6, "--out", "no-images", *device)
    commands.start(
        "icp", "compress", *given, "--method", "icp", "--keep-macs", 0.6, "--steps", 2, "--epochs", 1, "--set",
        "samples=64", "--set", "min_samples=2", "--set", "epochs_between=1", *SHORT, "--out", "icp", *device,
    )  # fmt: skip
    commands.start("inspect", "inspect", *NETWORK, "--weights", "base")
    commands.start(
        "compare", "compare", *given, "--methods", "oneshot,taylor,sfp,cp", "--epochs", 1, "--keep-macs", 0.6,
        "--augment", "none", "--out", "compare", *device,
    )  # fmt: skip
    yield from commands.end("oneshot-cpu", "oneshot")
    for name, where in (("evaluate", place.device), ("evaluate-cpu", "cpu")):
        commands.start(name, "evaluate", "oneshot", *NETWORK, "--data", "digits", "--json", "--device", where)
    yield from commands.end("evaluate", "evaluate-cpu", "no-images", "icp", "inspect", "compare", "reproduce", "demo")
    results = [commands.result(name).get("compressed", {}) for name in ("oneshot-cpu", "oneshot")]
    macs = [result.get("macs", float("nan")) for result in results]
    yield Row("command compress: MACs", *map(str, macs), abs(macs[0] - macs[1]) / macs[0], 0.02)
    right = [result.get("accuracy", float("nan")) for result in results]
    yield Row("command compress: accuracy", *map(text, right), abs(right[0] - right[1]), 5.0)
    kind = commands.result("oneshot").get("device_type", "none")
    yield Row("command compress: it ran on", "", kind, float(kind != place.device.type), 0.0)


def part_worker(place: Place) -> Iterator[Row]:
    """A search that a run and a worker share, both on the device."""
    commands = Commands(place)
    device = ("--device", place.device)
    storage = ("--storage", "search.db", "--study", "mine")
    commands.start("base", "train", *NETWORK, "--data", "digits", "--out", "base", "--epochs", 1, *SHORT, *device)
    yield from commands.end("base")
    commands.start("worker", "worker", *storage, *device)
    commands.start(
        "acp", "compress", *NETWORK, "--weights", "base", "--data", "digits", "--method", "acp", "--out", "acp",
        *storage, "--keep-macs", 0.6, "--epochs", 1, "--augment", "none", "--set", "samples=64", "--set",
        "min_samples=2", "--set", "particles=4", "--set", "cycles=1", "--set", "fitness_epochs=2", *device,
    )  # fmt: skip
    yield from commands.end("acp", "worker")
    evaluations = commands.result("acp").get("record", {}).get("evaluations", 0)
    yield Row("worker: structures in all", "8", str(evaluations), abs(8 - evaluations), 0)
    shared = [line for line in commands.said("worker").splitlines() if "This worker evaluated" in line]
    took_part = bool(shared) and "evaluated 0 structures" not in shared[-1]
    yield Row("worker: it took part", "", "yes" if took_part else "no", float(not took_part), 0)


def python() -> list[str]:
    """Return how the check starts Python, for what runs in a process of its own."""
    return [sys.executable, *json.loads(os.environ.get(PYTHON, "[]"))]


PYTHON = "CLUSTERPRUNE_CHECK_PYTHON"
"""Environment variable with arguments for Python, as a JSON list."""


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")
}
