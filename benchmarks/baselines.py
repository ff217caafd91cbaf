"""Torch-Pruning's criteria, each brought to a given number of MACs.

https://github.com/VainF/Torch-Pruning (Fang et al. 2023, arXiv 2301.12900). A criterion gives one score per
channel; its pruner then removes the lowest, either the same share of every layer ("local") or across all
layers by one threshold ("global"). It is told a share of *channels*, so the share that leaves the wanted MACs
is searched for here, and the MACs are counted on the network that comes out.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from torch_pruning.pruner import importance as scores

from clusterprune import evaluate

Scope = Literal["local", "global"]
SCOPES: tuple[Scope, ...] = ("local", "global")

WITHIN = 0.01
"""Relative distance to the wanted MACs at which two networks count as equally large."""
_CLOSE = 0.002
"""Distance at which the search stops; inside WITHIN, so that nobody gains from the tolerance."""
_TURNS = 20
_GRID = 12
_NARROW = 1e-4
_MOST = 0.98


@dataclass(frozen=True)
class Criterion:
    """A way to score channels.

    Attributes
    ----------
    name
        As in the tables.
    score
        Builds Torch-Pruning's importance, given its normalizer ("mean" or None).
    gradients
        What it reads from the labelled images: nothing, the gradient of the mean loss, or the mean of each
        image's squared gradient. A criterion that reads nothing does not depend on the seed.
    """

    name: str
    score: Callable[[str | None], scores.Importance]
    gradients: Literal["nothing", "mean", "square"] = "nothing"


CRITERIA: Mapping[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("l1", lambda normalizer: scores.GroupMagnitudeImportance(p=1, normalizer=normalizer)),
        Criterion("l2", lambda normalizer: scores.GroupMagnitudeImportance(p=2, normalizer=normalizer)),
        Criterion("fpgm", lambda normalizer: scores.FPGMImportance(normalizer=normalizer)),
        Criterion("bn-scale", lambda normalizer: scores.BNScaleImportance(normalizer=normalizer)),
        Criterion("taylor", lambda normalizer: scores.GroupTaylorImportance(normalizer=normalizer), "mean"),
        Criterion("hessian", lambda normalizer: scores.GroupHessianImportance(normalizer=normalizer), "square"),
    )
}


@dataclass(frozen=True)
class Settings:
    """Options of Torch-Pruning's pruner.

    Attributes
    ----------
    scope
        "local" or "global".
    steps
        In how many steps it prunes, scoring anew before each.
    normalizer
        What a layer's scores are divided by: their "mean" (Torch-Pruning's default), or nothing.
    """

    scope: Scope
    steps: int = 1
    normalizer: str | None = "mean"


CANDIDATES: Mapping[Scope, tuple[Settings, ...]] = {
    "local": (Settings("local"),),  # within one layer, neither option matters to the order
    "global": (Settings("global"), Settings("global", steps=5), Settings("global", normalizer=None)),
}


@dataclass(frozen=True)
class Pruned:
    """A network that Torch-Pruning made smaller.

    Attributes
    ----------
    model
        In eval mode, without gradients.
    macs
        Counted on it, for one image.
    ratio
        Share of channels that the pruner was told to remove.
    settings
        The pruner's options.
    """

    model: nn.Module
    macs: int
    ratio: float
    settings: Settings


def ignored_layers(model: nn.Module) -> list[str]:
    """Name the layers whose outputs stay whole.

    The classifier, and in a CIFAR ResNet every convolution that writes the residual stream (the stem and the
    second of each block): Torch-Pruning stops with an IndexError when it cuts a stream whose shortcuts pad
    channels.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if any(name.startswith("layer1.") for name, _ in model.named_modules()):
        names += [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and not n.endswith(".conv1")]
    return names


def gradients(
    model: nn.Module, images: Tensor, labels: Tensor, kind: Literal["nothing", "mean", "square"], batch_size: int = 128
) -> dict[str, Tensor]:
    """Return what a criterion reads from labelled images, by the name of the parameter.

    "mean" is the gradient of the mean cross-entropy, "square" the mean over images of the squared gradient of
    each one's own cross-entropy (the diagonal of the empirical Fisher matrix, which stands for the Hessian).
    The squares are summed here because Torch-Pruning 1.6.1's own ``accumulate_grad`` looks parameters up by
    their names in a table keyed by the parameters, and so keeps the last image only.
    """
    if kind == "nothing":
        return {}
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    size = 1 if kind == "square" else batch_size
    model.eval()
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        loss = functional.cross_entropy(model(x), y, reduction="sum")
        for name, grad in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += grad.square() if kind == "square" else grad
    return {name: value / len(images) for name, value in total.items()}


