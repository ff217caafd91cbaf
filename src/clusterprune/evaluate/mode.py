"""Where a model runs, and whether an example fits it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import ArgumentError

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A model's input: one tensor, a tuple of positional inputs, or a mapping of keyword inputs."""


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Type of the first floating-point parameter; float32 for a model without any."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def on_device(model: nn.Module, device: torch.device | str | None) -> tuple[nn.Module, torch.device]:
    """Return the model on ``device`` (None: where it is), as a copy if it had to move.

    Raises
    ------
    ArgumentError
        When there is no such device or the model does not fit there.
    """
    home = device_of(model)
    try:
        target = home if device is None else torch.device(device)
        if target == home or (target.index is None and target.type == home.type):
            return model, home
        return copy.deepcopy(model).to(target), target
    # Torch built without CUDA fails an assertion of its own.
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"device={str(device)!r} cannot be used: {error}. Use 'cpu', or None for where the model is."
        ) from error


def check_example(example: Example, place: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword inputs of an example, its tensors copied to a device.

    Copied, because a forward may write into them.

    Raises
    ------
    ArgumentError
        When there is no tensor among them.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = dict(example)
    else:
        args = example if isinstance(example, tuple) else (example,)
    fits = isinstance(example, (Tensor, tuple, Mapping))
    if not fits or not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ArgumentError(
            f"example must be a tensor, a tuple of inputs or a mapping of keywords, but got {type(example).__name__}"
            f"{' without a tensor in it' if fits else ''}."
        )
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(place, copy=True), (args, kwargs))


def shapes_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the shapes of all tensors among the inputs, in words."""
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
