"""Multiply-adds and parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clusterprune.errors import ModelError
from clusterprune.evaluate.mode import Example, check_example, device_of, shapes_of
from clusterprune.graph.arguments import check_model
from clusterprune.graph.throwaway import evaluating


def macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass in evaluation mode, one multiply-add counting as one.

    What PyTorch's own counter sees, halved: convolutions, linear layers, matrix products and
    attention. Normalisation, activations and pooling are not counted. PyTorch's counter is blind to the fused path that
    `nn.MultiheadAttention` takes in evaluation, so that path is closed while it counts.

    Parameters
    ----------
    model
        Left as it was.
    example
        One input, a tuple of them, or a mapping of keyword inputs. The count is for the whole batch: give a batch of
        one.

    Raises
    ------
    ArgumentError
        When there is no tensor in the example.
    ModelError
        When the model cannot take the example.
    """
    check_model(model)
    args, kwargs = check_example(example, device_of(model))
    with evaluating(model), torch.no_grad(), countable(model), FlopCounterMode(display=False) as counter:
        try:
            model(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                f"the model failed on an example of shape {shapes_of(args, kwargs)}: {error}. Give an input it accepts."
            ) from error
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    """Count the parameters; shared ones count once, buffers such as running means not at all.

    Raises
    ------
    ModelError
        If `model` is no network.
    """
    check_model(model)
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def countable(model: nn.Module) -> Iterator[None]:
    """Make a model one that PyTorch's counter counts whole; afterwards everything is as before.

    `nn.MultiheadAttention` and transformer layers run operation by operation, and no parameter asks for a gradient:
    the counter fails where a module is given or returns one that does.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in trained:
            parameter.requires_grad_(True)