def prune(
    model: nn.Module,
    example: Tensor,
    criterion: Criterion,
    settings: Settings,
    target: int,
    from_labels: Mapping[str, Tensor],
) -> Pruned:
    """Prune a copy of a network to a number of MACs.

    The share of channels is found by interpolation and bisection. Under "local", where all layers of one
    width lose a channel at the same share and the MACs jump, the layers before some point get the share
    above the jump and the others the share below it; no layer is then more than one channel off the uniform
    share. Under "global", Torch-Pruning leaves a layer whole when every channel of it falls below the
    threshold, so the MACs can rise with the share: where the search ends at such a jump, a grid of shares is
    tried for other crossings.

    Parameters
    ----------
    model, example
        The trained network and an input for one image.
    criterion, settings
        How to score and how to prune.
    target
        Wanted MACs.
    from_labels
        What :func:`gradients` returned for this criterion.

    Returns
    -------
    The network closest to the target; its ``macs`` say how close.
    """

    def cut(ratio: float, layers: Mapping[str, float] | None = None) -> Pruned:
        return _cut(model, example, criterion, settings, ratio, layers or {}, from_labels)

    def off(found: Pruned) -> float:
        return abs(found.macs / target - 1)

    def halve(low: float, high: float, above: int, below: int) -> tuple[float, float]:
        """Narrow down where the MACs cross the target, noting the closest network met."""
        nonlocal best
        for turn in range(_TURNS):
            # MACs go about with the square of the share that stays, so a line through the roots guesses
            # well; every second turn halves the interval, whatever their course.
            roots = above**0.5, target**0.5, below**0.5
            guess = (roots[0] - roots[1]) / (roots[0] - roots[2]) if turn % 2 == 0 else 0.5
            middle = low + min(max(guess, 0.02), 0.98) * (high - low)
            found = cut(middle)
            best = min(best, found, key=off)
            if off(best) <= _CLOSE or high - low < _NARROW:
                break
            if found.macs > target:
                low, above = middle, found.macs
            else:
                high, below = middle, found.macs
        return low, high

    best = cut(_MOST)
    # Near the end, layers that would lose every channel are left whole; the crossing still lies before it.
    low, high = halve(0.0, _MOST, evaluate.macs(model, example), min(best.macs, target // 4))
    if settings.scope == "local" and off(best) > _CLOSE:
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n not in ignored_layers(model)]
        first, last = 0, len(names)
        while first < last and off(best) > _CLOSE:
            middle = (first + last) // 2
            shares = {name: high if index < middle else low for index, name in enumerate(names)}
            found = cut(high, shares)
            best = min(best, found, key=off)
            first, last = (middle + 1, last) if found.macs > target else (first, middle)
    elif off(best) > WITHIN:
        shares = [_MOST * i / _GRID for i in range(_GRID + 1)]
        sizes = [cut(share).macs for share in shares]
        for i in range(_GRID):
            if sizes[i] > target >= sizes[i + 1] and off(best) > WITHIN:
                halve(shares[i], shares[i + 1], sizes[i], sizes[i + 1])
    return best


def reestimate_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 256) -> nn.Module:
    """Return a copy whose batch norms hold the statistics of these images.

    Mean and variance are the plain averages over the batches (``momentum=None``), all layers at once: each
    batch norm normalises by the batch while it counts.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.inference_mode():
        for batch in images.split(batch_size):
            model(batch)
    return model.eval()


def _cut(
    model: nn.Module,
    example: Tensor,
    criterion: Criterion,
    settings: Settings,
    ratio: float,
    layers: Mapping[str, float],
    from_labels: Mapping[str, Tensor],
) -> Pruned:
    small = copy.deepcopy(model).eval()
    for name, parameter in small.named_parameters():
        # Torch-Pruning reads `.grad`, and cuts it together with the parameter between two steps.
        parameter.grad = from_labels[name].clone() if from_labels else None
    options: dict[str, Any] = {}
    if layers:
        options["pruning_ratio_dict"] = {small.get_submodule(name): share for name, share in layers.items()}
    ignored: Sequence[nn.Module] = [small.get_submodule(name) for name in ignored_layers(small)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            small,
            example,
            importance=criterion.score(settings.normalizer),
            global_pruning=settings.scope == "global",
            pruning_ratio=ratio,
            iterative_steps=settings.steps,
            ignored_layers=list(ignored),
            **options,
        )
        for _ in range(settings.steps):
            pruner.step()
    small.zero_grad(set_to_none=True)
    return Pruned(small.eval(), evaluate.macs(small, example), ratio, settings)
