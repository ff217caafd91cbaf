"""A smaller network in one call."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Unpack, cast

from torch import Tensor, nn

from clusterprune.arguments import type_name
from clusterprune.errors import ArgumentError
from clusterprune.graph import trace
from clusterprune.graph.arguments import check_model
from clusterprune.graph.images import Progress
from clusterprune.graph.trace import Example
from clusterprune.merge.divergence import Divergence
from clusterprune.methods.budget import Budget
from clusterprune.methods.oneshot import OneShot, oneshot
from clusterprune.surgery.apply import apply


def compress(
    model: nn.Module,
    images: Any,
    *,
    example: Example | None = None,
    approximate: bool = False,
    ignore: Sequence[str] = (),
    seed: int = 0,
    config: OneShot | None = None,
    divergence: Divergence | None = None,
    progress: Progress | None = None,
    **budget: Unpack[Budget],
) -> nn.Module:
    """Return a smaller network, compressed in one shot: trace, plan and apply in one call.

    Parameters
    ----------
    model
        Trained; never changed.
    images
        Normalised, with labels or without: a tensor, a ``DataLoader``, a ``Dataset``, batches in a list or a generator.
    example
        One input, as :func:`clusterprune.trace` takes it. None takes the first of the images, of a network that reads
        one tensor.
    approximate
        As in :func:`clusterprune.trace`.
    ignore, seed, config, divergence, progress
        As in :func:`clusterprune.oneshot`.
    **budget
        How much to keep, such as ``keep_macs=0.5``: see :class:`clusterprune.methods.budget.Budget`.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, as the model is; of its class wherever its code fits.

    Raises
    ------
    ClusterpruneError
        As :func:`clusterprune.trace`, :func:`clusterprune.oneshot` and :func:`clusterprune.apply`.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> loader = [(torch.randn(32, 3, 8, 8), torch.zeros(32)), (torch.randn(32, 3, 8, 8), torch.zeros(32))]
    >>> cp.compress(net, loader, keep_macs=0.5)[0].out_channels
    8
    """
    check_model(model)
    if example is None:
        example, images = _first(images)
    graph = trace(model, example, ignore=ignore, approximate=approximate)
    plan = oneshot(graph, images, seed=seed, config=config, divergence=divergence, progress=progress, **budget)
    return apply(model, plan, graph=graph)


def _first(images: Any) -> tuple[Tensor, Any]:
    """Return one image, shape (1, …), and the images with that one still among them.

    Raises
    ------
    ArgumentError
        If there is none.
    """
    found = images
    if isinstance(found, (tuple, list)) and found and not isinstance(found[0], Tensor):
        found = cast(Any, found[0])
    elif not isinstance(found, (Tensor, tuple, list, str, Mapping, nn.Module)):
        if isinstance(found, Iterator):
            rest = cast(Iterator[Any], found)
            found = next(rest, None)
            images = chain([found], rest)
        elif hasattr(found, "__getitem__") and hasattr(found, "__len__") and not hasattr(found, "batches"):
            found = found[0] if len(found) else None
        elif hasattr(found, "__iter__"):
            found = next(iter(found), None)
    while isinstance(found, (tuple, list)) and found:
        found = cast(Any, found[0])
    if isinstance(found, Mapping):
        found = next((part for part in cast(Mapping[Any, Any], found).values() if isinstance(part, Tensor)), None)
    if not isinstance(found, Tensor) or not found.ndim:
        raise ArgumentError(
            f"the first of images={type_name(images)} is no tensor, so that nothing says what the network reads; give "
            "example=torch.zeros(1, 3, 224, 224), or whatever its input is"
        )
    return found.unsqueeze(0) if found.ndim == 3 else found[:1], images
