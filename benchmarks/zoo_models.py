"""The networks of ``zoo.py``: which there are, how to build them, and on what input they run."""

import contextlib
import io
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TORCHVISION: dict[str, Any] = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "video": torchvision.models.video,
}
_QUIET = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
"""Constructors that draw their weights slowly; the weights are drawn anew here in any case."""
SIZES = (64, 96, 128)
"""Side lengths in pixels to try, before the size that the network was made for."""
FRAMES = 16


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes
    ----------
    name
        ``torchvision:NAME`` or ``timm:NAME``.
    family
        "classification", "segmentation" or "video", or the timm module.
    native
        Shape of one input that the network was made for, without the batch.
    """

    name: str
    family: str
    native: tuple[int, ...]


def torchvision_entries() -> list[Entry]:
    """Return every network of torchvision for classification, segmentation and video."""
    entries = []
    for family, module in TORCHVISION.items():
        for name in torchvision.models.list_models(module=module):
            side = 299 if name == "inception_v3" else 224
            native = (3, FRAMES, side, side) if family == "video" else (3, side, side)
            entries.append(Entry(f"torchvision:{name}", family, native))
    return entries


def timm_entries() -> list[Entry]:
    """Return of every timm module the network with the fewest parameters, with a convolution where one has any.

    Networks that timm keeps for its own tests are left out. Every other one is built for that, without memory for its
    weights, which takes minutes.
    """
    import timm
    from timm.models import _registry

    found: dict[str, list[tuple[bool, int, Entry]]] = defaultdict(list)
    for name in timm.list_models():
        if name.startswith("test_"):
            continue
        try:
            with quiet(), torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # built by code that needs real numbers: with memory, then
            with quiet():
                model = timm.create_model(name)
        settings: Any = model.default_cfg or {}
        family = _registry._model_to_module[name]
        entry = Entry(f"timm:{name}", family, tuple(settings.get("input_size") or (3, 224, 224)))
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
        size = sum(parameter.numel() for parameter in model.parameters())
        found[family].append((not convolves, size, entry))
    smallest = [min(entries, key=lambda entry: (*entry[:2], entry[2].name)) for entries in found.values()]
    return sorted((entry for *_, entry in smallest), key=lambda entry: entry.family)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what constructors and other tools print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def build(name: str) -> nn.Module:
    """Build a network with random weights, in evaluation mode."""
    source, _, plain = name.partition(":")
    torch.manual_seed(0)
    with quiet():
        if source == "timm":
            import timm

            return timm.create_model(plain).eval()
        options = _QUIET.get(plain, {})
        if plain in torchvision.models.list_models(module=torchvision.models.segmentation):
            options = {**options, "weights_backbone": None}
        return torchvision.models.get_model(plain, weights=None, **options).eval()


def example_for(model: nn.Module, native: tuple[int, ...]) -> Tensor:
    """Return one image (or clip) of the smallest of :data:`SIZES` that the network runs on, else of its own size.

    Raises
    ------
    RuntimeError
        If it runs on none.
    """
    shapes = [(*native[:-2], side, side) for side in SIZES if side < native[-1]]
    failure: Exception | None = None
    for shape in [*shapes, native]:
        example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), quiet():
                outputs = pytree.tree_leaves(model(example))
        except Exception as error:  # whatever a network says about a size that it does not take
            failure = error
        else:
            if all(torch.isfinite(leaf).all() for leaf in outputs if isinstance(leaf, Tensor)):
                return example
            failure = RuntimeError("its output is not finite")
    raise RuntimeError(f"it does not run on an input of its own size {native}: {failure}")


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw statistics, scales, shifts and whatever is constant at random, so that no zero or one hides an error.

    Matrices and kernels that already vary stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            leaf = path.rpartition(".")[2]
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if leaf == "running_var" or (tensor.ndim == 1 and leaf == "weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif leaf in ("running_mean", "bias"):
                tensor.uniform_(-0.5, 0.5, generator=generator)
            elif isinstance(tensor, nn.Parameter) and bool((tensor == tensor.flatten()[0]).all()):
                tensor.uniform_(0.2, 0.6, generator=generator)
