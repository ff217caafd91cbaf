"""Where a model runs, and whether an example fits it."""

import copy

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError

Example = Tensor | tuple[Tensor, ...]


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


def check_example(example: Example) -> tuple[Tensor, ...]:
    """Return the example inputs as a tuple.

    Raises
    ------
    ArgumentError
        When they are anything but a tensor or a tuple of tensors.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ArgumentError(f"example must be a tensor or a tuple of tensors, but got {type(example).__name__}.")
    return inputs
