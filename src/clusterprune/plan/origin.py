"""Which network a plan belongs to: the shapes and the digest of its tensors, and its example input."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph

LARGEST_EXAMPLE = 1 << 28
"""Most numbers in one example input of a plan: a gigabyte in float32."""


def fingerprint(graph: ChannelGraph) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shapes of a model's tensors and a digest of their values."""
    return {path: tuple(tensor.shape) for path, tensor in graph.model.state_dict().items()}, digest_of(graph.model)


def digest_of(model: nn.Module) -> str:
    """Return a digest of the values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for path, tensor in model.state_dict().items():
        # Viewing the bytes works for every dtype, also those that NumPy lacks.
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(path.encode())
        digest.update(data.numpy().data)
    return digest.hexdigest()


def describe_example(graph: ChannelGraph) -> tuple[dict[str, Any], ...]:
    """Return shape, dtype and keyword of each example input (a plain value stays as it is)."""
    described: list[dict[str, Any]] = []
    for keyword, value in [*((None, a) for a in graph.args), *graph.kwargs.items()]:
        entry: dict[str, Any] = {"keyword": keyword}
        if isinstance(value, Tensor):
            entry |= {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        else:
            entry["value"] = value
        described.append(entry)
    return tuple(described)


def rebuild_example(described: tuple[Mapping[str, Any], ...]) -> Any:
    """Return an example input from its description.

    Raises
    ------
    PlanError
        If the description makes no sense, or is of something too large to be an example.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in described:
        value = entry.get("value")
        if entry.get("shape") is not None:
            dtype = getattr(torch, str(entry.get("dtype")), None)
            if not isinstance(dtype, torch.dtype):
                raise PlanError(f"the plan's example has the unknown dtype {entry.get('dtype')!r}")
            shape = [int(s) for s in entry["shape"]]
            if math.prod(shape) > LARGEST_EXAMPLE:
                raise PlanError(
                    f"the plan's example has the shape {tuple(shape)}, which is too large to be one; pass graph= to "
                    "apply, or make the plan again"
                )
            value = torch.zeros(shape, dtype=dtype)
        if entry.get("keyword") is None:
            args.append(value)
        else:
            kwargs[str(entry["keyword"])] = value
    if args and kwargs:
        raise PlanError("the plan's example mixes positional and keyword inputs; pass graph= to apply")
    return kwargs or tuple(args)
