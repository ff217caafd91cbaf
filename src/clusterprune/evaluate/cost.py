"""Multiply-adds and parameters."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clusterprune.arguments import check_model
from clusterprune.errors import ModelError
from clusterprune.evaluate.mode import Example, check_example, device_of
from clusterprune.graph.throwaway import evaluating


def macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass in evaluation mode, one multiply-add counting as one.

    What PyTorch's own counter sees, halved: convolutions, linear layers, matrix products and
    attention. Normalisation, activations and pooling are not counted.

    Parameters
    ----------
    model
        Left as it was.
    example
        Input, or tuple of inputs. The count is for the whole batch: give a batch of one.

    Raises
    ------
    ArgumentError
        When the example is not made of tensors.
    ModelError
        When the model cannot take the example.
    """
    check_model(model)
    inputs = check_example(example)
    place = device_of(model)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            model(*(x.to(place, copy=True) for x in inputs))  # a forward may write into them
        except (RuntimeError, ValueError, TypeError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise ModelError(
                f"the model failed on an example of shape {shapes}: {error}. Give an input it accepts."
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
